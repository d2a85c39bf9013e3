//! Keeps a program's certificate fresh: asks for the next one when two thirds of the present one's life are over.

use std::error::Error;
use std::time::{Duration, SystemTime};

use super::backoff::Backoff;
use crate::identity::Credential;
use crate::transport::client::CoordinatorClient;

/// Shortest wait between two looks at the certificate: one that lives for seconds must not make a busy loop.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Longest wait. A machine that slept has a clock that jumped, and a timer that did not.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Renews for as long as it is polled. `keep` stores what came; its failure is told and changes nothing else.
pub async fn keep_fresh<E: Error>(client: &CoordinatorClient, keep: impl Fn(&Credential) -> Result<(), E>) {
    let mut backoff = Backoff::default();
    loop {
        let wait = match backoff.failures() {
            0 => until(client.credential().renew_at(), SystemTime::now()),
            _ => backoff.next(rand::random()).clamp(SHORTEST, LONGEST),
        };
        tokio::time::sleep(wait).await;
        match client.renew_if_due(SystemTime::now()).await {
            Ok(None) => backoff.reset(),
            Ok(Some(fresh)) => {
                backoff.reset();
                match keep(&fresh) {
                    Ok(()) => tracing::info!("certificate renewed"),
                    Err(error) => tracing::error!(%error, "the renewed certificate could not be kept"),
                }
            }
            Err(error) => {
                if backoff.failures() == 0 {
                    backoff.next(0.0);
                }
                tracing::warn!(%error, "the certificate could not be renewed yet");
            }
        }
    }
}

/// How long to wait before looking again.
fn until(renew_at: SystemTime, now: SystemTime) -> Duration {
    renew_at.duration_since(now).unwrap_or_default().clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_the_moment_within_its_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(until(at(20), now), Duration::from_secs(20));
        assert_eq!(until(at(20 * 3600), now), LONGEST);
        assert_eq!(until(at(0), now), SHORTEST);
        assert_eq!(until(now, at(500)), SHORTEST);
    }
}

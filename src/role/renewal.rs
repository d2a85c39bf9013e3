//! Keeps a program's certificate fresh: asks for the next one when two thirds of the present one's life are over, or when
//! another authority signs. Looks which authorities are in force.

use std::error::Error;
use std::time::{Duration, SystemTime};

use super::backoff::Backoff;
use crate::transport::client::{ClientError, CoordinatorClient, Fresh};

/// Shortest wait between two looks at the certificate: one that lives for seconds must not make a busy loop.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Longest wait. A machine that slept has a clock that jumped, and a timer that did not. It is also how long it takes
/// until a program that is connected learns of another authority.
pub const LONGEST: Duration = Duration::from_secs(60);

/// How long a program that was told of other authorities keeps everything else waiting until it has followed.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(8);

/// Renews for as long as it is polled. `keep` stores what came; its failure is told and changes nothing else.
pub async fn keep_fresh<E: Error>(client: &CoordinatorClient, keep: impl Fn(&Fresh) -> Result<(), E>) {
    let mut backoff = Backoff::default();
    loop {
        let wait = match backoff.failures() {
            0 => until(client.credential().renew_at(), SystemTime::now()),
            _ => backoff.next(rand::random()).clamp(SHORTEST, LONGEST),
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = client.caught_up() => {}
        }
        // A certificate of seconds is renewed before this matters, and its renewal says the same.
        match step(client, &keep, wait == LONGEST).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                if backoff.failures() == 0 {
                    backoff.next(0.0);
                }
                tracing::warn!(%error, "the certificate could not be renewed yet");
            }
        }
    }
}

/// Learns at once which authorities are in force, and gets a certificate by the one that signs; gives up in time. Whoever
/// awaits it keeps a peer waiting meanwhile that may not believe the certificate from before.
pub async fn follow<E: Error>(client: &CoordinatorClient, keep: impl Fn(&Fresh) -> Result<(), E>) {
    match tokio::time::timeout(FOLLOW_TIMEOUT, step(client, &keep, true)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "other authorities could not be followed yet"),
        Err(_) => tracing::warn!("other authorities could not be followed in time"),
    }
}

/// Renews what is due, after a look at the authorities if `look` says so.
async fn step<E: Error>(
    client: &CoordinatorClient,
    keep: &impl Fn(&Fresh) -> Result<(), E>,
    look: bool,
) -> Result<(), ClientError> {
    let keep = |fresh: Option<Fresh>, what: &str| match fresh.map(|fresh| keep(&fresh)) {
        None => {}
        Some(Ok(())) => tracing::info!("{what}"),
        Some(Err(error)) => tracing::error!(%error, "what came of a renewal could not be kept"),
    };
    if look {
        keep(client.look(SystemTime::now()).await?, "authorities learned");
    }
    keep(client.renew_if_due(SystemTime::now()).await?, "certificate renewed");
    Ok(())
}

/// How long to wait before looking again.
pub(super) fn until(renew_at: SystemTime, now: SystemTime) -> Duration {
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

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

/// How far the coordinator's clock may be ahead. Who dials with a certificate that has ended is refused for good.
const CLOCKS_APART: Duration = Duration::from_secs(5 * 60);

/// Renews for as long as it is polled. `keep` stores what came; what it could not store is in use all the same, and stored
/// later.
pub async fn keep_fresh<E: Error>(client: &CoordinatorClient, keep: impl Fn(&Fresh) -> Result<(), E>) {
    let mut backoff = Backoff::default();
    let mut look_due = false;
    let mut wait = until(client.credential().renew_at(), SystemTime::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = client.caught_up() => {}
        }
        // A certificate of seconds is renewed before this matters, and its renewal says the same.
        look_due |= wait == LONGEST;
        let began = SystemTime::now();
        wait = match step(client, &keep, &mut look_due).await {
            Ok(()) => {
                backoff.reset();
                after_success(client.credential().renew_at(), began, SystemTime::now())
            }
            Err(late) => {
                match late {
                    // Nothing is missing yet, and whoever waits for the network is told so elsewhere.
                    Late::Look(error) if error.is_passing() => {
                        tracing::debug!(%error, "no look at the authorities yet")
                    }
                    Late::Look(error) => tracing::warn!(%error, "the authorities could not be looked at yet"),
                    Late::Renewal(error) => tracing::warn!(%error, "the certificate could not be renewed yet"),
                    Late::Kept => {}
                }
                backoff.next(rand::random()).clamp(SHORTEST, LONGEST)
            }
        };
    }
}

/// Learns at once which authorities are in force, and gets a certificate by the one that signs; gives up in time. Whoever
/// awaits it keeps a peer waiting meanwhile that may not believe the certificate from before.
pub async fn follow<E: Error>(client: &CoordinatorClient, keep: impl Fn(&Fresh) -> Result<(), E>) {
    match tokio::time::timeout(FOLLOW_TIMEOUT, step(client, &keep, &mut true)).await {
        Ok(Ok(()) | Err(Late::Kept)) => {}
        Ok(Err(Late::Look(error) | Late::Renewal(error))) => {
            tracing::warn!(%error, "other authorities could not be followed yet")
        }
        Err(_) => tracing::warn!("other authorities could not be followed in time"),
    }
}

/// Renews what is due before a connection is dialled with it: a program that slept past its certificate's end has no use
/// for the old one. One that is still good is dialled with when the coordinator cannot renew it at this moment.
pub async fn before_dialling<E: Error>(
    client: &CoordinatorClient,
    keep: impl Fn(&Fresh) -> Result<(), E>,
) -> Result<(), ClientError> {
    match step(client, &keep, &mut false).await {
        // A full disk is no reason to be away.
        Ok(()) | Err(Late::Kept) => Ok(()),
        Err(Late::Look(error) | Late::Renewal(error)) => {
            if !can_wait(&error, client.credential().not_after(), SystemTime::now()) {
                return Err(error);
            }
            tracing::warn!(%error, "the certificate could not be renewed yet");
            Ok(())
        }
    }
}

/// Whether a renewal that failed is no reason not to dial. Whoever could not be reached for it cannot be reached at all.
fn can_wait(error: &ClientError, not_after: SystemTime, now: SystemTime) -> bool {
    matches!(error, ClientError::Refused(_)) && error.is_passing() && now + CLOCKS_APART < not_after
}

/// What could not be done yet.
#[derive(Debug)]
enum Late {
    /// The look at the authorities. What was due besides is done.
    Look(ClientError),
    /// The renewal that was due.
    Renewal(ClientError),
    /// To store what came, which has been told. It is given again by the next step.
    Kept,
}

/// Renews what is due, after a look at the authorities if `look_due` says so. It says so until a look succeeds.
async fn step<E: Error>(
    client: &CoordinatorClient,
    keep: &impl Fn(&Fresh) -> Result<(), E>,
    look_due: &mut bool,
) -> Result<(), Late> {
    let keep = |fresh: Option<Fresh>, what: &str| match fresh.map(|fresh| keep(&fresh)) {
        None => true,
        Some(Ok(())) => {
            tracing::info!("{what}");
            true
        }
        Some(Err(error)) => {
            tracing::error!(%error, "what came of a renewal could not be kept yet");
            client.not_kept();
            false
        }
    };
    let mut looked = Ok(());
    if *look_due {
        match client.look(SystemTime::now()).await {
            Ok(learned) => {
                *look_due = false;
                keep(learned, "authorities learned");
            }
            Err(error) => looked = Err(Late::Look(error)),
        }
    }
    let renewed = client.renew_if_due(SystemTime::now()).await.map_err(Late::Renewal)?;
    if keep(renewed, "certificate renewed") { looked } else { Err(Late::Kept) }
}

/// How long to wait when all was done that was due, from `began` until `now`. Where this clock is so far ahead that what has
/// just come was due before it was asked for, asking again would help nobody, and go on without end.
fn after_success(renew_at: SystemTime, began: SystemTime, now: SystemTime) -> Duration {
    if renew_at <= began { LONGEST } else { until(renew_at, now) }
}

/// How long to wait before looking again.
pub(super) fn until(renew_at: SystemTime, now: SystemTime) -> Duration {
    renew_at.duration_since(now).unwrap_or_default().clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::io::ErrorKind;

    use super::*;
    use crate::identity::{Authority, Credential, Identity, PrivateKey, Role};
    use crate::wire::{Refusal, RefusalCode};

    /// Nothing is due, and its coordinator is not there.
    fn client() -> CoordinatorClient {
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
        let chain = authority.issue(&key.csr_der().unwrap(), &identity, day, now, &[]).unwrap();
        let credential = Credential::new(chain, key).unwrap();
        // It is closed again at once, so nobody is there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("https://127.0.0.1:{port}").parse().unwrap();
        CoordinatorClient::new(url, authority.trust().clone(), credential)
    }

    #[tokio::test]
    async fn a_look_that_failed_stays_due_and_is_not_taken_for_a_renewal() {
        let client = client();
        let keep = |_: &Fresh| Ok::<(), Infallible>(());
        let mut look_due = true;
        for _ in 0..2 {
            let late = step(&client, &keep, &mut look_due).await.unwrap_err();
            assert!(matches!(&late, Late::Look(error) if error.is_passing()), "{late:?}");
            assert!(look_due);
        }
        look_due = false;
        step(&client, &keep, &mut look_due).await.expect("nothing is due");
    }

    #[tokio::test]
    async fn what_could_not_be_kept_stops_nobody_and_is_kept_later() {
        let client = client();
        let (full, tries) = (Cell::new(true), Cell::new(0));
        let keep = |_: &Fresh| {
            tries.set(tries.get() + 1);
            if full.get() { Err(std::io::Error::from(ErrorKind::StorageFull)) } else { Ok(()) }
        };
        // As after a renewal.
        client.not_kept();
        before_dialling(&client, keep).await.expect("what came is in use all the same");
        assert!(matches!(step(&client, &keep, &mut false).await, Err(Late::Kept)), "it is still to be kept");
        full.set(false);
        step(&client, &keep, &mut false).await.expect("it is kept");
        assert_eq!(tries.get(), 3);
        step(&client, &keep, &mut false).await.expect("nothing is due");
        assert_eq!(tries.get(), 3);
    }

    #[test]
    fn a_renewal_that_is_refused_for_a_moment_makes_no_good_certificate_useless() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let late = end - CLOCKS_APART;
        let before = late - Duration::from_secs(1);
        let refused = |code| ClientError::Refused(Refusal::new(code, "no"));
        for code in [RefusalCode::Busy, RefusalCode::Internal, RefusalCode::Unavailable, RefusalCode::Timeout] {
            assert!(can_wait(&refused(code), end, before), "{code:?}");
            assert!(!can_wait(&refused(code), end, late), "{code:?}");
        }
        assert!(!can_wait(&refused(RefusalCode::Denied), end, before));
        assert!(!can_wait(&ClientError::Dial("nobody is there".into()), end, before));
    }

    #[test]
    fn waits_for_the_moment_within_its_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(until(at(20), now), Duration::from_secs(20));
        assert_eq!(until(at(20 * 3600), now), LONGEST);
        assert_eq!(until(at(0), now), SHORTEST);
        assert_eq!(until(now, at(500)), SHORTEST);
        assert_eq!(after_success(at(20), at(0), at(5)), Duration::from_secs(15));
        assert_eq!(after_success(at(20), at(19), at(25)), SHORTEST);
    }

    #[test]
    fn a_clock_that_is_ahead_makes_no_renewal_each_second() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        assert_eq!(after_success(now - Duration::from_secs(3600), now, now), LONGEST);
        assert_eq!(after_success(now, now, now), LONGEST);
    }
}

//! Opens streams while there is a way to the other end. A session outlives its connections, and a stream that is opened
//! meanwhile would wait for as long as that takes: whoever asks is held for a moment, and then told.

use std::time::Duration;

use tokio::sync::watch;

use super::mux::{MuxOpener, MuxStream};
use super::opener::Opener;
use crate::lifeline::{LifelineHandle, Standing};
use crate::wire::{Refusal, RefusalCode};

/// How long after an interruption began a stream that is asked for is held, then refused: a listener that takes
/// connections and lets them hang is worse than none.
pub const HOLD: Duration = Duration::from_secs(3);

/// Opens streams on a session whose way to the other end may be interrupted.
#[derive(Debug, Clone)]
pub struct HeldOpener {
    opener: MuxOpener,
    standing: watch::Receiver<Standing>,
}

impl HeldOpener {
    /// Of the session with this lifeline.
    pub fn new(opener: MuxOpener, lifeline: &LifelineHandle) -> HeldOpener {
        HeldOpener { opener, standing: lifeline.standing() }
    }

    /// Whether the other end is heard.
    pub fn is_attached(&self) -> bool {
        self.standing.borrow().interrupted().is_none()
    }

    /// Whether the session drains.
    pub fn is_draining(&self) -> bool {
        self.opener.is_draining()
    }

    async fn attached(&self) -> Result<(), Refusal> {
        if attached_within(HOLD, self.standing.clone()).await {
            return Ok(());
        }
        let text = "the connection to the laptop is interrupted, and being mended. hint: try again in a while; \
                    `nexus-stub status` says how it is";
        Err(Refusal::new(RefusalCode::Timeout, text))
    }
}

impl Opener for HeldOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        self.attached().await?;
        self.opener.open().await
    }
}

/// Returns whether there is a way, as soon as there is one, or when there has been none for `hold`.
async fn attached_within(hold: Duration, mut standing: watch::Receiver<Standing>) -> bool {
    let Some(since) = standing.borrow().interrupted() else { return true };
    let again = standing.wait_for(|standing| standing.interrupted().is_none());
    tokio::time::timeout_at((since + hold).into(), again).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifeline::Route;

    #[tokio::test]
    async fn an_interruption_is_timed_from_its_beginning_and_forgotten_when_it_is_over() {
        const HELD: Duration = Duration::from_millis(50);
        let attached = || Standing::Attached { route: Route::Relay, round_trip: None, standby: false, moves: 0 };
        let suspect = |since| Standing::Suspect { since, why: "silent".into() };
        let sender = watch::Sender::new(attached());
        let asks = || attached_within(HELD, sender.subscribe());
        assert!(asks().await, "there is a way");
        let since = std::time::Instant::now();
        sender.send_replace(suspect(since));
        assert!(!asks().await);
        assert!(since.elapsed() >= HELD);
        let began = std::time::Instant::now();
        assert!(!asks().await);
        assert!(began.elapsed() < HELD, "it has been for long enough");
        sender.send_replace(suspect(began));
        let (held, _) = tokio::join!(asks(), async { sender.send_replace(attached()) });
        assert!(held, "it is over");
    }
}

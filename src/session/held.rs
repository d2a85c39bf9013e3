//! Opens streams while there is a way to the other end. A session outlives its connections, and a stream that is opened
//! meanwhile would wait for as long as that takes: whoever asks is held for a moment, and then told.

use std::time::Duration;

use super::mux::MuxStream;
use super::opener::{Opener, SessionOpener};
use super::way::Way;
use crate::wire::{Refusal, RefusalCode};

/// How long after an interruption began a stream that is asked for is held, then refused: a listener that takes
/// connections and lets them hang is worse than none.
pub const HOLD: Duration = Duration::from_secs(3);

/// Opens streams on a session whose way to the other end may be interrupted.
#[derive(Debug, Clone)]
pub struct HeldOpener(SessionOpener);

impl HeldOpener {
    /// Of this session.
    pub fn new(session: SessionOpener) -> HeldOpener {
        HeldOpener(session)
    }

    /// Whether the other end is heard.
    pub fn is_attached(&self) -> bool {
        self.way().interrupted().is_none()
    }

    /// Whether the session drains.
    pub fn is_draining(&self) -> bool {
        self.0.mux.is_draining()
    }

    async fn attached(&self) -> Result<(), Refusal> {
        if attached_within(HOLD, &self.way()).await {
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
        self.0.open().await
    }

    fn way(&self) -> Way {
        self.0.way()
    }
}

/// Returns whether there is a way, as soon as there is one, or when there has been none for `hold`.
async fn attached_within(hold: Duration, way: &Way) -> bool {
    let Some(since) = way.interrupted() else { return true };
    tokio::time::timeout_at((since + hold).into(), way.there()).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::session::way::tests::way;

    #[tokio::test]
    async fn an_interruption_is_timed_from_its_beginning_and_forgotten_when_it_is_over() {
        const HELD: Duration = Duration::from_millis(50);
        let (way, set) = way();
        let asks = || attached_within(HELD, &way);
        assert!(asks().await, "there is a way");
        let since = Instant::now();
        set(false);
        assert!(!asks().await);
        assert!(since.elapsed() >= HELD);
        let began = Instant::now();
        assert!(!asks().await);
        assert!(began.elapsed() < HELD, "it has been for long enough");
        set(false);
        let (held, ()) = tokio::join!(asks(), async { set(true) });
        assert!(held, "it is over");
    }
}

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
        interrupted(&self.standing.borrow()).is_none()
    }

    /// Whether the session drains.
    pub fn is_draining(&self) -> bool {
        self.opener.is_draining()
    }

    async fn attached(&self) -> Result<(), Refusal> {
        let Some(since) = interrupted(&self.standing.borrow()) else { return Ok(()) };
        let mut standing = self.standing.clone();
        let again = standing.wait_for(|standing| interrupted(standing).is_none());
        match tokio::time::timeout_at((since + HOLD).into(), again).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let text = "the connection to the laptop is interrupted, and being mended. hint: try again in a while";
                Err(Refusal::new(RefusalCode::Timeout, text))
            }
        }
    }
}

impl Opener for HeldOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        self.attached().await?;
        self.opener.open().await
    }
}

fn interrupted(standing: &Standing) -> Option<std::time::Instant> {
    match standing {
        Standing::Suspect { since, .. } | Standing::Lost { since, .. } => Some(*since),
        _ => None,
    }
}

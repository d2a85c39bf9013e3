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

    /// The way to the other end, for who waits for an answer on a stream that was opened.
    pub fn way(&self) -> Way {
        Way::of(self.standing.clone())
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

/// The way to the other end of a session.
#[derive(Debug, Clone)]
pub struct Way(watch::Receiver<Standing>);

impl Way {
    /// Of the lifeline whose standing this is.
    pub fn of(standing: watch::Receiver<Standing>) -> Way {
        Way(standing)
    }

    /// Returns when the way has been interrupted for so long. Never when the session ends: who has a stream of it sees
    /// that. Safe to cancel.
    pub async fn interrupted_for(&mut self, time: Duration) {
        loop {
            let since = interrupted(&self.0.borrow_and_update());
            let due = async {
                match since {
                    Some(since) => tokio::time::sleep_until((since + time).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                changed = self.0.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }
}

fn interrupted(standing: &Standing) -> Option<std::time::Instant> {
    match standing {
        Standing::Suspect { since, .. } | Standing::Lost { since, .. } => Some(*since),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifeline::Route;

    #[tokio::test]
    async fn an_interruption_is_timed_from_its_beginning_and_forgotten_when_it_is_over() {
        const TIME: Duration = Duration::from_millis(50);
        let attached = || Standing::Attached { route: Route::Relay, round_trip: None, standby: false, moves: 0 };
        let suspect = |since| Standing::Suspect { since, why: "silent".into() };
        let sender = watch::Sender::new(attached());
        let mut way = Way::of(sender.subscribe());
        let waits = async |way: &mut Way| tokio::time::timeout(TIME * 3, way.interrupted_for(TIME)).await.is_err();
        assert!(waits(&mut way).await, "there is a way");
        let since = std::time::Instant::now();
        sender.send_replace(suspect(since));
        way.interrupted_for(TIME).await;
        assert!(since.elapsed() >= TIME);
        way.interrupted_for(TIME).await;
        sender.send_replace(attached());
        assert!(waits(&mut way).await, "it is over");
        sender.send_replace(suspect(since));
        assert!(!waits(&mut way).await, "it has been for long enough");
        sender.send_replace(attached());
        drop(sender);
        assert!(waits(&mut way).await, "the session is over");
    }
}

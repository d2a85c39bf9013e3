//! Opens streams on whatever session of a tunnel stands. Whoever asks while there is none, or while it is interrupted, is held
//! for a moment at the most, and then told.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::tunnel_state::{Told, TunnelState, WaySince};
use crate::role::changes::Change;
use crate::session::held::HOLD;
use crate::session::mux::MuxStream;
use crate::session::opener::{Opener, SessionOpener};
use crate::session::way::Way;
use crate::wire::{Refusal, RefusalCode};

/// Opens streams on whatever session stands at the moment.
#[derive(Debug, Clone)]
pub struct TunnelOpener {
    current: watch::Receiver<Option<SessionOpener>>,
    state: watch::Receiver<TunnelState>,
    way_since: WaySince,
    changes: watch::Receiver<Change>,
}

impl Opener for TunnelOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        let current = self.current.borrow().clone();
        match current {
            Some(session) => {
                self.resumed().await?;
                match session.open().await {
                    Err(_) if session.mux.is_draining() => self.next(&session).await?.open().await,
                    opened => opened,
                }
            }
            None => {
                Err(Refusal::new(RefusalCode::Unavailable, "the tunnel is down. hint: `nexus-proxy status` says why"))
            }
        }
    }

    /// Of the session that stands. A stream that was opened on the one before it a moment ago goes by another.
    fn way(&self) -> Way {
        self.current.borrow().as_ref().map_or_else(Way::steady, Opener::way)
    }
}

impl TunnelOpener {
    /// Of the sessions that stand one after the other in `current`, whose state is what is told. `changes` are those of the machine's
    /// circumstances.
    pub(super) fn new(
        current: watch::Receiver<Option<SessionOpener>>,
        told: &Told,
        changes: watch::Receiver<Change>,
    ) -> TunnelOpener {
        TunnelOpener { current, state: told.watch(), way_since: told.way_since(), changes }
    }

    /// Since when there is a way to the workspace; nothing while a session waits for one, and while there is no session.
    pub fn way_since(&self) -> Option<Instant> {
        self.way_since.get()
    }

    /// Waits a moment for the session that takes the place of `last`, which drains.
    async fn next(&self, last: &SessionOpener) -> Result<SessionOpener, Refusal> {
        let next = tokio::time::timeout(HOLD, self.clone().session_after(Some(last))).await;
        next.ok().flatten().ok_or_else(|| {
            let text =
                "the session takes nothing new any more, and the next one has not begun. hint: `nexus-proxy status` says more";
            Refusal::new(RefusalCode::Unavailable, text)
        })
    }

    /// Waits a moment for a session that is being resumed: from when it was interrupted, or from when the machine woke or had a network
    /// again, after which a try may well be of use.
    async fn resumed(&self) -> Result<(), Refusal> {
        let since = match &*self.state.borrow() {
            TunnelState::Resuming { since, .. } => *since,
            _ => return Ok(()),
        };
        // Of a clock that was set back meanwhile, the change tells more.
        let down = (time::OffsetDateTime::now_utc() - since).try_into().unwrap_or(Duration::MAX);
        let changed = self.changes.borrow().at.map_or(Duration::MAX, |at| at.elapsed());
        let down = down.min(changed);
        let mut state = self.state.clone();
        let resumed = async { state.wait_for(|state| !matches!(state, TunnelState::Resuming { .. })).await.map(drop) };
        match tokio::time::timeout(HOLD.saturating_sub(down), resumed).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let text = "the connection to the workspace is interrupted, and being mended. hint: `nexus-proxy status` says more";
                Err(Refusal::new(RefusalCode::Timeout, text))
            }
        }
    }

    /// Whether the session that stands waits for a connection.
    pub fn is_interrupted(&self) -> bool {
        matches!(*self.state.borrow(), TunnelState::Resuming { .. })
    }

    /// Whether a session stands now.
    pub fn is_up(&self) -> bool {
        self.current.borrow().as_ref().is_some_and(|session| !session.mux.is_closed())
    }

    /// Waits until a session stands that is not `last`, and gives it.
    pub async fn session_after(&mut self, last: Option<&SessionOpener>) -> Option<SessionOpener> {
        let stands = |current: &Option<SessionOpener>| match (current, last) {
            (Some(current), Some(last)) => !current.mux.is_same(&last.mux),
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.current.wait_for(stands).await.ok().and_then(|current| current.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::proxy::tunnel_state::time_of;

    #[tokio::test]
    async fn an_interruption_of_old_is_waited_for_again_after_a_change() {
        let (told, (changes, changed)) = (Told::default(), watch::channel(Change::default()));
        let (why, since) = ("it broke".to_owned(), time_of(Instant::now()) - Duration::from_secs(3600));
        told.tell(TunnelState::Resuming { why, since, attempt: 9, doing: None, last: None, retry_ms: 0, next: None });
        let opener = TunnelOpener::new(watch::channel(None).1, &told, changed);
        assert_eq!(opener.resumed().await.unwrap_err().code, RefusalCode::Timeout);
        changes.send_replace(Change { at: Some(Instant::now()) });
        let waits = tokio::time::timeout(HOLD / 10, opener.resumed()).await;
        assert!(waits.is_err(), "{waits:?}");
        told.tell(TunnelState::Failed { why: "it is over".into() });
        opener.resumed().await.unwrap();
    }
}

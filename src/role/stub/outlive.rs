//! How a stub outlives its hand-over: whom it hands over to, what it still serves, and when that is
//! over; and that it serves the workspace again when nobody does.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::earlier::MAX_EARLIER;
use super::gateway::Gateway;
use super::hand_over::{Asked, HandedOver};
use super::link::Link;
use super::local;
use super::orphans::{self, Spare};
use super::run::{STOP_TIMEOUT, Stub, StubEvent};
use crate::lifeline::core::RETENTION;
use crate::transport::client::ClientError;
use crate::wire::{Refusal, RefusalCode};

/// How long sessions may go on after a hand-over: as long as a lifeline without a carrier is kept.
const LAST: Duration = RETENTION;

/// For how long it is tried to learn who serves the workspace, and how often.
const FULL: Duration = Duration::from_secs(1);
const FULL_LOOK: Duration = Duration::from_millis(50);

/// How often a stub that handed over looks whether anybody serves the workspace, and how often nobody may: whoever watches
/// over a successor has time to start it again.
const UNSERVED_LOOK: Duration = Duration::from_secs(5);
const UNSERVED_LOOKS: u32 = 3;

impl Stub {
    /// Waits for a successor for which there is a place.
    pub(super) async fn successor(&self, asked: &mut mpsc::Receiver<Asked>) -> (Link, Asked) {
        loop {
            let Some(asked) = asked.recv().await else { return std::future::pending().await };
            let link = match self.sessions.earlier.count().await {
                MAX_EARLIER.. => {
                    let text = format!(
                        "{MAX_EARLIER} stubs of this workspace live on already, until what they have is done. hint: end \
                         what runs through them, or end them (`pgrep nexus-stub`)"
                    );
                    Err(Refusal::new(RefusalCode::Busy, text))
                }
                _ => Link::open(self.state().dir(), self.kin.clone()),
            };
            match link {
                Ok(link) => return (link, asked),
                Err(refusal) => {
                    tracing::warn!(%refusal, "not handed over");
                    let _ = asked.answer.send(Err(refusal));
                }
            }
        }
    }

    /// Nothing is taken any more, and the successor is told so. What there is goes on until it is done, or for
    /// [`LAST`]; what runs in the background of the workspace, for as long as it does: nobody else would end it. When nobody
    /// serves the workspace any more, `again` does so in this process, beside that: only who serves it hears of revocations.
    pub(super) async fn outlive(
        &self,
        link: Link,
        asked: Asked,
        taken: &TaskTracker,
        is_first: bool,
        stop: &CancellationToken,
        again: impl Fn(HandedOver) -> LocalBoxFuture<'static, Result<(), ClientError>>,
    ) -> Result<(), ClientError> {
        let laptops = &self.sessions.laptops;
        let (sessions, streams) = laptops.drain();
        let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").into());
        let direct = self.workspace.direct.bound();
        let Asked { pid: successor, answer } = asked;
        // Where it was started from inside the workspace, it is below this process before it serves anything.
        self.successor.store(successor.unwrap_or_default(), Relaxed);
        let handed = HandedOver { pid, version, sessions, streams, direct };
        let _ = answer.send(Ok(handed.clone()));
        (self.events)(StubEvent::HandedOver(sessions, streams));
        taken.close();
        self.sessions.endings.close();
        let done = CancellationToken::new();
        // Held by a later life of this process for as long as it lasts.
        let later = Mutex::new(());
        let last = async {
            let over = tokio::select! {
                // What this one had to tell earlier ones, nobody else would.
                _ = async { tokio::join!(taken.wait(), self.sessions.endings.wait()) } => None,
                () = tokio::time::sleep(LAST) => Some("its time is over"),
            };
            if let Some(over) = over {
                tracing::warn!(over, "what goes on here is ended");
                let text = format!("the stub of this session was replaced, and {over}. hint: a new session begins");
                laptops.end_all(&Refusal::new(RefusalCode::Unavailable, text)).await;
                let _ = tokio::time::timeout(STOP_TIMEOUT, taken.wait()).await;
            }
            // The successor may never come, and nobody else would follow.
            self.served().await;
            // What runs in the background is of all lives of this process, and one of them waits for it: also for what a later
            // one leaves there.
            if is_first {
                loop {
                    orphans::gone(async || self.others().await).await;
                    if later.try_lock().is_ok() {
                        break;
                    }
                    drop(later.lock().await);
                }
            }
            done.cancel();
        };
        let ended = async {
            tokio::select! {
                () = last => {}
                () = stop.cancelled() => done.cancel(),
            }
        };
        let follow = async {
            while done.run_until_cancelled(self.unserved()).await.is_some() {
                let lives = later.lock().await;
                let lived = again(handed.clone()).await;
                drop(lives);
                let Err(error) = lived else { continue };
                // Another one was faster.
                if tokio::time::timeout(FULL, self.served()).await.is_ok() {
                    continue;
                }
                // What goes on here is not worse off for a failure that may pass.
                let may_pass = error.is_passing() || error.is_between();
                if may_pass && (!taken.is_empty() || orphans::are_left(self.others().await.as_ref())) {
                    tracing::warn!(%error, "the workspace is not served, and is tried again");
                    continue;
                }
                stop.cancel();
                return Err(error);
            }
            Ok(())
        };
        let ((), (), followed) = tokio::join!(link.run(laptops.clone(), done.clone(), stop.clone()), ended, follow);
        followed
    }

    /// Returns when somebody may serve the workspace.
    async fn served(&self) {
        while !Gateway::is_served(&self.socket).await {
            tokio::time::sleep(FULL_LOOK).await;
        }
    }

    /// Returns when certainly nobody has served the workspace for a while: a successor that crashed, or never began.
    async fn unserved(&self) {
        let mut looks = 0;
        while looks < UNSERVED_LOOKS {
            tokio::time::sleep(UNSERVED_LOOK).await;
            looks = if Gateway::is_served(&self.socket).await { 0 } else { looks + 1 };
        }
    }

    /// Other stubs of this workspace, which may have been started from inside it. Nothing where it cannot be told which process
    /// serves the workspace: so many may wait at its socket that nobody can ask for a while.
    pub(super) async fn others(&self) -> Option<Spare> {
        let mut serves = local::pid_at(&self.socket).await;
        let deadline = Instant::now() + FULL;
        while serves.is_err() && Instant::now() < deadline {
            tokio::time::sleep(FULL_LOOK).await;
            serves = local::pid_at(&self.socket).await;
        }
        let serves = serves.ok()?;
        let successor = self.successor.load(Relaxed);
        Some(self.sessions.earlier.pids().await.into_iter().chain(serves).chain([successor]).collect())
    }
}

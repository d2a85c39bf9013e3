//! The sessions of a tunnel that drain beside the one that stands: each goes on until what is open in it is done.
//!
//! How one ends is not the tunnel's concern, unless nothing else is left: then it is how this program ends.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tunnel::TunnelError;
use crate::session::mux::MuxOpener;
use crate::wire::limits::MAX_DRAINING;

/// How often it is looked whether anything is open in an earlier session, and how often nothing may be.
const IDLE_LOOK: Duration = Duration::from_secs(10);
const IDLE_LOOKS: u32 = 3;

/// A session whose place the next one takes.
pub struct Retired<'a> {
    /// Tells how many streams it still has.
    pub opener: MuxOpener,
    /// Its life.
    pub life: BoxFuture<'a, TunnelError>,
}

/// The earlier sessions of a tunnel.
#[derive(Debug)]
pub struct Earlier {
    sessions: Mutex<VecDeque<(MuxOpener, CancellationToken)>>,
    idle_look: Duration,
}

impl Default for Earlier {
    fn default() -> Earlier {
        Earlier { sessions: Mutex::default(), idle_look: IDLE_LOOK }
    }
}

impl Earlier {
    /// Streams that are open in them, and in one more that may be among them.
    pub fn streams(&self, other: Option<&MuxOpener>) -> usize {
        let sessions = self.sessions();
        let other = other.filter(|other| !sessions.iter().any(|(opener, _)| opener.is_same(other)));
        sessions.iter().map(|(opener, _)| opener).chain(other).map(MuxOpener::streams).sum()
    }

    /// Keeps the sessions that are retired, until each is over; returns when no more come and none is left, with the reason
    /// when one was cut that nothing took the place of, because `leaving` is cancelled.
    pub async fn keep(
        &self,
        mut retired: mpsc::Receiver<Retired<'_>>,
        leaving: &CancellationToken,
    ) -> Result<(), TunnelError> {
        let mut lives = FuturesUnordered::new();
        let mut cut = None;
        let mut more = true;
        loop {
            tokio::select! {
                next = retired.recv(), if more => match next {
                    None => more = false,
                    Some(Retired { opener, life }) => {
                        let end = self.enter(opener.clone());
                        if leaving.is_cancelled() {
                            opener.drain();
                        }
                        lives.push(async move {
                            let over = tokio::select! {
                                over = life => Ok(over),
                                () = end.cancelled_owned() => Err("too many later ones"),
                                () = nothing_left(&opener, self.idle_look) => Err("nothing is open in it, and the workspace does not end it"),
                            };
                            (opener, over)
                        });
                    }
                },
                Some((opener, outcome)) = lives.next(), if !lives.is_empty() => {
                    self.sessions().retain(|(known, _)| !known.is_same(&opener));
                    let why = match (opener.has_drained(), &outcome) {
                        (true, _) => "all that was open in it is done".to_owned(),
                        (false, Ok(error)) => error.to_string(),
                        (false, Err(why)) => (*why).to_owned(),
                    };
                    tracing::info!(why, "an earlier session is over");
                    if leaving.is_cancelled() && !opener.has_drained() {
                        cut = outcome.ok().or(cut);
                    }
                }
                else => return cut.map_or(Ok(()), Err),
            }
        }
    }

    /// This end takes nothing new in any of them, and opens nothing.
    pub fn drain(&self) {
        self.sessions().iter().for_each(|(opener, _)| opener.drain());
    }

    /// Takes one in. The oldest ends when there are too many.
    fn enter(&self, opener: MuxOpener) -> CancellationToken {
        let end = CancellationToken::new();
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_DRAINING
            && let Some((_, oldest)) = sessions.pop_front()
        {
            oldest.cancel();
        }
        sessions.push_back((opener, end.clone()));
        end
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, VecDeque<(MuxOpener, CancellationToken)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when nothing has been open in a session for a while. A workspace in order ends it within a round trip; one that
/// does not could keep it, and this program with it.
async fn nothing_left(opener: &MuxOpener, look: Duration) {
    let mut idle = 0;
    while idle < IDLE_LOOKS {
        tokio::time::sleep(look).await;
        idle = if opener.streams() == 0 { idle + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::mux::{End, multiplex};
    use crate::wire::{Refusal, RefusalCode};

    /// A session that nothing drives: streams of it can be counted for as long as its driver is held.
    fn session() -> (MuxOpener, BoxFuture<'static, std::io::Result<()>>) {
        let (io, _) = crate::transport::memory::pair();
        let (opener, _, driver) = multiplex(io, End::Laptop);
        (opener, Box::pin(driver))
    }

    fn cut(text: &str) -> TunnelError {
        TunnelError::TakenOver(Refusal::new(RefusalCode::TakenOver, text))
    }

    #[tokio::test]
    async fn earlier_sessions_are_counted_and_bounded_and_the_oldest_ends_first() {
        let (retire, retired) = mpsc::channel(MAX_DRAINING);
        let (earlier, leaving) = (Earlier::default(), CancellationToken::new());
        let (openers, _drivers): (Vec<_>, Vec<_>) = (0..=MAX_DRAINING).map(|_| session()).unzip();
        let mut keep = Box::pin(earlier.keep(retired, &leaving));
        let mut streams = Vec::new();
        for opener in &openers[..MAX_DRAINING] {
            streams.push(opener.open().await.unwrap());
            retire.try_send(Retired { opener: opener.clone(), life: Box::pin(std::future::pending()) }).unwrap();
        }
        assert!(futures::poll!(&mut keep).is_pending());
        assert_eq!(earlier.streams(None), MAX_DRAINING);
        assert_eq!(earlier.streams(Some(&openers[0])), MAX_DRAINING);
        streams.push(openers[MAX_DRAINING].open().await.unwrap());
        assert_eq!(earlier.streams(Some(&openers[MAX_DRAINING])), MAX_DRAINING + 1);
        retire
            .try_send(Retired { opener: openers[MAX_DRAINING].clone(), life: Box::pin(std::future::pending()) })
            .unwrap();
        assert!(futures::poll!(&mut keep).is_pending());
        let left: Vec<bool> =
            openers.iter().map(|one| earlier.sessions().iter().any(|(kept, _)| kept.is_same(one))).collect();
        assert_eq!(left, [false, true, true, true, true]);
    }

    /// A workspace that drained a session and never ends it cannot use it when this program hands over.
    #[tokio::test]
    async fn earlier_sessions_drain_with_the_program_and_end_when_nothing_is_open() {
        let (retire, retired) = mpsc::channel(MAX_DRAINING);
        let (earlier, leaving) =
            (Earlier { idle_look: Duration::from_millis(5), ..Earlier::default() }, CancellationToken::new());
        let (before, after, idle) = (session(), session(), session());
        let mut keep = Box::pin(earlier.keep(retired, &leaving));
        let held = [before.0.open().await.unwrap(), after.0.open().await.unwrap()];
        retire.try_send(Retired { opener: before.0.clone(), life: Box::pin(std::future::pending()) }).unwrap();
        assert!(futures::poll!(&mut keep).is_pending());
        assert!(!before.0.is_draining());
        leaving.cancel();
        earlier.drain();
        assert!(before.0.is_draining());
        retire.try_send(Retired { opener: after.0.clone(), life: Box::pin(std::future::pending()) }).unwrap();
        retire.try_send(Retired { opener: idle.0, life: Box::pin(std::future::pending()) }).unwrap();
        drop(retire);
        let one_ends = async {
            while earlier.sessions().len() != 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = &mut keep => unreachable!("two have something open"),
            () = one_ends => {}
        }
        assert!(after.0.is_draining());
        drop(held);
        keep.await.unwrap();
    }

    #[tokio::test]
    async fn a_session_that_was_cut_is_how_a_program_that_leaves_ends_and_nothing_otherwise() {
        for leaves in [false, true] {
            let (retire, retired) = mpsc::channel(MAX_DRAINING);
            let (earlier, leaving) = (Earlier::default(), CancellationToken::new());
            if leaves {
                leaving.cancel();
            }
            for text in ["one", "two"] {
                retire.try_send(Retired { opener: session().0, life: Box::pin(async move { cut(text) }) }).unwrap();
            }
            drop(retire);
            let outcome = earlier.keep(retired, &leaving).await;
            assert_eq!(outcome.is_err(), leaves, "{outcome:?}");
            assert_eq!(earlier.streams(None), 0);
        }
    }
}

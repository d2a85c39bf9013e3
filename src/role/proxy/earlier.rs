//! The sessions of a tunnel that drain beside the one that stands: each goes on until what is open in it is done.
//!
//! How one ends is not the tunnel's concern, unless nothing else is left: then it is how this program ends.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tunnel::TunnelError;
use crate::session::mux::MuxOpener;

/// Earlier sessions at a time: as many as the workspace keeps.
const MAX_EARLIER: usize = 4;

/// A session whose place the next one takes.
pub struct Retired<'a> {
    /// Tells how many streams it still has.
    pub opener: MuxOpener,
    /// Its life.
    pub life: BoxFuture<'a, TunnelError>,
}

/// The earlier sessions of a tunnel.
#[derive(Debug, Default)]
pub struct Earlier {
    sessions: Mutex<VecDeque<(MuxOpener, CancellationToken)>>,
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
        mut retired: mpsc::UnboundedReceiver<Retired<'_>>,
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
                        lives.push(async move { (opener, end.run_until_cancelled_owned(life).await) });
                    }
                },
                Some((opener, outcome)) = lives.next(), if !lives.is_empty() => {
                    self.sessions().retain(|(known, _)| !known.is_same(&opener));
                    let why = outcome.as_ref().map_or_else(|| "too many later ones".into(), TunnelError::to_string);
                    tracing::info!(why, "an earlier session is over");
                    if leaving.is_cancelled() && !opener.has_drained() {
                        cut = outcome.or(cut);
                    }
                }
                else => return cut.map_or(Ok(()), Err),
            }
        }
    }

    /// Takes one in. The oldest ends when there are too many.
    fn enter(&self, opener: MuxOpener) -> CancellationToken {
        let end = CancellationToken::new();
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_EARLIER
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::mux::{End, multiplex};
    use crate::session::opener::Opener;
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
        let (retire, retired) = mpsc::unbounded_channel();
        let (earlier, leaving) = (Earlier::default(), CancellationToken::new());
        let (openers, _drivers): (Vec<_>, Vec<_>) = (0..=MAX_EARLIER).map(|_| session()).unzip();
        let mut keep = Box::pin(earlier.keep(retired, &leaving));
        let mut streams = Vec::new();
        for opener in &openers[..MAX_EARLIER] {
            streams.push(opener.open().await.unwrap());
            retire.send(Retired { opener: opener.clone(), life: Box::pin(std::future::pending()) }).unwrap();
        }
        assert!(futures::poll!(&mut keep).is_pending());
        assert_eq!(earlier.streams(None), MAX_EARLIER);
        assert_eq!(earlier.streams(Some(&openers[0])), MAX_EARLIER);
        streams.push(openers[MAX_EARLIER].open().await.unwrap());
        assert_eq!(earlier.streams(Some(&openers[MAX_EARLIER])), MAX_EARLIER + 1);
        retire.send(Retired { opener: openers[MAX_EARLIER].clone(), life: Box::pin(std::future::pending()) }).unwrap();
        assert!(futures::poll!(&mut keep).is_pending());
        let left: Vec<bool> =
            openers.iter().map(|one| earlier.sessions().iter().any(|(kept, _)| kept.is_same(one))).collect();
        assert_eq!(left, [false, true, true, true, true]);
    }

    #[tokio::test]
    async fn a_session_that_was_cut_is_how_a_program_that_leaves_ends_and_nothing_otherwise() {
        for leaves in [false, true] {
            let (retire, retired) = mpsc::unbounded_channel();
            let (earlier, leaving) = (Earlier::default(), CancellationToken::new());
            if leaves {
                leaving.cancel();
            }
            for text in ["one", "two"] {
                retire.send(Retired { opener: session().0, life: Box::pin(async move { cut(text) }) }).unwrap();
            }
            drop(retire);
            let outcome = earlier.keep(retired, &leaving).await;
            assert_eq!(outcome.is_err(), leaves, "{outcome:?}");
            assert_eq!(earlier.streams(None), 0);
        }
    }
}

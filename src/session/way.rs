//! Whether the other end of a session is heard, for who gives it so much time and no more: while nothing can come from it,
//! time does not count against it.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::lifeline::{LifelineHandle, Standing};

/// The way to the other end of a session.
#[derive(Debug, Clone)]
pub struct Way(watch::Receiver<Standing>);

/// It had its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl Way {
    /// That of the session with this lifeline.
    pub fn of(lifeline: &LifelineHandle) -> Way {
        Way(lifeline.standing())
    }

    /// One that nothing interrupts, as between two programs on one machine.
    pub fn steady() -> Way {
        Way(watch::channel(Standing::Beginning).1)
    }

    /// Since when it is interrupted.
    pub fn interrupted(&self) -> Option<Instant> {
        self.0.borrow().interrupted()
    }

    /// Ready when there is a way; also when the session is over, which its streams tell.
    pub async fn there(&self) {
        let _ = self.0.clone().wait_for(|standing| standing.interrupted().is_none()).await;
    }

    /// Ready when it is interrupted; never once the session is over.
    pub async fn lost(&self) {
        let mut standing = self.0.clone();
        let interrupted = standing.wait_for(|standing| standing.interrupted().is_some()).await.is_ok();
        if !interrupted || standing.has_changed().is_err() {
            std::future::pending().await
        }
    }

    /// What `future` comes to, if it does within `patience`; that begins anew after an interruption.
    pub async fn timeout<F: Future>(&self, patience: Duration, future: F) -> Result<F::Output, Elapsed> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                () = self.there() => {}
            }
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                () = self.lost() => {}
                () = tokio::time::sleep(patience) => return Err(Elapsed),
            }
        }
    }
}

/// Ways for those above, too.
#[cfg(test)]
pub mod tests {
    use std::future::pending;

    use super::*;
    use crate::lifeline::Route;

    fn attached() -> Standing {
        Standing::Attached { route: Route::Relay, round_trip: None, standby: false, moves: 0 }
    }

    /// A way, and what interrupts it and mends it.
    pub fn way() -> (Way, impl Fn(bool)) {
        let (sender, standing) = watch::channel(attached());
        let set = move |there| {
            let lost = || Standing::Lost { since: Instant::now(), why: "the network is gone".into() };
            sender.send_replace(if there { attached() } else { lost() });
        };
        (Way(standing), set)
    }

    /// In real time.
    #[tokio::test]
    async fn time_counts_while_there_is_a_way() {
        const PATIENCE: Duration = Duration::from_millis(200);
        let (way, set) = way();
        let began = Instant::now();
        assert_eq!(way.timeout(PATIENCE, pending::<()>()).await, Err(Elapsed));
        assert!(began.elapsed() >= PATIENCE);
        set(false);
        assert!(way.interrupted().is_some());
        let mut waits = Box::pin(way.timeout(PATIENCE, pending::<()>()));
        assert!(tokio::time::timeout(PATIENCE * 3, &mut waits).await.is_err(), "nothing could come");
        set(true);
        let back = Instant::now();
        assert_eq!(waits.await, Err(Elapsed));
        assert!(back.elapsed() >= PATIENCE, "it begins anew");
        set(false);
        assert_eq!(way.timeout(Duration::ZERO, async { 1 }).await, Ok(1), "what is there counts");
        drop(set);
        assert_eq!(way.timeout(PATIENCE, pending::<()>()).await, Err(Elapsed), "a session that is over holds nobody");
    }
}

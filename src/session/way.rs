//! Whether the other end of a session is heard, for who gives it so much time and no more: while nothing can come from it,
//! time does not count against it. Nor does the time for which this program stood still, as in a machine that sleeps: it has not
//! seen yet what that interrupted.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::lifeline::{LifelineHandle, Standing};

/// Parts in which time passes that is given. One for which this program stood still does not count.
const PARTS: u32 = 8;

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

    /// Ready when there was a way for `time`, give or take an eighth, and nothing happened. That begins anew after an interruption.
    /// `happened` tells whether something has since it was asked last.
    pub async fn idle(&self, time: Duration, mut happened: impl FnMut() -> bool) {
        loop {
            self.there().await;
            let mut left = PARTS;
            let passes = async {
                while left > 0 {
                    let (part, began) = (time / PARTS, Instant::now());
                    tokio::time::sleep(part).await;
                    // What waits at the socket since then has still to be read.
                    let stood_still = began.elapsed() > part * 2;
                    left = if happened() { PARTS } else { left - u32::from(!stood_still) };
                }
            };
            tokio::select! {
                biased;
                () = self.lost() => {}
                () = passes => return,
            }
        }
    }

    /// What `future` comes to, if it does while there is a way for `patience`. That begins anew after an interruption.
    pub async fn timeout<F: Future>(&self, patience: Duration, future: F) -> Result<F::Output, Elapsed> {
        tokio::select! {
            biased;
            done = future => Ok(done),
            () = self.idle(patience, || false) => Err(Elapsed),
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

    /// As in a machine that sleeps, and has not seen yet what is gone after it.
    #[tokio::test]
    async fn time_does_not_count_while_this_program_stands_still() {
        const PATIENCE: Duration = Duration::from_secs(1);
        let (way, _set) = way();
        let mut waits = Box::pin(way.timeout(PATIENCE, pending::<()>()));
        for _ in 0..3 {
            let moment = tokio::time::timeout(Duration::from_millis(10), &mut waits);
            assert!(moment.await.is_err(), "none has had its time");
            std::thread::sleep(PATIENCE);
        }
        let goes_on = Instant::now();
        assert_eq!(waits.await, Err(Elapsed));
        assert!(goes_on.elapsed() >= PATIENCE / PARTS * (PARTS - 1), "{:?}", goes_on.elapsed());
    }
}

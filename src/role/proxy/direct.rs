//! The direct way: tries the addresses that the workspace names, moves the session there, keeps the way through the
//! coordinator ready, and climbs back up after a fall.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};

use super::attempt::UNHEARD;
use super::climb::Climb;
use super::life::Life;
use super::tunnel::TunnelError;
use super::tunnel_state::time_in;
use crate::lifeline::core::ATTACH_PATIENCE;
use crate::lifeline::{Route, Standing};
use crate::role::WAY;
use crate::role::backoff::Backoff;
use crate::session::establish::hello;
use crate::transport::direct;
use crate::wire::lifeline::AttachMode;
use crate::wire::limits::MAX_DIRECT;

/// Longest wait between two tries for a direct way. A network change ends the wait.
const LONGEST: Duration = Duration::from_secs(60);

/// How long a direct way that did not last is left to the one through the coordinator, while the session has none and no attempt there
/// has failed: longer than one takes whose name servers are silent.
const LEFT_TO_THE_OTHER: Duration = Duration::from_secs(10);

/// Why a way that was taken is left alone. What broke it each time is in the log.
const LEFT_ALONE: &str = "the direct way did not last";

impl Life<'_> {
    /// Works for a direct way, and for the other one behind it, for as long as the session lives. Ends only with a
    /// reason why the session must end: the coordinator does not let this device in any more.
    pub(super) async fn keep_direct(&self) -> TunnelError {
        let (seen, standing) = watch::channel(Standing::Beginning);
        let told = |wait| {
            let times = self.climb().failures();
            tracing::info!(target: WAY, times, ?wait, "the direct way did not last, and is left alone for a while");
            self.remark(|remarks| {
                (remarks.direct_why, remarks.direct_next) = (Some(LEFT_ALONE.to_owned()), Some(time_in(wait)));
            });
        };
        let follow = follow(self.lifeline.standing(), || self.lifeline.moved(), self.climbing(), seen, told);
        tokio::select! {
            error = self.climb_up(standing) => error,
            () = follow => std::future::pending().await,
        }
    }

    /// The same, knowing how the session stands by `standing`, which says nothing that [`climb`](Self::climb) has not seen.
    async fn climb_up(&self, mut standing: watch::Receiver<Standing>) -> TunnelError {
        let lifeline = &self.lifeline;
        let mut drain = lifeline.drain();
        let mut changes = self.tunnel.changes();
        let mut backoff = Backoff::up_to(LONGEST);
        // The session before may have ended on that way.
        let left_alone = self.climb().wait(Instant::now());
        if !left_alone.is_zero() {
            self.not_directly(LEFT_ALONE.to_owned(), left_alone);
        }
        loop {
            let now = standing.borrow_and_update().clone();
            if let Standing::Attached { route, standby, .. } = now {
                // Also one that was taken by itself, when the other way was lost.
                self.remark(|remarks| {
                    if route == Route::Direct {
                        (remarks.direct_why, remarks.direct_next) = (None, None);
                    }
                    if route == Route::Relay || standby {
                        (remarks.standby_why, remarks.standby_next) = (None, None);
                    }
                });
            }
            let left_alone = self.climb().wait(Instant::now());
            let before = way(&now);
            let next = match now {
                Standing::Attached { route: Route::Relay, .. } if !left_alone.is_zero() => left_alone,
                Standing::Attached { route: Route::Relay, .. } if self.tunnel.wants_direct() => {
                    self.remark(|remarks| remarks.direct_next = None);
                    let tried = tokio::select! {
                        tried = self.try_direct() => tried,
                        _ = standing.wait_for(|s| !matches!(s, Standing::Attached { .. })) => continue,
                    };
                    // Also of one that was lost before it was seen.
                    let wait = backoff.next(rand::random());
                    match tried {
                        // The workspace is asked to go over, and its answer is a round trip away.
                        Ok(()) => wait.max(ATTACH_PATIENCE),
                        Err(why) => {
                            tracing::debug!(why, "no direct way yet");
                            self.not_directly(why, wait);
                            wait
                        }
                    }
                }
                Standing::Attached { route: Route::Direct, standby: false, .. } => {
                    // A coordinator that stops says when to come back, so that not all of its clients do at once.
                    let asked = if drain.has_changed().unwrap_or(false) { *drain.borrow_and_update() } else { None };
                    let standby = async {
                        tokio::time::sleep(asked.unwrap_or_default()).await;
                        self.remark(|remarks| remarks.standby_next = None);
                        let carrier = self.tunnel.join(UNHEARD).await?;
                        let attached = lifeline.attach(Box::new(carrier), Route::Relay, AttachMode::Standby);
                        attached.await.map(drop).map_err(TunnelError::resume)
                    };
                    let outcome = tokio::select! {
                        outcome = standby => outcome,
                        // What was dialled went with the network before.
                        _ = changes.changed() => {
                            backoff.reset();
                            self.climb().network_changed();
                            continue;
                        }
                        // In trouble it is of use all the more.
                        _ = standing.wait_for(|s| way(s) != before && !matches!(s, Standing::Suspect { .. } | Standing::Lost { .. })) => continue,
                    };
                    let wait = backoff.next(rand::random());
                    match outcome {
                        Ok(()) => {}
                        Err(error) if !error.is_passing() && !error.is_between() => return error,
                        Err(error) => {
                            tracing::debug!(%error, "no way through the coordinator to fall back on yet");
                            self.alone(error.to_string(), wait);
                        }
                    }
                    wait
                }
                Standing::Attached { .. } => {
                    backoff.reset();
                    LONGEST
                }
                Standing::Ended(_) => return std::future::pending().await,
                Standing::Beginning | Standing::Suspect { .. } | Standing::Lost { .. } => LONGEST,
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                _ = changes.changed() => {
                    backoff.reset();
                    self.climb().network_changed();
                }
                over = async { standing.wait_for(|s| way(s) != before).await.is_err() } => if over {
                    return std::future::pending().await;
                },
            }
        }
    }

    /// Says why the session does not go directly, and when that is tried again. The log has it when it begins.
    fn not_directly(&self, why: String, wait: Duration) {
        if self.remarks().direct_why.is_none() {
            tracing::info!(target: WAY, why, ?wait, "the session does not go directly; that is tried until it does");
        }
        self.remark(|remarks| (remarks.direct_why, remarks.direct_next) = (Some(why), Some(time_in(wait))));
    }

    /// The same of a way through the coordinator behind the direct one.
    fn alone(&self, why: String, wait: Duration) {
        if self.remarks().standby_why.is_none() {
            let next = "it is dialled until it does";
            tracing::info!(target: WAY, why, ?wait, next, "no way through the coordinator stands by behind the direct one");
        }
        self.remark(|remarks| (remarks.standby_why, remarks.standby_next) = (Some(why), Some(time_in(wait))));
    }

    /// Tries the addresses that are known for as long as the session has no way, beside whoever dials the coordinator.
    /// `failed` is told of each attempt there that came to nothing.
    pub(super) async fn resume_directly(&self, failed: &Notify) -> Infallible {
        if !self.tunnel.wants_direct() {
            return std::future::pending().await;
        }
        let mut changes = self.tunnel.changes();
        let mut backoff = Backoff::default();
        let left_alone = self.climb().wait(Instant::now()).min(LEFT_TO_THE_OTHER);
        tokio::select! {
            () = tokio::time::sleep(left_alone) => {}
            () = failed.notified() => {}
            _ = changes.changed() => {}
        }
        let mut wait = Duration::ZERO;
        loop {
            let tried = async {
                tokio::time::sleep(wait).await;
                self.reach_directly().await
            };
            wait = tokio::select! {
                tried = tried => match tried {
                    // The workspace is asked to go over, and its answer is a round trip away.
                    Ok(()) => ATTACH_PATIENCE,
                    Err(why) => {
                        tracing::debug!(why, "the session could not be resumed directly yet");
                        backoff.next(rand::random())
                    }
                },
                _ = changes.changed() => {
                    backoff.reset();
                    Duration::ZERO
                }
            };
        }
    }

    /// One try at the addresses that the workspace names now.
    async fn try_direct(&self) -> Result<(), String> {
        let here = self.tunnel.client().url().is_loopback();
        // A session that drains cannot ask any more; the way it knows may still lead there.
        if !self.opener.is_draining() {
            let accepted = hello(&self.opener, self.tunnel.instance()).await.map_err(|refusal| refusal.to_string())?;
            let addresses = accepted.direct.unwrap_or_default();
            let may = |address: &SocketAddr| direct::may_dial(*address, here);
            self.set_addresses(addresses.into_iter().take(MAX_DIRECT).filter(may).collect());
        }
        self.reach_directly().await
    }

    /// One try at those that are known: the first that answers as this session's other end is asked to go on there.
    async fn reach_directly(&self) -> Result<(), String> {
        let (lifeline, addresses) = (&self.lifeline, self.addresses());
        let mut tries: FuturesUnordered<_> = addresses.iter().map(|address| direct::dial(*address)).collect();
        let mut why = "the workspace names no address that could be dialled from here".to_owned();
        while let Some(dialed) = tries.next().await {
            match dialed {
                Err(refusal) => why = refusal.to_string(),
                Ok(carrier) => match lifeline.attach(Box::new(carrier), Route::Direct, AttachMode::Standby).await {
                    Err(error) => why = error,
                    Ok(attachment) => {
                        lifeline.go_over(attachment).await;
                        return Ok(());
                    }
                },
            }
        }
        Err(why)
    }
}

/// Shows `climb` how the session stands, whatever else is under way, and then says so in `seen`. `told` hears of each wait that
/// begins. Returns when nothing changes any more.
async fn follow(
    mut standing: watch::Receiver<Standing>,
    moved: impl Fn() -> u64,
    climb: &Mutex<Climb>,
    seen: watch::Sender<Standing>,
    told: impl Fn(Duration),
) {
    loop {
        let now = standing.borrow_and_update().clone();
        let wait = {
            let mut climb = climb.lock().unwrap_or_else(PoisonError::into_inner);
            climb.sees(&now, moved(), Instant::now(), rand::random())
        };
        wait.into_iter().for_each(&told);
        seen.send_replace(now);
        if standing.changed().await.is_err() {
            return;
        }
    }
}

/// What of a standing decides what to do.
fn way(standing: &Standing) -> (u8, bool) {
    match standing {
        Standing::Attached { route: Route::Relay, .. } => (0, false),
        Standing::Attached { route: Route::Direct, standby, .. } => (1, *standby),
        Standing::Beginning | Standing::Suspect { .. } | Standing::Lost { .. } => (2, false),
        Standing::Ended(_) => (3, false),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::climb::WORTH;
    use super::*;

    #[tokio::test]
    async fn a_silence_is_seen_while_nobody_looks_what_to_do_next() {
        let attached = |route| Standing::Attached { route, round_trip: None, standby: true, moves: 1 };
        let trouble = |silent| {
            let (since, why) = (Instant::now(), "it broke".to_owned());
            if silent { Standing::Suspect { since, why } } else { Standing::Lost { since, why } }
        };
        // Much moved on each of these ways: only their silence tells them from good ones.
        for (silent, failures) in [(true, 3), (false, 1)] {
            let (lifeline, standing) = watch::channel(Standing::Beginning);
            let (seen, looks) = watch::channel(Standing::Beginning);
            let (climb, moved, waits) = (Mutex::new(Climb::default()), Cell::new(0), Cell::new(0));
            let told = |wait| {
                assert!(!climb.lock().unwrap().wait(Instant::now()).is_zero(), "{wait:?}");
                waits.set(waits.get() + 1);
            };
            let mut follows = std::pin::pin!(follow(standing, || moved.get(), &climb, seen, told));
            for _ in 0..3 {
                for now in [attached(Route::Direct), trouble(silent), attached(Route::Relay)] {
                    lifeline.send_replace(now.clone());
                    assert!(futures::poll!(&mut follows).is_pending());
                    assert_eq!(*looks.borrow(), now, "it is said when the climb knows it");
                    moved.set(moved.get() + WORTH);
                }
            }
            assert_eq!((climb.lock().unwrap().failures(), waits.get()), (failures, 3), "silent: {silent}");
            drop(lifeline);
            follows.await;
        }
    }
}

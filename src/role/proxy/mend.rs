//! Keeps a session on its feet: when its connection is gone or does not answer, brings it another one; when its coordinator
//! stops, before that one is gone.
//!
//! When something happened that often costs a connection without a word, the next one is dialled while the one that the
//! session has is asked: it is taken when no answer came in the time of one.
//!
//! Everything in the session waits while it has none. What will never succeed ends it then: a device that was revoked, a
//! session that the workspace does not know any more.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Fuse, FusedFuture, MaybeDone, maybe_done};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::attempt::UNHEARD;
use super::life::Life;
use super::tunnel::TunnelError;
use super::tunnel_state::{Doing, Step, TunnelState, time_in, time_of};
use crate::lifeline::{Route, Standing};
use crate::role::WAY;
use crate::role::backoff::{Backoff, LONGEST, LONGEST_FOR_A_NAME};
use crate::transport::client::CoordinatorCarrier;
use crate::wire::lifeline::AttachMode;

/// How long one attempt may take as a whole: the way to the coordinator, and its wait for the stub.
const ATTEMPT: Duration = Duration::from_secs(40);

/// A connection that lasts this long, or moves anything, was a good one: the next is made at once when it is lost.
const STEADY: Duration = Duration::from_secs(1);

/// Longest wait after connections that were taken and were of no use. Coordinator and workspace are there; but a wire
/// that breaks at every touch must not keep them busy.
const BRIEF: Duration = Duration::from_secs(1);

/// How long the next coordinator is looked for so often: one that is replaced is followed at once. A session on the direct
/// way may be without one for days.
const BRIEFLY: Duration = Duration::from_secs(30);

/// What is told when the coordinator says that it stops.
const STOPS: &str = "the coordinator is stopping; the session goes over to the next one";

/// Round trips within which a connection in doubt may answer before another one is taken that was there sooner: the way to the
/// coordinator may be short, and the way to the workspace long. It is suspected after more.
const ANSWER_TRIPS: u32 = 2;

/// The same, at most: what was in a queue before the machine slept is no part of the way. Whoever wakes a machine waits for it.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);

/// A connection by way of the coordinator that is being dialled.
type Dialing<'a> = BoxFuture<'a, Result<CoordinatorCarrier, TunnelError>>;

/// Another connection, beside the one that is in doubt.
struct Ahead<'a> {
    dialing: Pin<Box<MaybeDone<Dialing<'a>>>>,
    /// How that went so far: nobody is told while the other one is in doubt only.
    steps: Arc<Mutex<Vec<Step>>>,
    /// When the one in doubt has had time to answer.
    answer_by: tokio::time::Instant,
}

impl Life<'_> {
    /// Publishes how the session is and mends it, until mending is pointless; then gives the reason. Never ends when
    /// the session itself is over: whoever serves it sees that.
    pub(super) async fn mend(&self) -> TunnelError {
        let (lifeline, session) = (&self.lifeline, &self.standing);
        let mut standing = lifeline.standing();
        let mut drain = lifeline.drain();
        let (mut doubt, mut doubted) = (lifeline.doubt(), false);
        let mut changes = self.tunnel.changes();
        let mut brief = Backoff::default();
        let (mut carriers, mut attached, mut moved) = (0, Instant::now(), 0);
        let mut come_back = None;
        let attaching = watch::Sender::new(false);
        let mut leaving = Box::pin(Fuse::terminated());
        // Another connection beside the one that is in doubt: while it is dialled, and while the workspace is asked to take it.
        let mut ahead: Option<Ahead<'_>> = None;
        let mut moving = Box::pin(Fuse::terminated());
        let mut before = Standing::Beginning;
        loop {
            let now = standing.borrow_and_update().clone();
            let finds_another = finds_another(&before, &now);
            before = now.clone();
            let (since, why) = match now {
                Standing::Attached { route, round_trip, standby, moves } => {
                    // By whoever keeps a way behind the direct one. What is being attached here ends by itself.
                    if finds_another && !*attaching.borrow() && self.remarks().notice.is_some() {
                        leaving.set(Fuse::terminated());
                        self.gone_over();
                    }
                    self.publish(session.up(route, round_trip, standby, moves, self.remarks()));
                    // Its figures change all the time: only another connection is a new one.
                    if moves != carriers {
                        (carriers, attached) = (moves, Instant::now());
                    }
                    let was = std::mem::replace(&mut doubted, *doubt.borrow_and_update());
                    // Once for each time that it is in doubt: what is refused now is tried when it is suspected.
                    if doubted && !was && leaving.is_terminated() && !*attaching.borrow() {
                        changes.borrow_and_update();
                        ahead = Some(self.dial_ahead(round_trip));
                    }
                    ahead.take_if(|_| !doubted);
                    tokio::select! {
                        Ok(()) = doubt.changed() => {}
                        dialed = outcome(&mut ahead) => match dialed {
                            Ok(carrier) => moving.set(self.move_to(carrier, &attaching).fuse()),
                            Err(error) => tracing::debug!(%error, "no other connection while this one is in doubt"),
                        },
                        () = &mut moving => {}
                        // What was dialled went with the network before.
                        _ = changes.changed(), if doubted && leaving.is_terminated() => {
                            moving.set(Fuse::terminated());
                            attaching.send_replace(false);
                            ahead = Some(self.dial_ahead(round_trip));
                        }
                        changed = standing.changed() => if changed.is_err() {
                            return std::future::pending().await;
                        },
                        told = told(&mut drain) => {
                            // Once, however often it says so.
                            if self.remarks().notice.is_none() {
                                tracing::info!(target: WAY, ?told, "{STOPS}");
                            }
                            self.set_notice(Some(STOPS.to_owned()));
                            come_back = Some(Instant::now() + told);
                            ahead = None;
                            moving.set(Fuse::terminated());
                            leaving.set(self.leave(told, &attaching).fuse());
                            // What this replaces may have been asking the workspace.
                            attaching.send_replace(false);
                        }
                        () = &mut leaving => {}
                    }
                    continue;
                }
                Standing::Suspect { since, why } | Standing::Lost { since, why } => (since, why),
                Standing::Beginning if standing.changed().await.is_ok() => continue,
                Standing::Beginning | Standing::Ended(_) => return std::future::pending().await,
            };
            // The workspace lets go of the old connection when it takes the next one, whose answer is a moment behind.
            let mut asked = attaching.subscribe();
            if *asked.borrow() {
                tokio::select! {
                    _ = standing.wait_for(is_well) => {}
                    _ = asked.wait_for(|attaching| !attaching) => {}
                    () = &mut leaving => {}
                    () = &mut moving => {}
                    _ = changes.changed(), if leaving.is_terminated() => {
                        moving.set(Fuse::terminated());
                        attaching.send_replace(false);
                    }
                }
                continue;
            }
            let mut wait = Duration::ZERO;
            let before = std::mem::replace(&mut moved, lifeline.moved());
            if moved > before || attached.elapsed() >= STEADY {
                brief.reset();
            } else {
                wait = brief.next(rand::random()).min(BRIEF);
            }
            leaving.set(Fuse::terminated());
            moving.set(Fuse::terminated());
            self.set_notice(None);
            attaching.send_replace(false);
            // A coordinator that stops says when to come back, so that not all of its clients do at once. Its last word may
            // have come with the end of the connection.
            if let Some(told) = told(&mut drain).now_or_never() {
                come_back = Some(Instant::now() + told);
            }
            if let Some(at) = come_back.take() {
                wait = wait.max(at.saturating_duration_since(Instant::now()));
            }
            let interrupted = Interrupted { why, since, time: time_of(since) };
            tracing::debug!(why = interrupted.why, "the connection is interrupted; the session waits for another one");
            let failed = Notify::new();
            let resumed = tokio::select! {
                outcome = self.resume(&interrupted, wait, ahead.take(), &failed) => outcome,
                never = self.resume_directly(&failed) => match never {},
                // It answers again, or the lifeline helped itself to another way.
                _ = standing.wait_for(is_well) => Ok(()),
            };
            match resumed {
                Ok(()) => tracing::debug!(after = ?interrupted.since.elapsed(), "the session goes on"),
                Err(error) => return error,
            }
        }
    }

    /// Brings another connection after `wait`, while the session has one still, and tries until it is taken. No error ends
    /// the session: what it has goes on. `attaching` is true while the workspace has been asked to take it.
    async fn leave(&self, mut wait: Duration, attaching: &watch::Sender<bool>) {
        let mut backoff = Backoff::default();
        let from = Instant::now() + wait;
        let mut next = || backoff.next_up_to(longest_after(from.elapsed()), rand::random());
        loop {
            tokio::time::sleep(wait).await;
            let outcome = tokio::time::timeout(ATTEMPT, self.bring_beside(attaching)).await;
            attaching.send_replace(false);
            let error = match outcome {
                Ok(Ok(())) => return self.gone_over(),
                Ok(Err(TunnelError::Drain(told))) => {
                    // It may say so each time: no reason to ask without a pause.
                    wait = told.max(next());
                    self.set_notice(Some("the coordinator is stopping, and so is the one that is there next".into()));
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no connection within {} s", ATTEMPT.as_secs()),
            };
            wait = next();
            tracing::debug!(error, ?wait, "the session could not go over yet");
            self.set_notice(Some(format!("the coordinator is stopping, and the next one is not there yet: {error}")));
        }
    }

    /// Nothing goes through a coordinator that stops any more.
    fn gone_over(&self) {
        self.set_notice(None);
        tracing::info!(target: WAY, "the session has gone over to the next coordinator");
    }

    /// Dials another connection beside one in doubt that has this round trip.
    fn dial_ahead(&self, round_trip: Option<Duration>) -> Ahead<'_> {
        let answer = (round_trip.unwrap_or_default() * ANSWER_TRIPS).min(LONGEST_ANSWER);
        let steps = Arc::<Mutex<Vec<Step>>>::default();
        let kept = steps.clone();
        let dialing = async move {
            let tell = |step: Step| {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(step.clone());
                self.step(step);
            };
            self.tunnel.join(&tell).await
        };
        let dialing = Box::pin(maybe_done(dialing.boxed()));
        Ahead { dialing, steps, answer_by: tokio::time::Instant::now() + answer }
    }

    /// Moves the session to a connection that was there before the one in doubt had answered.
    async fn move_to(&self, carrier: CoordinatorCarrier, attaching: &watch::Sender<bool>) {
        attaching.send_replace(true);
        let taken = self.lifeline.attach(Box::new(carrier), Route::Relay, AttachMode::Move).await;
        attaching.send_replace(false);
        match taken {
            Ok(_) => tracing::debug!("the session did not wait for a connection that was in doubt"),
            Err(why) => tracing::debug!(why, "the session could not move from a connection that is in doubt"),
        }
    }

    /// Tries until the session has a new connection, for the first time after `wait`; without a wait that is the one that is
    /// being dialled already. `failed` is told of each attempt that comes to nothing.
    async fn resume(
        &self,
        interrupted: &Interrupted,
        mut wait: Duration,
        ahead: Option<Ahead<'_>>,
        failed: &Notify,
    ) -> Result<(), TunnelError> {
        let mut ahead = ahead.filter(|_| wait.is_zero());
        let mut changes = self.tunnel.changes();
        let mut backoff = Backoff::default();
        let mut last = None;
        loop {
            self.publish(interrupted.state(backoff.failures(), &last, wait));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => backoff.reset(),
            }
            changes.borrow_and_update();
            self.publish(interrupted.state(backoff.failures() + 1, &last, Duration::ZERO));
            if let Some(ahead) = &ahead {
                let steps = ahead.steps.lock().unwrap_or_else(PoisonError::into_inner).clone();
                steps.into_iter().for_each(|step| self.step(step));
            }
            let began = Instant::now();
            let attempt = tokio::select! {
                outcome = tokio::time::timeout(ATTEMPT, self.bring(ahead.take())) => outcome,
                // What an attempt waits for went with the old network.
                _ = changes.changed() => {
                    backoff.reset();
                    wait = Duration::ZERO;
                    continue;
                }
            };
            let (error, longest) = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(TunnelError::Drain(told))) => {
                    wait = told.max(backoff.next(rand::random()));
                    last = Some("the coordinator is restarting".to_owned());
                    failed.notify_one();
                    continue;
                }
                Ok(Err(error)) if !error.is_passing() && !error.is_between() => return Err(error),
                Ok(Err(error)) if error.is_name() => (error.to_string(), LONGEST_FOR_A_NAME),
                Ok(Err(error)) => (error.to_string(), LONGEST),
                Err(_) => (format!("no connection within {} s", ATTEMPT.as_secs()), LONGEST),
            };
            // What waited for the stub at the coordinator has waited: it would be there when the stub is.
            wait = backoff.next_up_to(longest, rand::random()).saturating_sub(began.elapsed());
            failed.notify_one();
            tracing::info!(error, ?wait, "the session could not be resumed yet");
            last = Some(error);
        }
    }

    /// One new connection, by way of the coordinator, which the session goes on on: this one, if one is being dialled.
    async fn bring(&self, mut ahead: Option<Ahead<'_>>) -> Result<(), TunnelError> {
        let dialed = match &mut ahead {
            Some(ahead) => {
                ahead.dialing.as_mut().await;
                ahead.dialing.as_mut().take_output()
            }
            None => None,
        };
        let carrier = match dialed {
            Some(dialed) => dialed?,
            None => self.tunnel.join(&|step| self.step(step)).await?,
        };
        self.step(Step::Doing(Doing::Verifies));
        self.lifeline.attach(Box::new(carrier), Route::Relay, AttachMode::Move).await.map_err(TunnelError::resume)?;
        Ok(())
    }

    /// The same for a session that goes on: where it goes directly, the new connection only stands by.
    async fn bring_beside(&self, attaching: &watch::Sender<bool>) -> Result<(), TunnelError> {
        let carrier = self.tunnel.join(UNHEARD).await?;
        let direct = matches!(*self.lifeline.standing().borrow(), Standing::Attached { route: Route::Direct, .. });
        let mode = if direct { AttachMode::Standby } else { AttachMode::Move };
        attaching.send_replace(true);
        self.lifeline.attach(Box::new(carrier), Route::Relay, mode).await.map_err(TunnelError::resume)?;
        Ok(())
    }
}

/// Returns when a connection that is being dialled, if one is, is there or cannot be had, and the one in doubt has had time to
/// answer.
async fn outcome(ahead: &mut Option<Ahead<'_>>) -> Result<CoordinatorCarrier, TunnelError> {
    let Some(Ahead { dialing, answer_by, .. }) = ahead else { return std::future::pending().await };
    tokio::join!(dialing.as_mut(), tokio::time::sleep_until(*answer_by));
    let dialed = dialing.as_mut().take_output();
    *ahead = None;
    match dialed {
        Some(dialed) => dialed,
        None => std::future::pending().await,
    }
}

/// Longest wait between two looks for the next coordinator, when it has been looked for that long.
fn longest_after(looked: Duration) -> Duration {
    if looked < BRIEFLY { BRIEF } else { LONGEST }
}

/// Whether a way stands by behind the direct one where none did. A coordinator that stops takes nothing more: so that is
/// through another one.
fn finds_another(before: &Standing, now: &Standing) -> bool {
    let stands_by = |standing: &Standing| match standing {
        Standing::Attached { route: Route::Direct, standby, .. } => Some(*standby),
        _ => None,
    };
    (stands_by(before), stands_by(now)) == (Some(false), Some(true))
}

/// Whether nothing has to be mended.
fn is_well(standing: &Standing) -> bool {
    !matches!(standing, Standing::Suspect { .. } | Standing::Lost { .. })
}

/// Returns when the coordinator says that it stops, with when to come back.
async fn told(drain: &mut watch::Receiver<Option<Duration>>) -> Duration {
    loop {
        if drain.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(told) = *drain.borrow_and_update() {
            return told;
        }
    }
}

struct Interrupted {
    why: String,
    since: Instant,
    /// The same as a time of day, told alike each time.
    time: OffsetDateTime,
}

impl Interrupted {
    fn state(&self, attempt: u32, last: &Option<String>, wait: Duration) -> TunnelState {
        TunnelState::Resuming {
            why: self.why.clone(),
            since: self.time,
            attempt,
            doing: None,
            last: last.clone(),
            retry_ms: wait.as_millis() as u64,
            next: (!wait.is_zero()).then(|| time_in(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_by_where_nothing_did_is_through_a_coordinator_that_takes() {
        let by = |route, standby| Standing::Attached { route, round_trip: None, standby, moves: 1 };
        let (alone, ready) = (by(Route::Direct, false), by(Route::Direct, true));
        assert!(finds_another(&alone, &ready));
        // What was in use stands by, as when the session moves to the direct way, or it stood by before.
        for before in [by(Route::Relay, true), by(Route::Relay, false), Standing::Beginning, ready.clone()] {
            assert!(!finds_another(&before, &ready), "{before:?}");
        }
        assert!(!finds_another(&alone, &by(Route::Relay, false)));
    }

    #[test]
    fn a_coordinator_that_nobody_follows_is_looked_for_often_and_then_seldom() {
        let mut backoff = Backoff::default();
        let (mut looked, mut often, mut seldom) = (Duration::ZERO, 0, 0);
        while looked < Duration::from_secs(3600) {
            let wait = backoff.next_up_to(longest_after(looked), 1.0);
            *(if looked < BRIEFLY { &mut often } else { &mut seldom }) += 1;
            looked += wait;
        }
        assert!((30..40).contains(&often) && (230..250).contains(&seldom), "{often} {seldom}");
    }
}

//! Keeps a session on its feet: when its connection is gone or does not answer, brings it another one.
//!
//! Everything in the session waits meanwhile. What will never succeed ends it: a device that was revoked, a session
//! that the workspace does not know any more.

use std::time::{Duration, Instant};

use super::life::Life;
use super::tunnel::TunnelError;
use super::tunnel_state::{TunnelState, time_in, time_of};
use crate::lifeline::{Route, Standing};
use crate::role::backoff::{Backoff, LONGEST, LONGEST_FOR_A_NAME};
use crate::wire::lifeline::AttachMode;

/// How long one attempt may take as a whole: the way to the coordinator, and its wait for the stub.
const ATTEMPT: Duration = Duration::from_secs(40);

/// A connection that lasts this long, or moves anything, was a good one: the next is made at once when it is lost.
const STEADY: Duration = Duration::from_secs(1);

/// Longest wait after connections that were taken and were of no use. Coordinator and workspace are there; but a wire
/// that breaks at every touch must not keep them busy.
const BRIEF: Duration = Duration::from_secs(1);

impl Life<'_> {
    /// Publishes how the session is and mends it, until mending is pointless; then gives the reason. Never ends when
    /// the session itself is over: whoever serves it sees that.
    pub(super) async fn mend(&self) -> TunnelError {
        let (lifeline, session) = (&self.lifeline, &self.standing);
        let mut standing = lifeline.standing();
        let mut drain = lifeline.drain();
        let mut brief = Backoff::default();
        let (mut carriers, mut attached, mut moved) = (0, Instant::now(), 0);
        loop {
            let now = standing.borrow_and_update().clone();
            let (since, why) = match now {
                Standing::Attached { route, round_trip, standby, moves } => {
                    self.publish(session.up(route, round_trip, standby, moves));
                    // Its figures change all the time: only another connection is a new one.
                    if moves != carriers {
                        (carriers, attached) = (moves, Instant::now());
                    }
                    if standing.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                    continue;
                }
                Standing::Suspect { since, why } | Standing::Lost { since, why } => (since, why),
                Standing::Beginning if standing.changed().await.is_ok() => continue,
                Standing::Beginning | Standing::Ended(_) => return std::future::pending().await,
            };
            let mut wait = Duration::ZERO;
            let before = std::mem::replace(&mut moved, lifeline.moved());
            if moved > before || attached.elapsed() >= STEADY {
                brief.reset();
            } else {
                wait = brief.next(rand::random()).min(BRIEF);
            }
            // A coordinator that stops says when to come back, so that not all of its clients do at once.
            if drain.has_changed().unwrap_or(false)
                && let Some(asked) = *drain.borrow_and_update()
            {
                wait = asked;
            }
            let interrupted = Interrupted { why, since };
            tracing::debug!(why = interrupted.why, "the connection is interrupted; the session waits for another one");
            let resumed = tokio::select! {
                outcome = self.resume(&interrupted, wait) => outcome,
                // It answers again, or the lifeline helped itself to another way.
                _ = standing.wait_for(|s| !matches!(s, Standing::Suspect { .. } | Standing::Lost { .. })) => Ok(()),
            };
            match resumed {
                Ok(()) => tracing::debug!(after = ?interrupted.since.elapsed(), "the session goes on"),
                Err(error) => return error,
            }
        }
    }

    /// Tries until the session has a new connection, for the first time after `wait`.
    async fn resume(&self, interrupted: &Interrupted, mut wait: Duration) -> Result<(), TunnelError> {
        let mut changes = self.tunnel.changes();
        let mut backoff = Backoff::default();
        let mut last = None;
        loop {
            self.publish(interrupted.state(backoff.failures(), &last, wait));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => {}
            }
            changes.borrow_and_update();
            self.publish(interrupted.state(backoff.failures() + 1, &last, Duration::ZERO));
            let began = Instant::now();
            let attempt = tokio::select! {
                outcome = tokio::time::timeout(ATTEMPT, self.bring()) => outcome,
                // What an attempt waits for went with the old network.
                _ = changes.changed() => {
                    backoff.reset();
                    wait = Duration::ZERO;
                    continue;
                }
            };
            let (error, longest) = match attempt {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if !error.is_passing() && !error.is_impostor() => return Err(error),
                Ok(Err(error)) if error.is_name() => (error.to_string(), LONGEST_FOR_A_NAME),
                Ok(Err(error)) => (error.to_string(), LONGEST),
                Err(_) => (format!("no connection within {} s", ATTEMPT.as_secs()), LONGEST),
            };
            // What waited for the stub at the coordinator has waited: it would be there when the stub is.
            wait = backoff.next_up_to(longest, rand::random()).saturating_sub(began.elapsed());
            tracing::info!(error, ?wait, "the session could not be resumed yet");
            last = Some(error);
        }
    }

    /// One new connection, by way of the coordinator.
    async fn bring(&self) -> Result<(), TunnelError> {
        let carrier = self.tunnel.join().await?;
        self.lifeline.attach(Box::new(carrier), Route::Relay, AttachMode::Move).await.map_err(TunnelError::resume)?;
        Ok(())
    }
}

struct Interrupted {
    why: String,
    since: Instant,
}

impl Interrupted {
    fn state(&self, attempt: u32, last: &Option<String>, wait: Duration) -> TunnelState {
        TunnelState::Resuming {
            why: self.why.clone(),
            since: time_of(self.since),
            attempt,
            last: last.clone(),
            retry_ms: wait.as_millis() as u64,
            next: (!wait.is_zero()).then(|| time_in(wait)),
        }
    }
}

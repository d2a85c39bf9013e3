//! How the tunnel is, as `up`, `status` and the logs tell it. The log has a line when the way goes and one when it is back,
//! and none for each attempt between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::lifeline::Route;
use crate::role::WAY;

/// How the tunnel is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TunnelState {
    /// On its way; `attempt` counts from 1.
    Connecting {
        /// Attempts since it was last up.
        attempt: u32,
        /// Since when there is no session.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// What the attempt waits for.
        doing: Doing,
        /// What became of the attempt before this one, or why this one waits for longer than usual.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Up, verified end to end.
    Up {
        /// Milliseconds from the first packet to the verified session.
        took_ms: u64,
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// The stub's program version.
        stub_version: String,
        /// The way its bytes take.
        path: Route,
        /// Milliseconds to the workspace and back on that way.
        #[serde(skip_serializing_if = "Option::is_none")]
        round_trip_ms: Option<f64>,
        /// Whether another way is ready to take over.
        standby: bool,
        /// How often the session has moved to another connection.
        moves: u64,
        /// What there is to say of it beside that.
        #[serde(flatten)]
        remarks: Remarks,
    },
    /// The connection beneath is gone or does not answer. The session and everything in it wait for the next one.
    Resuming {
        /// What happened.
        why: String,
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// Attempts to resume so far.
        attempt: u32,
        /// What the one that is under way waits for, where that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        doing: Option<Doing>,
        /// What became of the last one, or why it waits for longer than usual.
        #[serde(skip_serializing_if = "Option::is_none")]
        last: Option<String>,
        /// Milliseconds until the next attempt, when this was told; 0 when it is under way.
        retry_ms: u64,
        /// When the next attempt is, unless it is under way.
        #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
        next: Option<OffsetDateTime>,
    },
    /// Down; another attempt follows.
    Waiting {
        /// Why.
        why: String,
        /// Milliseconds until the next attempt, when this was told.
        retry_ms: u64,
        /// When the next attempt is.
        #[serde(with = "time::serde::rfc3339")]
        next: OffsetDateTime,
        /// Since when it has been down.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
    /// Down for good: trying again without a change would give the same.
    Failed {
        /// Why.
        why: String,
    },
}

impl TunnelState {
    /// The way that bytes take now; empty when there is none.
    pub fn path(&self) -> &'static str {
        match self {
            TunnelState::Up { path: Route::Relay, .. } => "relay",
            TunnelState::Up { path: Route::Direct, .. } => "direct",
            _ => "",
        }
    }
}

/// What there is to say of a session that stands, while nothing is interrupted; nothing, where all is as it should be.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Remarks {
    /// What threatens it, and what is done about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// Why it does not go directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_why: Option<String>,
    /// When the direct way is tried again, unless it is under way.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub direct_next: Option<OffsetDateTime>,
    /// Why no way through the coordinator stands by behind the direct one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby_why: Option<String>,
    /// When that is tried again, unless it is under way.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub standby_next: Option<OffsetDateTime>,
}

/// What an attempt waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// A connection to the coordinator.
    ReachesCoordinator,
    /// The coordinator, which waits for the workspace's stub.
    WaitsForStub,
    /// The proof of who is at the other end.
    Verifies,
}

/// How an attempt goes.
#[derive(Debug, Clone)]
pub enum Step {
    /// What it waits for from here on.
    Doing(Doing),
    /// Why it waits for longer than usual.
    Waits(String),
}

/// A session that stands: what its state says of it in every `Up`.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// Since when.
    pub since: OffsetDateTime,
    /// The stub's program version.
    pub stub_version: String,
}

impl Standing {
    /// The state while a carrier moves its bytes.
    pub fn up(
        &self,
        path: Route,
        round_trip: Option<Duration>,
        standby: bool,
        moves: u64,
        remarks: Remarks,
    ) -> TunnelState {
        TunnelState::Up {
            took_ms: self.took_ms,
            since: self.since,
            stub_version: self.stub_version.clone(),
            path,
            // Microseconds are kept: on one machine there is nothing else.
            round_trip_ms: round_trip.map(|time| time.as_micros() as f64 / 1000.0),
            standby,
            moves,
            remarks,
        }
    }
}

/// The time of day of a moment in the past.
pub fn time_of(moment: Instant) -> OffsetDateTime {
    OffsetDateTime::now_utc() - moment.elapsed()
}

/// The time of day of a moment that is so far ahead.
pub fn time_in(wait: Duration) -> OffsetDateTime {
    OffsetDateTime::now_utc() + wait
}

/// The state as it is told to whoever watches, and to the log.
#[derive(Debug)]
pub struct Told {
    state: watch::Sender<TunnelState>,
    way_since: WaySince,
    gone: Mutex<Option<Instant>>,
}

/// Since when the way to the workspace is what it is; nothing while there is none.
#[derive(Debug, Clone, Default)]
pub struct WaySince(Arc<Mutex<Option<Instant>>>);

impl WaySince {
    /// Since when.
    pub fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Default for Told {
    fn default() -> Told {
        let (since, doing) = (OffsetDateTime::now_utc(), Doing::ReachesCoordinator);
        let state = watch::Sender::new(TunnelState::Connecting { attempt: 1, since, doing, why: None });
        Told { state, way_since: WaySince::default(), gone: Mutex::default() }
    }
}

impl Told {
    /// The state, as it changes.
    pub fn watch(&self) -> watch::Receiver<TunnelState> {
        self.state.subscribe()
    }

    /// Since when there is a way.
    pub fn way_since(&self) -> WaySince {
        self.way_since.clone()
    }

    /// How the attempt goes that everything waits for. Nothing, while a session stands.
    pub fn step(&self, step: Step) {
        match step {
            Step::Doing(what) => self.doing(what),
            Step::Waits(why) => self.waits(why),
        }
    }

    fn doing(&self, what: Doing) {
        self.state.send_if_modified(|state| match state {
            TunnelState::Connecting { doing, .. } => std::mem::replace(doing, what) != what,
            TunnelState::Resuming { doing, next: None, .. } => doing.replace(what) != Some(what),
            _ => false,
        });
    }

    fn waits(&self, text: String) {
        let why = text.clone();
        let is_news = self.state.send_if_modified(|state| {
            let (TunnelState::Connecting { why: said, .. } | TunnelState::Resuming { last: said, .. }) = state else {
                return false;
            };
            *said = Some(text);
            true
        });
        if is_news {
            tracing::info!(target: WAY, why, "the workspace does not answer; an attempt waits for it");
        }
    }

    /// What there is to say of the session that stands. Nothing, when none does.
    pub fn remark(&self, now: Remarks) {
        self.state.send_if_modified(|state| match state {
            TunnelState::Up { remarks, .. } if *remarks != now => {
                *remarks = now;
                true
            }
            _ => false,
        });
    }

    /// How it is from here on.
    pub fn tell(&self, state: TunnelState) {
        let mut before = None;
        self.state.send_if_modified(|now| {
            if *now == state {
                return false;
            }
            match (&*now, &state) {
                (TunnelState::Up { .. }, TunnelState::Up { .. }) => {}
                (_, TunnelState::Up { .. }) => self.way_since.set(Some(Instant::now())),
                (_, _) => self.way_since.set(None),
            }
            before = Some(std::mem::replace(now, state.clone()));
            true
        });
        // Whoever reads the log may be slow, and everybody looks at the state.
        if let Some(before) = before {
            self.log(&before, &state);
        }
    }

    /// The way is gone, if it was there.
    fn is_gone(&self) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    fn log(&self, before: &TunnelState, now: &TunnelState) {
        // Texts, not as they print: a line end in one would begin a line of the log.
        match (before, now) {
            (TunnelState::Resuming { .. }, TunnelState::Resuming { .. })
            | (TunnelState::Up { .. }, TunnelState::Up { .. }) => {}
            (_, TunnelState::Up { path, .. }) => {
                // The first time is not a return.
                let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner).take();
                let Some(gone) = gone else { return };
                let goes_on = matches!(before, TunnelState::Resuming { .. });
                let what = if goes_on { "the session goes on" } else { "the tunnel is up again" };
                tracing::info!(target: WAY, after = ?gone.elapsed(), ?path, "{what}");
            }
            (_, TunnelState::Resuming { why, retry_ms, .. }) => {
                self.is_gone();
                let next = "another connection is tried until there is one";
                tracing::info!(target: WAY, why = why.as_str(), retry_ms, next, "the connection is interrupted; everything waits");
            }
            // Only the first attempt that fails is news.
            (TunnelState::Connecting { why: Some(_), .. }, TunnelState::Waiting { .. }) => {}
            (_, TunnelState::Waiting { why, retry_ms, .. }) => {
                self.is_gone();
                let next = "it is tried until it is up";
                tracing::info!(target: WAY, why = why.as_str(), retry_ms, next, "the tunnel is down");
            }
            // Why it ends, the program says last of all.
            (_, TunnelState::Connecting { .. } | TunnelState::Failed { .. }) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up() -> TunnelState {
        let since = OffsetDateTime::UNIX_EPOCH;
        Standing { took_ms: 1, since, stub_version: "1".into() }.up(Route::Relay, None, false, 0, Remarks::default())
    }

    #[test]
    fn there_is_a_way_while_the_session_has_a_connection() {
        let told = Told::default();
        let way = told.way_since();
        assert_eq!(way.get(), None);
        told.tell(up());
        let first = way.get().unwrap();
        let (why, since) = ("it broke".to_owned(), OffsetDateTime::UNIX_EPOCH);
        told.tell(TunnelState::Resuming { why, since, attempt: 0, doing: None, last: None, retry_ms: 0, next: None });
        assert_eq!(way.get(), None);
        told.tell(up());
        assert!(way.get().unwrap() > first);
        let waiting = TunnelState::Waiting { why: "gone".into(), retry_ms: 5, next: since, since };
        told.tell(waiting);
        assert_eq!(way.get(), None);
        assert!(matches!(*told.watch().borrow(), TunnelState::Waiting { .. }));
    }

    #[test]
    fn an_attempt_says_what_it_waits_for_and_what_became_of_the_last() {
        let told = Told::default();
        let says = || serde_json::to_value(&*told.watch().borrow()).unwrap();
        assert_eq!((&says()["attempt"], &says()["doing"]), (&1.into(), &"reaches_coordinator".into()));
        assert!(says()["since"].is_string() && says()["why"].is_null());
        told.doing(Doing::WaitsForStub);
        assert_eq!(says()["doing"], "waits_for_stub");
        let (since, doing) = (OffsetDateTime::UNIX_EPOCH, Doing::ReachesCoordinator);
        told.tell(TunnelState::Connecting { attempt: 3, since, doing, why: Some("refused".into()) });
        assert_eq!((&says()["since"], &says()["why"]), (&"1970-01-01T00:00:00Z".into(), &"refused".into()));
        told.waits("silent".into());
        assert_eq!((&says()["attempt"], &says()["why"]), (&3.into(), &"silent".into()));
        let why = "it broke".to_owned();
        let resuming = |next| {
            let (why, last) = (why.clone(), None);
            TunnelState::Resuming { why, since, attempt: 1, doing: None, last, retry_ms: 0, next }
        };
        told.tell(resuming(None));
        told.doing(Doing::WaitsForStub);
        told.waits("silent".into());
        assert_eq!((&says()["why"], &says()["last"]), (&"it broke".into(), &"silent".into()));
        assert_eq!(says()["doing"], "waits_for_stub");
        told.tell(resuming(Some(since)));
        told.doing(Doing::WaitsForStub);
        assert!(says()["doing"].is_null(), "no attempt is under way");
        told.tell(up());
        told.doing(Doing::WaitsForStub);
        told.waits("silent".into());
        assert_eq!((&says()["state"], &says()["why"]), (&"up".into(), &serde_json::Value::Null));
        let remarks = Remarks { notice: Some("it stops".into()), direct_next: Some(since), ..Remarks::default() };
        told.remark(remarks);
        assert_eq!((&says()["notice"], &says()["direct_next"]), (&"it stops".into(), &"1970-01-01T00:00:00Z".into()));
        told.remark(Remarks::default());
        assert!(says()["notice"].is_null() && says()["direct_next"].is_null());
    }
}

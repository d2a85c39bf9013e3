//! How the tunnel is, as `up`, `status` and the logs tell it.

use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;

use crate::lifeline::Route;

/// How the tunnel is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TunnelState {
    /// On its way; `attempt` counts from 1.
    Connecting {
        /// Attempts since it was last up.
        attempt: u32,
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
        /// What became of the last one.
        #[serde(skip_serializing_if = "Option::is_none")]
        last: Option<String>,
        /// Milliseconds until the next attempt; 0 when it is under way.
        retry_ms: u64,
    },
    /// Down; another attempt follows.
    Waiting {
        /// Why.
        why: String,
        /// Milliseconds until the next attempt.
        retry_ms: u64,
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
    pub fn up(&self, path: Route, round_trip: Option<Duration>, standby: bool, moves: u64) -> TunnelState {
        TunnelState::Up {
            took_ms: self.took_ms,
            since: self.since,
            stub_version: self.stub_version.clone(),
            path,
            // Microseconds are kept: on one machine there is nothing else.
            round_trip_ms: round_trip.map(|time| time.as_micros() as f64 / 1000.0),
            standby,
            moves,
        }
    }
}

/// The time of day of a moment in the past.
pub fn time_of(moment: Instant) -> OffsetDateTime {
    OffsetDateTime::now_utc() - moment.elapsed()
}

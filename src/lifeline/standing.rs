//! How a lifeline is, in words that those above pass on to a person.

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::wire::Refusal;
use crate::wire::lifeline::LifelineError;

/// The way a carrier takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Through the coordinator.
    Relay,
    /// From the laptop to the workspace.
    Direct,
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Before its first carrier.
    Beginning,
    /// A carrier moves its bytes.
    Attached {
        /// Which way.
        route: Route,
        /// Measured on this carrier.
        round_trip: Option<Duration>,
        /// Whether another carrier is ready to take over.
        standby: bool,
        /// How often it has moved.
        moves: u64,
    },
    /// The carrier does not answer; it may still come back.
    Suspect {
        /// Since when that is known.
        since: Instant,
        /// What was seen.
        why: String,
    },
    /// There is no carrier. Everything waits.
    Lost {
        /// Since when.
        since: Instant,
        /// What happened to the last one.
        why: String,
    },
    /// It is over.
    Ended(Ended),
}

impl Standing {
    /// Since when the other end is not heard, where that is so.
    pub fn interrupted(&self) -> Option<Instant> {
        match self {
            Standing::Suspect { since, .. } | Standing::Lost { since, .. } => Some(*since),
            _ => None,
        }
    }

    /// Whether both say the same to a person who does not care for the last millisecond.
    pub fn is_like(&self, other: &Standing) -> bool {
        match (self, other) {
            (
                Standing::Attached { route, standby, moves, round_trip },
                Standing::Attached { route: r, standby: s, moves: m, round_trip: t },
            ) => (route, standby, moves, round_trip.is_some()) == (r, s, m, t.is_some()),
            (one, two) => one == two,
        }
    }
}

/// Why a carrier is lost, for a person: what TLS says of a connection that was cut is for programmers.
pub fn broke(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection broke: it was cut off".into(),
        _ => format!("the connection broke: {error}"),
    }
}

/// Why a lifeline is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The other side said that nothing follows.
    #[error("the other side ended the session")]
    Complete,
    /// The other side, or the coordinator, will not go on.
    #[error("{0}")]
    Refused(Refusal),
    /// One side lacks bytes that the other has given up.
    #[error("the session cannot be resumed: {0}")]
    Position(String),
    /// Nobody came back for it.
    #[error("the session waited a day for a connection, and none came")]
    Expired,
    /// Its carrier broke before it could be resumed.
    #[error("the connection broke before the session began: {0}")]
    BrokenEarly(String),
    /// This program ended it.
    #[error("{0}")]
    Local(String),
}

/// Why a carrier was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a message.
    #[error("{0}")]
    Malformed(LifelineError),
    /// A message that has no place here.
    #[error("a lifeline message out of place")]
    OutOfPlace,
    /// The sender is not known to be the other end of this session, or repeats what was said before.
    #[error("the other side proves nothing")]
    NotProven,
    /// Bytes are missing.
    #[error("bytes are missing in the lifeline")]
    Gap,
    /// More was acknowledged than was sent.
    #[error("an acknowledgement of what was never sent")]
    AckAhead,
    /// The other side closed the carrier.
    #[error("the other side closed the connection")]
    Closed,
    /// Whoever answers does not know this session, whose other end is in use elsewhere.
    #[error(
        "a stub answers there that does not know this session, which goes on with another. hint: is there a copy of the workspace?"
    )]
    Elsewhere,
    /// The lifeline is over.
    #[error("the session is over")]
    Over,
}

//! How the stub is: whether it reaches its coordinator, since when, why not and what it does about that; and which laptops
//! are there, and by which way. For `nexus-stub status` and the log, which has a line when the coordinator is gone and one
//! when it is back, and none for each attempt between.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::earlier::Earlier;
use super::laptops::Laptops;
use crate::identity::KeyPin;
use crate::lifeline::{Route, Standing};
use crate::role::WAY;
use crate::wire::name::DeviceName;
use crate::wire::{Refusal, RefusalCode};

/// The call for it over the workspace's socket.
pub const METHOD: &str = "status";

/// Whether the coordinator is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Reached {
    /// For the first time; nothing has failed yet.
    Connecting,
    /// A connection is parked there: laptops can come.
    Ready {
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
    /// It is not reached.
    Away {
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// What became of the last attempt, or of the connection.
        why: String,
        /// Attempts that failed.
        failed: u32,
        /// When the next attempt is, or was when it is under way.
        #[serde(with = "time::serde::rfc3339")]
        next: OffsetDateTime,
    },
}

/// What the coordinator said about the workspace while laptops can come: another stub wants to serve it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// What it is, and what to do.
    pub what: String,
    /// When it was said last.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// How long a notice is told: whoever is refused asks again every few seconds, and nobody says that it has stopped.
const NOTICE: Duration = Duration::from_secs(60);

/// A laptop's session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaptopStatus {
    /// The name of its device.
    pub device: String,
    /// The key of its device.
    pub key: String,
    /// When its session began.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Whether it is replaced by a later one, and goes on until what it has is done.
    pub drains: bool,
    /// Connections, processes and calls in it.
    pub streams: usize,
    /// `attached`, `suspect`, `lost` or `ended`.
    pub state: String,
    /// The way its bytes take, while it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Route>,
    /// Milliseconds to the laptop and back on that way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<f64>,
    /// Why it is not attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Seconds for which it has not been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted_s: Option<f64>,
}

impl LaptopStatus {
    /// Of a session on a lifeline that stands so.
    pub fn new(
        name: &DeviceName,
        key: KeyPin,
        since: OffsetDateTime,
        drains: bool,
        streams: usize,
        standing: &Standing,
    ) -> LaptopStatus {
        let (state, path, round_trip) = match standing {
            Standing::Attached { route, round_trip, .. } => ("attached", Some(*route), *round_trip),
            Standing::Beginning => ("attached", None, None),
            Standing::Suspect { .. } => ("suspect", None, None),
            Standing::Lost { .. } => ("lost", None, None),
            Standing::Ended(_) => ("ended", None, None),
        };
        let interrupted = match standing {
            Standing::Suspect { since, why } | Standing::Lost { since, why } => Some((since.elapsed(), why.clone())),
            Standing::Ended(ended) => Some((Duration::ZERO, ended.to_string())),
            _ => None,
        };
        let (interrupted_s, why) = interrupted.map(|(time, why)| (time.as_secs_f64(), why)).unzip();
        let round_trip_ms = round_trip.map(|time| time.as_micros() as f64 / 1000.0);
        let (device, key, state) = (name.to_string(), key.to_string(), state.to_owned());
        LaptopStatus { device, key, since, drains, streams, state, path, round_trip_ms, why, interrupted_s }
    }

    /// Whether its session waits for it to come back.
    pub fn is_expected(&self) -> bool {
        ["suspect", "lost"].contains(&self.state.as_str())
    }
}

/// What `nexus-stub status` tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The workspace.
    pub workspace: String,
    /// The process that serves it.
    pub pid: u32,
    /// Its program version.
    pub version: String,
    /// Seconds since it began.
    pub uptime_s: u64,
    /// The coordinator's address.
    pub coordinator: String,
    /// Whether it is reached.
    pub reached: Reached,
    /// What it said lately that somebody has to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// The laptops, the one that came last behind the others.
    pub laptops: Vec<LaptopStatus>,
    /// Stubs that handed over and live on until what they have is done.
    pub earlier: usize,
}

/// The way to a laptop is gone. Both that and its return are a line of the log.
pub struct Gone<'a> {
    device: &'a DeviceName,
    since: Instant,
}

impl<'a> Gone<'a> {
    /// From here on, as its session stands.
    pub fn new(device: &'a DeviceName, standing: &Standing) -> Gone<'a> {
        if let Standing::Suspect { why, .. } | Standing::Lost { why, .. } = standing {
            let next = "its laptop is expected to come back";
            tracing::info!(target: WAY, %device, why = why.as_str(), next, "the connection of a session is interrupted");
        }
        Gone { device, since: Instant::now() }
    }

    /// It is back, or the session has ended.
    pub fn is_over(self, standing: &Standing) {
        if let Standing::Attached { route, .. } = standing {
            tracing::info!(target: WAY, device = %self.device, after = ?self.since.elapsed(), path = ?route, "a session goes on");
        }
    }
}

/// Keeps what there is to tell.
#[derive(Debug)]
pub struct Told {
    workspace: String,
    coordinator: String,
    earlier: Earlier,
    began: Instant,
    reached: Mutex<Reached>,
    notice: Mutex<Option<Notice>>,
}

impl Told {
    /// Nothing has happened yet.
    pub fn new(workspace: String, coordinator: String, earlier: Earlier) -> Told {
        let (reached, notice) = (Mutex::new(Reached::Connecting), Mutex::default());
        Told { workspace, coordinator, earlier, began: Instant::now(), reached, notice }
    }

    /// A connection is parked.
    pub fn ready(&self) {
        let now = OffsetDateTime::now_utc();
        let mut reached = self.reached();
        // One parked connection takes the place of the other.
        if matches!(*reached, Reached::Ready { .. }) {
            return;
        }
        let before = std::mem::replace(&mut *reached, Reached::Ready { since: now });
        // Whoever asks for the status does not wait for the log.
        drop(reached);
        if let Reached::Away { since, .. } = before {
            let after_s = (now - since).as_seconds_f64();
            tracing::info!(target: WAY, after_s, "the coordinator is reached again");
        }
    }

    /// The coordinator is not reached; the next attempt is after `wait`.
    pub fn away(&self, why: &str, wait: Duration) {
        let now = OffsetDateTime::now_utc();
        let mut reached = self.reached();
        let (is_news, since, failed) = match &*reached {
            Reached::Away { since, failed, .. } => (false, *since, failed.saturating_add(1)),
            Reached::Connecting | Reached::Ready { .. } => (true, now, 1),
        };
        *reached = Reached::Away { since, why: why.to_owned(), failed, next: now + wait };
        drop(reached);
        if is_news {
            let next = "it is tried until it is reached";
            tracing::info!(target: WAY, why, next, ?wait, "the coordinator is not reached");
        }
    }

    /// The coordinator says something that somebody has to know, and says it again for as long as it is so.
    pub fn notice(&self, message: String) {
        let what = Refusal::new(RefusalCode::Busy, message).message;
        // Once for as long as it is so, in whatever words: whoever says it may say it as fast as the wire takes it.
        if self.noticed().is_none() {
            tracing::warn!("{what}");
        }
        let notice = Notice { what, at: OffsetDateTime::now_utc() };
        *self.notice.lock().unwrap_or_else(PoisonError::into_inner) = Some(notice);
    }

    /// What was said lately.
    fn noticed(&self) -> Option<Notice> {
        let notice = self.notice.lock().unwrap_or_else(PoisonError::into_inner).clone();
        notice.filter(|notice| is_recent(notice, OffsetDateTime::now_utc()))
    }

    /// All of it.
    pub async fn status(&self, laptops: &Laptops) -> Result<Value, Refusal> {
        let earlier = self.earlier.count().await;
        let reached = self.reached().clone();
        let status = Status {
            workspace: self.workspace.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.began.elapsed().as_secs(),
            coordinator: self.coordinator.clone(),
            reached,
            notice: self.noticed(),
            laptops: laptops.status(),
            earlier,
        };
        serde_json::to_value(status).map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))
    }

    fn reached(&self) -> std::sync::MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is still so, as far as anybody knows.
fn is_recent(notice: &Notice, now: OffsetDateTime) -> bool {
    now - notice.at < NOTICE
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::role::stub::kin::Kin;

    /// A log that looks, with each line, whether somebody could ask meanwhile.
    struct Looks(Arc<Told>, Arc<Mutex<Vec<bool>>>);

    impl std::io::Write for Looks {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.1.lock().unwrap().push(self.0.reached.try_lock().is_ok());
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_asks_does_not_wait_for_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let kin = Kin::load_or_make(dir.path()).unwrap();
        let told = Arc::new(Told::new("box".into(), "https://h:1".into(), Earlier::new(dir.path(), kin)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = {
            let (told, seen) = (told.clone(), seen.clone());
            tracing_subscriber::fmt().with_writer(move || Looks(told.clone(), seen.clone())).finish()
        };
        tracing::subscriber::with_default(log, || {
            told.away("refused", Duration::from_secs(1));
            told.ready();
        });
        assert_eq!(*seen.lock().unwrap(), [true, true]);
    }

    #[tokio::test]
    async fn it_is_told_since_when_the_coordinator_is_away_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let kin = Kin::load_or_make(dir.path()).unwrap();
        let told = Told::new("box".into(), "https://h:1".into(), Earlier::new(dir.path(), kin));
        let laptops = Laptops::default();
        let status = async || serde_json::from_value::<Status>(told.status(&laptops).await.unwrap()).unwrap();
        assert_eq!(status().await.reached, Reached::Connecting);
        told.ready();
        let Reached::Ready { since: first } = status().await.reached else { panic!() };
        told.ready();
        assert_eq!(status().await.reached, Reached::Ready { since: first }, "the next parked connection is no news");
        told.away("refused", Duration::from_secs(1));
        let Reached::Away { since, .. } = status().await.reached else { panic!() };
        told.away("no such name", Duration::from_secs(60));
        let Reached::Away { since: still, why, failed, next } = status().await.reached else { panic!() };
        assert_eq!((still, why.as_str(), failed), (since, "no such name", 2));
        assert!(next > still + Duration::from_secs(50));
        told.ready();
        assert!(matches!(status().await.reached, Reached::Ready { since } if since >= still));
        assert_eq!(status().await.notice, None);
        told.notice("another\u{1b} one".into());
        let notice = status().await.notice.unwrap();
        assert_eq!(notice.what, "another one");
        assert!(is_recent(&notice, notice.at + NOTICE / 2) && !is_recent(&notice, notice.at + NOTICE));
    }

    #[test]
    fn a_laptop_is_told_by_its_way_or_why_there_is_none() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let (anna, key) = ("anna".parse().unwrap(), KeyPin::from_bytes([1; 32]));
        let status = |standing: Standing| LaptopStatus::new(&anna, key, now, false, 2, &standing);
        let round_trip = Some(Duration::from_micros(1500));
        let attached = status(Standing::Attached { route: Route::Direct, round_trip, standby: true, moves: 1 });
        assert_eq!(
            (attached.state.as_str(), attached.path, attached.round_trip_ms),
            ("attached", Some(Route::Direct), Some(1.5))
        );
        assert_eq!(attached.why, None);
        let suspect = status(Standing::Suspect { since: Instant::now(), why: "silent".into() });
        assert_eq!((suspect.state.as_str(), suspect.path, suspect.why.as_deref()), ("suspect", None, Some("silent")));
        assert!(suspect.interrupted_s.is_some());
    }
}

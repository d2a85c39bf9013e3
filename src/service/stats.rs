//! What a forward counts about itself, for status. Nothing here decides anything.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::service::copy::{Counts, Meter};
use crate::wire::{Refusal, RefusalCode};

/// Counters of one forward, shared with whoever shows its status.
#[derive(Debug, Default)]
pub struct ForwardStats {
    pub(crate) meter: Meter,
    open: AtomicU64,
    total: AtomicU64,
    dropped: AtomicU64,
    last_failure: Mutex<Option<Failure>>,
}

/// Why a connection failed.
#[derive(Debug, Clone)]
struct Failure {
    refusal: Refusal,
    at: Instant,
    /// How many had got through before.
    got_through: u64,
}

impl ForwardStats {
    /// Bytes to the other side (`sent`) and from it (`received`), of all connections.
    pub fn bytes(&self) -> Counts {
        self.meter.counts()
    }

    /// Connections or flows that are open now.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Connections or flows since the forward began.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Datagrams that were dropped: too large, or too many for a slow flow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Why the last connection that failed did, unless one has got through since then.
    pub fn last_error(&self) -> Option<Refusal> {
        self.last_failure().map(|failure| failure.refusal)
    }

    /// As [`last_error`](Self::last_error); of one that failed for want of a way to the other side, only when that was
    /// after `way_since`, when the way that there is came to be.
    pub fn last_error_on(&self, way_since: Option<Instant>) -> Option<Refusal> {
        let mended = |failure: &Failure| {
            let way = matches!(failure.refusal.code, RefusalCode::Unavailable | RefusalCode::Timeout);
            way && way_since.is_some_and(|since| failure.at < since)
        };
        self.last_failure().filter(|failure| !mended(failure)).map(|failure| failure.refusal)
    }

    fn last_failure(&self) -> Option<Failure> {
        let last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone().filter(|failure| failure.got_through == self.meter.got_through())
    }

    /// Remembers a failure. That one end hung up in the middle is its own affair, and no failure of the forward.
    pub(crate) fn failed(&self, refusal: Refusal) {
        if refusal.code == RefusalCode::Cancelled {
            return;
        }
        let failure = Failure { refusal, at: Instant::now(), got_through: self.meter.got_through() };
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    pub(crate) fn drop_one(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> OpenGuard {
        self.open.fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
        OpenGuard(self.clone())
    }
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct OpenGuard(Arc<ForwardStats>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_until_it_is_mended() {
        let stats = ForwardStats::default();
        let before = Instant::now();
        stats.failed(Refusal::new(RefusalCode::Timeout, "interrupted"));
        assert!(stats.last_error_on(None).is_some() && stats.last_error_on(Some(before)).is_some());
        assert_eq!(stats.last_error_on(Some(Instant::now())), None, "there is a way again");
        stats.failed(Refusal::new(RefusalCode::TargetRefused, "nothing listens"));
        assert!(stats.last_error_on(Some(Instant::now())).is_some(), "the way has no part in that");
        stats.failed(Refusal::new(RefusalCode::Cancelled, "hung up"));
        assert_eq!(stats.last_error().unwrap().code, RefusalCode::TargetRefused);
        stats.meter.add_got_through();
        assert_eq!(stats.last_error(), None, "one got through");
    }
}

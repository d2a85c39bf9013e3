//! What a forward counts about itself, for status. Nothing here decides anything.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::service::copy::{Counts, Meter};
use crate::wire::{Refusal, RefusalCode};

/// Counters of one forward, shared with whoever shows its status.
#[derive(Debug, Default)]
pub struct ForwardStats {
    pub(crate) meter: Meter,
    open: AtomicU64,
    total: AtomicU64,
    dropped: AtomicU64,
    last_error: Mutex<Option<Refusal>>,
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

    /// Why the last connection that failed did.
    pub fn last_error(&self) -> Option<Refusal> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers a failure. That one end hung up in the middle is its own affair, and no failure of the forward.
    pub(crate) fn failed(&self, refusal: Refusal) {
        if refusal.code == RefusalCode::Cancelled {
            return;
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
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

//! One direction of a wire as arithmetic: when what is sent now will have arrived. No clock of its own, no I/O.

use std::time::{Duration, Instant};

/// Fastest wire in bit/s: nothing on this machine is held up by it.
const FASTEST: u64 = 40_000_000_000;

/// Bytes that a queue holds unless told otherwise.
const QUEUE: usize = 256 * 1024;

/// How far a busy wire may make up for time in which its thread was not scheduled: a busy machine must not look like a
/// slower wire. One that was idle for longer does not send faster for it.
const CATCH_UP: Duration = Duration::from_millis(10);

/// A wire, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// How long a byte takes from one end to the other, once it is sent.
    pub delay: Duration,
    /// Bits per second.
    pub bandwidth: u64,
    /// Bytes that wait in front of it before it stops reading. What is on the wire is not counted.
    pub queue: usize,
}

impl Default for Wire {
    fn default() -> Wire {
        Wire { delay: Duration::ZERO, bandwidth: FASTEST, queue: QUEUE }
    }
}

impl Wire {
    /// A wire of so many bit/s with a delay in each direction.
    pub fn new(bandwidth: u64, delay: Duration) -> Wire {
        Wire { delay, bandwidth, queue: QUEUE }
    }

    /// How long `bytes` take to be sent.
    pub fn takes(&self, bytes: usize) -> Duration {
        Duration::from_nanos((bytes as u64 * 8).saturating_mul(1_000_000_000) / self.bandwidth.max(1))
    }

    /// Bytes that are sent in `time`.
    pub fn sends(&self, time: Duration) -> usize {
        (self.bandwidth as f64 / 8.0 * time.as_secs_f64()) as usize
    }

    /// Bytes of one connection that may be under way: what the wire holds, and its queue.
    pub fn in_flight(&self) -> usize {
        self.sends(self.delay) + self.queue
    }
}

/// When one direction of a wire has sent everything that was given to it.
#[derive(Debug, Default)]
pub struct Clock {
    free_at: Option<Instant>,
}

impl Clock {
    /// Gives it `bytes`; says when the last of them arrives.
    pub fn send(&mut self, now: Instant, bytes: usize, wire: &Wire) -> Instant {
        let is_busy = |free_at: &Instant| *free_at + CATCH_UP >= now;
        let starts = self.free_at.filter(is_busy).unwrap_or(now);
        let free_at = starts + wire.takes(bytes);
        self.free_at = Some(free_at);
        free_at.max(now) + wire.delay
    }

    /// When its queue has room; not later than `now` when it has some.
    pub fn room_at(&self, now: Instant, wire: &Wire) -> Instant {
        self.free_at.and_then(|free_at| free_at.checked_sub(wire.takes(wire.queue))).unwrap_or(now)
    }
}

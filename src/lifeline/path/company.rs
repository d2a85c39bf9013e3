//! What bulk keeps to on a short path while something small shares it. Pure.

use std::time::{Duration, Instant};

/// Round trips up to which a path is within one machine, or next door: there the processors are what bulk and calls share.
const NEAR: Duration = Duration::from_millis(1);

/// For how long after something small left bulk keeps short: a program calls again. A person who types does not feel what
/// keeping short would save, and bulk would.
const COMPANY: Duration = Duration::from_millis(20);

/// Bytes of bulk under way on a near path meanwhile, at least: one piece. Each piece that is acknowledged before the next one
/// leaves gives the processors back in between. It costs bulk about half of its speed.
const NEAR_WINDOW: u64 = 8 * 1024;

/// The part of what a near path holds that may be under way meanwhile.
const NEAR_PART: u64 = 4;

/// The same on a path that is short and not near: what it holds, and at least this.
const WINDOW: u64 = 64 * 1024;

/// Bytes of one piece of bulk meanwhile.
pub const BULK: usize = 8 * 1024;

/// Whether something small shares the path.
#[derive(Debug, Default)]
pub struct Company(Option<Instant>);

impl Company {
    /// Something small left.
    pub fn came(&mut self, now: Instant) {
        self.0 = Some(now + COMPANY);
    }

    /// Time passes.
    pub fn passes(&mut self, now: Instant) {
        self.0.take_if(|until| *until <= now);
    }

    /// Whether more of it is expected.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// Bytes that may be under way meanwhile, on a path with that round trip that holds `product` bytes, if that is known.
pub fn window(round_trip: Duration, product: Option<u64>) -> u64 {
    let product = product.unwrap_or(0);
    if round_trip < NEAR { (product / NEAR_PART).max(NEAR_WINDOW) } else { product.max(WINDOW) }
}

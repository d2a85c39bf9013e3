//! What bulk keeps to on a short path while something small shares it. Pure.

use std::time::{Duration, Instant};

/// Round trips up to which a path is within one machine, or next door: there the processors are what bulk and calls share.
const NEAR: Duration = Duration::from_millis(1);

/// For how long after something small left bulk keeps short: a program calls again. A person who types does not feel what
/// keeping short would save, and bulk would.
const COMPANY: Duration = Duration::from_millis(20);

/// Bytes of bulk that leave on a near path within one turn meanwhile, and at most are under way there: they keep the
/// processors busy for a small part of the turn, and calls find them idle in the rest. Smaller pieces one after the other are as
/// many bytes with as many wakings, and every call meets them.
const NEAR_TURN: u64 = 32 * 1024;

/// How long a turn is at least: a clock is not finer.
const TURN: Duration = Duration::from_millis(1);

/// Bytes that may be under way on a path that is short and not near: what it holds, and at least this.
const WINDOW: u64 = 64 * 1024;

/// Bytes of one piece of bulk meanwhile.
pub const BULK: usize = 8 * 1024;

/// Whether something small shares the path, and what bulk had of it since.
#[derive(Debug, Default)]
pub struct Company {
    until: Option<Instant>,
    turn: Option<Turn>,
}

#[derive(Debug)]
struct Turn {
    began: Instant,
    sent: u64,
}

impl Company {
    /// Something small left.
    pub fn came(&mut self, now: Instant) {
        self.until = Some(now + COMPANY);
    }

    /// Time passes.
    pub fn passes(&mut self, now: Instant) {
        if self.until.take_if(|until| *until <= now).is_some() {
            self.turn = None;
        }
    }

    /// Whether more of it is expected.
    pub fn is_there(&self) -> bool {
        self.until.is_some()
    }

    /// That many bytes left.
    pub fn sent(&mut self, bytes: u64) {
        if let Some(turn) = &mut self.turn {
            turn.sent += bytes;
        }
    }

    /// When bulk may leave on a path with that round trip, unless it may at once.
    pub fn due(&mut self, round_trip: Duration, now: Instant) -> Option<Instant> {
        if round_trip >= NEAR {
            return None;
        }
        let turn = self.turn.take_if(|turn| now < turn.began + TURN).unwrap_or(Turn { began: now, sent: 0 });
        let turn = self.turn.insert(turn);
        (turn.sent >= NEAR_TURN).then_some(turn.began + TURN)
    }
}

/// Bytes that may be under way meanwhile, on a path with that round trip that holds `product` bytes, if that is known.
pub fn window(round_trip: Duration, product: Option<u64>) -> u64 {
    let product = product.unwrap_or(0);
    if round_trip < NEAR { product.clamp(BULK as u64, NEAR_TURN) } else { product.max(WINDOW) }
}

//! The last round trips of a path: whether a queue made them longer, or a busy machine some of them. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Round trips that are remembered: about as many as are measured in one.
const RECENT: usize = 16;

/// Of how many of them, sorted, the difference is jitter: a standing queue makes all of them longer and none of that,
/// a busy machine some.
const JITTER: usize = 13;

/// Round trips that must all be longer before a queue is seen: one that is long shows a busy machine.
const SIGNS: usize = 4;

/// The last round trips.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Duration>);

impl Recent {
    /// One more.
    pub fn push(&mut self, round_trip: Duration) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(round_trip);
    }

    /// By how much they differ without a reason that a window could have.
    pub fn jitter(&self) -> Duration {
        if self.0.len() < RECENT {
            return Duration::ZERO;
        }
        let mut sorted = [Duration::ZERO; RECENT];
        for (slot, recent) in sorted.iter_mut().zip(&self.0) {
            *slot = *recent;
        }
        sorted.sort_unstable();
        sorted[JITTER] - sorted[0]
    }

    /// Whether the latest were all longer than that.
    pub fn are_longer(&self, than: Duration) -> bool {
        self.0.len() >= SIGNS && self.0.iter().rev().take(SIGNS).all(|recent| *recent > than)
    }
}

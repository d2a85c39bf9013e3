//! The start of a path: what a burst tells of it, and when nothing more is to be found out. Pure.

use std::time::Instant;

use super::{LEAST_SIGN, Mark};

/// A round in which the rate grew by less found the end of the path's capacity; this many in a row end the start.
const START_RATE_GROWTH: f64 = 1.25;
const START_PATIENCE: u32 = 2;

/// Bytes of a burst of which the arrival tells a rate.
const TRAIN: u64 = 160 * 1024;

/// What the start has shown.
#[derive(Debug, Default)]
pub struct Start {
    best: f64,
    without_growth: u32,
    /// The first of marks that left in one burst.
    train: Option<Train>,
}

#[derive(Debug)]
struct Train {
    position: u64,
    sent: Instant,
    arrived: Instant,
}

impl Start {
    /// What left in one burst arrives as fast as the path lets it: so many bytes in a second.
    pub fn rate_of_burst(&mut self, mark: &Mark, now: Instant) -> Option<f64> {
        let next = || Train { position: mark.position, sent: mark.sent, arrived: now };
        let train = self.train.get_or_insert_with(next);
        let (sent, arrived) =
            (mark.sent.saturating_duration_since(train.sent), now.saturating_duration_since(train.arrived));
        if arrived < sent * 2 {
            *train = next();
            return None;
        }
        let bytes = mark.position - train.position;
        (arrived >= LEAST_SIGN && bytes >= TRAIN).then(|| bytes as f64 / arrived.as_secs_f64())
    }

    /// A round showed this rate, in bytes per second: was it the last one of the start?
    pub fn is_over(&mut self, rate: f64) -> bool {
        if rate > self.best * START_RATE_GROWTH {
            (self.best, self.without_growth) = (rate, 0);
        } else {
            self.without_growth += 1;
        }
        self.without_growth >= START_PATIENCE
    }
}

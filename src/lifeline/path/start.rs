//! The start of a path: what a burst tells of it, and when nothing more is to be found out. Pure.

use std::time::{Duration, Instant};

use super::{LEAST_SIGN, Mark};

/// A round in which the rate grew by less found the end of the path's capacity; this many in a row end the start.
const START_RATE_GROWTH: f64 = 1.25;
const START_PATIENCE: u32 = 2;

/// Bytes of a burst of which the arrival tells a rate.
const TRAIN: u64 = 160 * 1024;

/// Between two marks that left or arrived at once. The end of a burst is waited for while it arrives so, and in any case for this long.
const SAME_BURST: Duration = Duration::from_millis(1);
const ARRIVES_FOR: Duration = Duration::from_millis(12);

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
    /// When the last of them did.
    last: Instant,
}

/// What the arrival of a burst tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Burst {
    /// Nothing: it was too short, or no burst.
    Nothing,
    /// More of it is about to arrive, and will tell more.
    Arrives,
    /// So many bytes in a second.
    Rate(f64),
}

impl Burst {
    /// Of one that told it.
    pub fn rate(self) -> Option<f64> {
        if let Burst::Rate(rate) = self { Some(rate) } else { None }
    }
}

impl Start {
    /// What left in one burst arrives as fast as the path lets it, or slower, where a machine stood still meanwhile: the longer it is, the
    /// less that counts. `next` left behind this mark.
    pub fn burst(&mut self, mark: &Mark, next: Option<&Mark>, now: Instant) -> Burst {
        let begins = || Train { position: mark.position, sent: mark.sent, arrived: now, last: now };
        let train = self.train.get_or_insert_with(begins);
        let (sent, arrived) =
            (mark.sent.saturating_duration_since(train.sent), now.saturating_duration_since(train.arrived));
        let more = next.is_some_and(|next| next.sent.saturating_duration_since(mark.sent) <= SAME_BURST);
        let at_once = now.saturating_duration_since(std::mem::replace(&mut train.last, now)) < SAME_BURST;
        if more && (at_once || arrived < ARRIVES_FOR) {
            return Burst::Arrives;
        }
        if arrived < sent * 2 {
            *train = begins();
            return Burst::Nothing;
        }
        let bytes = mark.position - train.position;
        match arrived >= LEAST_SIGN && bytes >= TRAIN {
            true => Burst::Rate(bytes as f64 / arrived.as_secs_f64()),
            false => Burst::Nothing,
        }
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

//! When bulk may leave on a long path: as fast as the path takes it, and no faster. Pure.
//!
//! A window alone sends in bursts, and what is too much of it stands in a queue for as long as the transfer goes on. Here
//! the rate is followed instead: a queue that grows shows what the path delivers, one that stands is drained, and
//! where there is none a little more is tried.

use std::time::{Duration, Instant};

use crate::lifeline::paced::MOST_BULK;

/// A piece of bulk on a slow path: what leaves there within this time, but no less than is worth a frame.
const BULK: Duration = Duration::from_millis(4);
const LEAST_BULK: usize = 8 * 1024;

/// The queue that is aimed at: this part of the round trip, at least and at most that long. With none nobody would
/// know whether the path can do more.
const AIM_PART: u32 = 32;
const LEAST_AIM: Duration = Duration::from_millis(1);
const MOST_AIM: Duration = Duration::from_millis(3);

/// Bounds of what is sent in proportion to what the path delivers, to fill a queue or to drain it.
const LEAST_GAIN: f64 = 0.75;
const MOST_GAIN: f64 = 1.05;

/// The same where a path may hold much more: one of which no queue was seen yet, one of which only a burst has told, and at
/// most one that had no queue for a while.
const FIRST_GAIN: f64 = 2.5;
const BURST_GAIN: f64 = 1.5;
const SEARCH_GAIN: f64 = 1.25;

/// A round in which so many times what a burst told arrives shows that the burst told little.
const BURST_WAS_SLOW: f64 = 1.05;

/// The share of the rate below which a sender with little to send says nothing of the path: what was late of it was late by
/// itself.
const LEAST_SHARE: f64 = 0.5;

/// What arrives at most of what is sent on a fresh path that is full.
const FULL_SHARE: f64 = 0.9;

/// A fresh path of which the rate did not grow by this much, in so many rounds, is known.
const GROWTH: f64 = 1.25;
const FRESH_ROUNDS: u32 = 3;

/// Rounds in which less than the path's rate was sent, no more than that arrived, and a queue stood all the same: it is
/// not of our making. Others use the path, or a busy machine answers late.
const THEIRS_AFTER: u32 = 3;

/// The part of the rate below which the pace itself never sends.
const HELD_BACK: f64 = LEAST_GAIN * 0.95;

/// What is sent of the path's rate while a queue is drained, at most; and how much more arrives then, at least.
const DRAINS: f64 = 0.97;
const DRAINED: f64 = 1.03;

/// Rounds that leave no queue, though one was aimed at, after which more is tried: so much more, then twice that in each
/// round that leaves none either. A search that finds nothing leaves no more than its first two steps: what they are shows a
/// round later, so the first makes no more than such a queue, where it is of any use.
const SEARCH_AFTER: u32 = 5;
const SEARCH_STEP: f64 = 0.05;
const LEAST_STEP: f64 = 0.025;
const SEARCH_QUEUE: Duration = Duration::from_millis(5);

/// Such rounds after which nothing is known of the path any more: it may have become a thousand times faster.
const FRESH_AFTER: u32 = SEARCH_AFTER + 4;

/// By how much the rate grew meanwhile, if so.
const FOUND: f64 = 1.05;

/// The part of the aim up to which a queue is none.
const NONE_PART: u32 = 2;

/// What the queue is away from the aim is drained within one round, and filled within so many: what a round did shows
/// a round later, and filling sooner would swing.
const FILL_ROUNDS: f64 = 2.0;

/// Rounds for which a path settles after the first queue was seen.
const SETTLING_ROUNDS: u32 = 3;

/// What arrives of what was sent while a queue drains, at most. Of more, a part belongs to the round before, and was
/// acknowledged late.
const MOST_DRAINED: f64 = 1.2;

/// What arrives of what was sent while a queue grows, at most.
const GROWS: f64 = 0.98;

/// Time of sending that may be made up for at once, when this end was late.
const BURST: Duration = Duration::from_millis(4);

/// Time for which bulk waits at least, when it has to: a clock is not finer, and each waking costs.
const STEP: Duration = Duration::from_millis(1);

/// What one round showed.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Bytes per second that arrived.
    pub arrived: f64,
    /// Bytes per second at which the same bytes were sent.
    pub sent: f64,
    /// By how much the shortest round trip of it was longer than the shortest known.
    pub queue: Duration,
    /// The shortest known.
    pub shortest: Duration,
    /// How long the round was.
    pub took: Duration,
    /// Whether more could have been sent.
    pub limited: bool,
    /// Whether that was so from its beginning. A part of it may have passed in silence otherwise.
    pub whole: bool,
    /// Bytes that were on their way at its end.
    pub under_way: u64,
}

/// The pace of a path.
#[derive(Debug)]
pub struct Pace {
    rate: f64,
    gain: f64,
    credit: f64,
    counted: Instant,
    /// While it may deliver much more than is known: what is sent of what is known.
    fresh: Option<f64>,
    /// Rounds in which a fresh path showed nothing new, and the rate before.
    stale: (u32, f64),
    /// Rounds without a queue, though one was aimed at, since the last that had one.
    idle: u32,
    /// The rate when more was tried.
    searched: f64,
    /// The queue that stays whatever is sent.
    theirs: Duration,
    /// Rounds in which it seemed to be longer than that.
    standing: u32,
    /// The queue of the round before.
    before: Duration,
    /// Rounds that still show the queue from which a fresh path became known.
    settles: u32,
}

impl Pace {
    /// The pace of a path that delivers `rate` bytes per second at least: that is what arrived.
    pub fn fresh(rate: f64, now: Instant) -> Pace {
        Pace::new(rate, FIRST_GAIN, now)
    }

    /// The pace of one at which a burst arrived as fast as that: about what it delivers, if nothing held the burst up.
    pub fn of_burst(rate: f64, now: Instant) -> Pace {
        Pace::new(rate, BURST_GAIN, now)
    }

    fn new(rate: f64, gain: f64, now: Instant) -> Pace {
        Pace {
            rate,
            gain,
            credit: 0.0,
            counted: now,
            fresh: Some(gain),
            stale: (0, rate),
            idle: 0,
            searched: rate,
            theirs: Duration::ZERO,
            standing: 0,
            before: Duration::ZERO,
            settles: 0,
        }
    }

    /// Bytes per second that it may deliver, at most.
    pub fn most(&self) -> f64 {
        self.rate * self.fresh.unwrap_or(1.0)
    }

    /// Whether it may deliver much more than is known.
    pub fn is_fresh(&self) -> bool {
        self.fresh.is_some()
    }

    /// When bulk may leave; `None` when it may now.
    pub fn due(&mut self, now: Instant) -> Option<Instant> {
        self.count(now);
        if self.credit >= 0.0 {
            return None;
        }
        let wait = Duration::from_secs_f64((-self.credit / self.speed()).clamp(0.0, 1.0));
        Some(now + wait.max(STEP))
    }

    /// Bytes that leave within that time, and at least one piece of bulk.
    pub fn within(&self, time: Duration) -> u64 {
        (self.rate * time.as_secs_f64()).max(self.bulk() as f64) as u64
    }

    /// Bytes of one piece of bulk.
    pub fn bulk(&self) -> usize {
        ((self.rate * BULK.as_secs_f64()) as usize).clamp(LEAST_BULK, MOST_BULK)
    }

    /// That many bytes left.
    pub fn sent(&mut self, bytes: u64, now: Instant) {
        self.count(now);
        self.credit -= bytes as f64;
    }

    fn count(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        self.credit = (self.credit + self.speed() * time).min(self.speed() * BURST.as_secs_f64());
    }

    fn speed(&self) -> f64 {
        (self.rate * self.gain).max(1.0)
    }

    /// A round is over: how fast is the next one?
    pub fn round(&mut self, round: Round, now: Instant) {
        self.count(now);
        if !round.limited && round.sent < self.rate * LEAST_SHARE {
            self.gain = self.gain.min(1.0);
            return;
        }
        // One frame on its way is no queue.
        let frame = Duration::from_secs_f64(self.bulk() as f64 / self.rate.max(1.0));
        let aim = (round.shortest / AIM_PART).clamp(LEAST_AIM, MOST_AIM) + frame;
        let queue = round.queue.saturating_sub(self.theirs);
        let queued = queue > aim;
        // Of its making, and not of an acknowledgement that came late: it was there in the round before.
        let before = std::mem::replace(&mut self.before, queue);
        let grows = before > aim && queue > before && round.arrived < round.sent * GROWS;
        if self.is_fresh() || queued {
            self.idle = 0;
        } else if round.limited && queue < aim / NONE_PART {
            self.idle += 1;
        }
        self.tell_theirs(&round, queue, aim);
        if self.fresh.is_some_and(|gain| gain < FIRST_GAIN) && round.arrived > self.rate * BURST_WAS_SLOW {
            // What more is sent from here on shows a round later.
            (self.fresh, self.stale) = (Some(FIRST_GAIN), (0, round.arrived));
        }
        let shown = round.arrived.min(round.sent * MOST_DRAINED);
        if self.is_fresh() && queued && round.arrived < round.sent * FULL_SHARE {
            // What was sent beyond the path's rate stands in its queue, so this is what it delivers.
            self.rate = round.arrived;
            self.fresh = None;
            self.settles = SETTLING_ROUNDS;
        } else if self.is_fresh() && self.is_stale(&round) {
            self.fresh = None;
            // A burst may have arrived faster than the path is, where it had waited for whoever counts.
            if queued && before > aim {
                self.rate = self.rate.min(round.arrived);
            }
        } else if shown > self.rate {
            self.rate += (shown - self.rate) / if self.is_fresh() { 1.0 } else { 2.0 };
        } else if (queued && grows && !self.is_fresh()) || self.is_held_back(&round, aim) {
            self.rate += (round.arrived - self.rate) / 2.0;
        }
        if !round.limited {
            self.gain = self.gain.min(1.0);
            return;
        }
        if self.idle == SEARCH_AFTER {
            self.searched = self.rate;
        } else if self.idle >= FRESH_AFTER {
            self.fresh = (self.rate > self.searched * FOUND).then_some(FIRST_GAIN);
            self.stale = (0, self.rate);
            self.idle = 0;
        }
        let left = self.left_of(queue, &round);
        self.gain =
            self.fresh.or_else(|| self.search(round.shortest)).unwrap_or_else(|| regulated(aim, left, round.took));
    }

    /// What is left of a queue that a round showed: it is a round trip old, and draining what has drained would swing. What is
    /// under way tells it as well as the rate is known; half of the queue counts in any case, but not while the path settles.
    fn left_of(&mut self, queue: Duration, round: &Round) -> Duration {
        let left = Duration::from_secs_f64(round.under_way as f64 / self.rate.max(1.0)).saturating_sub(round.shortest);
        let least = if self.settles > 0 { Duration::ZERO } else { queue / 2 };
        self.settles = self.settles.saturating_sub(1);
        queue.min(left.max(least))
    }

    /// How much more is tried, after a while without a queue.
    fn search(&self, round_trip: Duration) -> Option<f64> {
        let times = self.idle.checked_sub(SEARCH_AFTER)?;
        let step = (SEARCH_QUEUE.as_secs_f64() / round_trip.as_secs_f64().max(1e-6)).clamp(LEAST_STEP, SEARCH_STEP);
        Some((1.0 + step * f64::from(2u32.saturating_pow(times))).min(SEARCH_GAIN))
    }

    /// Whether the window held back more than the pace does, though a queue stands, whosever it is: the path became slower.
    fn is_held_back(&self, round: &Round, aim: Duration) -> bool {
        !self.is_fresh() && round.whole && round.queue > aim && round.sent.max(round.arrived) < self.rate * HELD_BACK
    }

    fn is_stale(&mut self, round: &Round) -> bool {
        let (rounds, before) = self.stale;
        self.stale = match round.arrived > before * GROWTH {
            true => (0, round.arrived),
            false => (rounds + u32::from(round.whole), before),
        };
        self.stale.0 >= FRESH_ROUNDS
    }

    /// A queue that does not drain is others'.
    fn tell_theirs(&mut self, round: &Round, queue: Duration, aim: Duration) {
        let drains = round.arrived > round.sent * DRAINED;
        if queue <= aim || drains || self.is_fresh() {
            self.standing = 0;
        } else if round.sent < self.rate * DRAINS {
            self.standing += 1;
            if self.standing >= THEIRS_AFTER {
                self.theirs += queue - aim / 2;
                self.standing = 0;
            }
        }
    }

    /// The path was looked at anew: what it had of others' queues is not known any more.
    pub fn looked(&mut self) {
        self.theirs = Duration::ZERO;
        self.standing = 0;
    }
}

/// What is sent of the path's rate, so that the queue comes to the aim.
fn regulated(aim: Duration, queue: Duration, round: Duration) -> f64 {
    let away = aim.as_secs_f64() - queue.as_secs_f64();
    let rounds = if away > 0.0 { FILL_ROUNDS } else { 1.0 };
    (1.0 + away / (round.as_secs_f64() * rounds)).clamp(LEAST_GAIN, MOST_GAIN)
}

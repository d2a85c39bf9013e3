//! How much longer than usual an acknowledgement was on its way back: that is no queue of what we send. Pure.
//!
//! The other end says by its own clock when what it acknowledges arrived. What the two clocks are apart, at the least,
//! is the shortest way back; what they seem to be apart beyond that was spent on it. Without that the queues of the two
//! directions could not be told from one another, and each end would take its own for the other's.

use std::time::{Duration, Instant};

/// For how long the least counts, and then once more as that of the time before: clocks drift.
const AGE: Duration = Duration::from_secs(30);

/// How often in a row, each time within [`AGE`], what the other end says may prove impossible. A clock that stood still does once;
/// more often it is none.
const MOST_IMPOSSIBLE: u32 = 3;

/// What the clocks are apart.
#[derive(Debug, Default)]
pub struct WayBack {
    began: Option<Instant>,
    impossible: u32,
    impossible_at: Option<Instant>,
    /// Since when nothing was said that cannot be.
    trial: Option<Instant>,
    since: Option<Instant>,
    /// In microseconds: ours minus theirs, each since some beginning of its own.
    least: Option<i64>,
    before: Option<i64>,
    latest: Duration,
}

impl WayBack {
    /// Nothing is late any more once the other end has said what cannot be again and again.
    ///
    /// How late an acknowledgement is that came now, of what left `took` ago and arrived at `at` by the other end's clock; and by how
    /// much the shortest way back has become longer, of which all that was measured before is then short.
    pub fn late(&mut self, at: Duration, took: Duration, now: Instant) -> (Duration, Duration) {
        let began = *self.began.get_or_insert(now);
        let known = self.known();
        let apart = micros(now.saturating_duration_since(began)).saturating_sub(micros(at));
        // Nothing can be later than that: one of the clocks stood still.
        if known.is_some_and(|known| apart.saturating_sub(known) > micros(took)) {
            let in_a_row = self.impossible_at.is_some_and(|last| now.saturating_duration_since(last) < AGE);
            let impossible = if in_a_row { self.impossible + 1 } else { 1 };
            *self = WayBack { began: self.began, impossible, impossible_at: Some(now), ..WayBack::default() };
        }
        if self.impossible >= MOST_IMPOSSIBLE {
            return (Duration::ZERO, Duration::ZERO);
        }
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= AGE) {
            (self.since, self.before) = (Some(now), self.least.take());
        }
        self.least = Some(self.least.map_or(apart, |least| least.min(apart)));
        let least = self.known().unwrap_or(apart);
        let longer = known.filter(|_| self.before.is_some()).map_or(0, |known| least.saturating_sub(known).max(0));
        // A clock that stands still would have been found out by then.
        if now.saturating_duration_since(*self.trial.get_or_insert(now)) <= took * 2 {
            return (Duration::ZERO, Duration::ZERO);
        }
        self.latest = Duration::from_micros(apart.saturating_sub(least).unsigned_abs());
        (self.latest, Duration::from_micros(longer.unsigned_abs()))
    }

    fn known(&self) -> Option<i64> {
        self.least.into_iter().chain(self.before).min()
    }

    /// How late the latest was.
    pub fn latest(&self) -> Duration {
        self.latest
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn what_is_longer_than_the_shortest_way_back_is_late() {
        let (mut way, begin) = (WayBack::default(), Instant::now());
        // Their clock is at 1000 s when ours begins; the way back takes 10 ms, or more.
        let mut late =
            |arrives: u64, back: u64| way.late(ms(1_000_000 + arrives), ms(back), begin + ms(arrives + back)).0;
        assert_eq!(late(0, 15), ms(0), "nothing to compare with");
        assert_eq!(late(100, 10), ms(0));
        assert_eq!(late(200, 15), ms(5));
        assert_eq!(late(20_000, 90), ms(80));
        assert_eq!(late(45_000, 30), ms(20), "the least of the time before");
    }

    #[test]
    fn clocks_drift() {
        let (mut way, begin) = (WayBack::default(), Instant::now());
        for second in 0..3600 {
            // Theirs is slower by 100 millionths.
            let theirs = Duration::from_micros(second * 1_000_000 - second * 100);
            let (late, longer) = way.late(theirs, ms(100), begin + Duration::from_secs(second));
            assert!(late <= ms(6) && longer <= ms(3), "{late:?}, {longer:?} after {second} s");
        }
    }

    #[test]
    fn a_clock_that_stood_still_is_believed_anew() {
        let (mut way, begin) = (WayBack::default(), Instant::now());
        way.late(ms(0), ms(20), begin);
        // Theirs stood still for ten seconds: it did not take so long.
        assert_eq!(way.late(ms(100), ms(20), begin + ms(10_100)), (ms(0), ms(0)));
        assert_eq!(way.late(ms(200), ms(30), begin + ms(10_205)), (ms(5), ms(0)));
    }

    #[test]
    fn what_became_the_shortest_way_back_is_said_to_be_longer() {
        let (mut way, begin) = (WayBack::default(), Instant::now());
        let mut late = |arrives: u64, back: u64| way.late(ms(arrives), ms(500), begin + ms(arrives + back));
        assert_eq!(late(0, 10), (ms(0), ms(0)));
        assert_eq!(late(20_000, 70), (ms(60), ms(0)));
        assert_eq!(late(31_000, 70), (ms(60), ms(0)));
        assert_eq!(late(62_000, 70), (ms(0), ms(60)));
        assert_eq!(late(63_000, 75), (ms(5), ms(0)));
    }

    /// The other end may say what it likes.
    #[test]
    fn no_time_is_out_of_range() {
        let (mut way, begin) = (WayBack::default(), Instant::now());
        for at in
            [Duration::MAX, Duration::ZERO, Duration::MAX, Duration::from_secs(1), Duration::from_micros(u64::MAX)]
        {
            for now in [begin, begin + Duration::from_secs(100)] {
                let (late, _) = way.late(at, ms(100), now);
                assert!(late <= ms(100), "{late:?}");
            }
        }
    }
}

//! What the path can hold: its round trip, its rate, and from both how many bytes may be under way.
//!
//! Bytes under way beyond rate × round trip wait in some queue where nothing can overtake them. So the window is that
//! product and a little more: enough to notice when the path can do more, little enough that a tool call behind a bulk
//! transfer waits for milliseconds, or tens of them on a long path, and not for a full buffer. Pure: times come in, a window comes out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes that may always be under way: two full messages and a little. Less would stop the path between two
/// acknowledgements.
pub const LEAST_WINDOW: u64 = 160 * 1024;

/// Bytes that may ever be under way, and so the most that a lifeline keeps for replay: 1 Gbit/s over half a second.
pub const MOST_WINDOW: u64 = 64 * 1024 * 1024;

/// Bytes under way on a path of which nothing is known, and the least that says anything about one: on a slow path
/// they are a queue of a moment, on a long one they save a round trip.
pub const FIRST_WINDOW: u64 = 512 * 1024;

/// The window of a new path is this many times what arrived within the last round trip. TCP beneath doubles what it
/// sends in a round trip; this one must not be what holds it up.
const START_GROWTH: u64 = 8;

/// A round in which the rate grew less than by a quarter found the end of the path's capacity; this many in a row
/// end the start.
const START_PATIENCE: u32 = 2;

/// A round trip that is longer than the shortest by three eighths of it, but at least and at most this, shows a queue:
/// the path is full.
const LEAST_SIGN: Duration = Duration::from_millis(1);
const MOST_SIGN: Duration = Duration::from_millis(20);

/// Round trips that are remembered: about as many as are measured in one.
const RECENT: usize = 16;

/// Of how many of them, sorted, the difference is jitter: a standing queue makes all of them longer and none of that,
/// a busy machine some.
const JITTER: usize = 13;

/// Round trips that must all be longer for that: one that is long shows a busy machine.
const SIGNS: usize = 4;

/// Time that bytes may wait in queues: an eighth of the round trip, at least and at most this. It is also by how much
/// a faster path shows itself.
const LEAST_QUEUE: Duration = Duration::from_micros(300);
const MOST_QUEUE: Duration = Duration::from_millis(12);

/// Jitter that the window makes up for at most.
const MOST_JITTER: Duration = Duration::from_millis(30);

/// A round is one round trip, but no less than this: shorter ones measure the scheduler.
const LEAST_ROUND: Duration = Duration::from_millis(5);

/// Rounds whose best rate counts.
const RATE_ROUNDS: usize = 10;

/// For how long a shortest round trip counts. Then a path that is kept full is emptied for a moment to look again.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(30);

/// The share of the path's product that is under way while it is looked at, in quarters.
const LOOK_QUARTERS: u64 = 3;

/// Bytes between two marks: a sixteenth of the window, but no less than this while the window holds four of it. An
/// acknowledgement costs a message at every hop.
const LEAST_MARK: u64 = 128 * 1024;

/// Marks that may be on their way.
const MAX_MARKS: usize = 64;

/// One carrier's path, as far as it is known.
#[derive(Debug)]
pub struct Path {
    window: u64,
    start: Option<Start>,
    marks: VecDeque<Mark>,
    latest: Option<Duration>,
    smooth: Option<Duration>,
    shortest: Option<(Duration, Instant)>,
    rates: VecDeque<f64>,
    round: Option<Round>,
    look: Option<Look>,
    /// After a look the window grows back with what is acknowledged: all at once would be a burst, and a queue.
    rising: Option<u64>,
    /// The last round trips.
    recent: VecDeque<Duration>,
    /// When the path was last without a queue, and what had been acknowledged then.
    train: Option<(Instant, u64)>,
    /// Whether the path, and not the sender, was the limit since the round began.
    limited: bool,
    acked: u64,
}

/// A position whose acknowledgement will be timed.
#[derive(Debug)]
struct Mark {
    position: u64,
    sent: Instant,
    /// What had been acknowledged then: what is since then arrived within one round trip.
    acked: u64,
}

#[derive(Debug, Default)]
struct Start {
    best: f64,
    without_growth: u32,
}

#[derive(Debug)]
struct Round {
    since: Instant,
    acked: u64,
}

#[derive(Debug)]
struct Look {
    until: Instant,
    shortest: Option<Duration>,
}

impl Default for Path {
    fn default() -> Path {
        Path::new()
    }
}

impl Path {
    /// A path of which nothing is known.
    pub fn new() -> Path {
        Path {
            window: FIRST_WINDOW,
            start: Some(Start::default()),
            marks: VecDeque::new(),
            latest: None,
            smooth: None,
            shortest: None,
            rates: VecDeque::new(),
            round: None,
            look: None,
            rising: None,
            recent: VecDeque::new(),
            train: None,
            limited: false,
            acked: 0,
        }
    }

    /// The same, of a stream of which everything up to `acked` has arrived by another path: that says nothing of this one.
    pub fn beginning_at(acked: u64) -> Path {
        Path { acked, ..Path::new() }
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> u64 {
        match (&self.look, self.product()) {
            (Some(_), Some(product)) => (product / 4).saturating_mul(LOOK_QUARTERS).clamp(LEAST_WINDOW, MOST_WINDOW),
            _ => self.rising.map_or(self.window, |rising| rising.min(self.window)),
        }
    }

    /// Bytes after which an acknowledgement is asked for.
    pub fn mark_after(&self) -> u64 {
        between_marks(self.window())
    }

    /// The round trip as it is, smoothed.
    pub fn round_trip(&self) -> Option<Duration> {
        self.smooth
    }

    /// Bytes up to `position` left; their acknowledgement was asked for.
    pub fn marked(&mut self, position: u64, now: Instant) {
        if self.marks.len() < MAX_MARKS {
            self.marks.push_back(Mark { position, sent: now, acked: self.acked });
        }
    }

    /// As much is under way as may be: the next round measures the path and not the sender.
    pub fn limited(&mut self) {
        self.limited = true;
    }

    /// Everything up to `acked` has arrived.
    pub fn acked(&mut self, acked: u64, now: Instant) {
        let mut passed = None;
        let news = acked.saturating_sub(self.acked);
        self.acked = self.acked.max(acked);
        self.rising = self.rising.map(|rising| rising + news).filter(|rising| *rising < self.window);
        while let Some(mark) = self.marks.front()
            && mark.position <= acked
        {
            passed = self.marks.pop_front();
        }
        if let Some(mark) = passed {
            let round_trip = now.saturating_duration_since(mark.sent);
            self.timed(round_trip, now);
            self.delivered(acked.saturating_sub(mark.acked), now);
            if !self.has_begun_to_queue() {
                self.train = Some((now, acked));
            }
        }
        let Some(round) = &self.round else {
            self.round = Some(Round { since: now, acked });
            return;
        };
        let took = now.saturating_duration_since(round.since);
        if took >= self.smooth.unwrap_or_default().max(LEAST_ROUND) {
            let bytes = acked.saturating_sub(round.acked);
            let limited = std::mem::take(&mut self.limited);
            self.round = Some(Round { since: now, acked });
            self.round_ended(bytes as f64 / took.as_secs_f64(), limited, now);
        }
    }

    /// A round trip was measured.
    pub fn timed(&mut self, round_trip: Duration, now: Instant) {
        self.latest = Some(round_trip);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(round_trip);
        self.smooth = Some(self.smooth.map_or(round_trip, |smooth| (smooth * 7 + round_trip) / 8));
        if let Some(look) = &mut self.look {
            look.shortest = Some(look.shortest.map_or(round_trip, |shortest| shortest.min(round_trip)));
        }
        match self.shortest {
            Some((shortest, _)) if round_trip > shortest => {}
            _ => self.shortest = Some((round_trip, now)),
        }
    }

    fn round_ended(&mut self, rate: f64, limited: bool, now: Instant) {
        let best = self.rates.iter().copied().fold(0.0, f64::max);
        // A sender that had little to send says nothing about the path, unless it was more than ever before.
        if limited || rate > best {
            self.rated(rate);
        }
        self.look_again(limited, now);
        if limited && let Some(start) = &mut self.start {
            if rate > start.best * 1.25 {
                (start.best, start.without_growth) = (rate, 0);
            } else {
                start.without_growth += 1;
                if start.without_growth >= START_PATIENCE {
                    self.start = None;
                }
            }
        }
        self.steady();
    }

    /// So much arrived within one round trip: a new path may hold several times that, unless a queue shows already.
    fn delivered(&mut self, bytes: u64, now: Instant) {
        if self.start.is_none() || bytes < FIRST_WINDOW / 2 {
            return;
        }
        if !self.is_queued() {
            self.window = self.window.max(bytes * START_GROWTH).min(MOST_WINDOW);
            return;
        }
        // Since the queue began to grow, bytes have arrived as fast as the path lets them.
        let Some((since, acked)) = self.train else { return };
        let took = now.saturating_duration_since(since);
        if took >= LEAST_SIGN {
            self.start = None;
            self.rated(self.acked.saturating_sub(acked) as f64 / took.as_secs_f64());
            self.steady();
        }
    }

    fn rated(&mut self, rate: f64) {
        if self.rates.len() == RATE_ROUNDS {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }

    fn has_begun_to_queue(&self) -> bool {
        match (self.latest, self.shortest) {
            (Some(latest), Some((shortest, _))) => latest > shortest + shortest / 64 + LEAST_QUEUE,
            _ => false,
        }
    }

    /// By how much round trips differ without a reason that a window could have.
    fn jitter(&self) -> Duration {
        let mut sorted: [Duration; RECENT] = [Duration::ZERO; RECENT];
        let n = self.recent.len();
        for (slot, recent) in sorted.iter_mut().zip(&self.recent) {
            *slot = *recent;
        }
        sorted[..n].sort_unstable();
        if n == RECENT { sorted[JITTER] - sorted[0] } else { Duration::ZERO }
    }

    fn is_queued(&self) -> bool {
        let Some((shortest, _)) = self.shortest else { return false };
        let longer = shortest + (shortest * 3 / 8).clamp(LEAST_SIGN, MOST_SIGN);
        self.recent.len() >= SIGNS && self.recent.iter().rev().take(SIGNS).all(|recent| *recent > longer)
    }

    /// The window of a path that is known.
    fn steady(&mut self) {
        if self.start.is_none()
            && let (Some(product), Some((shortest, _))) = (self.product(), self.shortest)
        {
            let jitter = self.jitter().min((shortest / 2).clamp(LEAST_QUEUE, MOST_JITTER));
            let queue = (shortest / 8).clamp(LEAST_QUEUE, MOST_QUEUE) + jitter;
            let best = self.rates.iter().copied().fold(0.0, f64::max);
            let window = product + (best * queue.as_secs_f64()) as u64;
            // What arrived since the last mark is not known to have arrived.
            self.window = (window + between_marks(window)).clamp(LEAST_WINDOW, MOST_WINDOW);
        }
    }

    /// The shortest round trip is forgotten after a while, so that a path which became longer is not starved. A path
    /// that was full all the time is emptied for one round trip first: else its queue would pass for its length.
    fn look_again(&mut self, limited: bool, now: Instant) {
        match &self.look {
            Some(look) if now >= look.until => {
                if let Some(shortest) = look.shortest {
                    self.shortest = Some((shortest, now));
                }
                self.rising = Some(self.window());
                self.look = None;
            }
            Some(_) => {}
            None => {
                let Some((shortest, since)) = self.shortest else { return };
                if now.saturating_duration_since(since) < ROUND_TRIP_AGE {
                    return;
                }
                let latest = self.latest.unwrap_or(shortest);
                if limited {
                    self.look = Some(Look { until: now + (latest * 2).max(LEAST_ROUND), shortest: None });
                } else {
                    self.shortest = Some((latest, now));
                }
            }
        }
    }

    /// Rate × shortest round trip, in bytes.
    fn product(&self) -> Option<u64> {
        let (shortest, _) = self.shortest?;
        let best = self.rates.iter().copied().fold(0.0, f64::max);
        (best > 0.0).then_some((best * shortest.as_secs_f64()) as u64)
    }
}

fn between_marks(window: u64) -> u64 {
    (window / 16).max(LEAST_MARK).min(window / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path with a rate, a length and a queue without end; the sender always has more to send. Gives the bytes
    /// delivered within each whole second, and of the waits in the queue after the first two seconds the 99th of 100.
    fn run(rate: f64, length: Duration, seconds: u64) -> (Vec<u64>, Duration) {
        let begin = Instant::now();
        let mut path = Path::new();
        let (mut sent, mut acked, mut since_mark) = (0u64, 0u64, 0u64);
        let mut acks: VecDeque<(Instant, u64)> = VecDeque::new();
        let mut free = begin;
        let mut delivered = vec![0; seconds as usize];
        let mut waits = Vec::new();
        const MESSAGE: u64 = 64 * 1024;
        let mut now = begin;
        while now < begin + Duration::from_secs(seconds) {
            while acks.front().is_some_and(|(at, _)| *at <= now) {
                let (_, position) = acks.pop_front().unwrap();
                delivered[((now - begin).as_secs() as usize).min(seconds as usize - 1)] += position - acked;
                acked = position;
                path.acked(acked, now);
            }
            while sent - acked < path.window() {
                sent += MESSAGE;
                since_mark += MESSAGE;
                let ready = free.max(now) + Duration::from_secs_f64(MESSAGE as f64 / rate);
                if now - begin > Duration::from_secs(2) {
                    waits.push(free.saturating_duration_since(now));
                }
                free = ready;
                if since_mark >= path.mark_after() {
                    since_mark = 0;
                    path.marked(sent, now);
                    acks.push_back((ready + length, sent));
                }
            }
            path.limited();
            if acks.is_empty() {
                // What nobody asked for comes late.
                acks.push_back((free.max(now) + length + Duration::from_millis(25), sent));
            }
            now = acks.front().map_or(now + Duration::from_millis(1), |(at, _)| *at);
        }
        waits.sort();
        (delivered, waits.get(waits.len() * 99 / 100).copied().unwrap_or_default())
    }

    #[test]
    fn a_long_fast_path_is_filled_and_its_queue_stays_short() {
        for round_trip in [1, 20, 60, 150] {
            let rate = 125_000_000.0;
            let (delivered, queue) = run(rate, Duration::from_millis(round_trip), 40);
            let steady = delivered[2..].iter().sum::<u64>() as f64 / 38.0;
            assert!(steady > 0.95 * rate, "{round_trip} ms: {steady} of {rate}");
            // Told one round trip after it left.
            let first = rate * (1.0 - round_trip as f64 / 1000.0);
            assert!(delivered[0] as f64 > 0.5 * first, "{round_trip} ms: {} in the first second", delivered[0]);
            assert!(queue < Duration::from_millis(55), "{round_trip} ms: a queue of {queue:?}");
        }
    }

    /// A sender that never has as much to send as the window takes, and still more than the path holds.
    #[test]
    fn a_queue_shows_without_the_window_being_the_limit() {
        let begin = Instant::now();
        let mut path = Path::new();
        let round_trip = Duration::from_millis(60);
        for i in 1..40u64 {
            let now = begin + round_trip * i as u32;
            path.marked(i * 8_000_000, now - round_trip - Duration::from_millis(10 * i));
            path.acked(i * 8_000_000, now);
        }
        assert!(path.window() < 20_000_000, "{}", path.window());
    }

    /// A machine that is busy answers late, now and then by tens of milliseconds: that is no queue, and no slow path.
    #[test]
    fn a_busy_machine_does_not_make_a_path_slow() {
        let (rate, length) = (125_000_000.0, Duration::from_millis(60));
        let begin = Instant::now();
        let mut path = Path::new();
        let (mut sent, mut acked, mut since_mark, mut n) = (0u64, 0u64, 0u64, 0u64);
        let mut acks: VecDeque<(Instant, u64)> = VecDeque::new();
        let (mut free, mut now) = (begin, begin);
        while now < begin + Duration::from_secs(12) {
            while let Some(&(at, position)) = acks.front()
                && at <= now
            {
                acks.pop_front();
                acked = position;
                path.acked(acked, now);
            }
            while sent - acked < path.window() {
                sent += 65_536;
                since_mark += 65_536;
                free = free.max(now) + Duration::from_secs_f64(65_536.0 / rate);
                if since_mark >= path.mark_after() || acks.is_empty() {
                    since_mark = 0;
                    n += 1;
                    path.marked(sent, now);
                    let late = Duration::from_millis([0, 3, 11, 5, 24, 2, 9, 38][(n * 7 % 8) as usize]);
                    let at = (free + length + late).max(acks.back().map_or(begin, |(at, _)| *at));
                    acks.push_back((at, sent));
                }
            }
            path.limited();
            now = acks.front().map_or(now + Duration::from_millis(1), |(at, _)| (*at).max(now));
        }
        let share = acked as f64 / (rate * 12.0);
        assert!(share > 0.8, "{share} of what the path holds");
    }

    #[test]
    fn a_slow_path_gets_the_least_window() {
        let (delivered, _) = run(1_000_000.0, Duration::from_millis(30), 20);
        let steady = delivered[5..].iter().sum::<u64>() as f64 / 15.0;
        assert!(steady > 900_000.0, "{steady}");
    }

    #[test]
    fn a_sender_with_little_to_send_learns_no_false_rate() {
        let begin = Instant::now();
        let mut path = Path::new();
        for i in 0..1000u64 {
            let now = begin + Duration::from_millis(i * 100);
            path.marked(i * 100, now);
            path.acked(i * 100, now + Duration::from_millis(10));
        }
        assert_eq!(path.window(), FIRST_WINDOW);
        assert_eq!(path.round_trip(), Some(Duration::from_millis(10)));
    }

    #[test]
    fn a_round_trip_that_became_longer_is_believed_in_time() {
        let begin = Instant::now();
        let mut path = Path::new();
        path.timed(Duration::from_millis(1), begin);
        for i in 0..800u64 {
            let now = begin + Duration::from_millis(100 * i);
            path.marked(i, now);
            path.acked(i, now + Duration::from_millis(80));
        }
        assert_eq!(path.shortest.map(|(shortest, _)| shortest), Some(Duration::from_millis(80)));
    }

    #[test]
    fn what_arrived_by_another_path_does_not_widen_a_new_one() {
        let begin = Instant::now();
        let (moved, message) = (1 << 40, 64 * 1024);
        let mut path = Path::beginning_at(moved);
        path.limited();
        path.marked(moved + message, begin);
        path.acked(moved + message, begin + Duration::from_millis(50));
        assert!(path.window() <= FIRST_WINDOW + message * START_GROWTH, "{}", path.window());
    }

    #[test]
    fn no_path_is_so_long_that_its_window_has_no_bound() {
        let begin = Instant::now();
        let mut path = Path::new();
        path.timed(Duration::from_secs(60), begin);
        path.acked(0, begin);
        for i in 1..100 {
            path.limited();
            path.acked(i << 33, begin + Duration::from_secs(61) * i as u32);
            assert!((LEAST_WINDOW..=MOST_WINDOW).contains(&path.window()), "{}", path.window());
        }
    }
}

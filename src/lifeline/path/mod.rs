//! What the path can hold: its round trip, its rate, and from both how many bytes may be under way, and when bulk leaves.
//!
//! Bytes under way beyond rate × round trip wait in some queue where nothing can overtake them. On a short path the window
//! is that product and a little more: enough to notice when the path can do more, little enough that a tool call behind
//! a bulk transfer waits for milliseconds and not for a full buffer. On a long one the window is only a bound, and bulk
//! keeps to a pace. Pure: times come in; a window and a time come out.

mod company;
mod pace;
mod recent;
mod start;
mod way_back;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::company::Company;
use self::pace::Pace;
use self::recent::Recent;
use self::start::{Burst, Start};
use self::way_back::WayBack;
use super::paced::MOST_BULK;

/// Bytes that may always be under way, where bulk is alone: two full messages and a little. Less, with as few
/// acknowledgements, would stop the path between two of them.
pub const LEAST_WINDOW: u64 = 160 * 1024;

/// Bytes that may ever be under way, and so the most that a lifeline keeps for replay: 1 Gbit/s over half a second.
pub const MOST_WINDOW: u64 = 64 * 1024 * 1024;

/// Bytes under way on a path of which nothing is known: on a slow path they are a queue of a moment, on a long one they
/// save a round trip.
pub const FIRST_WINDOW: u64 = 512 * 1024;

/// Bytes that say something about a new path when they arrive within a round trip: most of a stream's first window.
const LEAST_FIRST: u64 = 192 * 1024;

/// The window of a new path is this many times what arrived within the last round trip. TCP beneath doubles what it
/// sends in a round trip; this one must not be what holds it up.
const START_GROWTH: u64 = 8;

/// A round trip that is longer than the shortest by three eighths of it, but at least and at most this, shows a queue:
/// the path is full.
const LEAST_SIGN: Duration = Duration::from_millis(1);
const MOST_SIGN: Duration = Duration::from_millis(20);

/// Time that bytes may wait in queues of a short path: an eighth of the round trip, and at least this. It is also by
/// how much a faster path shows itself.
const LEAST_QUEUE: Duration = Duration::from_micros(300);

/// Jitter of a short path that the window makes up for: at most so many round trips, and no more than this. More of it is a
/// busy machine's, and a queue in which something small would wait. Where that is expected, bulk keeps short.
const JITTER_TRIPS: u32 = 2;
const MOST_JITTER: Duration = Duration::from_millis(2);

/// Round trips from which on a path is long: clocks tell one part of them from another, and no busy machine seems so far away.
const LONG: Duration = Duration::from_millis(5);

/// Time beyond the round trip for which the window of a long path has room: half of it, at least and at most this. It
/// stands in no queue, as long as the pace is right; it keeps the path busy while a busy machine answers late.
const LEAST_ROOM: Duration = Duration::from_millis(20);
const MOST_ROOM: Duration = Duration::from_millis(60);

/// Time on the way back for which it has room, too: that is the other direction's queue, and no reason to keep short.
const MOST_BACK: Duration = Duration::from_millis(500);

/// A round is one round trip, but no less than this: shorter ones measure the scheduler.
const LEAST_ROUND: Duration = Duration::from_millis(5);

/// The same on a long path, and how many round trips it must have measured: of fewer the shortest says little.
const LEAST_LONG_ROUND: Duration = Duration::from_millis(40);
const LONG_ROUND_MARKS: u32 = 4;

/// An answer is late on a long path when it took this much longer than another of its round, or this part of the round.
const LATE: Duration = Duration::from_millis(3);
const LATE_PART: u32 = 16;

/// Rounds whose best rate counts.
const RATE_ROUNDS: usize = 10;

/// For how long a shortest round trip counts. Then a path that is kept full is emptied for a moment to look again.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(30);

/// The same of a short path where all that are measured are this many times as long, and long.
const ROUND_TRIP_PAST: Duration = Duration::from_secs(1);
const PAST: u32 = 8;

/// The share of the path's product that is under way while it is looked at, in quarters.
const LOOK_QUARTERS: u64 = 3;

/// Bytes between two marks: a sixteenth of the window, but no less than this while the window holds four of it. An
/// acknowledgement costs a message at every hop.
const LEAST_MARK: u64 = 128 * 1024;

/// The same while nothing is known of the path: the first burst must have several, and a stream's first window is all that
/// can be in it.
const FIRST_MARK: u64 = 32 * 1024;

/// Marks that may be on their way.
const MAX_MARKS: usize = 64;

/// What may become of bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// A piece of it may leave, of so many bytes.
    Piece(usize),
    /// Not before then.
    Later(Instant),
    /// Not before something was acknowledged.
    Full,
}

/// One carrier's path, as far as it is known.
#[derive(Debug)]
pub struct Path {
    window: u64,
    start: Option<Start>,
    pace: Option<Pace>,
    marks: VecDeque<Mark>,
    latest: Option<Duration>,
    smooth: Option<Duration>,
    shortest: Option<(Duration, Instant)>,
    rates: VecDeque<f64>,
    round: Option<Round>,
    look: Option<Look>,
    /// After a look the window grows back with what is acknowledged: all at once would be a burst, and a queue.
    rising: Option<u64>,
    recent: Recent,
    way_back: WayBack,
    /// Whether the path, and not the sender, was the limit since the round began; and in the round before, so that it was from
    /// the beginning of this one.
    limited: bool,
    was_limited: bool,
    company: Company,
    acked: u64,
    /// What is not acknowledged of what left.
    under_way: u64,
}

/// A position whose acknowledgement will be timed.
#[derive(Debug)]
struct Mark {
    position: u64,
    sent: Instant,
    /// What had been acknowledged then: what is since then arrived within one round trip.
    acked: u64,
}

/// Since this mark was acknowledged the round goes on.
#[derive(Debug)]
struct Round {
    position: u64,
    sent: Instant,
    arrived: Instant,
    /// Of its round trips.
    shortest: Duration,
    marks: u32,
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
            pace: None,
            marks: VecDeque::new(),
            latest: None,
            smooth: None,
            shortest: None,
            rates: VecDeque::new(),
            round: None,
            look: None,
            rising: None,
            recent: Recent::default(),
            way_back: WayBack::default(),
            limited: false,
            was_limited: false,
            company: Company::default(),
            acked: 0,
            under_way: 0,
        }
    }

    /// The same, of a stream of which everything up to `acked` has arrived by another path: that says nothing of this one.
    pub fn beginning_at(acked: u64) -> Path {
        Path { acked, ..Path::new() }
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// The same of bulk: less while the path is looked at or shared. What is small does not wait for that.
    fn bulk_window(&self) -> u64 {
        let window = match (&self.look, self.product()) {
            (Some(_), Some(product)) => (product / 4).saturating_mul(LOOK_QUARTERS).clamp(LEAST_WINDOW, MOST_WINDOW),
            _ => self.rising.map_or(self.window, |rising| rising.min(self.window)),
        };
        match self.shortest {
            Some((shortest, _)) if self.has_company() => window.min(company::window(shortest, self.product())),
            _ => window,
        }
    }

    /// What may become of bulk, while that many bytes are under way.
    pub fn bulk(&mut self, under_way: u64, now: Instant) -> Bulk {
        self.company.passes(now);
        self.under_way = under_way;
        if under_way >= self.bulk_window() {
            return Bulk::Full;
        }
        if let Some(pace) = &mut self.pace {
            return pace.due(now).map_or(Bulk::Piece(pace.bulk()), Bulk::Later);
        }
        match self.shortest {
            Some((shortest, _)) if self.has_company() => {
                self.company.due(shortest, now).map_or(Bulk::Piece(company::BULK), Bulk::Later)
            }
            _ => Bulk::Piece(MOST_BULK),
        }
    }

    /// Something small left, which others like it will follow: bulk keeps short for a while. On a long path it does so
    /// all the time, since its queue would be long.
    pub fn sparse(&mut self, now: Instant) {
        self.company.came(now);
    }

    fn has_company(&self) -> bool {
        self.company.is_there() && !self.is_long() && self.shortest.is_some()
    }

    /// Bytes after which an acknowledgement is asked for. On a slow long path that is sooner: a round must not take seconds.
    pub fn mark_after(&self) -> u64 {
        let after = if self.is_unknown() { FIRST_MARK } else { between_marks(self.bulk_window()) };
        self.pace.as_ref().map_or(after, |pace| after.min(pace.within(LEAST_LONG_ROUND)))
    }

    /// The round trip as it is, smoothed.
    pub fn round_trip(&self) -> Option<Duration> {
        self.smooth
    }

    /// That many bytes left.
    pub fn sent(&mut self, bytes: u64, now: Instant) {
        self.under_way += bytes;
        self.company.sent(bytes);
        if let Some(pace) = &mut self.pace {
            pace.sent(bytes, now);
        }
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

    /// Everything up to `acked` has arrived, at that time by the other end's clock, if it said so.
    pub fn acked(&mut self, acked: u64, at: Option<Duration>, now: Instant) {
        let mut passed = None;
        let news = acked.saturating_sub(self.acked);
        self.acked = self.acked.max(acked);
        self.under_way = self.under_way.saturating_sub(news);
        self.rising = self.rising.map(|rising| rising + news).filter(|rising| *rising < self.window);
        while let Some(mark) = self.marks.front()
            && mark.position <= acked
        {
            passed = self.marks.pop_front();
        }
        let Some(mark) = passed else { return };
        let took = now.saturating_duration_since(mark.sent);
        // As if the way back had been the shortest. On a short path that is the machines' doing and not the path's.
        let (late, longer) = at.map_or_else(Default::default, |at| self.way_back.late(at, took, now));
        if let Some((shortest, _)) = self.shortest.as_mut().filter(|(shortest, _)| *shortest >= LONG) {
            *shortest += longer.min(MOST_BACK);
        }
        let late = if self.is_long() { late.min(took.saturating_sub(LONG)) } else { Duration::ZERO };
        let (arrived, round_trip) = (now - late, took - late);
        self.smoothed(took);
        self.measured(round_trip, now);
        let burst = self.start.as_mut().map(|start| start.burst(&mark, self.marks.front(), arrived));
        self.delivered(acked.saturating_sub(mark.acked), burst, now);
        let Some(round) = &mut self.round else {
            let Mark { position, sent, .. } = mark;
            self.round = Some(Round { position, sent, arrived, shortest: round_trip, marks: 0 });
            return;
        };
        round.shortest = round.shortest.min(round_trip);
        round.marks += 1;
        let took = arrived.saturating_duration_since(round.arrived);
        let (least, marks) = if self.pace.is_some() { (LEAST_LONG_ROUND, LONG_ROUND_MARKS) } else { (LEAST_ROUND, 1) };
        let length = self.smooth.unwrap_or_default().max(least);
        // So few bytes leave that one of them is all that a long while has.
        let marks = if took >= length * LONG_ROUND_MARKS { 1 } else { marks };
        // A round that ended with an answer that came late would seem slow, and the next one fast.
        let is_late = round_trip > round.shortest + LATE.max(took / LATE_PART) && took < length * 2;
        let is_known = self.pace.as_ref().is_some_and(|pace| !pace.is_fresh());
        if took >= length && round.marks >= marks && !(is_known && is_late) {
            self.round_ended(&mark, arrived, now);
        }
    }

    /// A round trip was measured.
    pub fn timed(&mut self, round_trip: Duration, now: Instant) {
        self.smoothed(round_trip);
        self.measured(round_trip, now);
    }

    fn smoothed(&mut self, round_trip: Duration) {
        self.smooth = Some(self.smooth.map_or(round_trip, |smooth| (smooth * 7 + round_trip) / 8));
    }

    fn measured(&mut self, round_trip: Duration, now: Instant) {
        self.latest = Some(round_trip);
        self.recent.push(round_trip);
        if let Some(look) = &mut self.look {
            look.shortest = Some(look.shortest.map_or(round_trip, |shortest| shortest.min(round_trip)));
        }
        match self.shortest {
            Some((shortest, _)) if round_trip > shortest => {}
            _ => self.shortest = Some((round_trip, now)),
        }
    }

    fn round_ended(&mut self, mark: &Mark, arrived: Instant, now: Instant) {
        let next = Round { position: mark.position, sent: mark.sent, arrived, shortest: Duration::MAX, marks: 0 };
        let Some(round) = self.round.replace(next) else { return };
        let limited = std::mem::take(&mut self.limited);
        let whole = std::mem::replace(&mut self.was_limited, limited) && limited;
        let bytes = mark.position.saturating_sub(round.position) as f64;
        let per = |from: Instant, to: Instant| bytes / to.saturating_duration_since(from).as_secs_f64().max(1e-6);
        let rate = per(round.arrived, arrived);
        // A sender that had little to send, or kept short, says nothing about the path, unless it was more than ever before.
        if (limited && !self.has_company()) || rate > self.best() {
            self.rated(rate);
        }
        // While the path is looked at, it is the window that holds bulk back.
        let is_paced = self.look.is_none() && self.rising.is_none();
        if let (Some(pace), Some((shortest, _)), true) = (&mut self.pace, self.shortest, is_paced) {
            let queue = round.shortest.saturating_sub(shortest);
            let (sent, took) = (per(round.sent, mark.sent), arrived.saturating_duration_since(round.arrived));
            let under_way = self.under_way;
            pace.round(pace::Round { arrived: rate, sent, queue, shortest, took, limited, whole, under_way }, now);
        }
        self.look_again(limited, now);
        if limited {
            self.start.take_if(|start| start.is_over(rate));
        }
        self.steady(now);
    }

    /// So much arrived within one round trip: a new path may hold several times that, unless a burst shows what it holds.
    fn delivered(&mut self, bytes: u64, burst: Option<Burst>, now: Instant) {
        let Some(burst) = burst.filter(|burst| *burst != Burst::Arrives || !self.is_long()) else { return };
        let burst = burst.rate();
        if let Some(rate) = burst.filter(|_| self.is_long()) {
            self.start = None;
            self.pace = Some(Pace::of_burst(rate, now));
            self.steady(now);
        } else if self.is_queued() && (self.limited || bytes >= LEAST_FIRST) {
            // The path is full: what arrived within a round trip is what it delivers in one.
            let round_trip = self.latest.unwrap_or_default().as_secs_f64().max(1e-6);
            let rate = burst.unwrap_or(bytes as f64 / round_trip);
            self.start = None;
            self.rated(rate);
            self.pace = self.is_long().then(|| Pace::fresh(rate, now));
            self.steady(now);
        } else if bytes >= LEAST_FIRST {
            self.window = self.window.max(bytes * START_GROWTH).min(MOST_WINDOW);
        }
    }

    fn rated(&mut self, rate: f64) {
        if self.rates.len() == RATE_ROUNDS {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }

    /// The most that arrived in a second of the last rounds.
    fn best(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// Whether nothing of what left has told anything yet.
    fn is_unknown(&self) -> bool {
        self.start.is_some() && self.window == FIRST_WINDOW
    }

    fn is_long(&self) -> bool {
        self.shortest.is_some_and(|(shortest, _)| shortest >= LONG)
    }

    fn is_queued(&self) -> bool {
        let Some((shortest, _)) = self.shortest else { return false };
        let longer = shortest + (shortest * 3 / 8).clamp(LEAST_SIGN, MOST_SIGN);
        self.recent.are_longer(longer)
    }

    /// The window of a path that is known.
    fn steady(&mut self, now: Instant) {
        let (None, Some((shortest, _))) = (&self.start, self.shortest) else { return };
        if !self.is_long() {
            self.pace = None;
        } else if self.pace.is_none() && self.best() > 0.0 {
            self.pace = Some(Pace::fresh(self.best(), now));
        }
        let rate = self.rate();
        if rate == 0.0 {
            return;
        }
        let room = match &self.pace {
            Some(_) => {
                let back = self.way_back.latest().min(MOST_BACK);
                let late = self.smooth.unwrap_or_default().saturating_sub(shortest + back);
                (shortest / 2).clamp(LEAST_ROOM, MOST_ROOM) + late.min(MOST_ROOM) + back
            }
            None => {
                let queue = (shortest / 8).max(LEAST_QUEUE);
                queue + self.recent.jitter().min(shortest * JITTER_TRIPS).min(MOST_JITTER)
            }
        };
        let window = (rate * (shortest + room).as_secs_f64()) as u64;
        // What arrived since the last mark is not known to have arrived.
        self.window = (window + between_marks(window)).clamp(LEAST_WINDOW, MOST_WINDOW);
    }

    /// The shortest round trip is forgotten after a while, so that a path which became longer is not starved. A path
    /// that was full all the time is emptied for one round trip first: else its queue would pass for its length.
    fn look_again(&mut self, limited: bool, now: Instant) {
        match &self.look {
            Some(look) if now >= look.until => {
                if let Some(shortest) = look.shortest {
                    self.shortest = Some((shortest, now));
                }
                self.rising = Some(self.bulk_window());
                self.look = None;
                if let Some(pace) = &mut self.pace {
                    pace.looked();
                }
            }
            Some(_) => {}
            None => {
                let Some((shortest, since)) = self.shortest else { return };
                let is_past = shortest < LONG && self.recent.are_longer((shortest * PAST).max(LONG));
                if now.saturating_duration_since(since) < if is_past { ROUND_TRIP_PAST } else { ROUND_TRIP_AGE } {
                    return;
                }
                let latest = self.latest.unwrap_or(shortest);
                if limited {
                    let answered = self.smooth.map_or(latest, |smooth| smooth.max(latest));
                    self.look = Some(Look { until: now + (answered * 2).max(LEAST_ROUND), shortest: None });
                } else {
                    self.shortest = Some((latest, now));
                }
            }
        }
    }

    /// Bytes per second for which the window has room: what the path delivers, and what a fresh one may.
    fn rate(&self) -> f64 {
        self.pace.as_ref().map_or_else(|| self.best(), Pace::most)
    }

    /// Rate × shortest round trip, in bytes.
    fn product(&self) -> Option<u64> {
        let (shortest, _) = self.shortest?;
        let rate = self.rate();
        (rate > 0.0).then_some((rate * shortest.as_secs_f64()) as u64)
    }
}

fn between_marks(window: u64) -> u64 {
    (window / 16).max(LEAST_MARK).min(window / 4)
}

#[cfg(test)]
mod path_tests;

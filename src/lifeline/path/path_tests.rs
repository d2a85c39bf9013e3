//! A path on a simulated wire: what it delivers, how long its queue is, and what a machine that answers late does to it.

use super::*;

/// A path with a rate, a length and a queue without end.
struct Wire {
    rate: f64,
    length: Duration,
    /// How late the acknowledgement of the n-th message is.
    late: fn(u64) -> Duration,
    /// How long it seemed before.
    seemed: Duration,
    /// From when until when it has another rate, and which.
    meanwhile: Option<(Duration, Duration, f64)>,
    /// What there is to send before anything was answered: a stream's first window.
    first: u64,
    /// From when until when nothing but calls is sent, one after the other.
    calls: (Duration, Duration),
    /// How long an acknowledgement waits on its way back that sets out then, if the other end says when that is.
    back: Option<fn(Duration) -> Duration>,
    /// What the other end's clock says then.
    clock: fn(Duration) -> Duration,
}

/// An acknowledgement on its way: when it sets out, and of what.
type Ack = (Instant, u64);

impl Wire {
    fn new(rate: f64, length: Duration) -> Wire {
        Wire {
            rate,
            length,
            late: |_| Duration::ZERO,
            seemed: length,
            meanwhile: None,
            first: u64::MAX,
            calls: (Duration::ZERO, Duration::ZERO),
            back: None,
            clock: |after| after + OTHER_CLOCK,
        }
    }

    /// When an acknowledgement is here that sets out `after` the beginning, on a way without a queue.
    fn is_back(&self, after: Duration) -> Duration {
        after + self.back.map_or(Duration::ZERO, |back| back(after))
    }

    fn rate_at(&self, time: Duration) -> f64 {
        match self.meanwhile {
            Some((from, until, rate)) if (from..until).contains(&time) => rate,
            _ => self.rate,
        }
    }

    /// What stands in the queue at `now` leaves at another rate from then on.
    fn changed(&self, times: f64, now: Instant, free: &mut Instant, acks: &mut VecDeque<Ack>) {
        let sooner = |at: Instant| if at > now { now + (at - now).div_f64(times) } else { at };
        *free = sooner(*free);
        for (at, _) in acks {
            *at = sooner(*at - self.length) + self.length;
        }
    }
}

/// What became of a transfer.
struct Sent {
    /// Bytes delivered within each whole second.
    delivered: Vec<u64>,
    /// Waits in the queue after the first three seconds, sorted.
    waits: Vec<Duration>,
}

impl Sent {
    fn steady(&self) -> f64 {
        self.delivered[2..].iter().sum::<u64>() as f64 / (self.delivered.len() - 2) as f64
    }

    fn wait(&self, percent: usize) -> Duration {
        self.waits.get(self.waits.len() * percent / 100).copied().unwrap_or_default()
    }

    fn longest_wait(&self) -> Duration {
        self.waits.last().copied().unwrap_or_default()
    }
}

/// By how much the other end's clock is ahead.
const OTHER_CLOCK: Duration = Duration::from_secs(1_000_000);

/// Bytes of a call.
const CALL: u64 = 100;

/// A sender that always has more to send.
fn run(wire: &Wire, seconds: u64) -> Sent {
    let begin = Instant::now();
    let is_back = |at: Instant| begin + wire.is_back(at - begin);
    let mut path = Path::new();
    let (mut sent, mut acked, mut since_mark, mut n) = (0u64, 0u64, 0u64, 0u64);
    let mut acks: VecDeque<Ack> = VecDeque::new();
    let mut rate = wire.rate;
    let (mut free, mut now) = (begin, begin);
    let mut delivered = vec![0; seconds as usize];
    let mut waits = Vec::new();
    // What began the session has told how long the path is.
    path.timed(wire.seemed, begin);
    while now < begin + Duration::from_secs(seconds) {
        let before = std::mem::replace(&mut rate, wire.rate_at(now - begin));
        if rate != before {
            wire.changed(rate / before, now, &mut free, &mut acks);
        }
        while acks.front().is_some_and(|(at, _)| is_back(*at) <= now) {
            let (at, position) = acks.pop_front().unwrap();
            delivered[((now - begin).as_secs() as usize).min(seconds as usize - 1)] += position - acked;
            acked = position;
            path.acked(acked, wire.back.map(|_| (wire.clock)(at - begin)), now);
        }
        let calls = (wire.calls.0..wire.calls.1).contains(&(now - begin));
        if calls && sent == acked {
            (sent, n) = (sent + CALL, n + 1);
            path.sent(CALL, now);
            path.marked(sent, now);
            acks.push_back((now + wire.length + (wire.late)(n), sent));
        }
        let to_send = if acked == 0 { wire.first } else { u64::MAX };
        let due = loop {
            if calls || sent >= to_send {
                break None;
            }
            let message = match path.bulk(sent - acked, now) {
                Bulk::Piece(bytes) => bytes as u64,
                Bulk::Later(due) => break Some(due),
                Bulk::Full => break None,
            };
            sent += message;
            since_mark += message;
            path.sent(message, now);
            if now - begin > Duration::from_secs(3) {
                waits.push(free.saturating_duration_since(now));
            }
            free = free.max(now) + Duration::from_secs_f64(message as f64 / rate);
            if since_mark >= path.mark_after() {
                (since_mark, n) = (0, n + 1);
                path.marked(sent, now);
                let at = free + wire.length + (wire.late)(n);
                acks.push_back((at.max(acks.back().map_or(begin, |(at, _)| *at)), sent));
            }
        };
        if !calls && sent < to_send {
            path.limited();
        }
        if acks.is_empty() && due.is_none() {
            // What nobody asked for comes late.
            acks.push_back((free.max(now) + wire.length + Duration::from_millis(25), sent));
        }
        // Clocks tick in milliseconds.
        let due = due.map(|due| due.max(now + Duration::from_millis(1)));
        let changes = wire.meanwhile.iter().flat_map(|(from, until, _)| [from, until]);
        let change = changes.filter_map(|after| begin.checked_add(*after)).find(|at| *at > now);
        now =
            acks.front().map(|(at, _)| is_back(*at)).into_iter().chain(due).chain(change).min().unwrap_or(now).max(now);
    }
    waits.sort();
    Sent { delivered, waits }
}

#[test]
fn a_long_path_is_filled_and_its_queue_stays_short() {
    const GIGABIT: f64 = 125_000_000.0;
    let paths = [
        (GIGABIT, 1, 5),
        (GIGABIT, 3, 8),
        (GIGABIT, 20, 8),
        (GIGABIT, 60, 8),
        (GIGABIT, 150, 12),
        (GIGABIT / 100.0, 60, 20),
    ];
    for (rate, round_trip, queue) in paths {
        let wire = Wire { first: 256 * 1024, ..Wire::new(rate, Duration::from_millis(round_trip)) };
        let sent = run(&wire, 40);
        let what = format!("{} Mbit/s, {round_trip} ms", rate / GIGABIT * 1000.0);
        assert!(sent.steady() > 0.97 * rate, "{what}: {}", sent.steady() / rate);
        // Told one round trip after it left, and nothing was known of the path for one before.
        let first = sent.delivered[0] as f64 / rate / (1.0 - round_trip as f64 / 1000.0);
        assert!(first > 0.75, "{what}: {first} in the first second");
        assert!(sent.wait(99) < Duration::from_millis(queue), "{what}: a queue of {:?}", sent.wait(99));
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
        path.acked(i * 8_000_000, None, now);
    }
    assert!(path.window() < 24_000_000, "{}", path.window());
}

/// A machine that is busy answers late, now and then by tens of milliseconds: that is no queue, and no slow path.
#[test]
fn a_busy_machine_does_not_make_a_path_slow() {
    let late = |n| Duration::from_millis([0, 3, 11, 5, 24, 2, 9, 38][(n * 7 % 8) as usize]);
    for round_trip in [20, 60, 150] {
        let (rate, length) = (125_000_000.0, Duration::from_millis(round_trip));
        let sent = run(&Wire { late, ..Wire::new(rate, length) }, 12);
        assert!(sent.steady() > 0.8 * rate, "{round_trip} ms: {} of {rate}", sent.steady());
        assert!(sent.wait(95) < Duration::from_millis(70), "{round_trip} ms: a queue of {:?}", sent.wait(95));
    }
}

/// A session in which nothing but calls goes for a while, at first or after bulk: answers that come late then say nothing
/// of what the path holds.
#[test]
fn calls_do_not_make_a_path_seem_full() {
    for (seemed, megabits, round_trip) in [(20, 100, 20), (20, 1000, 20), (60, 100, 60), (0, 100, 20), (0, 1000, 60)] {
        for from in [0, 3].map(Duration::from_secs) {
            let rate = f64::from(megabits) * 125_000.0;
            let length = Duration::from_millis(round_trip);
            let seemed = Duration::from_millis(seemed).max(Duration::from_micros(300));
            let calls = (from, Duration::from_secs(8));
            let sent = run(&Wire { late: radio, seemed, calls, ..Wire::new(rate, length) }, 13);
            let what = format!("{megabits} Mbit/s, {length:?}, seemed {seemed:?}, from {from:?}");
            let share: Vec<f64> = sent.delivered.iter().map(|bytes| *bytes as f64 / rate).collect();
            assert!(share[8] > 0.4 && share[9..].iter().all(|share| *share > 0.8), "{what}: {share:.2?}");
        }
    }
}

/// Each answer is late by a few milliseconds, some by many.
fn radio(n: u64) -> Duration {
    fn hash(n: u64) -> u64 {
        let n = (n ^ (n >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        n ^ (n >> 32)
    }
    let usual = -(1.0 - (hash(n) % 10_000) as f64 / 10_000.0).ln() * 2.5;
    Duration::from_secs_f64((usual + if hash(n ^ 77).is_multiple_of(40) { 25.0 } else { 0.0 }) / 1e3)
}

#[test]
fn radio_makes_a_path_neither_slow_nor_full() {
    for megabits in [50, 100, 300, 1000] {
        for round_trip in [8, 20, 40, 100] {
            let rate = f64::from(megabits) * 125_000.0;
            let sent = run(&Wire { late: radio, ..Wire::new(rate, Duration::from_millis(round_trip)) }, 12);
            let what = format!("{megabits} Mbit/s, {round_trip} ms");
            assert!(sent.steady() > 0.9 * rate, "{what}: {}", sent.steady() / rate);
            assert!(sent.wait(95) < Duration::from_millis(60), "{what}: a queue of {:?}", sent.wait(95));
        }
    }
}

/// Answers of a busy machine come late, and what is next to it is none the slower: bulk makes no queue of that.
#[test]
fn a_busy_machine_makes_no_queue_on_a_near_path() {
    const RATE: f64 = 500_000_000.0;
    let late = |n: u64| Duration::from_micros(n * 7919 % 4000);
    let sent = run(&Wire { late, ..Wire::new(RATE, Duration::from_micros(200)) }, 5);
    assert!(sent.wait(95) < Duration::from_millis(1), "a queue of {:?}", sent.wait(95));
}

/// A hypervisor takes the processor away, and what arrived meanwhile is answered all at once.
#[test]
fn a_machine_that_stands_still_now_and_then_does_not_make_a_path_slow() {
    const RATE: f64 = 125_000_000.0;
    fn stalls(n: u64, every: u64, millis: u64) -> Duration {
        let stall = Duration::from_millis(if n % every < 3 { millis } else { 0 });
        stall + Duration::from_micros(n * 7919 % 3000)
    }
    let machines: [fn(u64) -> Duration; 3] = [|n| stalls(n, 11, 20), |n| stalls(n, 17, 30), |n| stalls(n, 40, 40)];
    for round_trip in [60, 150] {
        for (machine, late) in machines.into_iter().enumerate() {
            let sent = run(&Wire { late, ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 20);
            let what = format!("{round_trip} ms, machine {machine}");
            assert!(sent.steady() > 0.95 * RATE, "{what}: {}", sent.steady() / RATE);
            assert!(sent.wait(95) < Duration::from_millis(60), "{what}: a queue of {:?}", sent.wait(95));
        }
    }
}

/// Who saturates both directions has a queue in either, and acknowledgements wait in the other one's.
#[test]
fn a_queue_on_the_way_back_is_not_taken_for_ones_own() {
    const RATE: f64 = 25_000_000.0;
    fn swings(after: Duration, millis: u128) -> Duration {
        let phase = after.as_millis() % 4000;
        let millis = if phase < 2000 { phase * millis / 2000 } else { (4000 - phase) * millis / 2000 };
        Duration::from_millis(millis as u64)
    }
    let ways: [fn(Duration) -> Duration; 3] = [
        |after| swings(after, 80),
        |after| swings(after, 160),
        // It is there nearly all the time.
        |after| Duration::from_millis(if after.as_secs().is_multiple_of(20) { 0 } else { 60 }),
    ];
    for round_trip in [20, 60, 150] {
        for (way, back) in ways.into_iter().enumerate() {
            let sent = run(&Wire { back: Some(back), ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 40);
            let what = format!("{round_trip} ms, way {way}");
            assert!(sent.steady() > 0.9 * RATE, "{what}: {}", sent.steady() / RATE);
            assert!(sent.wait(99) < Duration::from_millis(50), "{what}: a queue of {:?}", sent.wait(99));
        }
    }
}

/// On two cores that is the rule: others have a turn while the first burst arrives.
#[test]
fn a_receiver_that_stands_still_while_the_first_burst_arrives_does_not_make_a_path_slow() {
    const RATE: f64 = 125_000_000.0;
    let stands: [fn(u64) -> Duration; 3] = [
        |n| Duration::from_millis(if n > 1 && n <= 16 { 5 } else { 0 }),
        |n| Duration::from_millis(if n > 2 && n <= 16 { 8 } else { 0 }),
        |n| {
            Duration::from_millis(if n <= 1 {
                0
            } else if n <= 8 {
                5
            } else if n <= 16 {
                10
            } else {
                0
            })
        },
    ];
    for round_trip in [60, 150] {
        for (which, late) in stands.into_iter().enumerate() {
            let sent = run(&Wire { late, ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 4);
            let share: Vec<f64> = sent.delivered.iter().map(|bytes| *bytes as f64 / RATE).collect();
            assert!(share[0] > 0.5 && share[1] > 0.9, "{round_trip} ms, machine {which}: {share:.2?}");
        }
    }
}

/// The other end may say what it likes, and one of another make may have no clock to read.
#[test]
fn what_is_no_clock_is_not_believed() {
    const RATE: f64 = 25_000_000.0;
    let clocks: [fn(Duration) -> Duration; 3] = [
        |_| Duration::from_secs(1),
        |_| Duration::from_micros(u64::MAX),
        |after| Duration::from_micros((after.as_micros() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20),
    ];
    for round_trip in [20, 60, 150] {
        for (which, clock) in clocks.into_iter().enumerate() {
            let back: Option<fn(Duration) -> Duration> = Some(|_| Duration::ZERO);
            let sent = run(&Wire { back, clock, ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 40);
            let what = format!("{round_trip} ms, clock {which}");
            assert!(sent.steady() > 0.95 * RATE, "{what}: {}", sent.steady() / RATE);
            assert!(sent.wait(99) < Duration::from_millis(30), "{what}: a queue of {:?}", sent.wait(99));
        }
    }
}

#[test]
fn a_long_path_that_changes_its_rate_is_followed() {
    const RATE: f64 = 25_000_000.0;
    let late = |n: u64| Duration::from_micros(n * 7919 % 2000);
    for round_trip in [20, 60, 150] {
        for times in [0.2, 5.0] {
            let meanwhile = Some((Duration::from_secs(6), Duration::MAX, RATE * times));
            let sent = run(&Wire { late, meanwhile, ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 20);
            let share: Vec<f64> = sent.delivered[12..].iter().map(|bytes| *bytes as f64 / RATE / times).collect();
            assert!(share.iter().all(|share| *share > 0.9), "{round_trip} ms, {times} times: {share:?}");
        }
    }
    // Where a round is long, and a search has to begin small.
    for round_trip in [300, 600] {
        let meanwhile = Some((Duration::from_secs(6), Duration::MAX, RATE * 5.0));
        let sent = run(&Wire { late, meanwhile, ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 60);
        let share: Vec<f64> = sent.delivered[40..].iter().map(|bytes| *bytes as f64 / RATE / 5.0).collect();
        assert!(share.iter().all(|share| *share > 0.8), "{round_trip} ms: {share:?}");
    }
}

/// Calls beside bulk meet no queue that a person would feel, also when bulk pauses and goes on.
#[test]
fn a_transfer_that_goes_on_after_a_pause_makes_no_queue() {
    const RATE: f64 = 125_000_000.0;
    // It has been slower to answer since it had something to do.
    let late = |n: u64| Duration::from_micros(if n < 40 { 0 } else { 4000 } + n * 7919 % 2000);
    for round_trip in [60, 150] {
        let calls = (Duration::from_secs(6), Duration::from_secs(18));
        let sent = run(&Wire { late, calls, ..Wire::new(RATE, Duration::from_millis(round_trip)) }, 24);
        let share: Vec<f64> = sent.delivered[19..].iter().map(|bytes| *bytes as f64 / RATE).collect();
        assert!(share.iter().all(|share| *share > 0.9), "{round_trip} ms: {share:?}");
        assert!(
            sent.longest_wait() < Duration::from_millis(20),
            "{round_trip} ms: a queue of {:?}",
            sent.longest_wait()
        );
    }
}

#[test]
fn what_is_small_does_not_wait_while_a_path_is_looked_at() {
    const RATE: u64 = 25_000_000;
    let (begin, round_trip) = (Instant::now(), Duration::from_millis(100));
    let mut path = Path::new();
    let (mut looked, mut now) = (false, begin);
    for round in 1..400u64 {
        for part in 1..=8 {
            now = begin + round_trip * round as u32 + round_trip * part / 8;
            let position = round * RATE / 10 + RATE / 80 * u64::from(part);
            path.limited();
            // Its length is never seen again: a queue stands that does not go.
            let longer = if round < 3 { Duration::ZERO } else { Duration::from_millis(2) };
            path.marked(position, now - round_trip - longer);
            path.acked(position, None, now);
        }
        if path.look.is_some() {
            looked = true;
            let holds = path.product().unwrap();
            assert_eq!(path.bulk(holds, now), Bulk::Full);
            assert!(path.window() > holds);
        }
    }
    assert!(looked, "{path:?}");
}

/// The machine moved, and its connection stayed.
#[test]
fn a_path_that_seemed_short_and_is_long_is_filled_soon() {
    const RATE: f64 = 25_000_000.0;
    for length in [20, 40, 150].map(Duration::from_millis) {
        let sent = run(&Wire { seemed: Duration::from_micros(300), ..Wire::new(RATE, length) }, 12);
        let share: Vec<f64> = sent.delivered[6..].iter().map(|bytes| *bytes as f64 / RATE).collect();
        assert!(share.iter().all(|share| *share > 0.9), "{length:?}: {share:?}");
    }
}

/// A lift, a tunnel: nearly nothing comes through, and then everything again.
#[test]
fn a_long_path_that_was_slow_for_a_while_comes_back() {
    const RATE: f64 = 12_500_000.0;
    for round_trip in [20, 60, 150] {
        for times in [0.1, 0.01, 0.001] {
            let meanwhile = Some((Duration::from_secs(6), Duration::from_secs(16), RATE * times));
            let length = Duration::from_millis(round_trip);
            let sent = run(&Wire { meanwhile, ..Wire::new(RATE, length) }, 30);
            let share: Vec<f64> = sent.delivered[25..].iter().map(|bytes| *bytes as f64 / RATE).collect();
            assert!(share.iter().all(|share| *share > 0.9), "{round_trip} ms, {times} times: {share:?}");
        }
    }
}

#[test]
fn bulk_keeps_short_where_something_small_shares_a_short_path() {
    const SHORT: u64 = 8 * 1024;
    let now = Instant::now();
    for (round_trip, shares) in [(300, true), (60_000, false)] {
        let mut path = Path::new();
        path.timed(Duration::from_micros(round_trip), now);
        assert_eq!(path.bulk(SHORT, now), Bulk::Piece(MOST_BULK));
        path.sparse(now);
        assert_eq!(path.bulk(SHORT, now) == Bulk::Full, shares, "{round_trip} µs");
        assert_eq!(path.bulk(0, now) == Bulk::Piece(company::BULK), shares, "{round_trip} µs");
        assert_eq!(path.bulk(SHORT, now + Duration::from_millis(20)), Bulk::Piece(MOST_BULK), "alone again");
    }
}

#[test]
fn bulk_leaves_a_near_path_idle_for_most_of_the_time_that_something_small_shares_it() {
    let begin = Instant::now();
    let at = |micros| begin + Duration::from_micros(micros);
    for (round_trip, most) in [(300, 40 * 1024), (3_000, u64::MAX)] {
        let mut path = Path::new();
        path.timed(Duration::from_micros(round_trip), begin);
        let mut sent = 0;
        let mut turn = |from: u64| {
            path.sparse(at(from));
            let before = sent;
            // Each piece has arrived before the next one is asked for.
            for micros in from..from + 500 {
                match path.bulk(0, at(micros)) {
                    Bulk::Piece(bytes) => {
                        path.sent(bytes as u64, at(micros));
                        sent += bytes as u64;
                    }
                    Bulk::Later(due) => {
                        assert_eq!(due, at(from) + Duration::from_millis(1));
                        break;
                    }
                    Bulk::Full => panic!("nothing is under way"),
                }
            }
            sent - before
        };
        let turns = [turn(0), turn(1_000), turn(2_500)];
        assert!(turns.iter().all(|bytes| *bytes > 0 && *bytes <= most), "{round_trip} µs: {turns:?}");
        assert_eq!(path.bulk(0, at(23_000)), Bulk::Piece(MOST_BULK), "alone again");
    }
}

#[test]
fn a_sender_with_little_to_send_learns_no_false_rate() {
    let begin = Instant::now();
    let mut path = Path::new();
    for i in 0..1000u64 {
        let now = begin + Duration::from_millis(i * 100);
        path.marked(i * 100, now);
        path.acked(i * 100, None, now + Duration::from_millis(10));
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
        path.acked(i, None, now + Duration::from_millis(80));
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
    path.acked(moved + message, None, begin + Duration::from_millis(50));
    assert!(path.window() <= FIRST_WINDOW + message * START_GROWTH, "{}", path.window());
}

#[test]
fn no_path_is_so_long_that_its_window_has_no_bound() {
    let begin = Instant::now();
    let mut path = Path::new();
    path.timed(Duration::from_secs(60), begin);
    path.acked(0, None, begin);
    for i in 1..100 {
        path.limited();
        path.acked(i << 33, None, begin + Duration::from_secs(61) * i as u32);
        assert!((LEAST_WINDOW..=MOST_WINDOW).contains(&path.window()), "{}", path.window());
    }
}

//! Who is taken for dead, and when, on ways of any length and with anything to say: against the model that a way that lives is
//! not given up, and that one that is dead is found out in the time that is stated.

use super::super::core::{ACK_DELAY, HEARTBEAT, LEAST_PATIENCE, UNANSWERED};
use super::*;

/// On a way whose round trip is at most this, nobody suspects anybody, whatever happened before: less than `ALERT_PATIENCE` by
/// more than an acknowledgement may wait.
const SHORT: Duration = Duration::from_millis(450);

/// The longest round trip that is looked at. What an attach may take is more.
const LONG: Duration = Duration::from_secs(3);

/// Time goes on by this at least, however much is due.
const TICK: Duration = Duration::from_micros(100);

/// Two ends that say something now and then, and a way between them that takes its time.
struct Talk {
    world: World,
    rng: StdRng,
    /// When each side says something next.
    next: [Instant; 2],
    /// When each side said something last.
    said: [Option<Instant>; 2],
    round_trip: Duration,
    steps: u64,
}

impl Talk {
    fn new(seed: u64, trips: [Duration; 2]) -> Talk {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = steady();
        if rng.random() {
            stand_by_directly(&mut world);
        }
        let round_trip = rng.random_range(trips[0]..trips[1]);
        world.delay = round_trip / 2;
        let next = [world.now; 2];
        Talk { world, rng, next, said: [None; 2], round_trip, steps: 0 }
    }

    /// How long the other side may be silent when it should not.
    fn patience(&self) -> Duration {
        // What is measured may be an answer that waited for something to travel with.
        LEAST_PATIENCE.max((self.round_trip + ACK_DELAY) * 3) + 2 * TICK
    }

    /// Time passes until something happens.
    fn turn(&mut self) {
        self.steps += 1;
        let world = &mut self.world;
        for link in 0..world.links.len() {
            [DIALER, LISTENER].into_iter().for_each(|side| world.pump(link, side));
        }
        let arrivals = world.links.iter().flat_map(|link| &link.queues).filter_map(|queue| queue.front());
        let times = arrivals.map(|(due, _)| *due).chain(self.next);
        let due = times.chain(world.cores.iter().filter_map(Core::deadline)).min().expect("somebody says something");
        world.pass(due.saturating_duration_since(world.now).max(TICK));
        for link in (0..world.links.len()).rev() {
            for side in [DIALER, LISTENER] {
                for _ in 0..world.links.get(link).map_or(0, |link| link.queues[side].len()) {
                    world.deliver(link, side);
                }
            }
        }
        for side in [DIALER, LISTENER] {
            world.read(side);
            if self.next[side] <= world.now {
                world.write(side, self.rng.random_range(1..3000));
                self.said[side] = Some(world.now);
                let milliseconds = match self.rng.random_range(0..20) {
                    0..14 => self.rng.random_range(1..100),
                    14..19 => self.rng.random_range(100..3000),
                    _ => self.rng.random_range(3000..40_000),
                };
                self.next[side] = world.now + Duration::from_millis(milliseconds);
            }
        }
        // The laptop slept, or its network changed, and the way is the same.
        if self.rng.random_range(0..500) == 0 {
            let side = self.rng.random_range(0..2);
            world.cores[side].probe(world.now);
        }
    }

    fn standing(&self, side: usize) -> Standing {
        self.world.cores[side].standing()
    }

    fn suspects(&self, side: usize) -> bool {
        matches!(self.standing(side), Standing::Suspect { .. })
    }
}

/// A way that lives is given up by nobody; a short one, or one whose length is known, is not suspected either.
fn a_life(seed: u64, trips: [Duration; 2], steps: u64) {
    let mut talk = Talk::new(seed, trips);
    let carriers = talk.world.links.len();
    let mut known = [false; 2];
    for _ in 0..steps {
        talk.turn();
        assert_eq!(talk.world.links.len(), carriers, "seed {seed}: a carrier was given up");
        for side in [DIALER, LISTENER] {
            let suspects = talk.suspects(side);
            let told = talk.round_trip <= SHORT || known[side];
            assert!(!(suspects && told), "seed {seed}, side {side}, {:?}: {:?}", talk.round_trip, talk.standing(side));
            known[side] |=
                matches!(talk.standing(side), Standing::Attached { round_trip: Some(r), .. } if r >= talk.round_trip);
        }
    }
    talk.next = [talk.world.now + HEARTBEAT * 2; 2];
    let calm = talk.world.now + HEARTBEAT;
    while talk.world.now < calm {
        talk.turn();
    }
    assert!(!talk.suspects(DIALER) && !talk.suspects(LISTENER), "seed {seed}: it answers, and is not believed");
}

/// The way dies, in one direction or both; gives the longest time until a side that had said something suspected it.
fn a_death(seed: u64, steps: u64) -> Duration {
    let mut talk = Talk::new(seed, [Duration::from_millis(1), SHORT]);
    for _ in 0..steps {
        talk.turn();
    }
    let dead = [[true, true], [true, false], [false, true]][talk.rng.random_range(0..3)];
    let idle = talk.rng.random();
    if idle {
        talk.next = [talk.world.now + RETENTION; 2];
    }
    talk.world.links.iter_mut().for_each(|link| link.hole = dead);
    talk.said = [None; 2];
    let (begin, patience) = (talk.world.now, talk.patience());
    let mut found = [None; 2];
    let mut longest = Duration::ZERO;
    // What left before is still answered.
    let on_its_way = talk.round_trip + ACK_DELAY;
    // Who says nothing: the laptop asks after a heartbeat, whatever it hears, and the workspace misses that.
    let latest = begin + on_its_way + HEARTBEAT + patience * UNANSWERED;
    let mut first = [None; 2];
    loop {
        for side in [DIALER, LISTENER] {
            first[side] = first[side].or(talk.said[side]);
            if found[side].is_none() && !matches!(talk.standing(side), Standing::Attached { moves: 0, .. }) {
                found[side] = Some(talk.world.now);
                longest = longest.max(first[side].map_or(Duration::ZERO, |said| talk.world.now - said));
            }
        }
        let must = |side: usize| dead[side] || first[side].is_some() || side == DIALER;
        let now = talk.world.now;
        for side in [DIALER, LISTENER].into_iter().filter(|side| found[*side].is_none() && must(*side)) {
            let by = first[side].map_or(latest, |said| latest.min(said + on_its_way + patience * UNANSWERED));
            assert!(now <= by, "seed {seed}: side {side} does not see after {:?} that {dead:?} is dead", now - begin);
        }
        if [DIALER, LISTENER].into_iter().all(|side| found[side].is_some() || !must(side)) {
            break;
        }
        talk.turn();
    }
    // Whoever mends it makes a new carrier, and both go on there.
    let mut world = talk.world;
    world.delay = Duration::ZERO;
    [DIALER, LISTENER].into_iter().for_each(|side| world.write(side, 1));
    world.settle();
    let routes = [DIALER, LISTENER].map(|side| match world.cores[side].standing() {
        Standing::Attached { route, .. } => route,
        standing => panic!("seed {seed}, side {side}: {standing:?}"),
    });
    assert_eq!(routes, [Route::Relay; 2], "seed {seed}: they are not of one mind");
    longest
}

#[test]
fn a_way_that_lives_is_not_given_up() {
    for seed in 0..10 {
        a_life(seed, [Duration::from_millis(1), SHORT], 3_000);
        a_life(seed, [SHORT, LONG], 3_000);
    }
}

#[test]
fn a_way_that_is_dead_is_found_out_in_time() {
    let longest = (0..100).map(|seed| a_death(seed, 200)).max();
    assert!(longest > Some(LEAST_PATIENCE), "nobody was ever in doubt for long: {longest:?}");
}

/// A million steps, and more of them with `NEXUS_SIMULATION_STEPS`.
#[test]
#[ignore = "takes minutes in a development build; scripts/test --long runs it"]
fn a_million_steps_of_silence() {
    let steps = many_steps();
    let first = some_seed();
    for seed in first..first + 10 {
        a_life(seed, [Duration::from_millis(1), SHORT], steps / 30);
        a_life(seed, [SHORT, LONG], steps / 30);
    }
    let deaths = steps / 3 / 1000;
    let longest = (first..first + deaths).map(|seed| a_death(seed, 1000)).max();
    println!("{steps} steps, {deaths} ways that died: who had said something saw it after {longest:?} at the latest");
}

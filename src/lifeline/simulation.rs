//! Two ends and a network that does everything a network can do, with a clock of its own: against the model that every
//! byte arrives once, in order.

mod ends;
mod moves;
mod patience;
mod room;
mod silence;
mod strangers;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::core::{ATTACH_PATIENCE, CarrierId, Core, MAX_CARRIERS, RETENTION, SLACK, Side};
use super::key::{ResumeKey, SECRET};
use super::path::MOST_WINDOW;
use super::replay::PAYLOAD;
use super::standing::{Ended, Fault, Route, Standing};
use crate::wire::lifeline::{AttachMode, Attached, LifelineId, LifelineMessage, TAG, kind};
use crate::wire::{Refusal, RefusalCode};

const DIALER: usize = 0;
const LISTENER: usize = 1;

/// Messages that wait for one carrier at the most: an attach and its answer, a ping and its answer, the end.
const WORDS: usize = 5;

/// A carrier between the two, as each side knows it.
struct Link {
    route: Route,
    ids: [Option<CarrierId>; 2],
    /// Messages on their way to each side, and when they are there.
    queues: [VecDeque<(Instant, Bytes)>; 2],
    /// What is sent towards this side vanishes.
    hole: [bool; 2],
    /// Whether the listener has seen it: before that, it is still to arrive there.
    answered: bool,
}

impl Link {
    fn new(route: Route, dialer: Option<CarrierId>) -> Link {
        Link { route, ids: [dialer, None], queues: Default::default(), hole: [false; 2], answered: false }
    }
}

struct World {
    now: Instant,
    cores: [Core; 2],
    links: Vec<Link>,
    /// How long a message is on its way.
    delay: Duration,
    written: [u64; 2],
    read: [u64; 2],
    /// Who writes no more.
    closed: [bool; 2],
    /// Who is not there any more. A stub is, and answers for a session that it does not have.
    gone: [bool; 2],
}

/// The byte at a position of a side's stream.
fn byte(side: usize, position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ side as u8
}

impl World {
    fn new() -> World {
        let id = LifelineId([7; 16]);
        let key = ResumeKey::new(&[9; SECRET]);
        let mut cores = [Core::new(Side::Dialer, id), Core::new(Side::Listener, id)];
        let now = Instant::now();
        let mut world = {
            let dialer = cores[DIALER].dialed(Route::Relay, AttachMode::Begin, now);
            let links = vec![Link::new(Route::Relay, dialer)];
            World {
                now,
                cores,
                links,
                delay: Duration::ZERO,
                written: [0; 2],
                read: [0; 2],
                closed: [false; 2],
                gone: [false; 2],
            }
        };
        world.pump(0, DIALER);
        world.deliver(0, LISTENER);
        world.cores.iter_mut().for_each(|core| core.set_key(key.clone()));
        world
    }

    fn dial(&mut self, route: Route, mode: AttachMode) {
        if let Some(id) = self.cores[DIALER].dialed(route, mode, self.now) {
            self.links.push(Link::new(route, Some(id)));
        }
    }

    fn write(&mut self, side: usize, len: u64) {
        if self.closed[side] || self.cores[side].ended().is_some() {
            return;
        }
        let at = self.written[side];
        let bytes: Vec<u8> = (at..at + len).map(|position| byte(side, position)).collect();
        self.written[side] += self.cores[side].write(&[IoSlice::new(&bytes)]) as u64;
        self.cores[side].flush();
        let kept = self.written[side] - self.read[1 - side];
        assert!(kept <= MOST_WINDOW + SLACK + PAYLOAD as u64, "{kept} bytes of side {side} are on their way");
    }

    fn read(&mut self, side: usize) {
        while let Some(incoming) = self.cores[side].incoming() {
            for got in incoming.split_to(incoming.len()) {
                assert_eq!(got, byte(1 - side, self.read[side]), "at {} of side {side}", self.read[side]);
                self.read[side] += 1;
            }
        }
    }

    /// Takes what a side has to say on a link.
    fn pump(&mut self, link: usize, side: usize) {
        let Some(id) = self.links[link].ids[side] else { return };
        while let Some(message) = self.cores[side].transmit(id, self.now) {
            if !self.links[link].hole[1 - side] {
                self.links[link].queues[1 - side].push_back((self.now + self.delay, message));
            }
        }
    }

    /// Hands a side the next message on a link, if that is there.
    fn deliver(&mut self, link: usize, side: usize) {
        let now = self.now;
        let there = self.links[link].queues[side].pop_front_if(|(due, _)| *due <= now);
        if let Some((_, message)) = there {
            self.hand(link, side, message);
        }
    }

    fn hand(&mut self, link: usize, side: usize, message: Bytes) {
        let route = self.links[link].route;
        self.links[link].answered |= side == LISTENER;
        let outcome = match self.links[link].ids[side] {
            Some(id) => self.cores[side].message(id, message, self.now),
            None if side == LISTENER && self.gone[side] => {
                if route == Route::Relay {
                    let end = LifelineMessage::End { offset: 0, refusal: Some(World::unknown()) }.encode();
                    self.links[link].queues[DIALER].push_back((self.now + self.delay, end));
                }
                Err(Fault::Over)
            }
            None if side == LISTENER => match LifelineMessage::parse(message) {
                Ok(LifelineMessage::Attach(attach)) => {
                    self.cores[side].arrived(route, &attach, self.now).map(|id| self.links[link].ids[side] = Some(id))
                }
                _ => Err(Fault::OutOfPlace),
            },
            None => Ok(()),
        };
        if outcome.is_err() {
            self.cut(link, side, "a fault");
        }
        self.bury();
    }

    /// What a stub says of a session that it does not have.
    fn unknown() -> Refusal {
        Refusal::new(RefusalCode::NotFound, "it is not known here")
    }

    /// One side learns that the link is gone; the other may learn it later.
    fn cut(&mut self, link: usize, side: usize, why: &str) {
        if let Some(id) = self.links[link].ids[side].take() {
            self.cores[side].lost(id, why, self.now);
        }
        self.links[link].hole[side] = true;
        self.links[link].queues[side].clear();
    }

    /// Carriers that a side retired or dropped are gone for the other as well, in time.
    fn bury(&mut self) {
        for side in [DIALER, LISTENER] {
            while self.cores[side].retired().is_some() {}
            for link in &mut self.links {
                if link.ids[side].is_some_and(|id| !self.cores[side].has(id)) {
                    link.ids[side] = None;
                    link.hole[side] = true;
                    link.queues[side].clear();
                }
            }
        }
        self.links.retain(|link| link.ids.iter().any(Option::is_some) || link.queues.iter().any(|q| !q.is_empty()));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for side in [DIALER, LISTENER] {
            if self.cores[side].deadline().is_some_and(|due| due <= self.now) {
                self.cores[side].tick(self.now);
                let next = self.cores[side].deadline();
                assert!(next.is_none_or(|due| due > self.now), "its timer would spin: {:?}", self.cores[side]);
            }
        }
        self.bury();
    }

    fn step(&mut self, rng: &mut StdRng) {
        self.weather(rng);
        for core in &self.cores {
            assert_eq!(core.ended(), None);
        }
    }

    /// Whatever a network does next, and who uses it.
    fn weather(&mut self, rng: &mut StdRng) {
        let side = rng.random_range(0..2);
        let link = rng.random_range(0..self.links.len().max(1));
        let there = link < self.links.len();
        match rng.random_range(0..1000) {
            0..150 => self.write(side, rng.random_range(1..3000)),
            150..160 => self.write(side, rng.random_range(1..300_000)),
            160..350 => self.read(side),
            350..600 if there => self.pump(link, side),
            600..900 if there => self.deliver(link, side),
            900..960 => self.pass(Duration::from_micros(rng.random_range(1..100_000))),
            960..963 => self.pass(Duration::from_secs(rng.random_range(1..30))),
            963..972 => self.dial(Route::Relay, AttachMode::Move),
            972..978 => self.dial(Route::Direct, AttachMode::Standby),
            978..982 => self.cores[DIALER].probe(self.now),
            982..985 if there => {
                if let Some(id) = self.links[link].ids[DIALER] {
                    self.cores[DIALER].go_over(id, self.now);
                }
            }
            985..990 if there => self.cut(link, side, "cut"),
            // Half open: one direction vanishes, and perhaps comes back with a gap.
            990..993 if there => self.links[link].hole[side] = rng.random(),
            // A message is lost, doubled, or cut short: on a real carrier its end, here a fault at most.
            993..995 if there => drop(self.links[link].queues[side].pop_front()),
            995..997 if there => {
                if let Some(message) = self.links[link].queues[side].front().cloned() {
                    self.links[link].queues[side].push_front(message);
                }
            }
            997..999 if there => {
                if let Some((_, mut message)) = self.links[link].queues[side].pop_front() {
                    // An end would be another end: who can do that to it is who can end the session.
                    if message.first() != Some(&kind::END) {
                        message.truncate(rng.random_range(0..=message.len()));
                    }
                    self.hand(link, side, message);
                }
            }
            _ => {}
        }
        self.bury();
        assert!(self.links.iter().filter(|link| link.ids[DIALER].is_some()).count() <= MAX_CARRIERS);
        for core in &self.cores {
            assert!(core.waiting() <= MAX_CARRIERS * WORDS, "{core:?}");
        }
    }

    /// Every link that is left of a storm ends.
    fn blow_over(&mut self) {
        for link in 0..self.links.len() {
            self.cut(link, DIALER, "the storm is over");
            self.cut(link, LISTENER, "the storm is over");
        }
        self.bury();
    }

    /// The network is well again: everything written arrives.
    fn settle(&mut self) {
        self.blow_over();
        self.dial(Route::Relay, AttachMode::Move);
        for _ in 0..1_000_000 {
            for link in 0..self.links.len() {
                for side in [DIALER, LISTENER] {
                    self.pump(link, side);
                }
                for side in [DIALER, LISTENER] {
                    while link < self.links.len() && !self.links[link].queues[side].is_empty() {
                        self.deliver(link, side);
                    }
                }
            }
            self.read(DIALER);
            self.read(LISTENER);
            if self.read == [self.written[1], self.written[0]] {
                return;
            }
            self.pass(Duration::from_millis(5));
        }
        panic!("written {:?}, read {:?}: {:?}", self.written, self.read, self.cores);
    }
}

fn storm(seed: u64, steps: u64) -> World {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    for _ in 0..steps {
        world.step(&mut rng);
    }
    world.settle();
    world
}

#[test]
fn no_byte_is_lost_doubled_or_out_of_order_in_any_weather() {
    let mut moves = 0;
    for seed in 0..40 {
        let world = storm(seed, 5_000);
        if let Standing::Attached { moves: moved, .. } = world.cores[LISTENER].standing() {
            moves += moved;
        }
    }
    assert!(moves > 400, "the weather was too fair: {moves} moves");
}

/// A million steps, and more of them with `NEXUS_SIMULATION_STEPS`; in a weather that nobody has seen, or that of `NEXUS_SEED`.
#[test]
#[ignore = "takes minutes in a development build; scripts/test --long runs it"]
fn a_million_steps() {
    let steps = many_steps();
    let world = storm(some_seed(), steps);
    println!("{steps} steps: {} and {} bytes, {:?}", world.read[0], world.read[1], world.cores[LISTENER].standing());
}

fn many_steps() -> u64 {
    std::env::var("NEXUS_SIMULATION_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(1_000_000)
}

/// The first seed of a long run. Says which, so that a failure can be had again.
fn some_seed() -> u64 {
    let seed = std::env::var("NEXUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("weather of NEXUS_SEED={seed}");
    seed
}

fn steady() -> World {
    let mut world = World::new();
    for side in [DIALER, LISTENER] {
        world.write(side, 1000);
        world.pump(0, side);
        while !world.links[0].queues[1 - side].is_empty() {
            world.deliver(0, 1 - side);
        }
        world.read(1 - side);
    }
    world
}

/// What a side has to say on a link, and what the other one answers.
fn exchange(world: &mut World, link: usize, side: usize) {
    for side in [side, 1 - side, side] {
        world.pump(link, side);
        while link < world.links.len() && !world.links[link].queues[1 - side].is_empty() {
            world.deliver(link, 1 - side);
        }
        world.read(1 - side);
    }
}

/// A direct carrier, the second one, stands by.
fn stand_by_directly(world: &mut World) {
    world.dial(Route::Direct, AttachMode::Standby);
    exchange(world, 1, DIALER);
}

/// The same, and the dialer is to go over to it, which it has not said yet.
fn go_over_directly(world: &mut World) -> CarrierId {
    stand_by_directly(world);
    let direct = world.links[1].ids[DIALER].unwrap();
    assert!(world.cores[DIALER].go_over(direct, world.now));
    direct
}

#[test]
fn a_standby_takes_over_without_being_asked() {
    let mut world = steady();
    stand_by_directly(&mut world);
    assert!(matches!(world.cores[DIALER].standing(), Standing::Attached { standby: true, route: Route::Relay, .. }));
    world.cut(0, DIALER, "cut");
    world.bury();
    let last = world.links.len() - 1;
    exchange(&mut world, last, DIALER);
    assert!(matches!(world.cores[DIALER].standing(), Standing::Attached { route: Route::Direct, .. }));
    world.write(DIALER, 10);
    world.settle();
}

#[test]
fn strangers_and_repeaters_cannot_attach() {
    let mut world = steady();
    world.dial(Route::Relay, AttachMode::Move);
    world.pump(1, DIALER);
    let (_, attach) = world.links[1].queues[LISTENER].front().cloned().unwrap();
    let Ok(LifelineMessage::Attach(genuine)) = LifelineMessage::parse(attach) else { panic!() };
    let listener = &mut world.cores[LISTENER];
    for forged in [
        crate::wire::lifeline::Attach { tag: [0; TAG], ..genuine },
        crate::wire::lifeline::Attach { received: genuine.received - 1, ..genuine },
        crate::wire::lifeline::Attach { sequence: genuine.sequence + 1, ..genuine },
        crate::wire::lifeline::Attach { id: LifelineId([8; 16]), ..genuine },
        crate::wire::lifeline::Attach { mode: AttachMode::Begin, ..genuine },
    ] {
        assert!(listener.arrived(Route::Direct, &forged, world.now).is_err(), "{forged:?}");
    }
    assert!(listener.arrived(Route::Relay, &genuine, world.now).is_ok());
    assert_eq!(listener.arrived(Route::Relay, &genuine, world.now), Err(Fault::NotProven), "said before");
    assert_eq!(listener.ended(), None);
    // A stub that is not ours answers.
    let id = world.links[1].ids[DIALER].unwrap();
    let answer = Attached { sequence: genuine.sequence, received: 1000, tag: [1; TAG] };
    let outcome = world.cores[DIALER].message(id, LifelineMessage::Attached(answer).encode(), world.now);
    assert_eq!(outcome, Err(Fault::NotProven));
}

#[test]
fn lies_about_positions_cost_the_carrier() {
    let mut world = steady();
    let id = world.links[0].ids[DIALER].unwrap();
    let ahead = LifelineMessage::Ack { ack: 1_000_000, at: 0 }.encode();
    assert_eq!(world.cores[DIALER].message(id, ahead, world.now), Err(Fault::AckAhead));
    let gap = LifelineMessage::Data { offset: 5000, ack: 0, ack_now: false, payload: Bytes::from_static(b"x") };
    assert_eq!(world.cores[DIALER].message(id, gap.encode(), world.now), Err(Fault::Gap));
    assert_eq!(world.cores[DIALER].ended(), None);
}

#[test]
fn a_position_outside_the_buffer_ends_it_loudly() {
    let mut world = steady();
    world.write(LISTENER, 100);
    world.settle();
    world.dial(Route::Relay, AttachMode::Move);
    let last = world.links.len() - 1;
    world.pump(last, DIALER);
    world.links[last].queues[LISTENER].clear();
    let received = world.read[DIALER] + 10;
    let key = ResumeKey::new(&[9; SECRET]);
    let attach = key.sign_attach(crate::wire::lifeline::Attach {
        id: LifelineId([7; 16]),
        sequence: 100,
        mode: AttachMode::Move,
        received,
        tag: [0; TAG],
    });
    assert_eq!(world.cores[LISTENER].arrived(Route::Relay, &attach, world.now), Err(Fault::Over));
    assert!(matches!(world.cores[LISTENER].ended(), Some(Ended::Position(_))));
}

#[test]
fn times_run_out() {
    // An attach that nobody answers.
    let mut world = steady();
    world.dial(Route::Relay, AttachMode::Move);
    world.pass(ATTACH_PATIENCE);
    assert_eq!(world.links.len(), 1);
    // A lifeline that nobody comes back for.
    world.cut(0, LISTENER, "cut");
    world.pass(RETENTION - Duration::from_secs(1));
    assert!(matches!(world.cores[LISTENER].standing(), Standing::Lost { .. }));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.cores[LISTENER].ended(), Some(&Ended::Expired));
}

#[test]
fn a_carrier_lost_before_there_is_a_key_ends_it() {
    let now = Instant::now();
    let mut core = Core::new(Side::Dialer, LifelineId([1; 16]));
    assert_eq!(core.dialed(Route::Relay, AttachMode::Move, now), None, "nothing to move");
    let id = core.dialed(Route::Relay, AttachMode::Begin, now).unwrap();
    core.lost(id, "broken", now);
    assert!(matches!(core.ended(), Some(Ended::BrokenEarly(_))));
}

#[test]
fn what_is_kept_is_bounded_while_there_is_no_carrier() {
    let mut world = steady();
    world.cut(0, DIALER, "cut");
    for _ in 0..1000 {
        world.write(DIALER, 100_000);
    }
    let kept = world.written[DIALER] - world.read[LISTENER];
    assert!(kept <= super::path::FIRST_WINDOW + SLACK, "{kept}");
    assert_eq!(world.cores[DIALER].takes_bulk(world.now), None);
    world.settle();
}

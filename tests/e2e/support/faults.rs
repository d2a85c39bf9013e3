//! What goes wrong with a network, one thing after another, in an order that a seed decides.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::link::{Direction, Harm, Link};
use super::wait::within;

/// Longest time that a fault which is seen as soon as it is over goes on, in milliseconds.
const LONGEST_MS: u64 = 300;

/// Most bytes until a harm.
const FARTHEST: u64 = 300_000;

/// How long a later connection may take to overtake the ones that are held: it is made when those are suspected.
const OVERTAKING: Duration = Duration::from_secs(12);

/// Bytes of a connection that has certainly overtaken: its TLS, its upgrade, and what a session says then.
const OVERTAKEN: u64 = 20_000;

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every connection is reset.
    Reset,
    /// A harm to what is under way: one connection ends in the middle of a message, or something arrives twice or in part.
    Harm(Harm, Direction),
    /// Bytes vanish, then connections are reset: as when a router loses what it knows.
    Vanish,
    /// The same, and only one direction vanishes.
    HalfVanish(Direction),
    /// Nothing arrives for a while, and then all of it.
    Hold,
    /// Connections are reset, and new ones refused for a while.
    Refuse,
    /// What connections say comes after what a later one says, if one is made meanwhile.
    Overtake,
}

const ALL: [Fault; 13] = [
    Fault::Reset,
    Fault::Harm(Harm::Cut, Direction::Up),
    Fault::Harm(Harm::Cut, Direction::Down),
    Fault::Harm(Harm::Double, Direction::Up),
    Fault::Harm(Harm::Double, Direction::Down),
    Fault::Harm(Harm::Shorten, Direction::Up),
    Fault::Harm(Harm::Shorten, Direction::Down),
    Fault::Vanish,
    Fault::HalfVanish(Direction::Up),
    Fault::HalfVanish(Direction::Down),
    Fault::Hold,
    Fault::Refuse,
    Fault::Overtake,
];

impl Fault {
    /// Whether it ends connections by itself, before [`Faults::strike`] returns or with the bytes that it waits for.
    pub fn breaks(self) -> bool {
        match self {
            Fault::Reset | Fault::Vanish | Fault::HalfVanish(_) | Fault::Refuse | Fault::Harm(Harm::Cut, _) => true,
            // A message that came twice is nothing to some, and what is held is only late.
            Fault::Harm(Harm::Double | Harm::Shorten | Harm::Alter, _) | Fault::Hold | Fault::Overtake => false,
        }
    }
}

/// A source of faults: the same ones for the same seed.
#[derive(Debug)]
pub struct Faults(StdRng);

impl Faults {
    /// From `NEXUS_SEED`, or a number that never changes. Says which, so that a failure can be had again.
    pub fn new() -> Faults {
        let seed = std::env::var("NEXUS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_101);
        println!("faults of NEXUS_SEED={seed}");
        Faults::of(seed)
    }

    /// From this seed.
    pub fn of(seed: u64) -> Faults {
        Faults(StdRng::seed_from_u64(seed))
    }

    /// The next one.
    pub fn next(&mut self) -> Fault {
        ALL[self.0.random_range(0..ALL.len())]
    }

    /// Which of `count` wires it happens to: one of them, or all one after the other.
    pub fn wires(&mut self, count: usize) -> Vec<usize> {
        match self.0.random_range(0..=count) {
            all if all == count => (0..count).collect(),
            one => vec![one],
        }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    /// Does it to `link`; returns when it is over, but for a harm, which comes with the bytes that it waits for.
    pub fn strike(&mut self, fault: Fault, link: &Link) {
        let time = Duration::from_millis(self.below(LONGEST_MS));
        match fault {
            Fault::Reset => link.reset(),
            Fault::Harm(harm, direction) => link.harm_after(direction, 1 + self.below(FARTHEST), harm),
            Fault::Vanish => {
                link.black_hole();
                std::thread::sleep(time);
                link.reset();
                link.heal();
            }
            Fault::HalfVanish(direction) => {
                link.half_open(direction);
                std::thread::sleep(time);
                link.reset();
                link.heal();
            }
            Fault::Hold => {
                link.hold();
                std::thread::sleep(time);
                link.heal();
            }
            Fault::Refuse => {
                link.refuse();
                link.reset();
                std::thread::sleep(time);
                link.heal();
            }
            Fault::Overtake => overtake(link),
        }
    }
}

/// Holds what is there until a later connection has overtaken it, or none came.
pub fn overtake(link: &Link) {
    let before = link.counts();
    link.hold_present();
    let mut first = None;
    let overtaken = || {
        let now = link.counts();
        let bytes = now.up + now.down;
        let first = *first.get_or_insert(bytes);
        (now.accepted > before.accepted && bytes >= first + OVERTAKEN).then_some(())
    };
    let _ = within(OVERTAKING, overtaken);
    link.heal();
}

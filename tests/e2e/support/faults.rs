//! What goes wrong with a network, one thing after another, in an order that a seed decides.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::link::{Direction, Link};

/// Longest time that a fault which is seen as soon as it is over goes on, in milliseconds.
const LONGEST_MS: u64 = 300;

/// Most bytes until a cut.
const FARTHEST: u64 = 300_000;

/// A way to fail. All but [`Hold`](Fault::Hold) cost connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every connection is reset.
    Reset,
    /// One connection ends in the middle of a message.
    Cut(Direction),
    /// Bytes vanish, then connections are reset: as when a router loses what it knows.
    Vanish,
    /// The same, and only one direction vanishes.
    HalfVanish(Direction),
    /// Nothing arrives for a while, and then all of it.
    Hold,
    /// Connections are reset, and new ones refused for a while.
    Refuse,
}

const ALL: [Fault; 8] = [
    Fault::Reset,
    Fault::Cut(Direction::Up),
    Fault::Cut(Direction::Down),
    Fault::Vanish,
    Fault::HalfVanish(Direction::Up),
    Fault::HalfVanish(Direction::Down),
    Fault::Hold,
    Fault::Refuse,
];

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

    /// Which of two wires it happens to: one, the other, or one after the other.
    pub fn wires(&mut self) -> &'static [usize] {
        [&[0][..], &[1], &[0, 1]][self.0.random_range(0..3)]
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    /// Does it to `link`; returns when it is over, but for a cut, which comes with the bytes that it waits for.
    pub fn strike(&mut self, fault: Fault, link: &Link) {
        let time = Duration::from_millis(self.below(LONGEST_MS));
        match fault {
            Fault::Reset => link.reset(),
            Fault::Cut(direction) => link.cut_after(direction, 1 + self.below(FARTHEST)),
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
        }
    }
}

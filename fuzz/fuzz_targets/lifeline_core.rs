//! Both ends of a lifeline and the network between them, in the fuzzer's hands.
//!
//! In fair play the network loses, doubles, cuts and delays: every byte arrives once, in order, and the lifeline never ends.
//! In foul play it also says things of its own, as whoever relays could. That may end a lifeline; it never makes an
//! end deliver anything but the beginning of what was written.

#![no_main]

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::lifeline::Route;
use nexus_proxy::lifeline::core::{CarrierId, Core, MAX_CARRIERS, SLACK, Side};
use nexus_proxy::lifeline::key::{ResumeKey, SECRET};
use nexus_proxy::lifeline::path::MOST_WINDOW;
use nexus_proxy::lifeline::replay::PAYLOAD;
use nexus_proxy::wire::lifeline::{Attach, AttachMode, Attached, LifelineId, LifelineMessage, TAG};
use nexus_proxy::wire::{Refusal, RefusalCode};

const DIALER: usize = 0;
const LISTENER: usize = 1;
const SIDES: [usize; 2] = [DIALER, LISTENER];
const ID: LifelineId = LifelineId([7; 16]);

/// Operations of one run.
const STEPS: usize = 2000;

/// Messages that whoever relays remembers.
const REMEMBERED: usize = 64;

/// Bytes of one write at most: more than the first window holds.
const WRITE: u32 = 400_000;

/// Rounds in which a network that is well again delivers everything, each of five milliseconds.
const ROUNDS: usize = 100_000;

/// A carrier between the two, as each side knows it.
struct Link {
    route: Route,
    ids: [Option<CarrierId>; 2],
    queues: [VecDeque<Bytes>; 2],
    hole: [bool; 2],
}

struct World {
    now: Instant,
    cores: [Core; 2],
    links: Vec<Link>,
    written: [u64; 2],
    read: [u64; 2],
    /// What was sent towards each side, for who repeats it.
    heard: [VecDeque<Bytes>; 2],
    foul: bool,
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Unstructured::new(data);
    let foul = bytes.arbitrary().unwrap_or(false);
    let mut world = World::new(foul);
    for _ in 0..STEPS {
        if bytes.is_empty() || world.step(&mut bytes).is_err() {
            break;
        }
    }
    if !foul {
        world.settle();
    }
});

/// The byte at a position of a side's stream.
fn byte(side: usize, position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ side as u8
}

impl World {
    fn new(foul: bool) -> World {
        let key = ResumeKey::new(&[9; SECRET]);
        let cores = [Core::new(Side::Dialer, ID), Core::new(Side::Listener, ID)];
        let now = Instant::now();
        let heard = Default::default();
        let mut world = World { now, cores, links: vec![], written: [0; 2], read: [0; 2], heard, foul };
        world.dial(Route::Relay, AttachMode::Begin);
        world.pump(0, DIALER);
        world.deliver(0, LISTENER);
        world.cores.iter_mut().for_each(|core| core.set_key(key.clone()));
        world
    }

    fn step(&mut self, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let choice: u8 = bytes.arbitrary()?;
        let side = usize::from(choice >> 7);
        let link = bytes.choose_index(self.links.len().max(1))?;
        let there = link < self.links.len();
        match choice & 0x1f {
            0..=3 => {
                let len =
                    if choice & 0x40 == 0 { bytes.int_in_range(1..=255)? } else { bytes.int_in_range(1..=WRITE)? };
                self.write(side, u64::from(len));
            }
            4..=6 => self.read(side),
            7..=10 if there => self.pump(link, side),
            11..=13 if there => self.deliver(link, side),
            14 if there => {
                if let Some(message) = self.links[link].queues[side].pop_front() {
                    self.hand(link, side, at_another_time(message, bytes)?);
                }
            }
            15 => self.pass(Duration::from_micros(bytes.int_in_range(1..=200_000)?)),
            16 => self.pass(Duration::from_secs(bytes.int_in_range(1..=60)?)),
            17 => self.dial(Route::Relay, AttachMode::Move),
            18 => self.dial(if choice & 0x40 == 0 { Route::Direct } else { Route::Relay }, AttachMode::Standby),
            19 => self.cores[side].probe(self.now),
            20 if there => {
                if let Some(id) = self.links[link].ids[DIALER] {
                    self.cores[DIALER].go_over(id, self.now);
                }
            }
            21 if there => self.cut(link, side),
            22 if there => self.links[link].hole[side] = choice & 0x40 == 0,
            23 if there => drop(self.links[link].queues[side].pop_front()),
            24 if there => {
                if let Some(message) = self.links[link].queues[side].front().cloned() {
                    self.links[link].queues[side].push_front(message);
                }
            }
            25 if there => {
                if let Some(mut message) = self.links[link].queues[side].pop_front() {
                    message.truncate(bytes.choose_index(message.len() + 1)?);
                    self.hand(link, side, message);
                }
            }
            26 if there => {
                let heard = &self.heard[side];
                if !heard.is_empty() {
                    let message = heard[bytes.choose_index(heard.len())?].clone();
                    self.hand(link, side, message);
                }
            }
            27 => drop(self.cores[side].takes_bulk(self.now)),
            28..=30 if there && self.foul => {
                let message = forged(bytes)?;
                self.hand(link, side, message);
            }
            31 if self.foul => {
                self.cores[side].finish((choice & 0x40 != 0).then(|| Refusal::new(RefusalCode::Busy, "x")))
            }
            _ => {}
        }
        self.bury();
        self.hold();
        Ok(())
    }

    /// What holds after every step.
    fn hold(&mut self) {
        assert!(self.links.iter().filter(|link| link.ids[DIALER].is_some()).count() <= MAX_CARRIERS);
        for core in &self.cores {
            assert!(self.foul || core.ended().is_none(), "{:?}", core.ended());
            let _ = (core.standing(), core.is_finished());
        }
    }

    fn dial(&mut self, route: Route, mode: AttachMode) {
        if let Some(id) = self.cores[DIALER].dialed(route, mode, self.now) {
            self.links.push(Link { route, ids: [Some(id), None], queues: Default::default(), hole: [false; 2] });
        }
    }

    fn write(&mut self, side: usize, len: u64) {
        let at = self.written[side];
        let bytes: Vec<u8> = (at..at + len).map(|position| byte(side, position)).collect();
        self.written[side] += self.cores[side].write(&[IoSlice::new(&bytes)]) as u64;
        self.cores[side].flush();
        assert!(self.foul || self.written[side] - self.read[1 - side] <= MOST_WINDOW + SLACK + PAYLOAD as u64);
    }

    fn read(&mut self, side: usize) {
        while let Some(incoming) = self.cores[side].incoming() {
            for got in incoming.split_to(incoming.len()) {
                assert_eq!(got, byte(1 - side, self.read[side]), "at {} of side {side}", self.read[side]);
                self.read[side] += 1;
            }
        }
        assert!(self.read[side] <= self.written[1 - side]);
    }

    fn pump(&mut self, link: usize, side: usize) {
        let Some(id) = self.links[link].ids[side] else { return };
        while let Some(message) = self.cores[side].transmit(id, self.now) {
            if self.heard[1 - side].len() == REMEMBERED {
                self.heard[1 - side].pop_front();
            }
            self.heard[1 - side].push_back(message.clone());
            if !self.links[link].hole[1 - side] {
                self.links[link].queues[1 - side].push_back(message);
            }
        }
    }

    fn deliver(&mut self, link: usize, side: usize) {
        if let Some(message) = self.links[link].queues[side].pop_front() {
            self.hand(link, side, message);
        }
    }

    fn hand(&mut self, link: usize, side: usize, message: Bytes) {
        let route = self.links[link].route;
        let outcome = match self.links[link].ids[side] {
            Some(id) => self.cores[side].message(id, message, self.now).is_ok(),
            None if side == LISTENER => match LifelineMessage::parse(message) {
                Ok(LifelineMessage::Attach(attach)) => match self.cores[side].arrived(route, &attach, self.now) {
                    Ok(id) => {
                        self.links[link].ids[side] = Some(id);
                        true
                    }
                    Err(_) => false,
                },
                _ => false,
            },
            None => true,
        };
        if !outcome {
            self.cut(link, side);
        }
        self.bury();
    }

    fn cut(&mut self, link: usize, side: usize) {
        if let Some(id) = self.links[link].ids[side].take() {
            self.cores[side].lost(id, "cut", self.now);
        }
        self.links[link].hole[side] = true;
        self.links[link].queues[side].clear();
    }

    fn bury(&mut self) {
        for side in SIDES {
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
        for side in SIDES {
            if self.cores[side].deadline().is_some_and(|due| due <= self.now) {
                self.cores[side].tick(self.now);
            }
        }
        self.bury();
    }

    /// The network is well again: everything written arrives.
    fn settle(&mut self) {
        for link in 0..self.links.len() {
            SIDES.into_iter().for_each(|side| self.cut(link, side));
        }
        self.bury();
        self.dial(Route::Relay, AttachMode::Move);
        for _ in 0..ROUNDS {
            for link in 0..self.links.len() {
                for side in SIDES {
                    if link < self.links.len() {
                        self.pump(link, side);
                    }
                }
                for side in SIDES {
                    while link < self.links.len() && !self.links[link].queues[side].is_empty() {
                        self.deliver(link, side);
                    }
                }
            }
            SIDES.into_iter().for_each(|side| self.read(side));
            if self.read == [self.written[1], self.written[0]] {
                return;
            }
            self.pass(Duration::from_millis(5));
        }
        panic!("written {:?}, read {:?}: {:?}", self.written, self.read, self.cores);
    }
}

/// The same message. The time of an acknowledgement is by the other end's clock, which may be any.
fn at_another_time(message: Bytes, bytes: &mut Unstructured<'_>) -> arbitrary::Result<Bytes> {
    Ok(match LifelineMessage::parse(message.clone()) {
        Ok(LifelineMessage::Ack { ack, at }) => {
            let by = if bytes.arbitrary()? { u64::from(bytes.arbitrary::<u32>()?) } else { bytes.arbitrary()? };
            LifelineMessage::Ack { ack, at: at.wrapping_add(by) }.encode()
        }
        _ => message,
    })
}

/// What somebody without the key can say. Not data: only the TLS above the lifeline tells forged data from genuine.
fn forged(bytes: &mut Unstructured<'_>) -> arbitrary::Result<Bytes> {
    let position = |bytes: &mut Unstructured<'_>| -> arbitrary::Result<u64> {
        Ok(if bytes.ratio(7, 8)? { u64::from(bytes.arbitrary::<u16>()?) } else { bytes.arbitrary()? })
    };
    let tag = [0x55; TAG];
    Ok(match bytes.int_in_range(0..=6)? {
        0 => LifelineMessage::Ack { ack: position(bytes)?, at: position(bytes)? },
        1 => LifelineMessage::Ping { nonce: position(bytes)?, ack: position(bytes)? },
        2 => LifelineMessage::Pong { nonce: position(bytes)?, ack: position(bytes)? },
        3 => {
            let modes = [AttachMode::Begin, AttachMode::Move, AttachMode::Standby];
            let mode = *bytes.choose(&modes)?;
            let (sequence, received) = (position(bytes)?, position(bytes)?);
            LifelineMessage::Attach(Attach { id: ID, sequence, mode, received, tag })
        }
        4 => LifelineMessage::Attached(Attached { sequence: position(bytes)?, received: position(bytes)?, tag }),
        5 => LifelineMessage::End { offset: position(bytes)?, refusal: None },
        _ => {
            let mut any = bytes.arbitrary::<Vec<u8>>()?;
            // 0x10 and 0x11 are data.
            if any.first().is_some_and(|kind| matches!(kind, 0x10 | 0x11)) {
                any[0] = 0x7f;
            }
            return Ok(any.into());
        }
    }
    .encode())
}

//! The lifeline's decisions: messages, losses and times come in; messages, bytes and a standing come out. No I/O, no clock.
//!
//! Invariants. Every byte is read exactly once and in order. What is written is kept until the peer has it. Carriers
//! are interchangeable: a fault on one costs that carrier, never a byte. Only the dialer moves the lifeline; the
//! listener answers. A position that one side does not have ends the lifeline with a reason.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::key::ResumeKey;
use super::path::Path;
use super::replay::{PAYLOAD, Replay};
use super::standing::{Ended, Fault, Route, Standing};
use crate::wire::lifeline::{Attach, AttachMode, Attached, LifelineId, LifelineMessage, TAG};
use crate::wire::{Refusal, RefusalCode};

/// Bytes that may be written beyond the path's window: calls and control, which do not wait for bulk.
pub const SLACK: u64 = 2 * PAYLOAD as u64;

/// Carriers of one lifeline: the one in use, one on stand-by, and two that come or go.
pub const MAX_CARRIERS: usize = 4;

/// How long an acknowledgement that nobody asked for may wait for something to travel with.
const ACK_DELAY: Duration = Duration::from_millis(25);

/// A carrier that is silent for this long is asked whether it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(12);

/// The time that an answer may take is three round trips, and at least this.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// How many times that, while something is heard that is no answer.
const UNANSWERED: u32 = 2;

/// The same shortly after something happened that often costs a carrier: the machine slept, the network changed.
pub const ALERT_PATIENCE: Duration = Duration::from_millis(500);

/// For how long that is shortly after.
const ALERT: Duration = Duration::from_secs(10);

/// How long the answer to an attach may take.
pub const ATTACH_PATIENCE: Duration = Duration::from_secs(5);

/// How long a lifeline without a carrier is kept. A lid stays closed overnight; a machine that is gone is gone.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A round trip is measured at least this often while bytes flow.
const MEASURE: Duration = Duration::from_millis(500);

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The laptop: it begins and moves.
    Dialer,
    /// The stub: it answers.
    Listener,
}

/// Names a carrier of this lifeline, on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarrierId(pub u32);

#[derive(Debug)]
struct Member {
    id: CarrierId,
    route: Route,
    outbox: VecDeque<Bytes>,
    attaching: Option<Attaching>,
    heard: Instant,
    pinged: Option<(u64, Instant)>,
    round_trip: Option<Duration>,
}

#[derive(Debug)]
struct Attaching {
    sequence: u64,
    mode: AttachMode,
    since: Instant,
}

/// One end of a lifeline.
#[derive(Debug)]
pub struct Core {
    side: Side,
    id: LifelineId,
    key: Option<ResumeKey>,
    replay: Replay,
    received: u64,
    incoming: VecDeque<Bytes>,
    told: u64,
    ack_now: bool,
    ack_due: Option<Instant>,
    members: Vec<Member>,
    next_member: u32,
    active: Option<CarrierId>,
    sequence: u64,
    path: Path,
    marked: (u64, Option<Instant>),
    asked: Option<Instant>,
    answered: Option<Instant>,
    alert: Option<Instant>,
    nonce: u64,
    trouble: Option<(Instant, String)>,
    suspect: bool,
    retired: Vec<CarrierId>,
    finish: Option<Option<Refusal>>,
    ended: Option<Ended>,
    moves: u64,
}

impl Core {
    /// A lifeline that begins; its first carrier follows.
    pub fn new(side: Side, id: LifelineId) -> Core {
        Core {
            side,
            id,
            key: None,
            replay: Replay::default(),
            received: 0,
            incoming: VecDeque::new(),
            told: 0,
            ack_now: false,
            ack_due: None,
            members: Vec::new(),
            next_member: 0,
            active: None,
            sequence: 0,
            path: Path::new(),
            marked: (0, None),
            asked: None,
            answered: None,
            alert: None,
            nonce: 0,
            trouble: None,
            suspect: false,
            retired: Vec::new(),
            finish: None,
            ended: None,
            moves: 0,
        }
    }

    /// From here on it can move to other carriers.
    pub fn set_key(&mut self, key: ResumeKey) {
        self.key = Some(key);
    }

    // --- the stream above ---------------------------------------------------------------------------------------------

    /// Takes bytes to send; none when too much is kept already.
    pub fn write(&mut self, bufs: &[IoSlice<'_>]) -> usize {
        let limit = self.path.window() + SLACK;
        let mut taken = 0;
        for buf in bufs {
            let mut rest = &buf[..];
            while !rest.is_empty() {
                let room = limit.saturating_sub(self.replay.kept()) as usize;
                let n = self.replay.gather(&[IoSlice::new(rest)], room);
                taken += n;
                rest = &rest[n..];
                if self.replay.gathered() == PAYLOAD {
                    self.seal();
                } else if n == 0 {
                    self.path.limited();
                    return taken;
                }
            }
        }
        taken
    }

    /// What was written leaves.
    pub fn flush(&mut self) {
        self.seal();
    }

    /// Whether bulk may be written: the path takes more, and there is one.
    pub fn takes_bulk(&mut self) -> bool {
        let takes = self.active.is_some() && self.replay.kept() < self.path.window();
        if !takes {
            self.path.limited();
        }
        takes
    }

    /// The next bytes of the peer.
    pub fn incoming(&mut self) -> Option<&mut Bytes> {
        while self.incoming.front().is_some_and(Bytes::is_empty) {
            self.incoming.pop_front();
        }
        self.incoming.front_mut()
    }

    /// The stream is complete, or ends for a reason; the peer is told as soon as it has everything.
    pub fn finish(&mut self, refusal: Option<Refusal>) {
        self.seal();
        self.finish.get_or_insert(refusal);
    }

    /// Whether the peer was told all there was to tell.
    pub fn is_finished(&self) -> bool {
        self.ended.is_some()
            || self.active.is_none()
            || (self.finish.is_none() && self.replay.all_sent() && self.members.iter().all(|m| m.outbox.is_empty()))
    }

    /// Why it is over.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Ends it here.
    pub fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    fn seal(&mut self) {
        let pending = self.replay.gathered() as u64;
        if pending == 0 {
            return;
        }
        let (unmarked, at) = self.marked;
        let ack_now = unmarked + pending >= self.path.mark_after() || at.is_none();
        self.marked.0 = if ack_now { 0 } else { unmarked + pending };
        self.replay.seal(self.received, ack_now);
        self.acknowledged();
    }

    fn acknowledged(&mut self) {
        self.told = self.received;
        self.ack_due = None;
    }

    // --- carriers -----------------------------------------------------------------------------------------------------

    /// A carrier that the dialer made. Begins on it, moves to it, or keeps it ready.
    pub fn dialed(&mut self, route: Route, mode: AttachMode, now: Instant) -> Option<CarrierId> {
        if self.ended.is_some() || (mode != AttachMode::Begin && self.key.is_none()) {
            return None;
        }
        let id = self.enter(route, now);
        if mode == AttachMode::Begin {
            self.active = Some(id);
        }
        self.ask_to_attach(id, mode, now);
        Some(id)
    }

    /// A carrier that arrived at the listener with an attach on it.
    pub fn arrived(&mut self, route: Route, attach: &Attach, now: Instant) -> Result<CarrierId, Fault> {
        if self.ended.is_some() {
            return Err(Fault::Over);
        }
        let id = self.enter(route, now);
        self.attach(id, attach, now).inspect_err(|_| self.drop_member(id))?;
        Ok(id)
    }

    /// A carrier broke or closed.
    pub fn lost(&mut self, id: CarrierId, why: &str, now: Instant) {
        self.drop_member(id);
        if self.active != Some(id) {
            return;
        }
        self.active = None;
        self.asked = None;
        self.suspect = false;
        self.trouble = Some((now, why.to_owned()));
        if self.key.is_none() {
            self.end(Ended::BrokenEarly(why.to_owned()));
        } else if self.side == Side::Dialer {
            self.take_standby(now);
        }
    }

    /// Carriers that are no longer needed; the caller closes them.
    pub fn retired(&mut self) -> Option<CarrierId> {
        self.retired.pop()
    }

    /// The machine slept or the network changed: every carrier is asked at once whether it lives.
    pub fn probe(&mut self, now: Instant) {
        self.alert = Some(now + ALERT);
        if self.side == Side::Listener {
            return;
        }
        for index in 0..self.members.len() {
            self.ping(index, now);
        }
        if self.active.is_some() {
            self.asked = Some(now);
        }
    }

    fn enter(&mut self, route: Route, now: Instant) -> CarrierId {
        if self.members.len() >= MAX_CARRIERS {
            let active = self.active;
            if let Some(index) = self.members.iter().position(|member| Some(member.id) != active) {
                self.retired.push(self.members.remove(index).id);
            }
        }
        let id = CarrierId(self.next_member);
        self.next_member = self.next_member.wrapping_add(1);
        self.members.push(Member {
            id,
            route,
            outbox: VecDeque::new(),
            attaching: None,
            heard: now,
            pinged: None,
            round_trip: None,
        });
        id
    }

    fn drop_member(&mut self, id: CarrierId) {
        self.members.retain(|member| member.id != id);
    }

    fn member(&mut self, id: CarrierId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    fn ask_to_attach(&mut self, id: CarrierId, mode: AttachMode, now: Instant) {
        if mode != AttachMode::Begin {
            self.sequence += 1;
        }
        let (sequence, received) = (self.sequence, self.received);
        let attach = Attach { id: self.id, sequence, mode, received, tag: [0; TAG] };
        let attach = self.key.as_ref().map_or(attach, |key| key.sign_attach(attach));
        if let Some(member) = self.member(id) {
            member.outbox.push_back(LifelineMessage::Attach(attach).encode());
            if mode != AttachMode::Begin {
                member.attaching = Some(Attaching { sequence, mode, since: now });
            }
        }
    }

    /// Goes on on the carrier that stands by, if one does.
    fn take_standby(&mut self, now: Instant) -> bool {
        let active = self.active;
        let ready = self.members.iter().find(|m| Some(m.id) != active && m.attaching.is_none()).map(|m| m.id);
        if let Some(id) = ready {
            self.ask_to_attach(id, AttachMode::Move, now);
        }
        ready.is_some()
    }

    /// The listener's half of an attach.
    fn attach(&mut self, from: CarrierId, attach: &Attach, now: Instant) -> Result<(), Fault> {
        if self.side == Side::Dialer || attach.id != self.id {
            return Err(Fault::OutOfPlace);
        }
        if attach.mode == AttachMode::Begin {
            if self.active.is_some() || self.received > 0 || attach.received > 0 || self.next_member > 1 {
                return Err(Fault::OutOfPlace);
            }
            self.active = Some(from);
            return Ok(());
        }
        let Some(key) = self.key.clone() else { return Err(Fault::OutOfPlace) };
        if !key.is_attach(attach) || attach.sequence <= self.sequence {
            return Err(Fault::NotProven);
        }
        self.sequence = attach.sequence;
        if attach.mode == AttachMode::Move {
            self.move_to(from, attach.received, now)?;
        }
        let answer = Attached { sequence: attach.sequence, received: self.received, tag: [0; TAG] };
        if let Some(member) = self.member(from) {
            member.outbox.push_back(LifelineMessage::Attached(key.sign_attached(answer)).encode());
        }
        Ok(())
    }

    /// The dialer's half.
    fn attached(&mut self, from: CarrierId, attached: &Attached, now: Instant) -> Result<(), Fault> {
        let proven = self.key.as_ref().is_some_and(|key| key.is_attached(attached));
        let member = self.member(from).ok_or(Fault::OutOfPlace)?;
        let Some(attaching) = member.attaching.take_if(|attaching| attaching.sequence == attached.sequence) else {
            return Err(Fault::OutOfPlace);
        };
        if !proven {
            return Err(Fault::NotProven);
        }
        let round_trip = now.saturating_duration_since(attaching.since);
        member.round_trip = Some(round_trip);
        if attaching.mode == AttachMode::Move {
            self.move_to(from, attached.received, now)?;
            self.path.timed(round_trip, now);
        }
        Ok(())
    }

    /// This carrier is the one in use; others of its route have served.
    fn move_to(&mut self, id: CarrierId, peer_has: u64, now: Instant) -> Result<(), Fault> {
        if self.replay.resume(peer_has).is_err() {
            let text = format!("the other side says it has {peer_has} bytes of {}", self.replay.end());
            self.end(Ended::Position(text));
            return Err(Fault::Over);
        }
        self.active = Some(id);
        self.path = Path::new();
        self.marked = (0, None);
        self.asked = None;
        self.trouble = None;
        self.suspect = false;
        self.moves += 1;
        let Some(route) = self.member(id).map(|member| {
            member.heard = now;
            member.route
        }) else {
            return Err(Fault::OutOfPlace);
        };
        let (served, stay) =
            std::mem::take(&mut self.members).into_iter().partition(|m| m.id != id && m.route == route);
        self.members = stay;
        self.retired.extend(served.into_iter().map(|m: Member| m.id));
        Ok(())
    }

    // --- messages -----------------------------------------------------------------------------------------------------

    /// A message arrived. A fault costs the carrier.
    pub fn message(&mut self, from: CarrierId, bytes: Bytes, now: Instant) -> Result<(), Fault> {
        let message = LifelineMessage::parse(bytes).map_err(Fault::Malformed)?;
        let active = self.active == Some(from);
        let member = self.member(from).ok_or(Fault::OutOfPlace)?;
        member.heard = now;
        let route = member.route;
        match message {
            LifelineMessage::Attach(attach) => self.attach(from, &attach, now),
            LifelineMessage::Attached(attached) => self.attached(from, &attached, now),
            LifelineMessage::End { offset, refusal } => self.peer_ended(route, offset, refusal),
            LifelineMessage::Data { offset, ack, ack_now, payload } => {
                self.acknowledge(ack, active, now)?;
                self.data(offset, ack_now, payload, now)
            }
            LifelineMessage::Ack { ack } => self.acknowledge(ack, active, now),
            LifelineMessage::Ping { nonce, ack } => {
                self.acknowledge(ack, active, now)?;
                let pong = LifelineMessage::Pong { nonce, ack: self.received }.encode();
                let member = self.member(from).ok_or(Fault::OutOfPlace)?;
                // A peer that pings and does not read gets one answer when it reads again.
                member.outbox.retain(|waiting| waiting.first() != Some(&crate::wire::lifeline::kind::PONG));
                member.outbox.push_back(pong);
                Ok(())
            }
            LifelineMessage::Pong { nonce, ack } => {
                let member = self.member(from).ok_or(Fault::OutOfPlace)?;
                if let Some((_, sent)) = member.pinged.take_if(|(pinged, _)| *pinged == nonce) {
                    let round_trip = now.saturating_duration_since(sent);
                    member.round_trip = Some(round_trip);
                    if active {
                        self.answered = Some(now);
                        self.path.timed(round_trip, now);
                    }
                }
                self.acknowledge(ack, active, now)
            }
        }
    }

    fn acknowledge(&mut self, ack: u64, active: bool, now: Instant) -> Result<(), Fault> {
        let before = self.replay.acked();
        self.replay.acknowledge(ack).map_err(|_| Fault::AckAhead)?;
        if self.replay.acked() > before {
            self.answered = Some(now);
        }
        if active {
            self.path.acked(ack, now);
            let pinged = self.members.iter().any(|m| Some(m.id) == self.active && m.pinged.is_some());
            self.asked = (self.replay.under_way() > 0 || pinged).then(|| self.asked.unwrap_or(now));
            if self.suspect && (self.asked.is_none() || self.answered == Some(now)) {
                (self.suspect, self.trouble) = (false, None);
            }
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, ack_now: bool, mut payload: Bytes, now: Instant) -> Result<(), Fault> {
        if offset > self.received {
            return Err(Fault::Gap);
        }
        let known = self.received - offset;
        if known >= payload.len() as u64 {
            self.ack_now = true;
            return Ok(());
        }
        payload.advance(known as usize);
        self.received += payload.len() as u64;
        self.incoming.push_back(payload);
        self.ack_now |= ack_now;
        self.ack_due.get_or_insert(now + ACK_DELAY);
        Ok(())
    }

    fn peer_ended(&mut self, route: Route, offset: u64, refusal: Option<Refusal>) -> Result<(), Fault> {
        // On a direct carrier anybody on the way could say so; the relay will say it again.
        if route == Route::Direct {
            return Err(Fault::Over);
        }
        self.end(match refusal {
            Some(refusal) => Ended::Refused(refusal),
            None if offset == self.received => Ended::Complete,
            None => Ended::Position(format!("the other side ended at {offset}; {} bytes have arrived", self.received)),
        });
        Ok(())
    }

    /// The next message for a carrier that can take one.
    pub fn transmit(&mut self, to: CarrierId, now: Instant) -> Option<Bytes> {
        let active = self.active == Some(to);
        if let Some(message) = self.member(to)?.outbox.pop_front() {
            return Some(message);
        }
        if !active {
            return None;
        }
        if self.ack_now {
            self.ack_now = false;
            self.acknowledged();
            return Some(LifelineMessage::Ack { ack: self.received }.encode());
        }
        if self.replay.under_way() < self.path.window() + SLACK
            && let Some((message, position)) = self.replay.next()
        {
            self.asked.get_or_insert(now);
            if message.first() == Some(&crate::wire::lifeline::kind::DATA_ACK) {
                self.path.marked(position, now);
                self.marked.1 = Some(now);
            }
            return Some(message);
        }
        if self.replay.all_sent()
            && let Some(refusal) = self.finish.take()
        {
            let end = LifelineMessage::End { offset: self.replay.end(), refusal }.encode();
            for member in self.members.iter_mut().filter(|member| member.id != to) {
                member.outbox.push_back(end.clone());
            }
            return Some(end);
        }
        None
    }

    // --- time ---------------------------------------------------------------------------------------------------------

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if self.ack_due.is_some_and(|due| due <= now) {
            self.ack_due = None;
            self.ack_now |= self.told < self.received;
        }
        if self.marked.1.is_some_and(|at| now.saturating_duration_since(at) >= MEASURE) {
            self.marked.1 = None;
        }
        if self.alert.is_some_and(|until| until <= now) {
            self.alert = None;
        }
        if self.active.is_none()
            && self.trouble.as_ref().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= RETENTION)
        {
            self.end(Ended::Expired);
        }
        if self.side == Side::Listener {
            return;
        }
        let late: Vec<CarrierId> = self.members.iter().filter(|m| m.is_late(now)).map(|m| m.id).collect();
        for id in late {
            self.lost(id, "the other side did not take the connection in time", now);
            self.retired.push(id);
        }
        for index in 0..self.members.len() {
            let member = &self.members[index];
            if member.pinged.is_none() && now.saturating_duration_since(member.heard) >= HEARTBEAT {
                self.ping(index, now);
            }
        }
        if self.suspicious_at().is_some_and(|at| at <= now) && !self.suspect {
            self.suspect = true;
            let silent = self.active.and_then(|id| self.member(id)).map_or(now, |member| member.heard);
            let text = format!("nothing was heard for {} ms", now.saturating_duration_since(silent).as_millis());
            self.trouble = Some((now, text));
            self.take_standby(now);
        }
    }

    /// When to [`tick`](Self::tick) next.
    pub fn deadline(&self) -> Option<Instant> {
        let mut times = vec![self.ack_due, self.alert, self.marked.1.map(|at| at + MEASURE)];
        if self.active.is_none() {
            times.push(self.trouble.as_ref().map(|(since, _)| *since + RETENTION));
        }
        if self.side == Side::Dialer {
            if !self.suspect {
                times.push(self.suspicious_at());
            }
            for member in &self.members {
                times.push(member.attaching.as_ref().map(|attaching| attaching.since + ATTACH_PATIENCE));
                times.push(member.pinged.is_none().then(|| member.heard + HEARTBEAT));
            }
        }
        times.into_iter().flatten().min()
    }

    fn ping(&mut self, index: usize, now: Instant) {
        self.nonce = self.nonce.wrapping_add(1);
        let (nonce, ack, active) = (self.nonce, self.received, self.active);
        let member = &mut self.members[index];
        member.pinged = Some((nonce, now));
        member.outbox.retain(|waiting| waiting.first() != Some(&crate::wire::lifeline::kind::PING));
        member.outbox.push_back(LifelineMessage::Ping { nonce, ack }.encode());
        if active == Some(member.id) {
            self.asked.get_or_insert(now);
        }
    }

    /// When to suspect the carrier in use: nothing was heard on it for the patience there is, or what we say is not
    /// answered for some times that, though the other direction works.
    fn suspicious_at(&self) -> Option<Instant> {
        let asked = self.asked?;
        let active = self.members.iter().find(|member| Some(member.id) == self.active)?;
        let least = if self.alert.is_some() { ALERT_PATIENCE } else { LEAST_PATIENCE };
        let patience = (self.path.round_trip().unwrap_or_default() * 3).max(least);
        let silent = asked.max(active.heard) + patience;
        let unanswered = self.answered.map_or(asked, |answered| asked.max(answered)) + patience * UNANSWERED;
        Some(silent.min(unanswered))
    }

    // --- how it is ----------------------------------------------------------------------------------------------------

    /// How it is.
    pub fn standing(&self) -> Standing {
        if let Some(ended) = &self.ended {
            return Standing::Ended(ended.clone());
        }
        let active = self.members.iter().find(|member| Some(member.id) == self.active);
        match (active, &self.trouble) {
            (Some(_), Some((since, why))) if self.suspect => Standing::Suspect { since: *since, why: why.clone() },
            (Some(member), _) => Standing::Attached {
                route: member.route,
                round_trip: self.path.round_trip().or(member.round_trip),
                standby: self.members.iter().any(|m| m.id != member.id && m.attaching.is_none()),
                moves: self.moves,
            },
            (None, Some((since, why))) => Standing::Lost { since: *since, why: why.clone() },
            (None, None) => Standing::Beginning,
        }
    }

    /// Whether a carrier still has its place here.
    pub fn has(&self, id: CarrierId) -> bool {
        self.members.iter().any(|member| member.id == id)
    }

    /// Whether a dialled carrier was taken.
    pub fn is_attached(&self, id: CarrierId) -> bool {
        self.members.iter().any(|member| member.id == id && member.attaching.is_none())
    }

    /// The round trip of a carrier, in use or on stand-by.
    pub fn round_trip_of(&self, id: CarrierId) -> Option<Duration> {
        self.members.iter().find(|member| member.id == id)?.round_trip
    }

    /// Moves to a carrier that stands by.
    pub fn go_over(&mut self, id: CarrierId, now: Instant) -> bool {
        let ready = self.side == Side::Dialer && self.active != Some(id) && self.is_attached(id);
        if ready {
            self.ask_to_attach(id, AttachMode::Move, now);
        }
        ready
    }

    /// What a listener says to a carrier that wants a lifeline it does not have.
    pub fn unknown() -> Bytes {
        let text =
            "the workspace does not know this session any more: its stub was restarted, or a new login took over";
        LifelineMessage::End { offset: 0, refusal: Some(Refusal::new(RefusalCode::NotFound, text)) }.encode()
    }
}

impl Member {
    fn is_late(&self, now: Instant) -> bool {
        self.attaching.as_ref().is_some_and(|a| now.saturating_duration_since(a.since) >= ATTACH_PATIENCE)
    }
}

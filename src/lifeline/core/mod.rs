//! The lifeline's decisions: messages, losses and times come in; messages, bytes and a standing come out. No I/O, no clock.
//!
//! Invariants. Every byte is read exactly once and in order. What is written is kept until the peer has it. Carriers
//! are interchangeable: a fault on one costs that carrier, never a byte. Only the dialer moves the lifeline; the
//! listener answers. A position that one side does not have ends the lifeline with a reason.

mod attach;
mod liveness;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::key::ResumeKey;
use super::path::{Bulk, Path};
use super::replay::{PAYLOAD, Replay};
use super::standing::{Ended, Fault, Route};
use crate::wire::lifeline::{AttachMode, LifelineId, LifelineMessage, kind};
use crate::wire::{Refusal, RefusalCode};

/// Bytes that may be written beyond the path's window: calls and control, which do not wait for bulk.
pub const SLACK: u64 = 2 * PAYLOAD as u64;

/// Carriers of one lifeline: the one in use, one on stand-by, and two that come or go.
pub const MAX_CARRIERS: usize = 4;

/// How long an acknowledgement that nobody asked for may wait for something to travel with.
pub const ACK_DELAY: Duration = Duration::from_millis(25);

/// A carrier that is silent for this long, or in use and without an answer to anything, is asked whether it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(12);

/// The time that an answer may take is three round trips, and at least this.
pub const LEAST_PATIENCE: Duration = Duration::from_secs(2);

/// The same for what is sent after a silence: no queue is in its way, and somebody waits for it who may find a dead way.
pub const QUIET_PATIENCE: Duration = Duration::from_secs(1);

/// A carrier on which nothing was heard for this long was silent.
pub const QUIET: Duration = Duration::from_secs(1);

/// How many times that patience, while something is heard that is no answer, and for a sign that the listener expects.
pub const UNANSWERED: u32 = 2;

/// The same shortly after something happened that often costs a carrier: the machine slept, the network changed.
pub const ALERT_PATIENCE: Duration = Duration::from_millis(500);

/// For how long that is shortly after.
pub const ALERT: Duration = Duration::from_secs(10);

/// How long the answer to an attach may take.
pub const ATTACH_PATIENCE: Duration = Duration::from_secs(5);

/// How long a lifeline without a carrier is kept. A lid stays closed overnight; a machine that is gone is gone.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Carriers by way of the coordinator in a row whose bytes begin after the same gap. None of them loses a message, so what
/// is missing was given up: somebody acknowledged it in our name.
pub const MAX_GAPS: u32 = 8;

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
    /// Whether the other end of this session is known to be there. Stays, once it is.
    proven: bool,
    heard: Instant,
    pinged: Option<(u64, Instant)>,
    round_trip: Option<Duration>,
}

#[derive(Debug)]
struct Attaching {
    sequence: u64,
    mode: AttachMode,
    since: Instant,
    /// What the other side had acknowledged by then.
    acked: u64,
}

/// One end of a lifeline.
#[derive(Debug)]
pub struct Core {
    side: Side,
    id: LifelineId,
    key: Option<ResumeKey>,
    replay: Replay,
    received: u64,
    /// When the last of it arrived, and when the first: the clock that acknowledgements tell.
    arrived: Option<(Instant, Instant)>,
    incoming: VecDeque<Bytes>,
    told: u64,
    ack_now: bool,
    ack_due: Option<Instant>,
    members: Vec<Member>,
    next_member: u32,
    active: Option<CarrierId>,
    sequence: u64,
    /// Of the dialer's moves, the last that was answered.
    agreed: u64,
    path: Path,
    marked: (u64, Option<Instant>),
    /// When the path takes more bulk, while somebody waits for that.
    bulk_due: Option<Instant>,
    /// Counts what may make room: acknowledgements, another carrier, the pace.
    room_made: u64,
    asked: Option<Instant>,
    answered: Option<Instant>,
    alert: Option<Instant>,
    nonce: u64,
    trouble: Option<(Instant, String)>,
    suspect: bool,
    retired: Vec<CarrierId>,
    finish: Option<Option<Refusal>>,
    /// Where the peer's stream ends, when that is known before all of it is here.
    peer_end: Option<u64>,
    /// Where bytes were missing last, and on how many carriers in a row.
    gaps: (u64, u32),
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
            arrived: None,
            incoming: VecDeque::new(),
            told: 0,
            ack_now: false,
            ack_due: None,
            members: Vec::new(),
            next_member: 0,
            active: None,
            sequence: 0,
            agreed: 0,
            path: Path::new(),
            marked: (0, None),
            bulk_due: None,
            room_made: 0,
            asked: None,
            answered: None,
            alert: None,
            nonce: 0,
            trouble: None,
            suspect: false,
            retired: Vec::new(),
            finish: None,
            peer_end: None,
            gaps: (0, 0),
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

    /// Bytes of the piece of bulk that may be written, if the path takes more, and there is one.
    pub fn takes_bulk(&mut self, now: Instant) -> Option<usize> {
        self.bulk_due = None;
        if self.active.is_some() {
            match self.path.bulk(self.replay.kept(), now) {
                Bulk::Piece(bytes) => return Some(bytes),
                Bulk::Later(due) => self.bulk_due = Some(due),
                Bulk::Full => {}
            }
        }
        self.path.limited();
        None
    }

    /// How often something happened for which there may be room again.
    pub fn room_made(&self) -> u64 {
        self.room_made
    }

    /// A stream that sends little has sent something.
    pub fn sparse(&mut self, now: Instant) {
        self.path.sparse(now);
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

    /// Bytes that are known to have arrived, either way.
    pub fn moved(&self) -> u64 {
        self.received + self.replay.acked()
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

    /// A message arrived. A fault costs the carrier.
    pub fn message(&mut self, from: CarrierId, bytes: Bytes, now: Instant) -> Result<(), Fault> {
        let message = LifelineMessage::parse(bytes).map_err(Fault::Malformed)?;
        let active = self.active == Some(from);
        let member = self.member(from).ok_or(Fault::OutOfPlace)?;
        if !(member.proven || may_be_first(&message, member.route)) {
            return Err(Fault::NotProven);
        }
        member.heard = now;
        let (route, proven) = (member.route, member.proven);
        match message {
            LifelineMessage::Attach(attach) => self.attach(from, &attach, now),
            LifelineMessage::Attached(attached) => self.attached(from, &attached, now),
            LifelineMessage::End { offset, refusal } => {
                // Such as a copy of the workspace: it does not know the session, and the one that does is there.
                let is_elsewhere = !proven && self.active.is_some() && !self.suspect && !self.in_doubt();
                let unknown = refusal.as_ref().is_some_and(|refusal| refusal.code == RefusalCode::NotFound);
                if is_elsewhere && unknown { Err(Fault::Elsewhere) } else { self.peer_ended(route, offset, refusal) }
            }
            LifelineMessage::Data { offset, ack, ack_now, payload } => {
                self.acknowledge(ack, None, active, now)?;
                self.data(route, offset, ack_now, payload, now)
            }
            LifelineMessage::Ack { ack, at } => {
                let at = (at != 0).then(|| Duration::from_micros(at));
                self.acknowledge(ack, at, active, now)
            }
            LifelineMessage::Ping { nonce, ack } => {
                self.acknowledge(ack, None, active, now)?;
                let pong = LifelineMessage::Pong { nonce, ack: self.received }.encode();
                let member = self.member(from).ok_or(Fault::OutOfPlace)?;
                // A peer that pings and does not read gets one answer when it reads again.
                member.outbox.retain(|waiting| waiting.first() != Some(&kind::PONG));
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
                self.acknowledge(ack, None, active, now)
            }
        }
    }

    /// A control message arrived. The coordinator says those; on a direct carrier it is somebody else.
    pub fn control(&mut self, from: CarrierId) -> Result<(), Fault> {
        match self.member(from).ok_or(Fault::OutOfPlace)?.route {
            Route::Relay => Ok(()),
            Route::Direct => Err(Fault::OutOfPlace),
        }
    }

    /// Everything up to `ack` arrived, at that time by the other end's clock.
    fn acknowledge(&mut self, ack: u64, at: Option<Duration>, active: bool, now: Instant) -> Result<(), Fault> {
        let before = self.replay.acked();
        self.replay.acknowledge(ack).map_err(|_| Fault::AckAhead)?;
        if self.replay.acked() > before {
            self.answered = Some(now);
            self.room_made += 1;
        }
        if active {
            self.path.acked(ack, at, now);
            let pinged = self.members.iter().any(|m| Some(m.id) == self.active && m.pinged.is_some());
            self.asked = (self.replay.under_way() > 0 || pinged).then(|| self.asked.unwrap_or(now));
            if self.suspect && (self.asked.is_none() || self.answered == Some(now)) {
                (self.suspect, self.trouble) = (false, None);
            }
        }
        Ok(())
    }

    fn data(
        &mut self,
        route: Route,
        offset: u64,
        ack_now: bool,
        mut payload: Bytes,
        now: Instant,
    ) -> Result<(), Fault> {
        if offset > self.received {
            return Err(self.gap(route, offset));
        }
        let known = self.received - offset;
        if known >= payload.len() as u64 {
            self.ack_now = true;
            return Ok(());
        }
        payload.advance(known as usize);
        self.received += payload.len() as u64;
        self.arrived = Some((now, self.arrived.map_or(now, |(_, first)| first)));
        self.incoming.push_back(payload);
        if self.peer_end.is_some_and(|end| end <= self.received) {
            self.end(Ended::Complete);
        }
        self.ack_now |= ack_now;
        self.ack_due.get_or_insert(now + ACK_DELAY);
        Ok(())
    }

    fn gap(&mut self, route: Route, offset: u64) -> Fault {
        // On a direct carrier anybody on the way could make one.
        if route == Route::Relay {
            let (at, times) = self.gaps;
            self.gaps = (self.received, if at == self.received { times + 1 } else { 1 });
            if self.gaps.1 >= MAX_GAPS {
                let text = format!("the other side goes on at {offset}, and only {} bytes have arrived", self.received);
                self.end(Ended::Position(text));
            }
        }
        Fault::Gap
    }

    fn peer_ended(&mut self, route: Route, offset: u64, refusal: Option<Refusal>) -> Result<(), Fault> {
        // On a direct carrier anybody on the way could say so; the relay will say it again.
        if route == Route::Direct {
            return Err(Fault::Closed);
        }
        self.end(match refusal {
            Some(refusal) => Ended::Refused(refusal),
            None if offset <= self.received => Ended::Complete,
            // It came by another way than what is still missing.
            None => {
                self.peer_end = Some(offset);
                return Ok(());
            }
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
            let at = self.arrived.map_or(Duration::ZERO, |(last, first)| last.saturating_duration_since(first));
            let at = (at.as_micros() as u64).saturating_add(1);
            return Some(LifelineMessage::Ack { ack: self.received, at }.encode());
        }
        if self.replay.under_way() < self.path.window() + SLACK
            && let Some((message, position)) = self.replay.next_message()
        {
            self.asked.get_or_insert(now);
            self.path.sent(message.len() as u64, now);
            if message.first() == Some(&kind::DATA_ACK) {
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
}

/// Whether the dialer takes this on a carrier whose other end has proven nothing: the proof, or that there is no such
/// lifeline. A stub that has none has no key either, so the coordinator is believed.
fn may_be_first(message: &LifelineMessage, route: Route) -> bool {
    match message {
        LifelineMessage::Attached(_) => true,
        LifelineMessage::End { refusal, .. } => refusal.is_some() && route == Route::Relay,
        _ => false,
    }
}

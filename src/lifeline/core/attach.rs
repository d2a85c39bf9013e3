//! Which carriers a lifeline has, and how it moves from one to another.

use std::collections::VecDeque;
use std::time::Instant;

use super::{ALERT, Attaching, CarrierId, Core, MAX_CARRIERS, Member, Side};
use crate::lifeline::path::Path;
use crate::lifeline::standing::{Ended, Fault, Route};
use crate::wire::lifeline::{Attach, AttachMode, Attached, LifelineMessage, TAG, kind};

impl Core {
    /// A carrier that the dialer made. Begins on it, moves to it, or keeps it ready.
    pub fn dialed(&mut self, route: Route, mode: AttachMode, now: Instant) -> Option<CarrierId> {
        if self.ended.is_some() || (mode != AttachMode::Begin && self.key.is_none()) {
            return None;
        }
        // Whoever answers at the beginning is judged by the handshake that follows.
        let id = self.enter(route, mode == AttachMode::Begin, now);
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
        // What proves nothing takes nobody's place.
        self.judge(attach)?;
        let id = self.enter(route, true, now);
        if attach.mode == AttachMode::Begin {
            self.active = Some(id);
            return Ok(id);
        }
        self.attach(id, attach, now).inspect_err(|_| drop(self.remove(id)))?;
        Ok(id)
    }

    /// A carrier broke or closed.
    pub fn lost(&mut self, id: CarrierId, why: &str, now: Instant) {
        let member = self.remove(id);
        if self.members.is_empty() && self.peer_end.is_some() {
            // Who has ended comes back for nothing.
            self.end(Ended::Position("the other side ended, and not all of it arrived".to_owned()));
        }
        if self.active != Some(id) {
            if let Some(member) = member {
                self.gone(&member, now);
                if member.attaching.is_none() {
                    self.doubt(now);
                }
            }
            return;
        }
        self.active = None;
        self.asked = None;
        // A carrier that was suspected first was of no use since then.
        let since = self.trouble.take().filter(|_| std::mem::take(&mut self.suspect)).map_or(now, |(since, _)| since);
        self.trouble = Some((since, why.to_owned()));
        if self.key.is_none() {
            self.end(Ended::BrokenEarly(why.to_owned()));
        } else if self.side == Side::Dialer {
            self.take_standby(now);
        }
    }

    /// What cost the carrier that stood by may have cost the one in use, too, while it is only listened to: it is asked.
    fn doubt(&mut self, now: Instant) {
        let active = self.active;
        if self.side == Side::Dialer
            && let Some(index) = self.members.iter().position(|member| Some(member.id) == active)
            && self.members[index].pinged.is_none()
        {
            self.ping(index, now);
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

    fn enter(&mut self, route: Route, proven: bool, now: Instant) -> CarrierId {
        if self.members.len() >= MAX_CARRIERS {
            let active = self.active;
            if let Some(index) = self.members.iter().position(|member| Some(member.id) != active) {
                let member = self.members.remove(index);
                self.retired.push(member.id);
                self.gone(&member, now);
            }
        }
        let id = CarrierId(self.next_member);
        self.next_member = self.next_member.wrapping_add(1);
        self.members.push(Member {
            id,
            route,
            outbox: VecDeque::new(),
            attaching: None,
            proven,
            heard: now,
            pinged: None,
            round_trip: None,
        });
        id
    }

    fn remove(&mut self, id: CarrierId) -> Option<Member> {
        let index = self.members.iter().position(|member| member.id == id)?;
        Some(self.members.remove(index))
    }

    /// A carrier that is not in use is gone. If it was to be, the listener may have gone over to it, and then nothing is in
    /// use there: it is asked to go on where we do.
    fn gone(&mut self, member: &Member, now: Instant) {
        let agreed = self.agreed;
        let Some(_) = member.attaching.as_ref().filter(|a| a.mode == AttachMode::Move && a.sequence > agreed) else {
            return;
        };
        let asked = member.outbox.iter().all(|waiting| waiting.first() != Some(&kind::ATTACH));
        match self.active {
            Some(active) if asked => self.ask_to_attach(active, AttachMode::Move, now),
            Some(_) => {}
            None => drop(self.take_standby(now)),
        }
    }

    pub(super) fn member(&mut self, id: CarrierId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    pub(super) fn ask_to_attach(&mut self, id: CarrierId, mode: AttachMode, now: Instant) {
        if mode != AttachMode::Begin {
            self.sequence += 1;
        }
        let (sequence, received, acked) = (self.sequence, self.received, self.replay.acked());
        let attach = Attach { id: self.id, sequence, mode, received, tag: [0; TAG] };
        let attach = self.key.as_ref().map_or(attach, |key| key.sign_attach(attach));
        if let Some(member) = self.member(id) {
            member.outbox.retain(|waiting| waiting.first() != Some(&kind::ATTACH));
            member.outbox.push_back(LifelineMessage::Attach(attach).encode());
            if mode != AttachMode::Begin {
                member.attaching = Some(Attaching { sequence, mode, since: now, acked });
            }
        }
    }

    /// Goes on on the carrier that stands by, if one does.
    pub(super) fn take_standby(&mut self, now: Instant) -> bool {
        let active = self.active;
        let ready = self.members.iter().find(|m| Some(m.id) != active && m.attaching.is_none()).map(|m| m.id);
        if let Some(id) = ready {
            self.ask_to_attach(id, AttachMode::Move, now);
        }
        ready.is_some()
    }

    /// Whether an attach has its place here, and proves what it has to.
    fn judge(&self, attach: &Attach) -> Result<(), Fault> {
        if self.side == Side::Dialer || attach.id != self.id {
            return Err(Fault::OutOfPlace);
        }
        if attach.mode == AttachMode::Begin {
            let is_first = self.next_member == 0 && attach.received == 0;
            return if is_first { Ok(()) } else { Err(Fault::OutOfPlace) };
        }
        let Some(key) = &self.key else { return Err(Fault::OutOfPlace) };
        if !key.is_attach(attach) || attach.sequence <= self.sequence {
            return Err(Fault::NotProven);
        }
        Ok(())
    }

    /// The listener's half of an attach.
    pub(super) fn attach(&mut self, from: CarrierId, attach: &Attach, now: Instant) -> Result<(), Fault> {
        self.judge(attach)?;
        let Some(key) = self.key.clone() else { return Err(Fault::OutOfPlace) };
        self.sequence = attach.sequence;
        if attach.mode == AttachMode::Move {
            self.move_to(from, attach.received, now)?;
        }
        let answer = Attached { sequence: attach.sequence, received: self.received, tag: [0; TAG] };
        if let Some(member) = self.member(from) {
            // Who asks again before reading the answer gets the last one.
            member.outbox.retain(|waiting| waiting.first() != Some(&kind::ATTACHED));
            member.outbox.push_back(LifelineMessage::Attached(key.sign_attached(answer)).encode());
        }
        Ok(())
    }

    /// The dialer's half.
    pub(super) fn attached(&mut self, from: CarrierId, attached: &Attached, now: Instant) -> Result<(), Fault> {
        let proven = self.key.as_ref().is_some_and(|key| key.is_attached(attached));
        let member = self.member(from).ok_or(Fault::OutOfPlace)?;
        // What proves nothing answers nothing: the carrier goes with its move unanswered.
        if !proven {
            return Err(Fault::NotProven);
        }
        // It was asked again before this was here: the answer to that follows.
        if member.proven && member.attaching.as_ref().is_some_and(|a| attached.sequence < a.sequence) {
            return Ok(());
        }
        let Some(attaching) = member.attaching.take_if(|attaching| attaching.sequence == attached.sequence) else {
            return Err(Fault::OutOfPlace);
        };
        member.proven = true;
        let round_trip = now.saturating_duration_since(attaching.since);
        member.round_trip = Some(round_trip);
        if attached.received < attaching.acked {
            // Not by the one who proves this: and what was acknowledged is not kept.
            let (has, acked) = (attached.received, attaching.acked);
            self.end(Ended::Position(format!("the other side says it has {has} bytes, and {acked} were acknowledged")));
            return Err(Fault::Over);
        }
        if attaching.mode == AttachMode::Standby {
            self.stands_by(from);
        }
        // The listener has gone on from there when a later one was answered.
        if attaching.mode == AttachMode::Move && attaching.sequence > self.agreed {
            self.agreed = attaching.sequence;
            self.move_to(from, attached.received, now)?;
            self.path.timed(round_trip, now);
        }
        Ok(())
    }

    /// This carrier stands by; others of its route have stood by for long enough. A coordinator that stops waits for them.
    fn stands_by(&mut self, id: CarrierId) {
        let Some(route) = self.member(id).map(|member| member.route) else { return };
        let active = self.active;
        let stood_by = self
            .members
            .extract_if(.., |m| m.id != id && Some(m.id) != active && m.route == route && m.attaching.is_none());
        self.retired.extend(stood_by.map(|m| m.id));
    }

    /// This carrier is the one in use; others of its route have served.
    fn move_to(&mut self, id: CarrierId, peer_has: u64, now: Instant) -> Result<(), Fault> {
        if self.replay.resume(peer_has).is_err() {
            let text = format!("the other side says it has {peer_has} bytes of {}", self.replay.end());
            self.end(Ended::Position(text));
            return Err(Fault::Over);
        }
        let was = self.active.replace(id);
        self.path = Path::beginning_at(self.replay.acked());
        self.marked = (0, None);
        self.asked = None;
        self.answered = Some(now);
        self.trouble = None;
        self.suspect = false;
        self.moves += u64::from(was != Some(id));
        self.room_made += 1;
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
}

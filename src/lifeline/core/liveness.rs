//! What time does to a lifeline: acknowledgements fall due, silence becomes suspicious, patience ends.

use std::time::{Duration, Instant};

use super::{
    ALERT_PATIENCE, ATTACH_PATIENCE, CarrierId, Core, HEARTBEAT, LEAST_PATIENCE, MEASURE, Member, QUIET,
    QUIET_PATIENCE, RETENTION, Side, UNANSWERED,
};
use crate::lifeline::standing::{Ended, Standing};
use crate::wire::lifeline::{AttachMode, LifelineMessage, kind};

impl Core {
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
        if self.bulk_due.is_some_and(|due| due <= now) {
            self.bulk_due = None;
            self.room_made += 1;
        }
        if self.active.is_none()
            && self.trouble.as_ref().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= RETENTION)
        {
            self.end(Ended::Expired);
        }
        if self.suspicious_at().is_some_and(|at| at <= now) && !self.suspect {
            self.suspect = true;
            let silent = self.active.and_then(|id| self.member(id)).map_or(now, |member| member.heard);
            let text = format!("nothing was heard for {} ms", now.saturating_duration_since(silent).as_millis());
            self.trouble = Some((now, text));
            if self.side == Side::Dialer {
                self.take_standby(now);
            }
        }
        if self.side == Side::Listener {
            return;
        }
        let active = self.active;
        let late = |member: &&Member| member.is_late(now, active);
        let late: Vec<CarrierId> = self.members.iter().filter(late).map(|member| member.id).collect();
        for id in late {
            self.lost(id, "the other side did not answer in time", now);
            self.retired.push(id);
        }
        for index in 0..self.members.len() {
            let member = &self.members[index];
            if member.pinged.is_none() && now.saturating_duration_since(self.unsure_since(member)) >= HEARTBEAT {
                self.ping(index, now);
            }
        }
    }

    /// When to [`tick`](Self::tick) next. A tick moves it on; what is over waits for nothing.
    pub fn deadline(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let measure = self.marked.1.map(|at| at + MEASURE);
        let retention = self.trouble.as_ref().filter(|_| self.active.is_none()).map(|(since, _)| *since + RETENTION);
        let suspicious = if self.suspect { None } else { self.suspicious_at() };
        let mut times =
            [self.ack_due, self.bulk_due, self.alert, measure, retention, suspicious].into_iter().flatten().min();
        if self.side == Side::Dialer {
            for member in &self.members {
                let time = match (member.waits_since(self.active), member.pinged) {
                    (Some(since), _) => since + ATTACH_PATIENCE,
                    (None, None) => self.unsure_since(member) + HEARTBEAT,
                    (None, Some(_)) => continue,
                };
                times = Some(times.map_or(time, |least| least.min(time)));
            }
        }
        times
    }

    /// Since when it is not known that a carrier lives. What is heard on the one in use says nothing of the direction in
    /// which we send: only an answer does.
    fn unsure_since(&self, member: &Member) -> Instant {
        match self.answered.filter(|_| self.active == Some(member.id)) {
            Some(answered) => answered.min(member.heard),
            None => member.heard,
        }
    }

    pub(super) fn ping(&mut self, index: usize, now: Instant) {
        self.nonce = self.nonce.wrapping_add(1);
        let (nonce, ack, active) = (self.nonce, self.received, self.active);
        let member = &mut self.members[index];
        member.pinged = Some((nonce, now));
        member.outbox.retain(|waiting| waiting.first() != Some(&kind::PING));
        member.outbox.push_back(LifelineMessage::Ping { nonce, ack }.encode());
        if active == Some(member.id) {
            self.asked.get_or_insert(now);
        }
    }

    /// When to suspect the carrier in use: nothing was heard on it for the patience there is, or what we say is not
    /// answered for some times that, though the other direction works; or the dialer's heartbeat stays away.
    fn suspicious_at(&self) -> Option<Instant> {
        let active = self.members.iter().find(|member| Some(member.id) == self.active)?;
        let unanswered_at = self.asked.map(|asked| self.unanswered_at(active, asked));
        [unanswered_at, self.missed_at(active)].into_iter().flatten().min()
    }

    /// When what was asked has waited too long for its answer.
    fn unanswered_at(&self, active: &Member, asked: Instant) -> Instant {
        // A heartbeat is in nobody's way, and can wait for a busy machine.
        let after_silence = self.replay.under_way() > 0 && asked.saturating_duration_since(active.heard) >= QUIET;
        let patience = self.patience(match (self.alert, after_silence) {
            (Some(_), _) => ALERT_PATIENCE,
            (None, true) => QUIET_PATIENCE,
            (None, false) => LEAST_PATIENCE,
        });
        let silent = asked.max(active.heard) + patience;
        let unanswered = self.answered.map_or(asked, |answered| asked.max(answered)) + patience * UNANSWERED;
        silent.min(unanswered)
    }

    /// When the listener misses the dialer's heartbeat, whatever it says itself in the meantime.
    fn missed_at(&self, active: &Member) -> Option<Instant> {
        let listens = self.side == Side::Listener && self.key.is_some();
        listens.then(|| active.heard + HEARTBEAT + self.patience(LEAST_PATIENCE) * UNANSWERED)
    }

    /// How long an answer may take on this path.
    fn patience(&self, least: Duration) -> Duration {
        (self.path.round_trip().unwrap_or_default() * 3).max(least)
    }

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

    /// Whether something happened that often costs a carrier, and the one in use has not shown since that it lives.
    pub fn in_doubt(&self) -> bool {
        let owes = |member: &Member| Some(member.id) == self.active && member.pinged.is_some();
        self.side == Side::Dialer && self.alert.is_some() && self.members.iter().any(owes)
    }

    /// Messages that wait for a carrier to take them, beside the stream's own.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.members.iter().map(|member| member.outbox.len()).sum()
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
}

impl Member {
    /// Since when it owes an answer that it must give soon. The carrier in use is judged by what is heard on it.
    fn waits_since(&self, active: Option<CarrierId>) -> Option<Instant> {
        if active == Some(self.id) {
            return None;
        }
        self.attaching.as_ref().map(|attaching| attaching.since).or(self.pinged.map(|(_, sent)| sent))
    }

    fn is_late(&self, now: Instant, active: Option<CarrierId>) -> bool {
        self.waits_since(active).is_some_and(|since| now.saturating_duration_since(since) >= ATTACH_PATIENCE)
    }
}

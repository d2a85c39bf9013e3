//! The laptops that are connected now. A new session of a device takes the place of its old one at once, unless that one
//! drains: then it stays until what runs in it is done. Calls go to the laptop that came last, never to a session that drains.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::status::LaptopStatus;
use crate::identity::KeyPin;
use crate::lifeline::{Ended, LifelineHandle, Standing};
use crate::session::held::HeldOpener;
use crate::session::mux::{MuxOpener, MuxStream};
use crate::session::opener::{Opener, SessionOpener};
use crate::wire::lifeline::LifelineId;
use crate::wire::limits::MAX_DRAINING;
use crate::wire::name::DeviceName;
use crate::wire::{Refusal, RefusalCode};

/// Sessions at a time. Each device has one, and some that drain.
pub const MAX_SESSIONS: usize = 64;

/// How long a call waits for the next session of a laptop that hands over: it has one within a second or two.
const HANDOVER: Duration = Duration::from_secs(5);

/// Sessions that were ended here that are remembered, so that their laptops are told why when they come back.
const MAX_REMEMBERED: usize = 256;

/// For how long a device that was revoked is not let in: longer than a handshake that had begun before may take. One that begins later
/// does not get through the coordinator.
const SHUT_OUT: Duration = Duration::from_secs(60);

/// Such devices that are known at a time, whatever the coordinator says: a few megabytes.
const MAX_SHUT_OUT: usize = 1 << 16;

#[derive(Debug)]
struct Connected {
    id: u64,
    device: KeyPin,
    name: DeviceName,
    opener: MuxOpener,
    lifeline: LifelineHandle,
    end: CancellationToken,
    since: OffsetDateTime,
}

/// The laptops that are connected now.
#[derive(Debug)]
pub struct Laptops {
    connected: Mutex<Vec<Connected>>,
    replaced: Mutex<VecDeque<(LifelineId, Refusal)>>,
    count: watch::Sender<usize>,
    draining: AtomicBool,
    /// Devices that were revoked a moment ago, and when that was said.
    revoked: Mutex<HashMap<KeyPin, Instant>>,
}

impl Default for Laptops {
    fn default() -> Laptops {
        Laptops {
            connected: Mutex::default(),
            replaced: Mutex::default(),
            count: watch::Sender::new(0),
            draining: AtomicBool::new(false),
            revoked: Mutex::default(),
        }
    }
}

impl Laptops {
    /// Takes a session in, and ends an older one of the same device, with the reason. Of those that drain only the oldest
    /// is ended, when there are too many. The token is cancelled when this one must end. Refused when there are
    /// [`MAX_SESSIONS`], and none of them can make room.
    pub async fn enter(
        &self,
        device: KeyPin,
        name: DeviceName,
        opener: MuxOpener,
        lifeline: LifelineHandle,
    ) -> Result<(u64, CancellationToken), Refusal> {
        let id = rand::random();
        let end = CancellationToken::new();
        let (mut replaced, mut entered) = (Vec::new(), true);
        let (mut barred, now) = (false, Instant::now());
        self.change(|connected| {
            // Whoever revokes notes it before sessions are ended: this one is seen by one of the two.
            barred = self.is_shut_out(device, now);
            if barred {
                return;
            }
            let taken = connected.extract_if(.., |old| old.device == device && !old.opener.is_draining());
            replaced.extend(taken.map(|old| (old, taken_over())));
            let draining = connected.iter().filter(|old| old.device == device).count();
            if draining > MAX_DRAINING
                && let Some(oldest) = connected.iter().position(|old| old.device == device)
            {
                replaced.push((connected.remove(oldest), too_many()));
            }
            if connected.len() >= MAX_SESSIONS {
                let of =
                    |old: &Connected| (old.device == device && old.opener.is_draining(), away_since(&old.lifeline));
                match spare(connected.iter().map(of)) {
                    Some(at) => replaced.push((connected.remove(at), made_room())),
                    None => {
                        entered = false;
                        return;
                    }
                }
            }
            if self.draining.load(Relaxed) {
                opener.drain();
            }
            let since = OffsetDateTime::now_utc();
            connected.push(Connected { id, device, name, opener, lifeline, end: end.clone(), since });
        });
        for (old, refusal) in replaced {
            self.end(old, refusal).await;
        }
        match (barred, entered) {
            (true, _) => Err(revoked()),
            (false, true) => Ok((id, end)),
            (false, false) => Err(full()),
        }
    }

    /// Lets these devices in no more, until what they had begun is over.
    pub fn shut_out(&self, devices: &[KeyPin], now: Instant) {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.retain(|_, at| now.saturating_duration_since(*at) < SHUT_OUT);
        let room = MAX_SHUT_OUT.saturating_sub(revoked.len());
        revoked.extend(devices.iter().take(room).map(|device| (*device, now)));
    }

    fn is_shut_out(&self, device: KeyPin, now: Instant) -> bool {
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.get(&device).is_some_and(|at| now.saturating_duration_since(*at) < SHUT_OUT)
    }

    /// The session whose lifeline has this name; if that was ended here, why.
    pub fn lifeline(&self, id: LifelineId) -> Result<LifelineHandle, Option<Refusal>> {
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = connected.iter().find(|c| c.lifeline.id() == id && !c.lifeline.is_over()) {
            return Ok(found.lifeline.clone());
        }
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        Err(replaced.iter().find(|(replaced, _)| *replaced == id).map(|(_, refusal)| refusal.clone()))
    }

    /// Ends every session of a device, with the reason; those that drain too.
    pub async fn end_device(&self, device: KeyPin, refusal: &Refusal) {
        let mut ended = Vec::new();
        self.change(|connected| ended.extend(connected.extract_if(.., |c| c.device == device)));
        for old in ended {
            self.end(old, refusal.clone()).await;
        }
    }

    /// Ends a session that is taken out already, with the reason. A laptop that is away hears it when it comes back.
    async fn end(&self, old: Connected, refusal: Refusal) {
        self.remember(old.lifeline.id(), refusal.clone());
        old.lifeline.end(Ended::Refused(refusal)).await;
        old.end.cancel();
    }

    fn remember(&self, id: LifelineId, mut refusal: Refusal) {
        // What passes does so for the laptop's next session. This one is over, and not to be asked for again.
        if matches!(refusal.code, RefusalCode::Busy | RefusalCode::Unavailable | RefusalCode::Timeout) {
            refusal.code = RefusalCode::NotFound;
        }
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        if replaced.len() == MAX_REMEMBERED {
            replaced.pop_front();
        }
        replaced.push_back((id, refusal));
    }

    /// The session is over.
    pub fn leave(&self, id: u64) {
        self.change(|connected| connected.retain(|c| c.id != id));
    }

    /// How many there are, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// How each is doing.
    pub fn status(&self) -> Vec<LaptopStatus> {
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |c: &Connected| {
            let standing = c.lifeline.standing().borrow().clone();
            let (drains, streams) = (c.opener.is_draining(), c.opener.streams());
            LaptopStatus::new(&c.name, c.device, c.since, drains, streams, &standing)
        };
        connected.iter().map(of).collect()
    }

    fn change(&self, f: impl FnOnce(&mut Vec<Connected>)) {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut connected);
        self.count.send_replace(connected.len());
    }

    /// From here on every session takes nothing new, those that are still to come too. Says how many sessions go on, and
    /// how many streams in them.
    pub fn drain(&self) -> (usize, usize) {
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        self.draining.store(true, Relaxed);
        let streams = connected.iter().map(|c| c.opener.streams()).sum();
        connected.iter().for_each(|c| c.opener.drain());
        (connected.len(), streams)
    }

    /// Ends every session, with the reason.
    pub async fn end_all(&self, refusal: &Refusal) {
        let mut ended = Vec::new();
        self.change(|connected| ended.append(connected));
        for old in ended {
            self.end(old, refusal.clone()).await;
        }
    }

    /// As [`open`](Self::open); when there is no laptop, the first that comes within `patience` is waited for.
    pub async fn open_within(&self, patience: Duration) -> Result<MuxStream, Refusal> {
        let mut count = self.count();
        let opened = self.open().await;
        if patience.is_zero() || opened.is_ok() {
            return opened;
        }
        let _ = tokio::time::timeout(patience, count.wait_for(|count| *count > 0)).await;
        self.open().await
    }

    /// A stream to the laptop that came last. While the only laptop hands over, its next session
    /// is waited for.
    pub async fn open(&self) -> Result<MuxStream, Refusal> {
        let mut count = self.count();
        let deadline = tokio::time::Instant::now() + HANDOVER;
        loop {
            count.borrow_and_update();
            match self.last() {
                Last::Serves(opener) => match opener.open().await {
                    Err(_) if opener.is_draining() => {}
                    opened => return opened,
                },
                Last::HandsOver if tokio::time::timeout_at(deadline, count.changed()).await.is_ok() => {}
                Last::HandsOver | Last::None => {
                    let text = "no laptop is connected to this workspace. hint: run `nexus-proxy up` on the laptop";
                    return Err(Refusal::new(RefusalCode::Unavailable, text));
                }
            }
        }
    }

    fn last(&self) -> Last {
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || connected.iter().rev().filter(|c| !c.opener.is_closed());
        let held = |c: &Connected| HeldOpener::new(SessionOpener::new(c.opener.clone(), &c.lifeline));
        let serving: Vec<HeldOpener> = open().filter(|c| !c.opener.is_draining()).map(held).collect();
        // One that is heard goes before a later one that is not.
        match serving.iter().find(|opener| opener.is_attached()).or(serving.first()) {
            Some(found) => Last::Serves(found.clone()),
            None if open().next().is_some() => Last::HandsOver,
            None => Last::None,
        }
    }
}

/// The session that calls go to.
enum Last {
    Serves(HeldOpener),
    /// All that are left drain.
    HandsOver,
    None,
}

/// Since when a session has no connection.
fn away_since(lifeline: &LifelineHandle) -> Option<Instant> {
    match *lifeline.standing().borrow() {
        Standing::Lost { since, .. } => Some(since),
        _ => None,
    }
}

/// Which of the sessions makes room for a new one, when they are as many as may be: the first that drains and is of the same
/// device, or else the one that has been away for longest. Nobody who is there does, for somebody else.
fn spare(sessions: impl Iterator<Item = (bool, Option<Instant>)>) -> Option<usize> {
    let rank = |(at, (drains, away)): (usize, (bool, Option<Instant>))| match (drains, away) {
        (true, _) => Some((None, at)),
        (false, Some(since)) => Some((Some(since), at)),
        (false, None) => None,
    };
    sessions.enumerate().filter_map(rank).min().map(|(_, at)| at)
}

fn made_room() -> Refusal {
    let text = format!(
        "a stub serves {MAX_SESSIONS} sessions at a time, and this one, which was away or handed over, made room for another. \
         hint: a new session begins"
    );
    Refusal::new(RefusalCode::NotFound, text)
}

fn full() -> Refusal {
    let text = format!(
        "a stub serves {MAX_SESSIONS} sessions at a time, and no laptop of those is away. hint: it tries again; end an \
         `up` of this workspace that nobody needs"
    );
    Refusal::new(RefusalCode::Busy, text)
}

fn too_many() -> Refusal {
    let text = format!(
        "more than {MAX_DRAINING} sessions of this device were handed over and are not done. hint: the oldest was ended for \
         the next; let connections end between updates"
    );
    Refusal::new(RefusalCode::Busy, text)
}

/// Why a session that nobody here has cannot go on.
pub fn unknown() -> Refusal {
    let text = "the workspace does not know this session any more. hint: its stub was restarted; a new session begins";
    Refusal::new(RefusalCode::NotFound, text)
}

/// What a device is told that was revoked.
pub(super) fn revoked() -> Refusal {
    let text = "this device was revoked at the coordinator. hint: pair it again, with --new-key";
    Refusal::new(RefusalCode::Denied, text)
}

fn taken_over() -> Refusal {
    let text = "a new login of this device took over this workspace. hint: only one `nexus-proxy up` of a device serves \
                a workspace at a time";
    Refusal::new(RefusalCode::TakenOver, text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lifeline::{Lifeline, Route};
    use crate::session::mux::{End, multiplex};
    use crate::transport::carrier::{Carrier, Side, websocket};

    fn device(number: usize) -> KeyPin {
        KeyPin::from_bytes([number as u8; 32])
    }

    /// A session, and what keeps it.
    pub(in crate::role::stub) async fn session() -> (MuxOpener, LifelineHandle, impl Sized) {
        let (io, _) = tokio::io::duplex(1000);
        let carrier = Carrier::new(websocket(io, bytes::Bytes::new(), Side::Unmasked).await);
        let (lifeline, handle) = Lifeline::dial(Box::new(carrier), Route::Relay);
        let (opener, acceptor, driver) = multiplex(lifeline, End::Workspace);
        (opener, handle, (acceptor, driver))
    }

    fn name() -> DeviceName {
        "anna".parse().unwrap()
    }

    #[test]
    fn who_is_there_makes_room_for_nobody_else() {
        let long_ago = Instant::now();
        let lately = long_ago + Duration::from_secs(1);
        let there = (false, None);
        assert_eq!(spare([there, there].into_iter()), None);
        assert_eq!(spare([there, (false, Some(lately)), (false, Some(long_ago)), there].into_iter()), Some(2));
        let own = [(false, Some(long_ago)), there, (true, Some(lately)), (true, None)];
        assert_eq!(spare(own.into_iter()), Some(2), "one's own first");
    }

    #[tokio::test]
    async fn a_session_too_many_is_refused_and_ends_no_other() {
        let laptops = Laptops::default();
        let (opener, lifeline, _kept) = session().await;
        let mut ends = Vec::new();
        for i in 0..MAX_SESSIONS {
            let (_, end) = laptops.enter(device(i), name(), opener.clone(), lifeline.clone()).await.unwrap();
            ends.push(end);
        }
        let (handed_over, its, _its_kept) = session().await;
        let refused = laptops.enter(device(MAX_SESSIONS), name(), handed_over.clone(), its.clone()).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::Busy);
        assert!(ends.iter().all(|end| !end.is_cancelled()));
        assert_eq!(*laptops.count().borrow(), MAX_SESSIONS);
        // One that it handed over makes room for its next one.
        laptops.end_device(device(0), &refused).await;
        laptops.enter(device(MAX_SESSIONS), name(), handed_over.clone(), its.clone()).await.unwrap();
        handed_over.drain();
        laptops.enter(device(MAX_SESSIONS), name(), opener, lifeline).await.unwrap();
        assert_eq!(laptops.lifeline(its.id()).unwrap_err(), Some(made_room()));
        assert!(ends[1..].iter().all(|end| !end.is_cancelled()));
    }

    #[tokio::test]
    async fn who_was_revoked_while_it_was_coming_in_stays_out() {
        let laptops = Laptops::default();
        let (opener, lifeline, _kept) = session().await;
        let now = Instant::now();
        laptops.shut_out(&[device(0)], now);
        let refused = laptops.enter(device(0), name(), opener.clone(), lifeline.clone()).await.unwrap_err();
        assert_eq!((refused.code, *laptops.count().borrow()), (RefusalCode::Denied, 0));
        laptops.enter(device(1), name(), opener, lifeline).await.unwrap();
        // It is not kept for ever: the coordinator is who knows.
        assert!(!laptops.is_shut_out(device(0), now + SHUT_OUT));
        laptops.shut_out(&[device(2)], now + SHUT_OUT);
        assert_eq!(laptops.revoked.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn who_was_away_hears_why_its_session_ended() {
        let laptops = Laptops::default();
        let (opener, lifeline, _kept) = session().await;
        assert_eq!(laptops.lifeline(lifeline.id()).unwrap_err(), None);
        laptops.enter(device(0), name(), opener.clone(), lifeline.clone()).await.unwrap();
        assert!(laptops.lifeline(lifeline.id()).is_ok());
        let removed = Refusal::new(RefusalCode::Denied, "removed");
        laptops.end_device(device(0), &removed).await;
        assert_eq!(laptops.lifeline(lifeline.id()).unwrap_err(), Some(removed));
        // What passes is over all the same: nobody is to come back for it again and again.
        let (opener, lifeline, _kept) = session().await;
        laptops.enter(device(MAX_SESSIONS), name(), opener, lifeline.clone()).await.unwrap();
        laptops.end_all(&Refusal::new(RefusalCode::Unavailable, "over")).await;
        let ended = laptops.lifeline(lifeline.id()).unwrap_err().unwrap();
        assert_eq!((ended.code, ended.message.as_str()), (RefusalCode::NotFound, "over"));
    }
}

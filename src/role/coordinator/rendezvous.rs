//! The rendezvous: stubs park connections here, laptops ask for a workspace, and the two are joined.
//!
//! After a join it copies messages and counts them; it holds no key that could open them. Parked connections cost a
//! socket, its TLS state and a small task; a workspace may park [`MAX_PARKED`].
//!
//! A workspace has one stub. Of two that are there, as when one runs on a copy of the other's state directory, the later one is
//! refused, and both are told, if the first one answers: else they would take the workspace's laptops from each other without a word.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::drain::{self, Client, Drain};
use super::membership::Revoked;
use crate::identity::KeyPin;
use crate::transport::Io;
use crate::transport::carrier::{Arrival, Carrier, PONG};
use crate::transport::relay::{self, Doubt, relay};
use crate::wire::control::Control;
use crate::wire::limits::MAX_REVOKED;
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::{Refusal, RefusalCode};

/// Connections that one workspace may have parked. A new one beyond pushes out the oldest, which may be dead.
pub const MAX_PARKED: usize = 4;

/// How long a laptop waits for the workspace's stub to appear. A stub that just lost its network is back within this.
pub const STUB_WAIT: Duration = Duration::from_secs(20);

/// A parked connection that said something within this time is given away unasked: what goes unnoticed is as short.
const FRESH: Duration = Duration::from_secs(2);

/// Least time for the answer of a parked connection that is asked: a lost packet is sent again within it.
const ANSWER: Duration = Duration::from_millis(500);

/// Round trips within which it answers, unless packets are lost.
const ROUND_TRIPS: u32 = 4;

/// Least time for the same of a joined connection, which may have much in its way.
const JOINED_ANSWER: Duration = Duration::from_secs(2);

/// Where connections wait for each other.
#[derive(Debug)]
pub struct Rendezvous<T> {
    parked: Mutex<HashMap<WorkspaceName, Slot<T>>>,
    revoked: watch::Receiver<Revoked>,
    authorities: watch::Receiver<i64>,
    drain: Drain,
}

/// How a laptop's wait for its workspace ended.
enum Claimed<T> {
    Stub(Box<Carrier<T>>),
    /// Nor any that answers: since when the last one has been silent, if there was one.
    NoStub(Option<Instant>),
    Stopping,
}

/// A place among those of a workspace: with the last that has to do with it, the workspace is forgotten.
struct Place<'a, T> {
    rendezvous: &'a Rendezvous<T>,
    workspace: &'a WorkspaceName,
    /// Of what is parked.
    id: Option<u64>,
}

#[derive(Debug)]
struct Slot<T> {
    waiting: VecDeque<Parked<T>>,
    arrivals: Arc<Notify>,
    /// Of those the ones that are no second stub's, as far as that is known.
    renewals: Arc<Notify>,
}

#[derive(Debug)]
struct Parked<T> {
    id: u64,
    key: KeyPin,
    claim: oneshot::Sender<Claim<T>>,
    newer: mpsc::Sender<Newer>,
}

/// How a newer connection of a workspace asks one that is parked whether it is there: that one says so, or lets go of this.
type Newer = mpsc::Sender<()>;

/// A laptop's wish for a parked connection: who asks, and where to send the connection.
#[derive(Debug)]
struct Claim<T> {
    session: String,
    device: DeviceName,
    give: oneshot::Sender<Given<T>>,
}

/// What becomes of a wish.
#[derive(Debug)]
enum Given<T> {
    Connection(Box<Carrier<T>>),
    /// It does not answer, and has been silent since then.
    Silent(Instant),
}

impl<T: Io> Rendezvous<T> {
    /// Ends what it holds as `drain` says. Stubs are told of `revoked` devices: sessions that need no coordinator any
    /// more end, too. They are told when `authorities` change, because they have to have a certificate that laptops
    /// believe before the next one comes.
    pub fn new(revoked: watch::Receiver<Revoked>, authorities: watch::Receiver<i64>, drain: Drain) -> Rendezvous<T> {
        Rendezvous { parked: Mutex::new(HashMap::new()), revoked, authorities, drain }
    }

    /// How many connections of a workspace are parked.
    pub fn parked(&self, workspace: &WorkspaceName) -> usize {
        self.with(|parked| parked.get(workspace).map_or(0, |slot| slot.waiting.len()))
    }

    /// Holds a stub's connection until a laptop claims it, the stub leaves, or the coordinator stops. It is refused when an older
    /// one of the workspace, of the same `key`, turns out to be there. Laptops can have it as soon as that could have answered.
    pub async fn park(&self, workspace: WorkspaceName, key: KeyPin, mut carrier: Carrier<T>) {
        let mut revoked = self.revoked.clone();
        revoked.mark_changed();
        let mut authorities = self.authorities.clone();
        authorities.mark_unchanged();
        let id = rand::random();
        let (newer, mut asked) = mpsc::channel(MAX_PARKED);
        let (asks, mut older) = mpsc::channel(MAX_PARKED);
        let place = Place { rendezvous: self, workspace: &workspace, id: Some(id) };
        let mut claimed = self.enter(&workspace, key, id, &newer, Some(asks));
        let (mut welcome, mut open) = (false, false);
        let came = Instant::now();
        // So that it is known how long an answer takes by the time that it is asked.
        let _ = carrier.ping().await;
        loop {
            tokio::select! {
                biased;
                other = older.recv(), if !welcome => {
                    let answer = match other {
                        None => Control::Parked {},
                        Some(()) => {
                            tracing::warn!(%workspace, "a second stub of this workspace was refused");
                            Control::Refused(Refusal::new(RefusalCode::Busy, is_served(&workspace)))
                        }
                    };
                    if carrier.send_control(&answer).await.is_ok() && other.is_none() {
                        if !open {
                            self.renewed(&workspace);
                        }
                        welcome = true;
                        continue;
                    }
                }
                () = tokio::time::sleep_until(came + if open { PONG } else { ANSWER }), if !welcome => {
                    // An older one may only be slow to say that it is gone. Nobody waits for that any longer.
                    let told = !open || carrier.send_control(&Control::Parked {}).await.is_ok();
                    if !open {
                        self.renewed(&workspace);
                    }
                    welcome = std::mem::replace(&mut open, true);
                    if told {
                        continue;
                    }
                }
                pins = news(&mut revoked) => {
                    for pins in pins.chunks(MAX_REVOKED) {
                        // A connection that does not take it is seen to be dead below.
                        let _ = carrier.send_control(&Control::Revoked { pins: pins.iter().map(KeyPin::to_string).collect() }).await;
                    }
                    continue;
                }
                Ok(()) = authorities.changed() => {
                    let _ = carrier.send_control(&Control::Authorities {}).await;
                    continue;
                }
                claim = &mut claimed, if welcome || open => match claim {
                    Ok(claim) => match Box::pin(is_there(&mut carrier)).await {
                        Ok(true) => {
                            if !welcome {
                                let _ = carrier.send_control(&Control::Parked {}).await;
                            }
                            let join = Control::Join { session: claim.session, device: Some(claim.device.to_string()) };
                            if carrier.send_control(&join).await.is_ok() {
                                let _ = claim.give.send(Given::Connection(Box::new(carrier)));
                            }
                            return;
                        }
                        Ok(false) => {
                            let since = carrier.heard();
                            let _ = claim.give.send(Given::Silent(since));
                            tracing::info!(%workspace, silent = ?since.elapsed(), "a parked connection does not answer");
                            // It may only be slow: then the next laptop can have it, or the same one, which waits.
                            if matches!(Box::pin(carrier.answers(PONG)).await, Ok(true)) {
                                claimed = self.enter(&workspace, key, id, &newer, None);
                                continue;
                            }
                        }
                        Err(error) => tracing::debug!(%workspace, %error, "a parked stub is gone"),
                    }
                    Err(_) => tracing::debug!(%workspace, "a newer parked connection replaces this one"),
                },
                // Who has gone meanwhile is not asked for.
                Some(newer) = asked.recv() => {
                    if newer.is_closed() {
                        continue;
                    }
                    match Box::pin(is_there_still(&mut carrier)).await {
                        Ok(true) => {
                            let _ = newer.try_send(());
                            // One that is about to be refused itself has no say.
                            if welcome {
                                let _ = carrier.send_control(&Control::Waiting { message: has_a_rival(&workspace) }).await;
                            }
                            continue;
                        }
                        // It may only be slow.
                        Ok(false) => continue,
                        Err(error) => tracing::debug!(%workspace, %error, "a parked stub is gone"),
                    }
                },
                arrival = carrier.arrival() => match arrival {
                    Ok(Some(Arrival::Bytes(_))) => tracing::warn!(%workspace, "a parked stub sent bytes before a join"),
                    Ok(_) => tracing::debug!(%workspace, "a parked stub left"),
                    Err(error) => tracing::debug!(%workspace, %error, "a parked stub is gone"),
                },
                () = self.drain.stop.cancelled() => {
                    let _ = carrier.send_control(&drain::say(Client::Stub)).await;
                }
            }
            break;
        }
        drop(place);
        // In a box, so that a parked connection does not hold room for its own end.
        Box::pin(carrier.close()).await;
    }

    /// Puts a connection where laptops find it; gives what says that one did, or that newer ones took its place. Those of the same
    /// key that are there already are asked by `asks`, in the same moment: of two that come together, one asks the other. A
    /// workspace that was enrolled anew has another key, and the old one's connections are about to end.
    fn enter(
        &self,
        workspace: &WorkspaceName,
        key: KeyPin,
        id: u64,
        newer: &mpsc::Sender<Newer>,
        asks: Option<Newer>,
    ) -> oneshot::Receiver<Claim<T>> {
        let (claim, claimed) = oneshot::channel();
        self.with(|parked| {
            let slot = parked.entry(workspace.clone()).or_insert_with(Slot::new);
            if let Some(asks) = asks {
                // One that is asked by so many already has its answer to come.
                let same = slot.waiting.iter().filter(|older| older.key == key);
                same.for_each(|older| drop(older.newer.try_send(asks.clone())));
            }
            slot.waiting.push_back(Parked { id, key, claim, newer: newer.clone() });
            if slot.waiting.len() > MAX_PARKED {
                slot.waiting.pop_front();
            }
            slot.arrivals.notify_waiters();
        });
        claimed
    }

    /// Joins a laptop's connection to one that the workspace parked, and copies until either ends, or, once everything is
    /// to stop, until its time is over.
    pub async fn connect(&self, workspace: WorkspaceName, device: DeviceName, mut laptop: Carrier<T>) {
        let _place = Place { rendezvous: self, workspace: &workspace, id: None };
        let session = uuid::Uuid::now_v7().simple().to_string();
        let (found, mut silent) = watch::channel(None);
        let claimed = {
            let mut claim = std::pin::pin!(self.claim(&workspace, &device, &session, &found));
            loop {
                tokio::select! {
                    claimed = &mut claim => break claimed,
                    since = first(&mut silent) => {
                        let _ = laptop.send_control(&Control::Waiting { message: does_not_answer(&workspace, since) }).await;
                    }
                    arrival = laptop.arrival() => {
                        tracing::debug!(%workspace, ?arrival, "the laptop left before its workspace came");
                        return;
                    }
                }
            }
        };
        let stub = match claimed {
            Claimed::Stub(stub) => *stub,
            Claimed::NoStub(silent) => {
                let text = match silent {
                    Some(since) => does_not_answer(&workspace, since),
                    None => format!(
                        "the stub of workspace `{workspace}` is not connected. hint: is nexus-stub running in the workspace?"
                    ),
                };
                let refused = Control::Refused(Refusal::new(RefusalCode::Unavailable, text));
                let _ = laptop.send_control(&refused).await;
                return laptop.close().await;
            }
            Claimed::Stopping => {
                let _ = laptop.send_control(&drain::say(Client::Laptop)).await;
                return laptop.close().await;
            }
        };
        let join = Control::Join { session: session.clone(), device: None };
        if laptop.send_control(&join).await.is_err() {
            return;
        }
        tracing::info!(%workspace, %device, session, "joined");
        let drain = relay::Drain {
            when: self.drain.stop.cancelled(),
            part: self.drain.part.cancelled(),
            say: || [drain::say(Client::Laptop), drain::say(Client::Stub)],
        };
        let doubt =
            Doubt { reasons: self.renewals(&workspace), patience: patience(stub.round_trip()).max(JOINED_ANSWER) };
        let (relayed, outcome) = relay(laptop.into_websocket(), stub.into_websocket(), drain, doubt).await;
        let (up, down) = (relayed.forth, relayed.back);
        match outcome {
            Ok(()) => tracing::info!(%workspace, %device, session, up, down, "parted"),
            Err(error) => tracing::info!(%workspace, %device, session, up, down, %error, "parted"),
        }
    }

    /// Waits for a connection of the workspace that answers. `silent` is told of the first that does not.
    async fn claim(
        &self,
        workspace: &WorkspaceName,
        device: &DeviceName,
        session: &str,
        silent: &watch::Sender<Option<Instant>>,
    ) -> Claimed<T> {
        let deadline = tokio::time::Instant::now() + STUB_WAIT;
        loop {
            // A stub that waits here is about to be told to leave.
            if self.drain.stop.is_cancelled() {
                return Claimed::Stopping;
            }
            let arrivals = self.with(|parked| {
                let slot = parked.entry(workspace.clone()).or_insert_with(Slot::new);
                slot.arrivals.clone()
            });
            // Registered before looking, so that an arrival in between is not missed.
            let mut arrival = std::pin::pin!(arrivals.notified());
            arrival.as_mut().enable();
            // The newest is the least likely to be dead.
            while let Some(parked) = self.with(|parked| parked.get_mut(workspace)?.waiting.pop_back()) {
                let (give, given) = oneshot::channel();
                let claim = Claim { session: session.to_owned(), device: device.clone(), give };
                if parked.claim.send(claim).is_err() {
                    continue;
                }
                // A stub that does not read holds up whoever tells it to join.
                match tokio::time::timeout_at(deadline, given).await {
                    Ok(Ok(Given::Connection(stub))) => return Claimed::Stub(stub),
                    Ok(Ok(Given::Silent(since))) => {
                        silent.send_if_modified(|first| first.is_none() && first.replace(since).is_none());
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            tokio::select! {
                () = arrival => {}
                () = tokio::time::sleep_until(deadline) => return Claimed::NoStub(*silent.borrow()),
                () = self.drain.stop.cancelled() => return Claimed::Stopping,
            }
        }
    }

    /// Has an item whenever a connection of the workspace is parked: it may be there because the stub has lost others, as when its
    /// machine has another network.
    fn renewals(&self, workspace: &WorkspaceName) -> BoxStream<'static, ()> {
        let renewals = self.with(|parked| parked.entry(workspace.clone()).or_insert_with(Slot::new).renewals.clone());
        let next = |renewals: Arc<Notify>| async {
            renewals.notified().await;
            Some(((), renewals))
        };
        futures::stream::unfold(renewals, next).boxed()
    }

    /// A connection that was parked is not a second stub's: what else the workspace has may be dead.
    fn renewed(&self, workspace: &WorkspaceName) {
        self.with(|parked| {
            parked.get(workspace).into_iter().for_each(|slot| slot.renewals.notify_waiters());
        });
    }
}

impl<T> Rendezvous<T> {
    fn with<R>(&self, f: impl FnOnce(&mut HashMap<WorkspaceName, Slot<T>>) -> R) -> R {
        f(&mut self.parked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let Place { rendezvous, workspace, id } = *self;
        rendezvous.with(|parked| {
            let Some(slot) = parked.get_mut(workspace) else { return };
            slot.waiting.retain(|parked| Some(parked.id) != id);
            let is_held = |held: &Arc<Notify>| Arc::strong_count(held) > 1;
            if slot.waiting.is_empty() && !is_held(&slot.arrivals) && !is_held(&slot.renewals) {
                parked.remove(workspace);
            }
        });
    }
}

impl<T> Slot<T> {
    fn new() -> Slot<T> {
        Slot { waiting: VecDeque::new(), arrivals: Arc::default(), renewals: Arc::default() }
    }
}

/// Whether the other end of a parked connection is there. A router that forgot a connection tells nobody; so one that was
/// silent for a while is asked.
async fn is_there<T: Io>(carrier: &mut Carrier<T>) -> std::io::Result<bool> {
    match may_take(carrier.heard().elapsed(), carrier.round_trip()) {
        None => Ok(true),
        Some(patience) => carrier.answers(patience).await,
    }
}

/// The same for certain, however lately it said something: what a stub said before it let go of a connection may be under way
/// still, with the end behind it.
async fn is_there_still<T: Io>(carrier: &mut Carrier<T>) -> std::io::Result<bool> {
    let patience = patience(carrier.round_trip());
    Ok(carrier.answers(patience).await? && carrier.answers(patience).await?)
}

/// How long a connection that was silent for so long may take to answer; none when it need not be asked.
fn may_take(silent: Duration, round_trip: Option<Duration>) -> Option<Duration> {
    (silent > FRESH).then(|| patience(round_trip))
}

/// How long an answer may take.
fn patience(round_trip: Option<Duration>) -> Duration {
    round_trip.map_or(ANSWER, |round_trip| (round_trip * ROUND_TRIPS).clamp(ANSWER, PONG))
}

/// Where a copy of a workspace gets a place of its own.
const OF_ITS_OWN: &str = "to make the copy a workspace of its own, run `nexus-coordinator workspace add NAME` and start nexus-stub \
                          there with --enroll CODE and another --state; if you know of no copy, its key was taken: \
                          `nexus-coordinator workspace add NAME --reissue` ends that one's access, and this one enrolls again";

/// What a stub is told where another one is.
fn is_served(workspace: &WorkspaceName) -> String {
    format!(
        "another nexus-stub serves workspace `{workspace}` with the same key: this one has a copy of its state directory, as in a \
         cloned image, or the other way round. hint: {OF_ITS_OWN}; when the other one ends, this one serves the workspace"
    )
}

/// What that other one is told.
fn has_a_rival(workspace: &WorkspaceName) -> String {
    format!(
        "another nexus-stub with the key of workspace `{workspace}` wants to serve it, and was refused: it has a copy of this one's \
         state directory, as in a cloned image, or the other way round. hint: {OF_ITS_OWN}"
    )
}

/// What is told of a workspace whose connections are silent.
fn does_not_answer(workspace: &WorkspaceName, since: Instant) -> String {
    let silent = since.elapsed().as_secs();
    format!(
        "workspace `{workspace}` is connected, but has not answered for {silent} s: its next connection is waited for. \
         hint: is its network out, or its machine asleep?"
    )
}

/// Since when the first connection that did not answer has been silent, once.
async fn first(silent: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match silent.changed().await {
        Ok(()) => (*silent.borrow_and_update()).unwrap_or_else(Instant::now),
        Err(_) => std::future::pending().await,
    }
}

/// The revoked devices, when they have changed.
async fn news(revoked: &mut watch::Receiver<Revoked>) -> Revoked {
    match revoked.changed().await {
        Ok(()) => revoked.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "rendezvous_tests.rs"]
mod tests;

//! The rendezvous: stubs park connections here, laptops ask for a workspace, and the two are joined.
//!
//! After a join it copies messages and counts them; it holds no key that could open them. Parked connections cost a
//! socket, its TLS state and a small task; a workspace may park [`MAX_PARKED`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;

use super::drain::{self, Client, Drain};
use super::membership::Revoked;
use crate::identity::KeyPin;
use crate::transport::Io;
use crate::transport::carrier::{self, Arrival, Carrier, PONG, relay};
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
    Stub(Box<WebSocketStream<T>>),
    /// Nor any that answers: since when the last one has been silent, if there was one.
    NoStub(Option<Instant>),
    Stopping,
}

#[derive(Debug)]
struct Slot<T> {
    waiting: VecDeque<Parked<T>>,
    arrivals: Arc<Notify>,
}

#[derive(Debug)]
struct Parked<T> {
    id: u64,
    claim: oneshot::Sender<Claim<T>>,
}

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
    Connection(Box<WebSocketStream<T>>),
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

    /// Holds a stub's connection until a laptop claims it, the stub leaves, or the coordinator stops.
    pub async fn park(&self, workspace: WorkspaceName, mut carrier: Carrier<T>) {
        if carrier.send_control(&Control::Parked {}).await.is_err() {
            return;
        }
        let mut revoked = self.revoked.clone();
        revoked.mark_changed();
        let mut authorities = self.authorities.clone();
        authorities.mark_unchanged();
        let id = rand::random();
        let mut claimed = self.enter(&workspace, id);
        // So that it is known how long an answer takes by the time that it is asked.
        let _ = carrier.ping().await;
        loop {
            tokio::select! {
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
                claim = &mut claimed => match claim {
                    Ok(claim) => match Box::pin(is_there(&mut carrier)).await {
                        Ok(true) => {
                            let join = Control::Join { session: claim.session, device: Some(claim.device.to_string()) };
                            if carrier.send_control(&join).await.is_ok() {
                                let _ = claim.give.send(Given::Connection(Box::new(carrier.into_websocket())));
                            }
                            return;
                        }
                        Ok(false) => {
                            let since = carrier.heard();
                            let _ = claim.give.send(Given::Silent(since));
                            tracing::info!(%workspace, silent = ?since.elapsed(), "a parked connection does not answer");
                            // It may only be slow: then the next laptop can have it, or the same one, which waits.
                            if matches!(Box::pin(carrier.answers(PONG)).await, Ok(true)) {
                                claimed = self.enter(&workspace, id);
                                continue;
                            }
                        }
                        Err(error) => tracing::debug!(%workspace, %error, "a parked stub is gone"),
                    }
                    Err(_) => tracing::debug!(%workspace, "a newer parked connection replaces this one"),
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
        self.with(|parked| {
            if let Some(slot) = parked.get_mut(&workspace) {
                slot.waiting.retain(|p| p.id != id);
                if slot.waiting.is_empty() && Arc::strong_count(&slot.arrivals) == 1 {
                    parked.remove(&workspace);
                }
            }
        });
        // In a box, so that a parked connection does not hold room for its own end.
        Box::pin(carrier.close()).await;
    }

    /// Puts a connection where laptops find it; gives what says that one did, or that newer ones took its place.
    fn enter(&self, workspace: &WorkspaceName, id: u64) -> oneshot::Receiver<Claim<T>> {
        let (claim, claimed) = oneshot::channel();
        self.with(|parked| {
            let slot = parked.entry(workspace.clone()).or_insert_with(Slot::new);
            slot.waiting.push_back(Parked { id, claim });
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
        let drain = carrier::Drain {
            when: self.drain.stop.cancelled(),
            part: self.drain.part.cancelled(),
            say: || [drain::say(Client::Laptop), drain::say(Client::Stub)],
        };
        let (relayed, outcome) = relay(laptop.into_websocket(), stub, drain).await;
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

    fn with<R>(&self, f: impl FnOnce(&mut HashMap<WorkspaceName, Slot<T>>) -> R) -> R {
        f(&mut self.parked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Slot<T> {
    fn new() -> Slot<T> {
        Slot { waiting: VecDeque::new(), arrivals: Arc::new(Notify::new()) }
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

/// How long a connection that was silent for so long may take to answer; none when it need not be asked.
fn may_take(silent: Duration, round_trip: Option<Duration>) -> Option<Duration> {
    let patience = round_trip.map_or(ANSWER, |round_trip| (round_trip * ROUND_TRIPS).clamp(ANSWER, PONG));
    (silent > FRESH).then_some(patience)
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
mod tests {
    use super::*;
    use crate::role::coordinator::drain::{RELAYS, SPREAD, STUBS_FIRST};
    use crate::transport::carrier::{Side, websocket};
    use bytes::Bytes;
    use tokio::io::DuplexStream;
    use tokio_util::sync::CancellationToken;

    async fn ends() -> (Carrier<DuplexStream>, Carrier<DuplexStream>) {
        let (near, far) = crate::transport::memory::pair();
        let near = Carrier::new(websocket(near, Bytes::new(), Side::Client).await);
        let far = Carrier::new(websocket(far, Bytes::new(), Side::Server).await);
        (near, far)
    }

    fn nobody() -> watch::Receiver<Revoked> {
        watch::channel(Revoked::default()).1
    }

    fn steps() -> watch::Receiver<i64> {
        watch::channel(0).1
    }

    fn never() -> Drain {
        Drain::new(CancellationToken::new(), RELAYS)
    }

    fn told(control: Control) -> Duration {
        match control {
            Control::Drain { reconnect_after_ms } => Duration::from_millis(reconnect_after_ms),
            other => panic!("{other:?}"),
        }
    }

    fn control(arrival: std::io::Result<Option<Arrival>>) -> Control {
        match arrival {
            Ok(Some(Arrival::Control(control))) => control,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn joins_whoever_comes_first() {
        for stub_first in [true, false] {
            let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
            let (mut stub, stub_far) = ends().await;
            let (mut laptop, laptop_far) = ends().await;
            let name: WorkspaceName = "w".parse().unwrap();
            let park = {
                let (rendezvous, name) = (rendezvous.clone(), name.clone());
                async move { rendezvous.park(name, stub_far).await }
            };
            let connect = {
                let (rendezvous, name) = (rendezvous.clone(), name.clone());
                async move { rendezvous.connect(name, "d".parse().unwrap(), laptop_far).await }
            };
            let mut tasks = tokio::task::JoinSet::new();
            if stub_first {
                tasks.spawn(park);
                assert_eq!(control(stub.arrival().await), Control::Parked {});
                tasks.spawn(connect);
            } else {
                tasks.spawn(connect);
                tokio::task::yield_now().await;
                tasks.spawn(park);
                assert_eq!(control(stub.arrival().await), Control::Parked {});
            }
            assert!(matches!(control(stub.arrival().await), Control::Join { device: Some(d), .. } if d == "d"));
            assert!(matches!(control(laptop.arrival().await), Control::Join { .. }));
            laptop.send(Bytes::from_static(b"hi")).await.unwrap();
            assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "hi"));
            assert_eq!(rendezvous.parked(&name), 0);
        }
    }

    #[tokio::test]
    async fn a_stop_tells_everyone_when_to_come_back_and_what_is_relayed_goes_on() {
        const LAPTOPS: usize = 8;
        let drain = Drain::new(CancellationToken::new(), RELAYS);
        let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), drain.clone()));
        let mut tasks = tokio::task::JoinSet::new();
        let park = async |tasks: &mut tokio::task::JoinSet<()>, name: &str| {
            let (mut stub, far) = ends().await;
            let (rendezvous, name) = (rendezvous.clone(), name.parse().unwrap());
            tasks.spawn(async move { rendezvous.park(name, far).await });
            assert_eq!(control(stub.arrival().await), Control::Parked {});
            stub
        };
        let connect = async |tasks: &mut tokio::task::JoinSet<()>, name: &str| {
            let (laptop, far) = ends().await;
            let (rendezvous, name) = (rendezvous.clone(), name.parse().unwrap());
            tasks.spawn(async move { rendezvous.connect(name, "d".parse().unwrap(), far).await });
            laptop
        };
        let mut stub = park(&mut tasks, "joined").await;
        let mut laptop = connect(&mut tasks, "joined").await;
        assert!(matches!(control(stub.arrival().await), Control::Join { .. }));
        assert!(matches!(control(laptop.arrival().await), Control::Join { .. }));
        let mut idle = park(&mut tasks, "idle").await;
        let mut waiting = Vec::new();
        for _ in 0..LAPTOPS {
            waiting.push(connect(&mut tasks, "absent").await);
        }
        drain.stop.cancel();

        assert!(told(control(idle.arrival().await)) <= STUBS_FIRST);
        assert!(matches!(idle.arrival().await, Ok(None)));
        let mut times = Vec::new();
        for mut laptop in waiting {
            let time = told(control(laptop.arrival().await));
            assert!((STUBS_FIRST..=SPREAD).contains(&time), "{time:?}");
            times.push(time);
            assert!(matches!(laptop.arrival().await, Ok(None)));
        }
        times.sort_unstable();
        times.dedup();
        assert!(times.len() > LAPTOPS / 2, "they would come back together: {times:?}");

        told(control(laptop.arrival().await));
        told(control(stub.arrival().await));
        laptop.send(Bytes::from_static(b"on")).await.unwrap();
        assert!(matches!(stub.arrival().await, Ok(Some(Arrival::Bytes(got))) if got == "on"));
        let mut late = connect(&mut tasks, "joined").await;
        told(control(late.arrival().await));
        drain.part.cancel();
        told(control(laptop.arrival().await));
        assert!(matches!(laptop.arrival().await, Ok(None)));
        told(control(stub.arrival().await));
        assert!(matches!(stub.arrival().await, Ok(None)));
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }

    #[test]
    fn a_connection_that_was_silent_is_asked_for_as_long_as_its_path_needs() {
        let ms = Duration::from_millis;
        assert_eq!(may_take(FRESH, None), None);
        assert_eq!(may_take(FRESH + ms(1), None), Some(ANSWER));
        assert_eq!(may_take(FRESH * 2, Some(ms(5))), Some(ANSWER));
        assert_eq!(may_take(FRESH * 2, Some(ms(300))), Some(ms(1200)));
        assert_eq!(may_take(FRESH * 2, Some(ms(3000))), Some(PONG));
    }

    /// In real time, all of it at once. Two connections are parked and silent; the newer one is silent for good.
    #[tokio::test]
    async fn a_connection_that_does_not_answer_is_not_given_out() {
        let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
        let name: WorkspaceName = "w".parse().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        let mut park = async || {
            let (mut stub, far) = ends().await;
            let (rendezvous, name) = (rendezvous.clone(), name.clone());
            tasks.spawn(async move { rendezvous.park(name, far).await });
            assert_eq!(control(stub.arrival().await), Control::Parked {});
            stub
        };
        let (mut there, mut forgotten) = (park().await, park().await);
        let (mut first, first_far) = ends().await;
        let (mut second, second_far) = ends().await;
        // Reading answers pings, and a forgotten connection is not read.
        let asked = tokio::time::timeout(FRESH + ANSWER, there.arrival()).await;
        assert!(asked.is_err(), "{asked:?}");
        let connect = async |laptop| rendezvous.connect(name.clone(), "d".parse().unwrap(), laptop).await;
        let served = async {
            assert!(matches!(control(there.arrival().await), Control::Join { .. }));
            assert!(
                matches!(control(first.arrival().await), Control::Waiting { message } if message.contains("not answered"))
            );
            assert!(matches!(control(first.arrival().await), Control::Join { .. }));
        };
        tokio::select! {
            () = served => {}
            () = connect(first_far) => panic!("it is not joined"),
        }
        // The next laptop has it when it answers after all.
        let served = async {
            assert!(matches!(control(forgotten.arrival().await), Control::Join { .. }));
            assert!(matches!(control(second.arrival().await), Control::Join { .. }));
        };
        tokio::select! {
            () = served => {}
            () = connect(second_far) => panic!("it is not joined"),
        }
    }

    #[tokio::test]
    async fn the_newest_connections_stay_parked() {
        let rendezvous = Arc::new(Rendezvous::new(nobody(), steps(), never()));
        let mut tasks = tokio::task::JoinSet::new();
        let mut stubs = Vec::new();
        for _ in 0..MAX_PARKED + 2 {
            let (mut stub, far) = ends().await;
            let rendezvous = rendezvous.clone();
            tasks.spawn(async move { rendezvous.park("w".parse().unwrap(), far).await });
            assert_eq!(control(stub.arrival().await), Control::Parked {});
            stubs.push(stub);
        }
        // Closed, or broken in the middle of an answer to a ping.
        assert!(!matches!(stubs[0].arrival().await, Ok(Some(_))));
        assert_eq!(rendezvous.parked(&"w".parse().unwrap()), MAX_PARKED);
    }
}

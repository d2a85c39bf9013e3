//! The stub's life: one connection parked at the coordinator at all times, a task for every session that comes of it. And
//! its end: at once when it is stopped; when everything that it has is done, after it handed over to a successor.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::direct::{DirectConfig, DirectPort};
use super::earlier::{Earlier, MAX_EARLIER};
use super::gateway::{Doorbell, Gateway};
use super::hand_over::{Asked, HandedOver};
use super::laptops::Laptops;
use super::link::Link;
use super::local;
use super::orphans::{self, Spare};
use super::session::{Workspace, serve};
use super::sessions::{Place, Sessions};
use super::state::StubState;
use super::status::Told;
use crate::identity::error::IdentityError;
use crate::identity::uri::Role;
use crate::identity::verify::{ClientAuth, Expect, server_config};
use crate::lifeline::core::RETENTION;
use crate::lifeline::{Route, Standing, first_attach};
use crate::role::backoff::{Backoff, LONGEST, LONGEST_FOR_A_NAME};
use crate::role::changes::{self, Change};
use crate::role::renewal;
use crate::session::establish;
use crate::transport::address::CoordinatorUrl;
use crate::transport::carrier::Arrival;
use crate::transport::client::{ClientError, CoordinatorCarrier, CoordinatorClient};
use crate::transport::http::UPGRADE_TIMEOUT;
use crate::transport::outer::OuterTls;
use crate::wire::control::Control;
use crate::wire::lifeline::{Attach, AttachMode, LifelineMessage};
use crate::wire::limits::{HANDSHAKE_TIMEOUT, MAX_REVOKED};
use crate::wire::{Refusal, RefusalCode};

/// How long a stop waits for sessions.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long sessions may go on after a hand-over: as long as a lifeline without a carrier is kept.
const LAST: Duration = RETENTION;

/// How often a stub that handed over looks whether anybody serves the workspace, and how often nobody may.
const UNSERVED_LOOK: Duration = Duration::from_secs(5);
const UNSERVED_LOOKS: u32 = 6;

/// What a stub runs with.
#[derive(Debug)]
pub struct StubConfig {
    /// Where the coordinator is.
    pub coordinator: CoordinatorUrl,
    /// Who ends TLS there.
    pub outer: OuterTls,
    /// The workspace as laptops see it.
    pub workspace: Workspace,
    /// The socket for programs in the workspace.
    pub socket: PathBuf,
    /// The port for laptops that reach it without the coordinator.
    pub direct: DirectConfig,
    /// What the stub said from which this one took over, if it did, and when.
    pub took_over: Option<(HandedOver, Instant)>,
    /// Whether it hands over to a successor: not when it belongs to the program that started it.
    pub hands_over: bool,
}

/// Something worth a line of output.
#[derive(Debug, Clone)]
pub enum StubEvent {
    /// A connection is parked: laptops can come.
    Parked,
    /// The coordinator is not reached; the next attempt is after this time.
    Waiting(String, Duration),
    /// A session began with this device.
    SessionBegan(String),
    /// And ended.
    SessionEnded(String),
    /// A successor serves the workspace: so many sessions go on here, with so many streams.
    HandedOver(usize, usize),
    /// And all of it is done.
    Done,
}

struct Stub {
    client: CoordinatorClient,
    state: Arc<Mutex<StubState>>,
    workspace: Arc<Workspace>,
    sessions: Arc<Sessions>,
    /// The process that took over; 0 while nobody did.
    successor: AtomicI32,
    /// Where whoever serves the workspace listens.
    socket: PathBuf,
    events: Box<dyn Fn(StubEvent) + Send + Sync>,
    told: Arc<Told>,
    changes: watch::Sender<Change>,
}

/// Runs until `stop`, or until a successor took over and everything that began here is done. Ends by itself only when
/// trying on is pointless: revoked, or the wrong coordinator.
pub async fn run(
    config: StubConfig,
    state: StubState,
    events: impl Fn(StubEvent) + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<(), ClientError> {
    let gateway = Gateway::bind(&config.socket)
        .map_err(|e| ClientError::Dial(format!("the workspace's socket cannot be opened: {e}")))?;
    let known = config.took_over.as_ref().and_then(|(earlier, _)| earlier.direct);
    let direct = DirectPort::open(config.direct, known).await;
    let direct =
        direct.map_err(|e| ClientError::Dial(format!("the port for direct connections cannot be opened: {e}")))?;
    let mut workspace = config.workspace;
    workspace.direct = direct.as_ref().map(DirectPort::addresses).unwrap_or_default();
    let earlier = Earlier::new(state.dir());
    let count = earlier.count().await;
    if count > 0 {
        tracing::info!(count, "earlier stubs live on until what they have is done");
    }
    let told = Arc::new(Told::new(state.workspace().to_string(), config.coordinator.to_string(), earlier.clone()));
    let client = CoordinatorClient::new(config.coordinator, state.trust.clone(), state.credential.clone())
        .with_outer(config.outer);
    let sessions =
        Sessions { laptops: Arc::new(Laptops::default()), earlier, stop: stop.clone(), endings: TaskTracker::new() };
    let stub = Arc::new(Stub {
        client,
        state: Arc::new(Mutex::new(state)),
        workspace: Arc::new(workspace),
        sessions: Arc::new(sessions),
        successor: AtomicI32::new(0),
        socket: config.socket,
        events: Box::new(events),
        told: told.clone(),
        changes: watch::Sender::default(),
    });
    // Cancelled when nothing more is taken: at the end, or at a hand-over.
    let taking = stop.child_token();
    let (successors, mut asked) = mpsc::channel(1);
    let bell = Doorbell {
        successors: config.hands_over.then_some(successors),
        took_over: config.took_over.map(|(_, at)| at),
        told,
    };
    // What takes, and what was taken.
    let (doors, taken) = (TaskTracker::new(), TaskTracker::new());
    doors.spawn(gateway.run(stub.sessions.laptops.clone(), bell, taken.clone(), taking.clone(), stop.clone()));
    if let Some(direct) = direct {
        doors.spawn(direct.run(stub.sessions.clone(), taken.clone(), taking.clone()));
    }
    doors.spawn({
        let (stub, taking) = (stub.clone(), taking.clone());
        async move {
            let keep = renewal::keep_fresh(&stub.client, |fresh| stub.state().save_fresh(fresh));
            tokio::select! {
                () = keep => {}
                () = taking.cancelled() => {}
            }
        }
    });
    doors.spawn({
        let (stub, taking) = (stub.clone(), taking.clone());
        async move {
            tokio::select! {
                () = changes::notice(|| stub.client.toward(), stub.changes.clone()) => {}
                () = taking.cancelled() => {}
            }
        }
    });
    orphans::adopt();
    let life = async {
        let (outcome, successor) = {
            let mut parked = Box::pin(stub.keep_parked(&taken, &taking, &stop));
            tokio::select! {
                outcome = &mut parked => (outcome, None),
                successor = stub.successor(&mut asked) => {
                    stub.state().hand_over();
                    taking.cancel();
                    (parked.await, Some(successor))
                }
            }
        };
        taking.cancel();
        doors.close();
        if let Some((link, asked)) = successor {
            doors.wait().await;
            stub.outlive(link, asked, &taken, &stop).await;
        } else {
            // Whether it was asked to end, or may not serve this workspace any more.
            stub.sessions.earlier.end().await;
        }
        outcome
    };
    let outcome = tokio::select! {
        outcome = life => outcome,
        () = orphans::reap() => Ok(()),
    };
    stop.cancel();
    taken.close();
    let _ = tokio::time::timeout(STOP_TIMEOUT, async { tokio::join!(doors.wait(), taken.wait()) }).await;
    orphans::end_all(&stub.others().await).await;
    outcome
}

impl Stub {
    /// Waits for a successor for which there is a place.
    async fn successor(&self, asked: &mut mpsc::Receiver<Asked>) -> (Link, Asked) {
        loop {
            let Some(asked) = asked.recv().await else { return std::future::pending().await };
            let link = match self.sessions.earlier.count().await {
                MAX_EARLIER.. => {
                    let text = format!(
                        "{MAX_EARLIER} stubs of this workspace live on already, until what they have is done. hint: end \
                         what runs through them, or end them (`pgrep nexus-stub`)"
                    );
                    Err(Refusal::new(RefusalCode::Busy, text))
                }
                _ => Link::open(self.state().dir()),
            };
            match link {
                Ok(link) => return (link, asked),
                Err(refusal) => {
                    tracing::warn!(%refusal, "not handed over");
                    let _ = asked.answer.send(Err(refusal));
                }
            }
        }
    }

    /// Nothing is taken any more, and the successor is told so. What there is goes on until it is done, or for
    /// [`LAST`]; what runs in the background of the workspace, for as long as it does: nobody else would end it.
    async fn outlive(&self, link: Link, asked: Asked, taken: &TaskTracker, stop: &CancellationToken) {
        let laptops = &self.sessions.laptops;
        let (sessions, streams) = laptops.drain();
        let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").into());
        let direct = self.workspace.direct.bound();
        let Asked { pid: successor, answer } = asked;
        // Where it was started from inside the workspace, it is below this process before it serves anything.
        self.successor.store(successor.unwrap_or_default(), Relaxed);
        let _ = answer.send(Ok(HandedOver { pid, version, sessions, streams, direct }));
        (self.events)(StubEvent::HandedOver(sessions, streams));
        taken.close();
        let done = CancellationToken::new();
        let last = async {
            let over = tokio::select! {
                () = taken.wait() => None,
                () = tokio::time::sleep(LAST) => Some("its time is over"),
                () = self.unserved() => Some("nobody serves the workspace any more, nor hears whom it may not serve"),
            };
            if let Some(over) = over {
                tracing::warn!(over, "what goes on here is ended");
                let text = format!("the stub of this session was replaced, and {over}. hint: a new session begins");
                laptops.end_all(&Refusal::new(RefusalCode::Unavailable, text)).await;
                let _ = tokio::time::timeout(STOP_TIMEOUT, taken.wait()).await;
            }
            orphans::gone(async || self.others().await).await;
            (self.events)(StubEvent::Done);
            done.cancel();
        };
        let ended = async {
            tokio::select! {
                () = last => {}
                () = stop.cancelled() => done.cancel(),
            }
        };
        tokio::join!(link.run(laptops.clone(), done.clone(), stop.clone()), ended);
    }

    /// Returns when nobody has served the workspace for a while: a successor that crashed, or never began. Only who serves
    /// it hears of revocations.
    async fn unserved(&self) {
        let mut looks = 0;
        while looks < UNSERVED_LOOKS {
            tokio::time::sleep(UNSERVED_LOOK).await;
            looks = if local::pid_at(&self.socket).await.is_some() { 0 } else { looks + 1 };
        }
    }

    /// Other stubs of this workspace, which may have been started from inside it.
    async fn others(&self) -> Spare {
        let serves = local::pid_at(&self.socket).await;
        let successor = self.successor.load(Relaxed);
        self.sessions.earlier.pids().await.into_iter().chain(serves).chain([successor]).collect()
    }

    async fn keep_parked(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        taking: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<(), ClientError> {
        let mut backoff = Backoff::default();
        let mut parked_once = false;
        let mut changes = self.changes.subscribe();
        loop {
            let parked = tokio::select! {
                parked = self.park(&mut backoff, &mut parked_once) => parked,
                // What is parked may be dead without a word; a new connection costs little.
                _ = changes.changed() => {
                    backoff.reset();
                    continue;
                }
                () = taking.cancelled() => return Ok(()),
            };
            let (why, wait) = match parked {
                Ok(Parked::Joined { carrier, session }) => {
                    let (stub, stop) = (self.clone(), stop.clone());
                    tasks.spawn(async move { stub.joined(carrier, session, stop).await });
                    continue;
                }
                Ok(Parked::Drain(wait)) => ("the coordinator is restarting".into(), wait),
                Ok(Parked::Ended) => ("the connection to the coordinator broke".into(), backoff.next(rand::random())),
                Err(error) if !(error.is_passing() || parked_once && error.is_impostor()) => return Err(error),
                Err(error) => {
                    let longest = if error.is_name() { LONGEST_FOR_A_NAME } else { LONGEST };
                    (error.to_string(), backoff.next_up_to(longest, rand::random()))
                }
            };
            self.told.away(&why, wait);
            (self.events)(StubEvent::Waiting(why, wait));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => backoff.reset(),
                () = taking.cancelled() => return Ok(()),
            }
        }
    }

    /// Parks a connection and waits for what becomes of it.
    async fn park(&self, backoff: &mut Backoff, parked_once: &mut bool) -> Result<Parked, ClientError> {
        // A stub that was off past its certificate's end gets a fresh one before it dials with it.
        self.renew().await?;
        let mut carrier = self.client.park().await?;
        let mut confirmed = false;
        loop {
            let arrival = tokio::select! {
                arrival = carrier.arrival() => arrival,
                () = tokio::time::sleep(UPGRADE_TIMEOUT), if !confirmed => return Ok(Parked::Ended),
            };
            match arrival {
                Ok(Some(Arrival::Control(Control::Parked {}))) => {
                    confirmed = true;
                    *parked_once = true;
                    backoff.reset();
                    self.told.ready();
                    (self.events)(StubEvent::Parked);
                }
                Ok(Some(Arrival::Control(Control::Join { session, .. }))) => {
                    return Ok(Parked::Joined { carrier: Box::new(carrier), session });
                }
                Ok(Some(Arrival::Control(Control::Drain { reconnect_after_ms }))) => {
                    return Ok(Parked::Drain(Duration::from_millis(reconnect_after_ms.min(60_000))));
                }
                Ok(Some(Arrival::Control(Control::Refused(refusal)))) => {
                    return Err(Refusal::new(refusal.code, refusal.message).into());
                }
                Ok(Some(Arrival::Control(Control::Revoked { pins }))) => {
                    let pins: Vec<_> = pins.iter().take(MAX_REVOKED).filter_map(|pin| pin.parse().ok()).collect();
                    self.sessions.end_devices(&pins, &revoked()).await;
                }
                Ok(Some(Arrival::Control(Control::Authorities {}))) => {
                    Box::pin(renewal::follow(&self.client, |fresh| self.state().save_fresh(fresh))).await;
                }
                Ok(Some(Arrival::Control(Control::Unknown))) => {}
                Ok(Some(Arrival::Bytes(_)) | None) => return Ok(Parked::Ended),
                Err(error) => {
                    tracing::debug!(%error, "the parked connection broke");
                    return Ok(Parked::Ended);
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), ClientError> {
        if let Some(fresh) = self.client.renew_if_due(SystemTime::now()).await?
            && let Err(error) = self.state().save_fresh(&fresh)
        {
            tracing::error!(%error, "the renewed certificate could not be kept");
        }
        Ok(())
    }

    /// What a laptop wants of a connection is in its first message: a new session, or to go on with one.
    async fn joined(self: Arc<Self>, mut carrier: Box<CoordinatorCarrier>, session: String, stop: CancellationToken) {
        let attach = match tokio::time::timeout(HANDSHAKE_TIMEOUT, first_attach(&mut *carrier)).await {
            Ok(Some(attach)) => attach,
            Ok(None) => return tracing::debug!(session, "a laptop left before it said what it wants"),
            Err(_) => return tracing::debug!(session, "a laptop did not say what it wants"),
        };
        if attach.mode == AttachMode::Begin {
            return self.session(carrier, &attach, session, stop).await;
        }
        match self.sessions.find(&attach, Route::Relay).await {
            Ok(Place::Here(lifeline)) => {
                tracing::info!(session, "a session goes on here");
                lifeline.arrived(carrier, Route::Relay, attach).await;
            }
            Ok(Place::Earlier(link)) => self.sessions.pass(*carrier, link).await,
            // The stub that may have it does not answer: the laptop tries again.
            Err(refusal) if matches!(refusal.code, RefusalCode::Timeout | RefusalCode::Unavailable) => {
                tracing::warn!(session, %refusal, "a session cannot go on yet");
            }
            Err(refusal) => {
                tracing::info!(session, %refusal, "a session cannot go on");
                let end = LifelineMessage::End { offset: 0, refusal: Some(refusal) };
                let _ = carrier.send(end.encode()).await;
                carrier.close().await;
            }
        }
    }

    async fn session(
        self: Arc<Self>,
        carrier: Box<CoordinatorCarrier>,
        attach: &Attach,
        session: String,
        stop: CancellationToken,
    ) {
        // After a machine slept, the laptop may come before the timer of the renewal does.
        if let Err(error) = self.renew().await {
            tracing::warn!(session, %error, "the certificate could not be renewed yet");
        }
        let tls = match self.inner_tls() {
            Ok(tls) => tls,
            Err(error) => return tracing::error!(%error, "no TLS configuration"),
        };
        let established = match establish::accept(carrier, Route::Relay, attach, tls).await {
            Ok(established) => established,
            Err(error) => return tracing::warn!(session, %error, "a laptop was refused"),
        };
        let peer = established.peer.clone();
        let Role::Device(device) = peer.identity.role else { return };
        match self.state().admit(peer.pin) {
            Ok(true) => {}
            Ok(false) => return tracing::warn!(session, %device, "another device came first, or this one was removed"),
            Err(error) => return tracing::error!(%error, "the first device could not be remembered"),
        }
        let watched = established.lifeline.standing();
        let (id, end) =
            self.sessions.laptops.enter(peer.pin, established.opener.clone(), established.lifeline.clone()).await;
        tracing::info!(session, %device, "session");
        (self.events)(StubEvent::SessionBegan(device.to_string()));
        tokio::select! {
            outcome = serve(established, self.workspace.clone(), self.state.clone(), self.sessions.clone(), end) => {
                tracing::info!(session, %device, ?outcome, "session over");
            }
            () = self.doubt(watched) => {}
            () = stop.cancelled() => {}
        }
        self.sessions.laptops.leave(id);
        (self.events)(StubEvent::SessionEnded(device.to_string()));
    }

    /// A session whose connection is gone or does not answer puts the parked one in doubt: it takes the same way.
    async fn doubt(&self, mut standing: watch::Receiver<Standing>) {
        let is_well = |standing: &Standing| !matches!(standing, Standing::Suspect { .. } | Standing::Lost { .. });
        while standing.wait_for(|standing| !is_well(standing)).await.is_ok() {
            let what = "the connection of a session does not answer";
            self.changes.send_modify(|change| *change = Change { count: change.count + 1, what });
            if standing.wait_for(is_well).await.is_err() {
                break;
            }
        }
        // Whoever serves the session sees its end.
        std::future::pending().await
    }

    /// The inner TLS server: devices on the list only, checked anew for each session.
    fn inner_tls(self: &Arc<Self>) -> Result<Arc<rustls::ServerConfig>, IdentityError> {
        let stub = self.clone();
        let check = Arc::new(move |peer: &crate::identity::certificate::PeerCertificate| {
            if stub.state().admits(&peer.pin) {
                Ok(())
            } else {
                Err(IdentityError::NotAdmitted { device: peer.identity.to_string(), pin: peer.pin })
            }
        });
        let credential = self.client.credential();
        server_config(&self.client.trust(), &credential, ClientAuth::Required(Expect::Device(check)), &[])
    }

    fn state(&self) -> std::sync::MutexGuard<'_, StubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn revoked() -> Refusal {
    let text = "this device was revoked at the coordinator. hint: pair it again with a new key";
    Refusal::new(RefusalCode::Denied, text)
}

enum Parked {
    Joined { carrier: Box<CoordinatorCarrier>, session: String },
    Drain(Duration),
    Ended,
}

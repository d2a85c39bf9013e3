//! The tunnel to one workspace: begins a session, proves it, publishes it, and begins the next when it is over or drains.
//!
//! Services hold a [`TunnelOpener`], which is whatever session stands at the moment; they outlive every session.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::earlier::{Earlier, Retired};
use super::life::Life;
use super::profile::Profile;
use super::tunnel_state;
pub use super::tunnel_state::TunnelState;
use crate::identity::verify::{Expect, client_config};
use crate::lifeline::Route;
use crate::role::backoff::Backoff;
use crate::role::changes::{self, Change};
use crate::role::renewal;
use crate::session::establish::{self, Greeting, Session, SessionError};
use crate::session::held::HOLD;
use crate::session::mux::{MuxOpener, MuxStream};
use crate::session::opener::Opener;
use crate::transport::carrier::Arrival;
use crate::transport::client::{ClientError, CoordinatorCarrier, CoordinatorClient};
use crate::wire::control::Control;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// How long the coordinator may take to join us: more than it waits for a stub.
const JOIN_TIMEOUT: Duration = Duration::from_secs(45);

/// A session that lasts this long is a good one. A workspace that ends each at once is not asked for the next at once.
const STEADY: Duration = Duration::from_secs(10);

/// Sessions in a row that the workspace may hand over soon after they began, and the next begins at once.
const AT_ONCE: u32 = 3;

/// How long the workspace may take to say that it knows of a hand-over.
const AGREE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the tunnel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The way to the coordinator, or its refusal.
    #[error("{0}")]
    Coordinator(#[from] ClientError),
    /// The session with the workspace.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// What is kept on disk.
    #[error("{0}")]
    Profile(#[from] super::profile::ProfileError),
    /// The coordinator is about to stop and said when to come back.
    #[error("the coordinator is restarting")]
    Drain(Duration),
    /// A connection came to be, and the workspace did not take the session there.
    #[error("the session was not resumed: {0}")]
    Resume(String),
    /// A later login of this device has the workspace now.
    #[error("{0}")]
    TakenOver(Refusal),
}

impl TunnelError {
    /// Whether trying again without changing anything may help.
    pub fn is_passing(&self) -> bool {
        match self {
            TunnelError::Coordinator(error) => error.is_passing(),
            TunnelError::Session(error) => !error.is_identity(),
            TunnelError::Profile(_) => false,
            TunnelError::Drain(_) | TunnelError::Resume(_) => true,
            TunnelError::TakenOver(_) => false,
        }
    }

    /// Whether something answered in the coordinator's place, as the networks of hotels do. It is left again.
    pub(super) fn is_impostor(&self) -> bool {
        matches!(self, TunnelError::Coordinator(error) if error.is_impostor())
    }

    pub(super) fn resume(why: String) -> TunnelError {
        TunnelError::Resume(why)
    }
}

/// Opens streams on whatever session stands at the moment.
#[derive(Debug, Clone)]
pub struct TunnelOpener {
    current: watch::Receiver<Option<MuxOpener>>,
    state: watch::Receiver<TunnelState>,
}

impl Opener for TunnelOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        let current = self.current.borrow().clone();
        match current {
            Some(opener) => {
                self.resumed().await?;
                match opener.open().await {
                    Err(_) if opener.is_draining() => self.next(&opener).await?.open().await,
                    opened => opened,
                }
            }
            None => {
                Err(Refusal::new(RefusalCode::Unavailable, "the tunnel is down. hint: `nexus-proxy status` says why"))
            }
        }
    }
}

impl TunnelOpener {
    /// Waits a moment for the session that takes the place of `last`, which drains.
    async fn next(&self, last: &MuxOpener) -> Result<MuxOpener, Refusal> {
        let next = tokio::time::timeout(HOLD, self.clone().session_after(Some(last))).await;
        next.ok().flatten().ok_or_else(|| {
            let text =
                "the session was handed over, and the next one has not begun. hint: `nexus-proxy status` says more";
            Refusal::new(RefusalCode::Unavailable, text)
        })
    }

    /// Waits a moment for a session that is being resumed.
    async fn resumed(&self) -> Result<(), Refusal> {
        let since = match &*self.state.borrow() {
            TunnelState::Resuming { since, .. } => *since,
            _ => return Ok(()),
        };
        let down: Duration = (time::OffsetDateTime::now_utc() - since).try_into().unwrap_or_default();
        let mut state = self.state.clone();
        let resumed = async { state.wait_for(|state| !matches!(state, TunnelState::Resuming { .. })).await.map(drop) };
        match tokio::time::timeout(HOLD.saturating_sub(down), resumed).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let text = "the connection to the workspace is interrupted, and being mended. hint: `nexus-proxy status` says more";
                Err(Refusal::new(RefusalCode::Timeout, text))
            }
        }
    }

    /// Whether a session stands now.
    pub fn is_up(&self) -> bool {
        self.current.borrow().as_ref().is_some_and(|opener| !opener.is_closed())
    }

    /// Waits until a session stands that is not `last`, and gives it.
    pub async fn session_after(&mut self, last: Option<&MuxOpener>) -> Option<MuxOpener> {
        let stands = |current: &Option<MuxOpener>| match (current, last) {
            (Some(current), Some(last)) => !current.is_same(last),
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.current.wait_for(stands).await.ok().and_then(|current| current.clone())
    }
}

/// How a session stopped being the one that stands.
enum Stood {
    /// It is over, and why.
    Over(TunnelError),
    /// It drains, and is over as well if nothing was open in it.
    Drains { done: bool },
}

/// Keeps a tunnel to one workspace.
#[derive(Debug)]
pub struct Tunnel {
    client: CoordinatorClient,
    profile: Mutex<Profile>,
    workspace: WorkspaceName,
    instance: String,
    state: watch::Sender<TunnelState>,
    current: watch::Sender<Option<MuxOpener>>,
    changes: watch::Sender<Change>,
    direct: bool,
    earlier: Earlier,
    /// Cancelled when another program takes the workspace over.
    leaving: CancellationToken,
}

impl Tunnel {
    /// A tunnel that [`run`](Self::run) builds.
    pub fn new(client: CoordinatorClient, profile: Profile, workspace: WorkspaceName) -> Tunnel {
        Tunnel {
            client,
            profile: Mutex::new(profile),
            workspace,
            instance: uuid::Uuid::new_v4().simple().to_string(),
            state: watch::Sender::new(TunnelState::Connecting { attempt: 1 }),
            current: watch::Sender::new(None),
            changes: watch::Sender::default(),
            direct: true,
            earlier: Earlier::default(),
            leaving: CancellationToken::new(),
        }
    }

    /// Whether it looks for a way without the coordinator. It does unless told not to.
    pub fn with_direct(self, direct: bool) -> Tunnel {
        Tunnel { direct, ..self }
    }

    pub(super) fn wants_direct(&self) -> bool {
        self.direct
    }

    /// Names this process in what it says to the workspace.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// Opens streams on it.
    pub fn opener(&self) -> TunnelOpener {
        TunnelOpener { current: self.current.subscribe(), state: self.state.subscribe() }
    }

    /// How it is, as it changes.
    pub fn state(&self) -> watch::Receiver<TunnelState> {
        self.state.subscribe()
    }

    /// The way that bytes take now; empty when there is none.
    pub fn path(&self) -> &'static str {
        match &*self.state.borrow() {
            TunnelState::Up { path: Route::Relay, .. } => "relay",
            TunnelState::Up { path: Route::Direct, .. } => "direct",
            _ => "",
        }
    }

    /// The workspace.
    pub fn workspace(&self) -> &WorkspaceName {
        &self.workspace
    }

    /// The way to the coordinator.
    pub fn client(&self) -> &CoordinatorClient {
        &self.client
    }

    /// Keeps the tunnel up until `stop`. `serve` takes each session's incoming streams. Ends by itself, with the
    /// reason, only when trying on is pointless.
    pub async fn run<F, S>(self: Arc<Self>, serve: F, stop: CancellationToken) -> Result<(), TunnelError>
    where
        F: Fn(MuxStream) -> S + Send + Sync,
        S: Future<Output = ()> + Send + 'static,
    {
        let renew = Box::pin(renewal::keep_fresh(&self.client, |fresh| self.profile().save_fresh(fresh)));
        let toward = self.client.url().literal();
        let notice = changes::notice(toward, self.changes.clone());
        let (retire, retired) = mpsc::unbounded_channel();
        let keep = async {
            let earlier = self.earlier.keep(retired, &self.leaving);
            tokio::try_join!(self.keep_up(&serve, retire), earlier).map(drop)
        };
        tokio::select! {
            outcome = keep => outcome,
            () = notice => Ok(()),
            () = renew => Ok(()),
            () = stop.cancelled() => {
                self.current.send_replace(None);
                Ok(())
            }
        }
    }

    /// Begins one session after the other. Ends in order when this program hands over; what is open then is retired.
    async fn keep_up<'a, F, S>(
        &'a self,
        serve: &'a F,
        retire: mpsc::UnboundedSender<Retired<'a>>,
    ) -> Result<(), TunnelError>
    where
        F: Fn(MuxStream) -> S + Send + Sync,
        S: Future<Output = ()> + Send + 'static,
    {
        let mut backoff = Backoff::default();
        let mut down_since = None;
        let mut was_up = false;
        let mut drained = 0;
        loop {
            self.publish(TunnelState::Connecting { attempt: backoff.failures() + 1 });
            let started = Instant::now();
            let connected = tokio::select! {
                connected = self.connect() => connected,
                () = self.leaving.cancelled() => return Ok(()),
            };
            let error = match connected {
                Ok((session, greeting)) => {
                    let up = Instant::now();
                    down_since = None;
                    was_up = true;
                    let standing = tunnel_state::Standing {
                        took_ms: started.elapsed().as_millis() as u64,
                        since: time::OffsetDateTime::now_utc(),
                        stub_version: greeting.version,
                    };
                    let life = Life::new(self, &session, standing);
                    let mut running: BoxFuture<'a, TunnelError> = Box::pin(life.clone().run(session, serve));
                    let over = self.stand(&life, &mut running).await;
                    if up.elapsed() >= STEADY {
                        backoff.reset();
                        drained = 0;
                    }
                    match over {
                        Stood::Over(error) => error,
                        Stood::Drains { done } => {
                            life.retire();
                            if !done {
                                // Whoever keeps them goes as this does.
                                let _ = retire.send(Retired { opener: life.opener.clone(), life: running });
                            }
                            if self.leaving.is_cancelled() {
                                return Ok(());
                            }
                            tracing::info!("the workspace hands this session over; the next one begins");
                            drained += 1;
                            if drained <= AT_ONCE {
                                continue;
                            }
                            let text = "the workspace hands over one session after the other";
                            SessionError::Refused(Refusal::new(RefusalCode::Unavailable, text)).into()
                        }
                    }
                }
                Err(error) => error,
            };
            if !(error.is_passing() || was_up && error.is_impostor()) {
                self.publish(TunnelState::Failed { why: error.to_string() });
                return Err(error);
            }
            let wait = match error {
                TunnelError::Drain(wait) => wait,
                _ => backoff.next(rand::random()),
            };
            let since = *down_since.get_or_insert_with(time::OffsetDateTime::now_utc);
            // As a text, not as it prints: a line end in it would begin a line of the log.
            tracing::info!(error = error.to_string(), ?wait, "the tunnel is down");
            let retry_ms = wait.as_millis() as u64;
            self.publish(TunnelState::Waiting { why: error.to_string(), retry_ms, since });
            let mut changes = self.changes();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => backoff.reset(),
                () = self.leaving.cancelled() => return Ok(()),
            }
        }
    }

    /// Until the session is over, with the reason, or until it drains.
    async fn stand(&self, life: &Life<'_>, running: &mut BoxFuture<'_, TunnelError>) -> Stood {
        self.current.send_replace(Some(life.opener.clone()));
        if self.leaving.is_cancelled() {
            life.opener.drain();
        }
        let over = tokio::select! {
            error = running => error,
            () = life.opener.draining() => return Stood::Drains { done: false },
        };
        // Nothing was open in it: it was done as soon as it drained. Who asks for a stream waits for the next.
        if life.opener.has_drained() {
            return Stood::Drains { done: true };
        }
        self.current.send_replace(None);
        Stood::Over(over)
    }

    /// This program hands the workspace over to another one: no session begins any more, and the one that stands drains.
    /// Returns when the workspace knows that. Refused before anything has changed while that cannot be; may be asked again
    /// after any refusal.
    pub async fn hand_over(&self, close: impl Future<Output = ()>) -> Result<(), Refusal> {
        if !self.leaving.is_cancelled() {
            self.can_hand_over().await?;
        }
        close.await;
        self.leaving.cancel();
        // Those that the workspace drained, too: it opens nothing in them any more, whatever it said.
        self.earlier.drain();
        let Some(opener) = self.current.borrow().clone() else { return Ok(()) };
        opener.drain();
        let known = async {
            tokio::select! {
                () = opener.agreed() => {}
                () = opener.closed() => {}
            }
        };
        tokio::time::timeout(AGREE_TIMEOUT, known).await.map_err(|_| {
            let text = format!(
                "the workspace did not say within {} s that it knows of the hand-over. hint: run it again; \
                 what is open goes on meanwhile",
                AGREE_TIMEOUT.as_secs()
            );
            Refusal::new(RefusalCode::Timeout, text)
        })
    }

    /// Whether the workspace answers, if there is a session at all.
    async fn can_hand_over(&self) -> Result<(), Refusal> {
        let Some(opener) = self.current.borrow().clone() else { return Ok(()) };
        if opener.is_closed() || opener.is_draining() {
            return Ok(());
        }
        match tokio::time::timeout(HOLD, establish::hello(&opener, &self.instance)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => {
                let text = "the connection to the workspace is interrupted, and a session that is interrupted cannot be handed \
                            over. hint: try again when `nexus-proxy status` says that it is up";
                Err(Refusal::new(RefusalCode::Unavailable, text))
            }
        }
    }

    /// Whether another program takes the workspace over.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Streams that are open in sessions that drain.
    pub fn earlier(&self) -> usize {
        let current = self.current.borrow().clone().filter(|opener| opener.is_draining());
        self.earlier.streams(current.as_ref())
    }

    /// A connection that the coordinator has joined to one of the workspace's.
    pub(super) async fn join(&self) -> Result<CoordinatorCarrier, TunnelError> {
        // A laptop that slept past its certificate's end gets a fresh one before it dials with it.
        self.renew().await?;
        let carrier = self.client.connect(&self.workspace).await?;
        let late = |_| ClientError::Dial("the coordinator did not join us to the workspace in time".into());
        tokio::time::timeout(JOIN_TIMEOUT, joined(carrier)).await.map_err(late)?
    }

    /// Changes of the machine's circumstances from here on.
    pub(super) fn changes(&self) -> watch::Receiver<Change> {
        self.changes.subscribe()
    }

    pub(super) fn publish(&self, state: TunnelState) {
        self.state.send_if_modified(|before| {
            let differs = *before != state;
            *before = state;
            differs
        });
    }

    async fn connect(&self) -> Result<(Session, Greeting), TunnelError> {
        let carrier = self.join().await?;
        let pin = self.profile().pin(&self.workspace);
        let expect = Expect::Workspace { name: self.workspace.clone(), pin };
        let credential = self.client.credential();
        let tls = client_config(&self.client.trust(), expect, Some(&credential), &[]).map_err(ClientError::from)?;
        let (session, greeting) = establish::connect(Box::new(carrier), Route::Relay, tls, &self.instance).await?;
        if pin.is_none() {
            tracing::info!(workspace = %self.workspace, pin = %session.peer.pin, "first contact: key pinned");
            self.profile().set_pin(&self.workspace, session.peer.pin)?;
        }
        Ok((session, greeting))
    }

    async fn renew(&self) -> Result<(), TunnelError> {
        if let Some(fresh) = self.client.renew_if_due(SystemTime::now()).await? {
            self.profile().save_fresh(&fresh)?;
            tracing::info!("certificate renewed");
        }
        Ok(())
    }

    fn profile(&self) -> std::sync::MutexGuard<'_, Profile> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the coordinator has joined the carrier to the workspace's.
async fn joined(mut carrier: CoordinatorCarrier) -> Result<CoordinatorCarrier, TunnelError> {
    let broken = |why: String| TunnelError::Coordinator(ClientError::Dial(why));
    loop {
        match carrier.arrival().await {
            Ok(Some(Arrival::Control(Control::Join { session, .. }))) => {
                tracing::debug!(session, "joined");
                return Ok(carrier);
            }
            Ok(Some(Arrival::Control(Control::Refused(refusal)))) => {
                let refusal = Refusal::from_bytes(&refusal.to_bytes());
                return Err(TunnelError::Coordinator(ClientError::Refused(refusal)));
            }
            Ok(Some(Arrival::Control(Control::Drain { reconnect_after_ms }))) => {
                return Err(TunnelError::Drain(Duration::from_millis(reconnect_after_ms.min(60_000))));
            }
            Ok(Some(Arrival::Control(_))) => {}
            Ok(Some(Arrival::Bytes(_))) => return Err(broken("the coordinator sent bytes before a join".into())),
            Ok(None) => return Err(broken("the coordinator closed the connection".into())),
            Err(error) => return Err(broken(format!("the connection to the coordinator broke: {error}"))),
        }
    }
}

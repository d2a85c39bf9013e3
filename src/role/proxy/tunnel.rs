//! The tunnel to one workspace: connects, proves, publishes the session, and connects again when it ends.
//!
//! Services hold a [`TunnelOpener`], which is whatever session stands at the moment; they outlive every session.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::profile::Profile;
use crate::identity::verify::{Expect, client_config};
use crate::role::backoff::Backoff;
use crate::role::renewal;
use crate::session::establish::{self, Greeting, Session, SessionError};
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

/// How the tunnel is.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TunnelState {
    /// On its way; `attempt` counts from 1.
    Connecting {
        /// Attempts since it was last up.
        attempt: u32,
    },
    /// Up, verified end to end.
    Up {
        /// Milliseconds from the first packet to the verified session.
        took_ms: u64,
        /// Since when.
        #[serde(with = "time::serde::rfc3339")]
        since: time::OffsetDateTime,
        /// The stub's program version.
        stub_version: String,
    },
    /// Down; another attempt follows.
    Waiting {
        /// Why.
        why: String,
        /// Milliseconds until the next attempt.
        retry_ms: u64,
        /// Since when it has been down.
        #[serde(with = "time::serde::rfc3339")]
        since: time::OffsetDateTime,
    },
    /// Down for good: trying again without a change would give the same.
    Failed {
        /// Why.
        why: String,
    },
}

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
}

impl TunnelError {
    /// Whether trying again without changing anything may help.
    pub fn is_passing(&self) -> bool {
        match self {
            TunnelError::Coordinator(error) => error.is_passing(),
            TunnelError::Session(error) => !error.is_identity(),
            TunnelError::Profile(_) => false,
            TunnelError::Drain(_) => true,
        }
    }
}

/// Opens streams on whatever session stands at the moment.
#[derive(Debug, Clone)]
pub struct TunnelOpener {
    current: watch::Receiver<Option<MuxOpener>>,
}

impl Opener for TunnelOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        let current = self.current.borrow().clone();
        match current {
            Some(opener) => opener.open().await,
            None => {
                Err(Refusal::new(RefusalCode::Unavailable, "the tunnel is down. hint: `nexus-proxy status` says why"))
            }
        }
    }
}

impl TunnelOpener {
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

/// Keeps a tunnel to one workspace.
#[derive(Debug)]
pub struct Tunnel {
    client: CoordinatorClient,
    profile: Mutex<Profile>,
    workspace: WorkspaceName,
    instance: String,
    state: watch::Sender<TunnelState>,
    current: watch::Sender<Option<MuxOpener>>,
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
        }
    }

    /// Opens streams on it.
    pub fn opener(&self) -> TunnelOpener {
        TunnelOpener { current: self.current.subscribe() }
    }

    /// How it is, as it changes.
    pub fn state(&self) -> watch::Receiver<TunnelState> {
        self.state.subscribe()
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
        let renew = Box::pin(renewal::keep_fresh(&self.client, |fresh| self.profile().save_credential(fresh.clone())));
        let keep = self.keep_up(serve);
        tokio::select! {
            outcome = keep => outcome,
            () = renew => Ok(()),
            () = stop.cancelled() => {
                self.current.send_replace(None);
                Ok(())
            }
        }
    }

    async fn keep_up<F, S>(&self, serve: F) -> Result<(), TunnelError>
    where
        F: Fn(MuxStream) -> S,
        S: Future<Output = ()> + Send + 'static,
    {
        let mut backoff = Backoff::default();
        let mut down_since = None;
        let mut was_up = false;
        loop {
            self.state.send_replace(TunnelState::Connecting { attempt: backoff.failures() + 1 });
            let started = Instant::now();
            let error = match self.connect().await {
                Ok((session, greeting)) => {
                    let up = Instant::now();
                    down_since = None;
                    was_up = true;
                    self.current.send_replace(Some(session.opener.clone()));
                    self.state.send_replace(TunnelState::Up {
                        took_ms: started.elapsed().as_millis() as u64,
                        since: time::OffsetDateTime::now_utc(),
                        stub_version: greeting.version,
                    });
                    let why = serve_session(session, &serve).await;
                    self.current.send_replace(None);
                    if up.elapsed() >= STEADY {
                        backoff.reset();
                    }
                    TunnelError::Session(SessionError::Refused(Refusal::new(RefusalCode::Unavailable, why)))
                }
                Err(error) => error,
            };
            // A network that answers in the coordinator's place, as hotels do, is left again.
            let impostor = was_up && matches!(error, TunnelError::Coordinator(ClientError::Identity(_)));
            if !error.is_passing() && !impostor {
                self.state.send_replace(TunnelState::Failed { why: error.to_string() });
                return Err(error);
            }
            let wait = match error {
                TunnelError::Drain(wait) => wait,
                _ => backoff.next(rand::random()),
            };
            let since = *down_since.get_or_insert_with(time::OffsetDateTime::now_utc);
            // As a text, not as it prints: a line end in it would begin a line of the log.
            tracing::info!(error = error.to_string(), ?wait, "the tunnel is down");
            self.state.send_replace(TunnelState::Waiting {
                why: error.to_string(),
                retry_ms: wait.as_millis() as u64,
                since,
            });
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect(&self) -> Result<(Session, Greeting), TunnelError> {
        // A laptop that slept past its certificate's end gets a fresh one before it dials with it.
        self.renew().await?;
        let carrier = self.client.connect(&self.workspace).await?;
        let late = |_| ClientError::Dial("the coordinator did not join us to the workspace in time".into());
        let carrier = tokio::time::timeout(JOIN_TIMEOUT, joined(carrier)).await.map_err(late)??;
        let pin = self.profile().pin(&self.workspace);
        let expect = Expect::Workspace { name: self.workspace.clone(), pin };
        let credential = self.client.credential();
        let tls = client_config(self.client.trust(), expect, Some(&credential), &[]).map_err(ClientError::from)?;
        let (session, greeting) = establish::connect(carrier, tls, &self.instance).await?;
        if pin.is_none() {
            tracing::info!(workspace = %self.workspace, pin = %session.peer.pin, "first contact: key pinned");
            self.profile().set_pin(&self.workspace, session.peer.pin)?;
        }
        Ok((session, greeting))
    }

    async fn renew(&self) -> Result<(), TunnelError> {
        if let Some(fresh) = self.client.renew_if_due(SystemTime::now()).await? {
            self.profile().save_credential((*fresh).clone())?;
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

/// Serves a session's incoming streams until it ends; gives the reason. Streams end with it.
async fn serve_session<F, S>(mut session: Session, serve: &F) -> String
where
    F: Fn(MuxStream) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = session.acceptor.accept() => match stream {
                Some(stream) => {
                    streams.spawn(serve(stream));
                }
                None => break,
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
    streams.shutdown().await;
    match session.ended().await {
        Ok(()) => "the other side ended the session".into(),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
        Err(error) => format!("the connection broke: {error}"),
    }
}

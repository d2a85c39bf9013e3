//! The stub's life, from its open doors to its end: at once when it is stopped; when everything that it has is done, after it
//! handed over to a successor. When that one is gone, another life of the same process begins beside what goes on. What parks, who is let in and how it outlives a hand-over have rooms of their own.

use std::path::PathBuf;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::direct::{DirectConfig, DirectPort};
use super::earlier::Earlier;
use super::gateway::{Doorbell, Gateway};
use super::hand_over::HandedOver;
use super::kin::Kin;
use super::orphans;
use super::session::Workspace;
use super::sessions::Sessions;
use super::state::StubState;
use super::status::Told;
use crate::role::changes::{self, Change};
use crate::role::renewal;
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::{ClientError, CoordinatorClient};
use crate::transport::outer::OuterTls;

/// How long a stop waits for sessions.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a stub runs with.
#[derive(Debug, Clone)]
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
    /// The successor is gone; this stub serves the workspace again.
    TakenBack,
    /// And all of it is done.
    Done,
}

/// Where events are told.
type Events = Arc<dyn Fn(StubEvent) + Send + Sync>;

/// A stub that runs.
pub(super) struct Stub {
    pub(super) client: CoordinatorClient,
    pub(super) state: Arc<Mutex<StubState>>,
    pub(super) workspace: Arc<Workspace>,
    pub(super) sessions: Arc<Sessions>,
    /// What those after it must show.
    pub(super) kin: Kin,
    /// The process that took over; 0 while nobody did.
    pub(super) successor: AtomicI32,
    /// Where whoever serves the workspace listens.
    pub(super) socket: PathBuf,
    pub(super) events: Events,
    pub(super) told: Arc<Told>,
    pub(super) changes: watch::Sender<Change>,
}

/// Runs until `stop`, or until a successor took over and everything that began here is done. Ends by itself only when
/// trying on is pointless: revoked, or the wrong coordinator.
pub async fn run(
    config: StubConfig,
    state: StubState,
    events: impl Fn(StubEvent) + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<(), ClientError> {
    orphans::adopt();
    tokio::select! {
        outcome = live(config, state, Arc::new(events), stop, true) => outcome,
        () = orphans::reap() => Ok(()),
    }
}

/// One life of the process. What runs in the background ends with the first, which lasts as long as those after it.
async fn live(
    config: StubConfig,
    state: StubState,
    events: Events,
    stop: CancellationToken,
    is_first: bool,
) -> Result<(), ClientError> {
    let gateway = Gateway::bind(&config.socket)
        .await
        .map_err(|e| ClientError::Dial(format!("the workspace's socket cannot be opened: {e}")))?;
    let known = config.took_over.as_ref().and_then(|(earlier, _)| earlier.direct);
    let direct = DirectPort::open(config.direct.clone(), known).await;
    let direct =
        direct.map_err(|e| ClientError::Dial(format!("the port for direct connections cannot be opened: {e}")))?;
    if !is_first {
        events(StubEvent::TakenBack);
    }
    let mut workspace = config.workspace.clone();
    workspace.direct = direct.as_ref().map(DirectPort::addresses).unwrap_or_default();
    // Only the one that has the workspace's socket comes here.
    let kin = Kin::load_or_make(state.dir()).map_err(|e| ClientError::Dial(e.to_string()))?;
    let earlier = Earlier::new(state.dir(), kin.clone());
    let count = earlier.count().await;
    if count > 0 {
        tracing::info!(count, "earlier stubs live on until what they have is done");
    }
    let told = Arc::new(Told::new(state.workspace().to_string(), config.coordinator.to_string(), earlier.clone()));
    let dir = state.dir().to_owned();
    let client = CoordinatorClient::new(config.coordinator.clone(), state.trust.clone(), state.credential.clone())
        .with_outer(config.outer.clone());
    let stub = Arc::new(Stub {
        client,
        state: Arc::new(Mutex::new(state)),
        workspace: Arc::new(workspace),
        sessions: Arc::new(Sessions::new(earlier, stop.clone())),
        kin: kin.clone(),
        successor: AtomicI32::new(0),
        socket: config.socket.clone(),
        events: events.clone(),
        told: told.clone(),
        changes: watch::Sender::default(),
    });
    // Cancelled when nothing more is taken: at the end, or at a hand-over.
    let taking = stop.child_token();
    let (successors, mut asked) = mpsc::channel(1);
    let bell = Doorbell {
        successors: config.hands_over.then_some((successors, kin)),
        took_over: config.took_over.as_ref().map(|(_, at)| *at),
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
    let again = |handed: HandedOver| {
        let config = StubConfig { took_over: Some((handed, Instant::now())), ..config.clone() };
        live_again(config, dir.clone(), events.clone(), stop.child_token())
    };
    let life = async {
        let (outcome, successor) = {
            let is_known = config.took_over.is_some();
            let mut parked = Box::pin(stub.keep_parked(&taken, &taking, &stop, is_known));
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
        // Whoever asks later is told that this one is gone, and keeps nothing waiting.
        drop(asked);
        if let Some((link, first)) = successor {
            doors.wait().await;
            let outlived = stub.outlive(link, first, &taken, is_first, &stop, again).await;
            if is_first && !stop.is_cancelled() {
                events(StubEvent::Done);
            }
            return outcome.and(outlived);
        }
        // Whether it was asked to end, or may not serve this workspace any more. Whoever answers in the coordinator's place
        // decides nothing of what earlier ones have.
        if !outcome.as_ref().is_err_and(ClientError::is_between) {
            stub.sessions.earlier.end().await;
        }
        outcome
    };
    let outcome = life.await;
    stop.cancel();
    taken.close();
    let _ = tokio::time::timeout(STOP_TIMEOUT, async { tokio::join!(doors.wait(), taken.wait()) }).await;
    if is_first {
        match stub.others().await {
            Some(others) => orphans::end_all(&others).await,
            // What is left runs on; another stub that is ended would take all of its sessions along.
            None => tracing::warn!("what runs in the background cannot be told from another stub, and is left"),
        }
    }
    outcome
}

/// Another life, with what the state directory `dir` has by then: whoever took over may have changed it.
fn live_again(
    config: StubConfig,
    dir: PathBuf,
    events: Events,
    stop: CancellationToken,
) -> LocalBoxFuture<'static, Result<(), ClientError>> {
    Box::pin(async move {
        let state = StubState::load(&dir).map_err(|e| ClientError::Dial(e.to_string()))?;
        live(config, state, events, stop, false).await
    })
}

impl Stub {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, StubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

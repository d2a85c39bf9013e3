//! The tunnel to one workspace: begins a session, proves it, publishes it, and begins the next when it is over or drains.
//!
//! Services hold a [`TunnelOpener`], which is whatever session stands at the moment; they outlive every session.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use super::attempt::TunnelError;
use super::climb::Climb;
use super::earlier::{Earlier, Retired};
use super::life::Life;
use super::profile::Profile;
pub use super::tunnel_opener::TunnelOpener;
pub use super::tunnel_state::TunnelState;
use super::tunnel_state::{self, Doing, Remarks, Step, Told, time_in};
use crate::role::backoff::{Backoff, LONGEST_FOR_A_NAME};
use crate::role::changes::{self, Change};
use crate::role::renewal;
use crate::session::establish::{self, SessionError};
use crate::session::held::HOLD;
use crate::session::mux::{MuxOpener, MuxStream};
use crate::session::opener::SessionOpener;
use crate::session::way::Way;
use crate::transport::client::CoordinatorClient;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// A session that lasts this long is a good one. A workspace that ends each at once is not asked for the next at once.
const STEADY: Duration = Duration::from_secs(10);

/// Sessions in a row that the workspace may hand over soon after they began, and the next begins at once.
const AT_ONCE: u32 = 3;

/// How long the workspace may take to say that it knows of a hand-over.
const AGREE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long sessions may take to say goodbye when this program ends: a little longer than each of them takes for it.
const GOODBYES: Duration = Duration::from_millis(1500);

/// Connections to the workspace that are dialled in a second, after a burst. However often they break, and whoever breaks
/// them: each costs the coordinator a handshake, and behind a balancer the device one of its assertions.
const DIALS: NonZeroU32 = NonZeroU32::new(8).expect("not zero");

/// The burst.
const DIALS_AT_ONCE: NonZeroU32 = NonZeroU32::new(40).expect("not zero");

/// Sessions on their way to those that are kept until they are done. Taken out as soon as they are in: begun sessions are
/// further apart.
const RETIRING: usize = 1;

/// How a session stopped being the one that stands.
enum Stood {
    /// It is over, and why.
    Over(TunnelError),
    /// It drains, and is over as well if nothing was open in it.
    Drains { done: bool },
}

/// There is no session.
struct Down {
    since: time::OffsetDateTime,
    why: String,
}

/// Keeps a tunnel to one workspace.
#[derive(Debug)]
pub struct Tunnel {
    client: CoordinatorClient,
    profile: Mutex<Profile>,
    workspace: WorkspaceName,
    instance: String,
    told: Told,
    current: watch::Sender<Option<SessionOpener>>,
    changes: watch::Sender<Change>,
    direct: bool,
    /// What the sessions so far have shown of the direct way.
    climb: Mutex<Climb>,
    was_up: bool,
    earlier: Earlier,
    /// Of connections to the workspace.
    pub(super) dials: DefaultDirectRateLimiter,
    /// Cancelled when another program takes the workspace over.
    leaving: CancellationToken,
    /// Cancelled when this program ends; and the sessions that say so to the workspace.
    pub(super) ending: CancellationToken,
    pub(super) lives: TaskTracker,
}

impl Tunnel {
    /// A tunnel that [`run`](Self::run) builds.
    pub fn new(client: CoordinatorClient, profile: Profile, workspace: WorkspaceName) -> Tunnel {
        Tunnel {
            client,
            profile: Mutex::new(profile),
            workspace,
            instance: uuid::Uuid::new_v4().simple().to_string(),
            told: Told::default(),
            current: watch::Sender::new(None),
            changes: watch::Sender::default(),
            direct: true,
            climb: Mutex::default(),
            was_up: false,
            earlier: Earlier::default(),
            dials: RateLimiter::direct(Quota::per_second(DIALS).allow_burst(DIALS_AT_ONCE)),
            leaving: CancellationToken::new(),
            ending: CancellationToken::new(),
            lives: TaskTracker::new(),
        }
    }

    /// Whether it looks for a way without the coordinator. It does unless told not to.
    pub fn with_direct(self, direct: bool) -> Tunnel {
        Tunnel { direct, ..self }
    }

    /// Whether an earlier life of this program had the workspace: then who answers in the coordinator's place is waited out, as
    /// by a tunnel that was up itself.
    pub fn with_was_up(self, was_up: bool) -> Tunnel {
        Tunnel { was_up, ..self }
    }

    /// What the sessions so far have shown of the direct way.
    pub(super) fn climb(&self) -> Climb {
        self.climb.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The network changed while no session saw it.
    fn network_changed(&self) {
        self.climb.lock().unwrap_or_else(PoisonError::into_inner).network_changed();
    }

    /// Keeps what a session has shown of it.
    pub(super) fn set_climb(&self, climb: Climb) {
        *self.climb.lock().unwrap_or_else(PoisonError::into_inner) = climb;
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
        TunnelOpener::new(self.current.subscribe(), &self.told, self.changes())
    }

    /// How it is, as it changes.
    pub fn state(&self) -> watch::Receiver<TunnelState> {
        self.told.watch()
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
        F: Fn(MuxStream, Way) -> S + Send + Sync,
        S: Future<Output = ()> + Send + 'static,
    {
        let renew = Box::pin(renewal::keep_fresh(&self.client, |fresh| self.profile().save_fresh(fresh)));
        let notice = changes::notice(|| self.client.toward(), self.changes.clone());
        let (retire, retired) = mpsc::channel(RETIRING);
        let keep = async {
            let earlier = self.earlier.keep(retired, &self.leaving);
            tokio::try_join!(self.keep_up(&serve, retire), earlier).map(drop)
        };
        let mut keep = pin!(keep);
        tokio::select! {
            outcome = &mut keep => return outcome,
            () = notice => {}
            () = renew => {}
            () = stop.cancelled() => {}
        }
        self.current.send_replace(None);
        self.ending.cancel();
        self.lives.close();
        // A workspace that is told nothing would wait for this laptop to come back.
        tokio::select! {
            _ = keep => {}
            () = self.lives.wait() => {}
            () = tokio::time::sleep(GOODBYES) => {}
        }
        Ok(())
    }

    /// Begins one session after the other. Ends in order when this program hands over; what is open then is retired.
    async fn keep_up<'a, F, S>(&'a self, serve: &'a F, retire: mpsc::Sender<Retired<'a>>) -> Result<(), TunnelError>
    where
        F: Fn(MuxStream, Way) -> S + Send + Sync,
        S: Future<Output = ()> + Send + 'static,
    {
        let mut backoff = Backoff::default();
        let mut changes = self.changes();
        let mut down: Option<Down> = None;
        let mut begun = time::OffsetDateTime::now_utc();
        let mut was_up = self.was_up;
        let mut drained = 0;
        loop {
            let why = down.as_ref().map(|down| down.why.clone());
            let since = down.as_ref().map_or(begun, |down| down.since);
            let (attempt, doing) = (backoff.failures() + 1, Doing::ReachesCoordinator);
            self.publish(TunnelState::Connecting { attempt, since, doing, why });
            changes.borrow_and_update();
            let started = Instant::now();
            let connected = tokio::select! {
                connected = self.connect() => connected,
                // What an attempt waits for went with the old network.
                _ = changes.changed() => {
                    backoff.reset();
                    self.network_changed();
                    continue;
                }
                () = self.leaving.cancelled() => return Ok(()),
            };
            let error = match connected {
                Ok((session, greeting)) => {
                    let up = Instant::now();
                    down = None;
                    was_up = true;
                    let standing = tunnel_state::Standing {
                        took_ms: started.elapsed().as_millis() as u64,
                        since: time::OffsetDateTime::now_utc(),
                        stub_version: greeting.version,
                    };
                    let life = Life::new(self, &session, standing);
                    let mut running: BoxFuture<'a, TunnelError> = Box::pin(life.clone().run(session, serve));
                    let over = self.stand(&life, &mut running).await;
                    // What changed until here, the session has seen.
                    changes.borrow_and_update();
                    if self.ending.is_cancelled() {
                        return Ok(());
                    }
                    begun = time::OffsetDateTime::now_utc();
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
                                let _ = retire.send(Retired { opener: life.opener.clone(), life: running }).await;
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
            if !(error.is_passing() || was_up && error.is_between()) {
                self.publish(TunnelState::Failed { why: error.to_string() });
                return Err(error);
            }
            let wait = match error {
                // It may say so each time: no reason to dial without a pause.
                TunnelError::Drain(told) => told.max(backoff.next(rand::random())),
                ref error if error.is_name() => backoff.next_up_to(LONGEST_FOR_A_NAME, rand::random()),
                _ => backoff.next(rand::random()),
            };
            let why = error.to_string();
            let since = down.map_or(begun, |down| down.since);
            // As a text, not as it prints: a line end in it would begin a line of the log.
            tracing::debug!(error = why, ?wait, "no session yet");
            let retry_ms = wait.as_millis() as u64;
            self.publish(TunnelState::Waiting { why: why.clone(), retry_ms, next: time_in(wait), since });
            down = Some(Down { since, why });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => {
                    backoff.reset();
                    self.network_changed();
                }
                () = self.leaving.cancelled() => return Ok(()),
            }
        }
    }

    /// Until the session is over, with the reason, or until it drains.
    async fn stand(&self, life: &Life<'_>, running: &mut BoxFuture<'_, TunnelError>) -> Stood {
        self.current.send_replace(Some(SessionOpener::new(life.opener.clone(), &life.lifeline)));
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
        let Some(opener) = self.current() else { return Ok(()) };
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
        let Some(opener) = self.current() else { return Ok(()) };
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
        let current = self.current().filter(|opener| opener.is_draining());
        self.earlier.streams(current.as_ref())
    }

    /// Of the session that stands.
    fn current(&self) -> Option<MuxOpener> {
        self.current.borrow().as_ref().map(|session| session.mux.clone())
    }

    /// Changes of the machine's circumstances from here on.
    pub(super) fn changes(&self) -> watch::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Says how the attempt goes that everything waits for.
    pub(super) fn step(&self, step: Step) {
        self.told.step(step);
    }

    /// Says what there is to say of the session that stands.
    pub(super) fn remark(&self, remarks: Remarks) {
        self.told.remark(remarks);
    }

    pub(super) fn publish(&self, state: TunnelState) {
        self.told.tell(state);
    }

    pub(super) fn profile(&self) -> std::sync::MutexGuard<'_, Profile> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

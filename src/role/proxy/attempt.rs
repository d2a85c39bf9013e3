//! One attempt to reach the workspace: a connection that the coordinator joins to one of the workspace's, and a session on
//! it that is verified end to end. What an attempt came to says whether another one may come to more.
//!
//! Refuses to try twice: when the next attempt is, the tunnel decides.

use std::time::Duration;

use governor::clock::{Clock, DefaultClock};

use super::profile::ProfileError;
use super::tunnel::Tunnel;
use super::tunnel_state::{Doing, Step};
use crate::identity::KeyPin;
use crate::identity::verify::{Expect, client_config};
use crate::lifeline::Route;
use crate::role::renewal;
use crate::session::establish::{self, Greeting, Session, SessionError};
use crate::transport::carrier::Arrival;
use crate::transport::client::{ClientError, CoordinatorCarrier};
use crate::wire::control::Control;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// How long the coordinator may take to join us: more than it waits for a stub.
const JOIN_TIMEOUT: Duration = Duration::from_secs(45);

/// Hears how an attempt goes.
pub(super) type Tell<'a> = &'a (dyn Fn(Step) + Send + Sync);

/// The session goes on without what the attempt may bring, or waits for another one.
pub(super) const UNHEARD: Tell<'static> = &|_| {};

/// Why the tunnel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The way to the coordinator, or its refusal.
    #[error("{0}")]
    Coordinator(#[from] ClientError),
    /// The session with the workspace.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// The workspace serves others: those can let this device in.
    #[error(
        "{}. hint: on a laptop that the workspace knows run `nexus-proxy device add {workspace} {pin}`",
        SessionError::NotAdmitted
    )]
    NotAdmitted {
        /// The workspace.
        workspace: WorkspaceName,
        /// This device's key.
        pin: KeyPin,
    },
    /// What is kept on disk.
    #[error("{0}")]
    Profile(#[from] ProfileError),
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
            TunnelError::Profile(error) => error.is_passing(),
            TunnelError::NotAdmitted { .. } => false,
            TunnelError::Drain(_) | TunnelError::Resume(_) => true,
            TunnelError::TakenOver(_) => false,
        }
    }

    /// Whether it is the fault of something between here and the coordinator, which may be gone the next time.
    pub(super) fn is_between(&self) -> bool {
        matches!(self, TunnelError::Coordinator(error) if error.is_between())
    }

    /// Whether it is for a name that there is no way.
    pub(super) fn is_name(&self) -> bool {
        matches!(self, TunnelError::Coordinator(error) if error.is_name())
    }

    pub(super) fn resume(why: String) -> TunnelError {
        TunnelError::Resume(why)
    }
}

impl Tunnel {
    /// A connection that the coordinator has joined to one of the workspace's. `tell` hears how that goes.
    pub(super) async fn join(&self, tell: Tell<'_>) -> Result<CoordinatorCarrier, TunnelError> {
        tell(Step::Doing(Doing::ReachesCoordinator));
        while let Err(early) = self.dials.check() {
            tokio::time::sleep(early.wait_time_from(DefaultClock::default().now())).await;
        }
        Box::pin(renewal::before_dialling(self.client(), |fresh| self.profile().save_fresh(fresh))).await?;
        let carrier = self.client().connect(self.workspace()).await?;
        tell(Step::Doing(Doing::WaitsForStub));
        let late = |_| ClientError::Dial("the coordinator did not join us to the workspace in time".into());
        tokio::time::timeout(JOIN_TIMEOUT, self.joined(carrier, tell)).await.map_err(late)?
    }

    /// A session, and what the workspace said of itself.
    pub(super) async fn connect(&self) -> Result<(Session, Greeting), TunnelError> {
        let carrier = self.join(&|step| self.step(step)).await?;
        self.step(Step::Doing(Doing::Verifies));
        let pin = self.profile().pin(self.workspace());
        let expect = Expect::Workspace { name: self.workspace().clone(), pin };
        let credential = self.client().credential();
        let tls = client_config(&self.client().trust(), expect, Some(&credential), &[]).map_err(ClientError::from)?;
        let begun = establish::connect(Box::new(carrier), Route::Relay, tls, self.instance()).await;
        let (session, greeting) = begun.map_err(|error| match error {
            SessionError::NotAdmitted => {
                TunnelError::NotAdmitted { workspace: self.workspace().clone(), pin: credential.key.pin() }
            }
            error => error.into(),
        })?;
        if pin.is_none() {
            tracing::info!(workspace = %self.workspace(), pin = %session.peer.pin, "first contact: key pinned");
            let writing = self.profile().writing();
            let writing = writing.await?;
            self.profile().set_pin(&writing, self.workspace(), session.peer.pin)?;
        }
        Ok((session, greeting))
    }

    /// Waits until the coordinator has joined the carrier to the workspace's.
    async fn joined(&self, mut carrier: CoordinatorCarrier, tell: Tell<'_>) -> Result<CoordinatorCarrier, TunnelError> {
        let broken = |why: String| TunnelError::Coordinator(ClientError::Dial(why));
        let mut waits = false;
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
                    return Err(TunnelError::Drain(Control::reconnect_after(reconnect_after_ms)));
                }
                // Once is enough: what it says is logged.
                Ok(Some(Arrival::Control(Control::Waiting { message }))) if !std::mem::replace(&mut waits, true) => {
                    tell(Step::Waits(Refusal::new(RefusalCode::Unavailable, message).message));
                }
                Ok(Some(Arrival::Control(_))) => {}
                Ok(Some(Arrival::Bytes(_))) => return Err(broken("the coordinator sent bytes before a join".into())),
                Ok(None) => return Err(broken("the coordinator closed the connection".into())),
                Err(error) => return Err(broken(format!("the connection to the coordinator broke: {error}"))),
            }
        }
    }
}

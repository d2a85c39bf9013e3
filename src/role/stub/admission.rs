//! Who is let in on a connection that was joined: a session that begins, after its device has proven itself, or one that
//! goes on, wherever it is.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::run::{Stub, StubEvent};
use super::session::serve;
use super::sessions::Place;
use super::status::Gone;
use crate::identity::error::IdentityError;
use crate::identity::uri::Role;
use crate::identity::verify::{ClientAuth, Expect, server_config};
use crate::lifeline::{Route, Standing, first_attach};
use crate::role::changes::Change;
use crate::session::establish;
use crate::transport::client::CoordinatorCarrier;
use crate::wire::RefusalCode;
use crate::wire::lifeline::{Attach, AttachMode, LifelineMessage};
use crate::wire::limits::HANDSHAKE_TIMEOUT;
use crate::wire::name::DeviceName;

impl Stub {
    /// What a laptop wants of a connection is in its first message: a new session, or to go on with one.
    pub(super) async fn joined(
        self: Arc<Self>,
        mut carrier: Box<CoordinatorCarrier>,
        session: String,
        stop: CancellationToken,
    ) {
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
            Ok(Place::Earlier(passage)) => self.sessions.pass(*carrier, passage).await,
            // The stub that may have it does not answer, or too many pass: the laptop tries again.
            Err(refusal)
                if matches!(refusal.code, RefusalCode::Timeout | RefusalCode::Unavailable | RefusalCode::Busy) =>
            {
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
            () = self.doubt(watched, &device) => {}
            () = stop.cancelled() => {}
        }
        self.sessions.laptops.leave(id);
        (self.events)(StubEvent::SessionEnded(device.to_string()));
    }

    /// A session whose connection is gone or does not answer puts the parked one in doubt: it takes the same way.
    async fn doubt(&self, mut standing: watch::Receiver<Standing>, device: &DeviceName) {
        let is_well = |standing: &Standing| !matches!(standing, Standing::Suspect { .. } | Standing::Lost { .. });
        while let Ok(gone) = standing.wait_for(|standing| !is_well(standing)).await.map(|now| Gone::new(device, &now)) {
            let what = "the connection of a session does not answer";
            self.changes.send_modify(|change| *change = Change { count: change.count + 1, what });
            let Ok(well) = standing.wait_for(is_well).await else { break };
            gone.is_over(&well);
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
}

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
use crate::lifeline::{Ended, LifelineHandle, Route, Standing, first_attach};
use crate::session::establish::{self, Session};
use crate::transport::client::CoordinatorCarrier;
use crate::wire::RefusalCode;
use crate::wire::lifeline::{Attach, AttachMode, LifelineMessage};
use crate::wire::limits::HANDSHAKE_TIMEOUT;
use crate::wire::name::DeviceName;

impl Stub {
    /// What a laptop wants of a connection is in its first message: a new session, or to go on with one.
    pub(super) async fn joined(
        self: Arc<Self>,
        carrier: Box<CoordinatorCarrier>,
        session: String,
        stop: CancellationToken,
    ) {
        let began = Box::pin(self.let_in(carrier, &session));
        if let Some(Some((established, device))) = stop.run_until_cancelled(began).await {
            self.session(established, &device, &session, &stop).await;
        }
    }

    /// A session that begins. One that goes on does so where it is.
    async fn let_in(
        self: &Arc<Self>,
        mut carrier: Box<CoordinatorCarrier>,
        session: &str,
    ) -> Option<(Session, DeviceName)> {
        let attach = match tokio::time::timeout(HANDSHAKE_TIMEOUT, first_attach(&mut *carrier)).await {
            Ok(Some(attach)) => attach,
            Ok(None) => {
                tracing::debug!(session, "a laptop left before it said what it wants");
                return None;
            }
            Err(_) => {
                tracing::debug!(session, "a laptop did not say what it wants");
                return None;
            }
        };
        if attach.mode == AttachMode::Begin {
            return self.begin(carrier, &attach, session).await;
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
        None
    }

    async fn begin(
        self: &Arc<Self>,
        carrier: Box<CoordinatorCarrier>,
        attach: &Attach,
        session: &str,
    ) -> Option<(Session, DeviceName)> {
        // After a machine slept, the laptop may come before the timer of the renewal does.
        if let Err(error) = self.renew().await {
            tracing::warn!(session, %error, "the certificate could not be renewed yet");
        }
        let tls = self.inner_tls().inspect_err(|error| tracing::error!(%error, "no TLS configuration")).ok()?;
        let established = establish::accept(carrier, Route::Relay, attach, tls).await;
        let established =
            established.inspect_err(|error| tracing::warn!(session, %error, "a laptop was refused")).ok()?;
        let Role::Device(device) = established.peer.identity.role.clone() else { return None };
        let admitted = self.state().admit(established.peer.pin);
        match admitted {
            Ok(true) => return Some((established, device)),
            Ok(false) => tracing::warn!(session, %device, "another device came first, or this one was removed"),
            Err(error) => tracing::error!(%error, "the first device could not be remembered"),
        }
        None
    }

    async fn session(
        self: &Arc<Self>,
        established: Session,
        device: &DeviceName,
        session: &str,
        stop: &CancellationToken,
    ) {
        let watched = established.lifeline.standing();
        let (opener, lifeline) = (established.opener.clone(), established.lifeline.clone());
        let (ending, asked) = (lifeline.clone(), lifeline.clone());
        let entered = self.sessions.laptops.enter(established.peer.pin, device.clone(), opener, lifeline).await;
        let (id, end) = match entered {
            Ok(entered) => entered,
            Err(refusal) => {
                tracing::warn!(session, %device, %refusal, "a laptop was refused");
                // What is dropped says its last word.
                return ending.end(Ended::Refused(refusal)).await;
            }
        };
        tracing::info!(session, %device, "session");
        (self.events)(StubEvent::SessionBegan(device.to_string()));
        let (workspace, state) = (self.workspace.clone(), self.state.clone());
        tokio::select! {
            outcome = serve(established, workspace, state, self.sessions.clone(), end, stop) => {
                tracing::info!(session, %device, ?outcome, "session over");
            }
            () = self.doubt(watched, device) => {}
            () = self.alert(&asked) => {}
        }
        self.sessions.laptops.leave(id);
        (self.events)(StubEvent::SessionEnded(device.to_string()));
    }

    /// A session whose connection is gone or does not answer puts the parked one in doubt: it takes the same way.
    async fn doubt(&self, mut standing: watch::Receiver<Standing>, device: &DeviceName) {
        let is_well = |standing: &Standing| !matches!(standing, Standing::Suspect { .. } | Standing::Lost { .. });
        // What the lifeline tells is copied: whoever writes the log does not hold it up meanwhile.
        while let Ok(now) = standing.wait_for(|standing| !is_well(standing)).await.map(|now| now.clone()) {
            let gone = Gone::new(device, &now);
            self.changes.send_modify(|_| {});
            let Ok(well) = standing.wait_for(is_well).await.map(|well| well.clone()) else { break };
            gone.is_over(&well);
        }
        // Whoever serves the session sees its end.
        std::future::pending().await
    }

    /// What happens to this machine often costs connections without a word: answers get less time for a while.
    async fn alert(&self, lifeline: &LifelineHandle) {
        let mut changes = self.changes.subscribe();
        let mut last = changes.borrow_and_update().at;
        while changes.changed().await.is_ok() {
            let at = changes.borrow_and_update().at;
            // That a session is in doubt is no change.
            if std::mem::replace(&mut last, at) != at {
                lifeline.probe().await;
            }
        }
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

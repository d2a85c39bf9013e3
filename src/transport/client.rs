//! What a program asks of its coordinator: to be taken in, a fresh certificate, a place to park, a workspace.
//!
//! Every connection is TLS. Its anchor is the coordinator's own authority, of which a code carries enough to know it at
//! first contact; or TLS ends at a load balancer, which is known by the ordinary rules of the web, and what proves the
//! client is an assertion.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;

use super::address::CoordinatorUrl;
use super::carrier::Carrier;
use super::dial::{DialError, dial, dial_by};
use super::http;
use super::names::Names;
use super::outer::{self, OuterTls};
use super::read_ahead::ReadAhead;
use crate::identity::assertion::{Purpose, assert};
use crate::identity::code::Code;
use crate::identity::error::IdentityError;
use crate::identity::verify::{Expect, bootstrap_client_config, client_config};
use crate::identity::{Bundle, Credential, KeyPin, Trust};
use crate::wire::name::WorkspaceName;
use crate::wire::onboarding::{AUTHORITIES_PATH, Authorities, NamesAuthority, RENEW_PATH, RenewAnswer, RenewRequest};
use crate::wire::{Refusal, RefusalCode};

/// The protocol spoken inside the outer TLS. WebSockets upgrade from HTTP/1.1 only.
pub const ALPN: &[&[u8]] = &[b"http/1.1"];

/// A carrier to the coordinator.
pub type CoordinatorCarrier = Carrier<TlsStream<ReadAhead<TcpStream>>>;

/// Why the coordinator did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It was not reached, or is not who it must be.
    #[error("{0}")]
    Dial(String),
    /// The name of the coordinator, or of the proxy before it, could not be looked up: the network may be there before its
    /// name servers are.
    #[error("{0}")]
    Name(String),
    /// As [`Dial`](Self::Dial), and trying again will not help: its certificate or ours is wrong.
    #[error("{0}")]
    Identity(String),
    /// It refused.
    #[error("{0}")]
    Refused(Refusal),
}

impl ClientError {
    /// Whether trying again without changing anything may help.
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::Dial(_) | ClientError::Name(_) => true,
            ClientError::Identity(_) => false,
            ClientError::Refused(refusal) => {
                use RefusalCode::{Busy, Internal, Timeout, Unavailable};
                matches!(refusal.code, Unavailable | Busy | Internal | Timeout)
            }
        }
    }
}

impl ClientError {
    /// Whether it is the fault of something between here and the coordinator: it answered in its place, as the networks of hotels
    /// do, or it is a load balancer that is set up wrongly. The first is left again, the second mended.
    pub fn is_between(&self) -> bool {
        let misdirected = |refusal: &Refusal| refusal.code == RefusalCode::Misdirected;
        matches!(self, ClientError::Identity(_))
            || matches!(self, ClientError::Refused(refusal) if misdirected(refusal))
    }

    /// Whether it is for a name that there is no way. Name servers come back without a word, and asking them costs little.
    pub fn is_name(&self) -> bool {
        matches!(self, ClientError::Name(_))
    }
}

impl From<DialError> for ClientError {
    fn from(error: DialError) -> ClientError {
        match error {
            DialError::Tls { address, error } => match IdentityError::explain(&error) {
                Some(why) => {
                    ClientError::Identity(format!("no secure connection to the coordinator at {address}: {why}"))
                }
                None => ClientError::Dial(DialError::Tls { address, error }.to_string()),
            },
            error => unsettled(&error),
        }
    }
}

impl From<Refusal> for ClientError {
    fn from(refusal: Refusal) -> ClientError {
        ClientError::Refused(refusal)
    }
}

impl From<IdentityError> for ClientError {
    fn from(error: IdentityError) -> ClientError {
        ClientError::Identity(format!("{error}. hint: {}", error.hint()))
    }
}

/// First contact: proves the coordinator by the code, posts `body`, and gives the answer and whom to trust from now on.
///
/// Behind a load balancer the code goes to whoever the ordinary rules of the web prove to be at `url`, and the authority
/// in the answer must be the one that the code was made by.
pub async fn first_contact<Q: Serialize, A: DeserializeOwned + NamesAuthority>(
    url: &CoordinatorUrl,
    outer: &OuterTls,
    code: &Code,
    path: &str,
    body: &Q,
) -> Result<(A, Trust), ClientError> {
    let (answer, trust): (A, Trust) = match outer {
        OuterTls::Coordinator => {
            let (tls, learned) = bootstrap_client_config(code.ca_prefix(), ALPN)?;
            let io = dial(url, tls).await?;
            let trust =
                learned.trust().ok_or_else(|| ClientError::Identity("the coordinator showed no authority".into()))?;
            (http::post_json(io, &url.authority(), path, body).await?, trust)
        }
        OuterTls::Balancer(tls) => {
            let io = dial(url, tls.clone()).await.map_err(|error| match balancer_fault(&error) {
                // Nothing was settled yet: it is the address, or --ca-file.
                Some(why) => ClientError::Identity(why),
                None => unsettled(&error),
            })?;
            let answer: A = http::post_json(io, &url.authority(), path, body).await?;
            let trust = Trust::from_pem(answer.authority())?;
            if trust.ca_pin().prefix() != *code.ca_prefix() {
                return Err(IdentityError::NotOfThisCode.into());
            }
            (answer, trust)
        }
    };
    if answer.authorities().is_empty() {
        return Ok((answer, trust));
    }
    // A code is of one authority, and another may be taking its place.
    let trust = trust.learn(&Bundle::from_pem(answer.authorities())?, SystemTime::now())?;
    Ok((answer, trust))
}

/// No connection, for a reason that may pass.
fn unsettled(error: &DialError) -> ClientError {
    let text = error.to_string();
    if matches!(error, DialError::Name { .. }) { ClientError::Name(text) } else { ClientError::Dial(text) }
}

/// What is wrong with a load balancer, when that is why there is no connection.
fn balancer_fault(error: &DialError) -> Option<String> {
    let DialError::Tls { address, error } = error else { return None };
    outer::explain(error).map(|why| format!("no secure connection to {address}: {why}"))
}

/// A program that its coordinator knows.
#[derive(Debug)]
pub struct CoordinatorClient {
    url: CoordinatorUrl,
    outer: OuterTls,
    names: Names,
    trust: ArcSwap<Trust>,
    credential: ArcSwap<Credential>,
    heard: Mutex<Heard>,
    caught_up: Notify,
}

/// What was said of authorities since this program began.
#[derive(Debug, Default)]
struct Heard {
    /// Which one signs, as the coordinator said last.
    signs: Option<KeyPin>,
    /// The newest that is believed, as the coordinator was told last.
    told: Option<KeyPin>,
    /// The coordinator names others than those that are believed now, and only a renewal can show that it is so.
    unshown: bool,
    /// What is in use has to be written down: a renewal that nobody has asked for was made on the way, or what was given to
    /// be written could not be.
    unkept: bool,
}

/// What a program keeps of its coordinator and has to write down when it changes: authorities first, because a
/// certificate without its authority is of no use.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// Whom to trust.
    pub trust: Arc<Trust>,
    /// The certificate and key in use.
    pub credential: Arc<Credential>,
}

impl CoordinatorClient {
    /// A client at `url` with the certificate it was given.
    pub fn new(url: CoordinatorUrl, trust: Trust, credential: Credential) -> CoordinatorClient {
        // A renewal tells what was believed before it, and its answer may bring another: whether that one was told of is not
        // known when this begins. Nobody waits to hear of one that is believed alone.
        let told = (trust.anchors().len() == 1).then(|| trust.ca_pin());
        let heard = Heard { told, ..Heard::default() };
        CoordinatorClient {
            url,
            outer: OuterTls::Coordinator,
            names: Names::default(),
            trust: ArcSwap::from_pointee(trust),
            credential: ArcSwap::from_pointee(credential),
            heard: Mutex::new(heard),
            caught_up: Notify::new(),
        }
    }

    /// The same, with TLS ended by whom `outer` says.
    pub fn with_outer(self, outer: OuterTls) -> CoordinatorClient {
        CoordinatorClient { outer, ..self }
    }

    /// Where the coordinator is.
    pub fn url(&self) -> &CoordinatorUrl {
        &self.url
    }

    /// Where connections go, as far as that is known: the addresses of the coordinator, or of the proxy before it.
    pub fn toward(&self) -> Vec<SocketAddr> {
        let toward = self.names.toward();
        if toward.is_empty() { self.url.literal().into_iter().collect() } else { toward }
    }

    /// Whom to trust.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// The certificate and key in use.
    pub fn credential(&self) -> Arc<Credential> {
        self.credential.load_full()
    }

    /// Whether the coordinator is there and is the right one. Asks it for nothing.
    pub async fn reach(&self) -> Result<(), ClientError> {
        let credential = self.credential();
        self.dial(Some(&credential)).await.map(drop)
    }

    /// Parks a connection (stub).
    pub async fn park(&self) -> Result<CoordinatorCarrier, ClientError> {
        self.upgrade("/v1/park").await
    }

    /// Asks for a workspace (laptop).
    pub async fn connect(&self, workspace: &WorkspaceName) -> Result<CoordinatorCarrier, ClientError> {
        self.upgrade(&format!("/v1/connect/{workspace}")).await
    }

    /// Asks which authorities are in force, and believes those, too, that the ones known here vouch for. Gives what has to be
    /// written down, if anything.
    pub async fn look(&self, now: SystemTime) -> Result<Option<Fresh>, ClientError> {
        let io = self.dial(None).await?;
        let answer: Authorities = http::read_json(io, &self.url.authority(), AUTHORITIES_PATH).await?;
        let learned = self.hear(&answer.authorities, None, now)?;
        Ok(learned.then(|| self.fresh()))
    }

    /// Fetches a fresh certificate for the same key when two thirds of the old one's life are over, when another
    /// authority signs, or when the coordinator has not been told yet which one is believed here. Gives what has to be
    /// written down, if anything; connections that stand keep the old certificate.
    pub async fn renew_if_due(&self, now: SystemTime) -> Result<Option<Fresh>, ClientError> {
        let current = self.credential();
        if now < current.renew_at() && !self.is_overtaken(&current) {
            let unkept = std::mem::take(&mut self.heard().unkept);
            return Ok(unkept.then(|| self.fresh()));
        }
        let csr = current.key.csr_pem()?;
        let trusts = self.trust().ca_pin();
        // Without a client certificate: the request proves the key, and an expired certificate would be refused.
        let io = self.dial(None).await?;
        let request = RenewRequest { csr, trusts: Some(trusts.to_string()) };
        let answer: RenewAnswer = http::post_json(io, &self.url.authority(), RENEW_PATH, &request).await?;
        let fresh = Arc::new(Credential::from_pem(&answer.chain, current.key.clone())?);
        if fresh.identity() != current.identity() {
            return Err(ClientError::Identity("the coordinator renewed our certificate under another name".into()));
        }
        {
            let mut heard = self.heard();
            (heard.told, heard.unshown) = (Some(trusts), false);
        }
        // Something between may have put another list there. What came for our key is of use all the same.
        if !answer.authorities.is_empty()
            && let Err(error) = self.hear(&answer.authorities, fresh.chain.first(), now)
        {
            tracing::warn!(%error, "the authorities that came with a renewal are not believed");
        }
        self.credential.store(fresh);
        Ok(Some(self.fresh()))
    }

    /// Whether a rotation of authorities asks for another certificate, whatever time this one has left.
    fn is_overtaken(&self, current: &Credential) -> bool {
        let (trust, heard) = (self.trust(), self.heard());
        let age = |pin: KeyPin| trust.age(pin).unwrap_or(usize::MAX);
        let by_an_older = heard.signs.is_some_and(|signs| current.issuer().map_or(usize::MAX, age) > age(signs));
        by_an_older || heard.unshown || heard.told != Some(trust.ca_pin())
    }

    /// Whether what is believed has changed. `renewed` is the certificate that came with this, for our key.
    fn hear(
        &self,
        authorities: &str,
        renewed: Option<&CertificateDer<'_>>,
        now: SystemTime,
    ) -> Result<bool, ClientError> {
        let before = self.trust();
        let heard = Bundle::from_pem(authorities).and_then(|bundle| {
            let trust = match renewed {
                Some(leaf) => before.follow_renewal(&bundle, leaf, now)?,
                None => before.learn(&bundle, now)?,
            };
            Ok((trust, before.follow(&bundle, now)?, bundle.signs()))
        });
        // Something between may have said it, and passes: what is believed stays as it is.
        let (trust, named, signs) = heard.map_err(|e| ClientError::Dial(format!("{e}. hint: {}", e.hint())))?;
        {
            let mut heard = self.heard();
            heard.signs = Some(signs);
            // Once for each look, so that whoever lies costs no more than that.
            heard.unshown = renewed.is_none() && trust != named;
        }
        let changed = trust != *before;
        if changed {
            tracing::info!(authorities = trust.anchors().len(), newest = %trust.ca_pin(), "authorities learned");
            self.trust.store(Arc::new(trust));
        }
        Ok(changed)
    }

    fn fresh(&self) -> Fresh {
        Fresh { trust: self.trust(), credential: self.credential() }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusal may mean that the authority of our certificate is no longer in force, which is for us to find out: then
    /// it is tried once more, with another certificate.
    async fn upgrade(&self, path: &str) -> Result<CoordinatorCarrier, ClientError> {
        match self.try_upgrade(path).await {
            Err(error @ ClientError::Refused(_)) => {
                if !Box::pin(self.catch_up(SystemTime::now())).await? {
                    return Err(error);
                }
                self.try_upgrade(path).await
            }
            other => other,
        }
    }

    /// Whether a rotation of authorities had left us behind, and does so no more.
    async fn catch_up(&self, now: SystemTime) -> Result<bool, ClientError> {
        if let Err(error) = self.look(now).await {
            tracing::debug!(%error, "the authorities could not be looked at");
        }
        if !self.is_overtaken(&self.credential()) {
            return Ok(false);
        }
        let fresh = self.renew_if_due(now).await?;
        self.heard().unkept = fresh.is_some();
        self.caught_up.notify_one();
        Ok(fresh.is_some())
    }

    /// What was given to be written down could not be: [`renew_if_due`](Self::renew_if_due) gives it again.
    pub fn not_kept(&self) {
        self.heard().unkept = true;
    }

    /// Returns when [`renew_if_due`](Self::renew_if_due) has something to be written down that nobody has asked for.
    pub async fn caught_up(&self) {
        self.caught_up.notified().await;
    }

    async fn try_upgrade(&self, path: &str) -> Result<CoordinatorCarrier, ClientError> {
        let credential = self.credential();
        let io = self.dial(Some(&credential)).await?;
        let authority = self.url.authority();
        let assertion = match self.outer {
            OuterTls::Coordinator => None,
            OuterTls::Balancer(_) => {
                // Made after the connection, so that a slow one does not use its time up.
                let purpose = Purpose { method: "GET", path, audience: &authority };
                Some(assert(&credential, &purpose, SystemTime::now())?)
            }
        };
        Ok(http::upgrade(io, &authority, path, assertion.as_deref()).await?)
    }

    /// A connection; with a client certificate where TLS ends at the coordinator and `credential` is given.
    async fn dial(&self, credential: Option<&Credential>) -> Result<TlsStream<ReadAhead<TcpStream>>, ClientError> {
        match &self.outer {
            OuterTls::Coordinator => {
                let tls = client_config(&self.trust(), Expect::Coordinator, credential, ALPN)?;
                Ok(dial_by(&self.names, &self.url, tls).await?)
            }
            // A certificate that was forgotten to be renewed, or a network that answers in the balancer's place: both
            // pass, and a workspace's stub has nobody near to start it again.
            OuterTls::Balancer(tls) => dial_by(&self.names, &self.url, tls.clone())
                .await
                .map_err(|error| balancer_fault(&error).map_or_else(|| unsettled(&error), ClientError::Dial)),
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

//! What a program asks of its coordinator: to be taken in, a fresh certificate, a place to park, a workspace.
//!
//! Every connection is TLS with the coordinator's own authority as the only anchor; a code carries enough of that
//! authority to know it at first contact.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::address::CoordinatorUrl;
use super::carrier::Carrier;
use super::dial::{DialError, dial};
use super::http;
use super::read_ahead::ReadAhead;
use crate::identity::code::Code;
use crate::identity::error::IdentityError;
use crate::identity::verify::{Expect, bootstrap_client_config, client_config};
use crate::identity::{Credential, Trust};
use crate::wire::name::WorkspaceName;
use crate::wire::onboarding::{RENEW_PATH, RenewAnswer, RenewRequest};
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
            ClientError::Dial(_) => true,
            ClientError::Identity(_) => false,
            ClientError::Refused(refusal) => {
                matches!(refusal.code, RefusalCode::Unavailable | RefusalCode::Busy | RefusalCode::Internal)
            }
        }
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
            error => ClientError::Dial(error.to_string()),
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
pub async fn first_contact<Q: Serialize, A: DeserializeOwned>(
    url: &CoordinatorUrl,
    code: &Code,
    path: &str,
    body: &Q,
) -> Result<(A, Trust), ClientError> {
    let (tls, learned) = bootstrap_client_config(code.ca_prefix(), ALPN)?;
    let io = dial(url, tls).await?;
    let trust = learned.trust().ok_or_else(|| ClientError::Identity("the coordinator showed no authority".into()))?;
    let answer = http::post_json(io, &url.authority(), path, body).await?;
    Ok((answer, trust))
}

/// A program that its coordinator knows.
#[derive(Debug)]
pub struct CoordinatorClient {
    url: CoordinatorUrl,
    trust: Trust,
    credential: ArcSwap<Credential>,
}

impl CoordinatorClient {
    /// A client at `url` with the certificate it was given.
    pub fn new(url: CoordinatorUrl, trust: Trust, credential: Credential) -> CoordinatorClient {
        CoordinatorClient { url, trust, credential: ArcSwap::from_pointee(credential) }
    }

    /// Where the coordinator is.
    pub fn url(&self) -> &CoordinatorUrl {
        &self.url
    }

    /// Whom to trust.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The certificate and key in use.
    pub fn credential(&self) -> Arc<Credential> {
        self.credential.load_full()
    }

    /// Parks a connection (stub).
    pub async fn park(&self) -> Result<CoordinatorCarrier, ClientError> {
        self.upgrade("/v1/park").await
    }

    /// Asks for a workspace (laptop).
    pub async fn connect(&self, workspace: &WorkspaceName) -> Result<CoordinatorCarrier, ClientError> {
        self.upgrade(&format!("/v1/connect/{workspace}")).await
    }

    /// Fetches a fresh certificate for the same key when two thirds of the old one's life are over.
    /// Gives it when there is one; connections that stand keep the old one.
    pub async fn renew_if_due(&self, now: SystemTime) -> Result<Option<Arc<Credential>>, ClientError> {
        let current = self.credential();
        if now < current.renew_at() {
            return Ok(None);
        }
        let csr = current.key.csr_pem()?;
        // Without a client certificate: the request proves the key, and an expired certificate would be refused.
        let tls = client_config(&self.trust, Expect::Coordinator, None, ALPN)?;
        let io = dial(&self.url, tls).await?;
        let request = RenewRequest { csr };
        let answer: RenewAnswer = http::post_json(io, &self.url.authority(), RENEW_PATH, &request).await?;
        let fresh = Arc::new(Credential::from_pem(&answer.chain, current.key.clone())?);
        if fresh.identity() != current.identity() {
            return Err(ClientError::Identity("the coordinator renewed our certificate under another name".into()));
        }
        self.credential.store(fresh.clone());
        Ok(Some(fresh))
    }

    async fn upgrade(&self, path: &str) -> Result<CoordinatorCarrier, ClientError> {
        let credential = self.credential();
        let tls = client_config(&self.trust, Expect::Coordinator, Some(&credential), ALPN)?;
        let io = dial(&self.url, tls).await?;
        Ok(http::upgrade(io, &self.url.authority(), path).await?)
    }
}

//! Beginning a session: mutual TLS end to end, the multiplexer, and a first stream that proves both.
//!
//! The laptop is the TLS client and the workspace the TLS server. Who the peer must be is in the TLS configuration,
//! which `identity` makes; a peer that fails it never gets as far as a stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::framed::{FramedStream, StreamError};
use super::mux::{End, MuxAcceptor, MuxOpener, multiplex};
use crate::identity::certificate::PeerCertificate;
use crate::identity::error::IdentityError;
use crate::lifeline::key::{LABEL, ResumeKey, SECRET};
use crate::lifeline::{BoxCarrier, Lifeline, LifelineHandle, Paced, Route};
use crate::transport::Io;
use crate::wire::lifeline::Attach;
use crate::wire::limits::HANDSHAKE_TIMEOUT;
use crate::wire::open::Accepted;
use crate::wire::refusal::printable_word;
use crate::wire::{Open, Refusal, RefusalCode, StreamRequest};

/// The server name in the inner handshake. The certificate is checked by its URI name and pin, not by this.
const INNER_NAME: &str = "workspace.nexus.invalid";

/// How long the last words of a session that did not begin may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the first stream may take once TLS is up.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);

/// How long tasks may take that have let go of their streams.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Characters of the version that a peer says it has.
const MAX_VERSION: usize = 64;

/// A session that stands: streams can be opened and accepted. Dropping it ends it.
#[derive(Debug)]
pub struct Session {
    /// Opens streams.
    pub opener: MuxOpener,
    /// Streams that the other end opens.
    pub acceptor: MuxAcceptor,
    /// Who is at the other end, proven.
    pub peer: PeerCertificate,
    /// Brings carriers, and tells how the path is.
    pub lifeline: LifelineHandle,
    driver: JoinSet<io::Result<()>>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The inner TLS failed.
    #[error("no end-to-end session: {0}")]
    Tls(String),
    /// The workspace does not know this device's key.
    #[error(
        "no end-to-end session: the workspace does not admit this device: it was enrolled before this device was paired, or \
         took it off its list"
    )]
    NotAdmitted,
    /// It took too long.
    #[error("no end-to-end session: the other side did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The other side would not begin.
    #[error("no end-to-end session: {0}")]
    Refused(Refusal),
}

impl SessionError {
    /// Whether trying again without changing anything is pointless: the peer is not who it must be.
    pub fn is_identity(&self) -> bool {
        matches!(self, SessionError::Tls(_) | SessionError::NotAdmitted)
    }
}

impl Session {
    /// Ends when the session does, with the reason.
    pub async fn ended(&mut self) -> io::Result<()> {
        match self.driver.join_next().await {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(io::Error::other(error)),
        }
    }

    /// Ends it in order: the other end is told, within the time that a goodbye has.
    pub async fn end(self) {
        let Session { acceptor, mut driver, .. } = self;
        drop(acceptor);
        while driver.join_next().await.is_some() {}
    }

    /// Ends the tasks of the session's streams, now that it is over. In one that has drained they have let go of their
    /// streams; they may finish what else they do.
    pub async fn end_streams(&self, tasks: &mut JoinSet<()>) {
        if self.opener.has_drained() {
            let finish = async { while tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(FINISH_TIMEOUT, finish).await;
        }
        tasks.shutdown().await;
    }

    fn start<T: Io + Paced>(io: T, end: End, peer: PeerCertificate, lifeline: LifelineHandle) -> Session {
        let (opener, acceptor, drive) = multiplex(io, end);
        let mut driver = JoinSet::new();
        driver.spawn(drive);
        Session { opener, acceptor, peer, lifeline, driver }
    }
}

/// What the laptop learns when a session begins.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The stub's program version.
    pub version: String,
}

/// The laptop's end: TLS client, and the hello that proves the session end to end.
pub async fn connect(
    carrier: BoxCarrier,
    route: Route,
    tls: Arc<ClientConfig>,
    instance: &str,
) -> Result<(Session, Greeting), SessionError> {
    let name = ServerName::try_from(INNER_NAME).map_err(|e| SessionError::Tls(e.to_string()))?;
    let (lifeline, handle) = Lifeline::dial(carrier, route);
    let handshake = TlsConnector::from(tls).connect(name, lifeline).into_fallible();
    let mut tls = within(HANDSHAKE_TIMEOUT, handshake).await?;
    let (lifeline, connection) = tls.get_mut();
    lifeline.set_key(resume_key(connection.export_keying_material([0; SECRET], LABEL, None))?);
    let peer = peer_of(connection.peer_certificates())?;
    let mut session = Session::start(tls, End::Laptop, peer, handle);
    let greeting = tokio::time::timeout(HELLO_TIMEOUT, hello(&session.opener, instance)).await;
    match greeting.map_err(|_| SessionError::Timeout(HELLO_TIMEOUT))? {
        Ok(answer) => {
            let version = printable_word(&answer.version.unwrap_or_default(), MAX_VERSION);
            Ok((session, Greeting { version }))
        }
        Err(refusal) => {
            // The workspace's verdict on our certificate arrives only after our side of the handshake is done.
            let ended = tokio::time::timeout(GOODBYE_TIMEOUT, session.ended()).await;
            match ended {
                Ok(Err(error)) if IdentityError::is_their_refusal(&error) => Err(SessionError::NotAdmitted),
                Ok(Err(error)) => Err(broken(&error)),
                _ => Err(SessionError::Refused(refusal)),
            }
        }
    }
}

/// Says hello, the first time or again, and gives what the workspace says of itself.
pub async fn hello(opener: &MuxOpener, instance: &str) -> Result<Accepted, Refusal> {
    let io = opener.open().await?;
    let request = StreamRequest::Hello { version: env!("CARGO_PKG_VERSION").into(), instance: instance.into() };
    let mut stream = FramedStream::open(io, &Open::new(request)).await.map_err(StreamError::into_refusal)?;
    let answer = stream.answer().await.map_err(StreamError::into_refusal)?;
    let _ = stream.writer.close().await;
    Ok(answer)
}

/// The workspace's end: TLS server, on a carrier whose first message was this attach.
pub async fn accept(
    carrier: BoxCarrier,
    route: Route,
    attach: &Attach,
    tls: Arc<ServerConfig>,
) -> Result<Session, SessionError> {
    let Some((lifeline, handle)) = Lifeline::accept(carrier, route, attach) else {
        let text = "the other side began a session in the middle";
        return Err(SessionError::Refused(Refusal::new(RefusalCode::Malformed, text)));
    };
    let handshake = TlsAcceptor::from(tls).accept(lifeline).into_fallible();
    let mut tls = within(HANDSHAKE_TIMEOUT, handshake).await?;
    let (lifeline, connection) = tls.get_mut();
    lifeline.set_key(resume_key(connection.export_keying_material([0; SECRET], LABEL, None))?);
    let peer = peer_of(connection.peer_certificates())?;
    Ok(Session::start(tls, End::Workspace, peer, handle))
}

fn resume_key(exported: Result<[u8; SECRET], rustls::Error>) -> Result<ResumeKey, SessionError> {
    let secret = zeroize::Zeroizing::new(exported.map_err(|e| SessionError::Tls(e.to_string()))?);
    Ok(ResumeKey::new(&secret))
}

async fn within<T>(
    time: Duration,
    handshake: impl Future<Output = Result<T, (io::Error, Lifeline)>>,
) -> Result<T, SessionError> {
    let (error, mut io) = match tokio::time::timeout(time, handshake).await {
        Err(_) => return Err(SessionError::Timeout(time)),
        Ok(Err(failed)) => failed,
        Ok(Ok(stream)) => return Ok(stream),
    };
    // The alert that tells the other side why is still in the carrier, which gathers what it sends.
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, io.shutdown()).await;
    if error.kind() == io::ErrorKind::UnexpectedEof {
        let text = "the other side ended the connection before the session began";
        return Err(SessionError::Refused(Refusal::new(RefusalCode::Unavailable, text)));
    }
    Err(broken(&error))
}

/// A verdict on an identity is final; a connection that broke is not.
fn broken(error: &io::Error) -> SessionError {
    match IdentityError::explain(error) {
        Some(why) => SessionError::Tls(why),
        None => {
            let text = format!("the connection broke before the session began: {error}");
            SessionError::Refused(Refusal::new(RefusalCode::Unavailable, text))
        }
    }
}

fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerCertificate, SessionError> {
    let leaf = certificates.and_then(<[_]>::first);
    let leaf = leaf.ok_or_else(|| SessionError::Tls("the other side showed no certificate".into()))?;
    PeerCertificate::parse(leaf).map_err(|e| SessionError::Tls(e.to_string()))
}

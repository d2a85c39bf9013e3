//! The coordinator's one TLS port: an accept loop that no client can hold up, the upgrade to a WebSocket, and the
//! HTTP API behind it.
//!
//! A connection costs nothing but a bounded task until its handshake is done; each step has a time of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use hyper::header::{SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::api;
use super::authority::server_credential;
use super::membership::Membership;
use super::newcomers::{MAX_NEWCOMERS, Newcomers};
use super::registry::Registry;
use super::rendezvous::Rendezvous;
use crate::identity::certificate::PeerCertificate;
use crate::identity::uri::Role;
use crate::identity::verify::{ClientAuth, Expect, server_config};
use crate::transport::carrier::{Carrier, Side, websocket};
use crate::transport::client::ALPN;
use crate::transport::http::{MASKING, MASKING_NONE, text_of};
use crate::transport::read_ahead::ReadAhead;
use crate::wire::limits::HANDSHAKE_TIMEOUT;
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::version::Version;
use crate::wire::{Refusal, RefusalCode};

/// Connections at a time, parked ones included; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 32 * 1024;

/// File descriptors that this takes: the connections, the database, and room to say no.
pub const MAX_DESCRIPTORS: u64 = MAX_CONNECTIONS as u64 + 1024;

/// How long a client may take to send the head of a request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a request of the API may take from its head to its answer, with the arrival of its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// How long a stop waits for sessions to say goodbye.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a stub parks a connection.
pub const PARK_PATH: &str = "/v1/park";

/// Before the name of the workspace that a laptop asks for.
pub const CONNECT_PATH: &str = "/v1/connect/";

type Tls = TlsStream<ReadAhead<TcpStream>>;

/// The right to be a connection, which goes along when it is upgraded.
type Permit = Arc<OwnedSemaphorePermit>;

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    membership: Membership,
    rendezvous: Arc<Rendezvous<Tls>>,
    api: axum::Router,
    tasks: TaskTracker,
}

/// How long the coordinator's own certificate lives. Its key exists in memory only.
const OWN_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often it is made anew; connections that stand keep theirs.
const OWN_RENEWAL: Duration = Duration::from_secs(24 * 3600);

/// Serves `registry`'s members on `listener` until `stop`. `names` are DNS names and addresses for the certificate.
pub async fn run(
    listener: TcpListener,
    registry: Registry,
    names: Vec<String>,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let make = || {
        let own = server_credential(registry.authority(), OWN_LIFETIME, SystemTime::now(), &names)?;
        server_config(registry.authority().trust(), &own, ClientAuth::Optional(Expect::AnyClient), ALPN)
    };
    let tls = Arc::new(ArcSwap::new(make()?));
    let renew = async {
        loop {
            tokio::time::sleep(OWN_RENEWAL).await;
            match make() {
                Ok(fresh) => tls.store(fresh),
                Err(error) => tracing::error!(%error, "the coordinator's certificate could not be renewed"),
            }
        }
    };
    let api = api::router(registry.clone());
    let (membership, look) = Membership::new(registry.clone());
    tokio::select! {
        served = serve(listener, tls.clone(), membership, Arc::new(registry.clone()), api, stop) => Ok(served?),
        () = renew => Ok(()),
        () = look => Ok(()),
    }
}

/// Serves until `stop`, then tells clients when to come back and waits for them, within [`DRAIN_TIMEOUT`].
async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    membership: Membership,
    registry: Arc<Registry>,
    api: axum::Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    let rendezvous = Arc::new(Rendezvous::new(stop.clone()));
    let shared = Shared { registry, membership, rendezvous, api, tasks: tasks.clone() };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let newcomers = Newcomers::new(MAX_NEWCOMERS);
    loop {
        let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that died in the queue: neither ends the server.
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(newcomer) = newcomers.admit(peer.ip()) else {
            tracing::debug!(%peer, "too many connections of this address");
            continue;
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        let acceptor = TlsAcceptor::from(tls.load_full());
        tasks.spawn(async move {
            tokio::select! {
                () = connection(tcp, peer, acceptor, shared, Arc::new(permit)) => {}
                () = stop.cancelled() => {}
            }
            drop(newcomer);
        });
    }
    tasks.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "stopping without waiting for the last connections");
    }
    Ok(())
}

async fn connection(tcp: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, shared: Shared, permit: Permit) {
    let _ = tcp.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(30));
    let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(ReadAhead::new(tcp))).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::info!(%peer, %error, "TLS refused"),
        Err(_) => return tracing::info!(%peer, "TLS took too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(PeerCertificate::parse);
    let certificate = match certificate.transpose() {
        Ok(certificate) => certificate,
        Err(error) => return tracing::info!(%peer, %error, "certificate refused"),
    };
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let (shared, certificate, permit) = (shared.clone(), certificate.clone(), permit.clone());
        async move {
            request.extensions_mut().insert(peer);
            Ok::<_, Infallible>(route(request, peer, certificate, shared, permit).await)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(tls), service).with_upgrades().await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

async fn route(
    request: Request<Incoming>,
    peer: SocketAddr,
    certificate: Option<PeerCertificate>,
    shared: Shared,
    permit: Permit,
) -> Response<Body> {
    let path = request.uri().path();
    if path != PARK_PATH && !path.starts_with(CONNECT_PATH) {
        let mut api = shared.api.clone();
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, api.call(request.map(Body::new)));
        return match answer.await {
            Ok(answer) => answer.unwrap_or_else(|never| match never {}),
            Err(_) => {
                let refusal = Refusal::new(RefusalCode::Timeout, "the request did not arrive in time");
                refuse(StatusCode::REQUEST_TIMEOUT, &refusal)
            }
        };
    }
    match admit(&request, certificate, &shared).await {
        Ok((admitted, response)) => {
            let tasks = shared.tasks.clone();
            tasks.spawn(async move {
                // Each stage in a box of its own: a parked connection, of which there are many, must not hold for
                // days the room that the upgrade needed or that a join would need.
                let Some(carrier) = Box::pin(upgraded(request, peer, admitted.side)).await else { return };
                let work: Pin<Box<dyn Future<Output = ()> + Send>> = match admitted.purpose {
                    Purpose::Park(workspace) => Box::pin(shared.rendezvous.park(workspace, carrier)),
                    Purpose::Connect(workspace, device) => {
                        Box::pin(shared.rendezvous.connect(workspace, device, carrier))
                    }
                };
                tokio::select! {
                    () = work => {}
                    refusal = shared.membership.lost(admitted.certificate, admitted.workspace) => {
                        tracing::info!(target: "audit", event = "cut", %peer, reason = refusal.to_string());
                    }
                }
                drop(permit);
            });
            response
        }
        Err((status, refusal)) => {
            tracing::info!(%peer, code = ?refusal.code, %refusal, "refused");
            refuse(status, &refusal)
        }
    }
}

/// A connection that may be upgraded.
struct Admitted {
    purpose: Purpose,
    certificate: PeerCertificate,
    workspace: Option<WorkspaceName>,
    side: Side,
}

enum Purpose {
    Park(WorkspaceName),
    Connect(WorkspaceName, DeviceName),
}

/// Decides on an upgrade: who, for what, in which version.
async fn admit(
    request: &Request<Incoming>,
    certificate: Option<PeerCertificate>,
    shared: &Shared,
) -> Result<(Admitted, Response<Body>), (StatusCode, Refusal)> {
    let refusal = |status, code, text: &str| (status, Refusal::new(code, text));
    let certificate = certificate.ok_or_else(|| {
        let text = "this needs a client certificate. hint: pair this device (nexus-proxy pair), or enrol the stub";
        refusal(StatusCode::UNAUTHORIZED, RefusalCode::Denied, text)
    })?;
    let denied = |refusal| (StatusCode::FORBIDDEN, refusal);
    shared.registry.authorize(&certificate, SystemTime::now()).await.map_err(denied)?;
    let purpose = match (certificate.identity.role.clone(), request.uri().path().strip_prefix(CONNECT_PATH)) {
        (Role::Workspace(name), None) => Purpose::Park(name),
        (Role::Device(device), Some(name)) => {
            let name = name.parse::<WorkspaceName>();
            let name = name.map_err(|e| refusal(StatusCode::BAD_REQUEST, RefusalCode::Malformed, &e.to_string()))?;
            shared.registry.workspace(&name).await.map_err(denied)?;
            Purpose::Connect(name, device)
        }
        _ => {
            let text = "a stub parks and a device connects; this certificate is for the other";
            return Err(refusal(StatusCode::FORBIDDEN, RefusalCode::Denied, text));
        }
    };
    let headers = request.headers();
    let accept = accept_key(request.method(), headers).ok_or_else(|| {
        let text = "this address takes WebSocket upgrades only (RFC 6455, version 13)";
        refusal(StatusCode::UPGRADE_REQUIRED, RefusalCode::Malformed, text)
    })?;
    let version = text_of(headers, SEC_WEBSOCKET_PROTOCOL.as_str()).and_then(Version::choose).ok_or_else(|| {
        let text =
            format!("this coordinator speaks {}. hint: bring both programs to the same release", Version::offer());
        refusal(StatusCode::BAD_REQUEST, RefusalCode::Unsupported, &text)
    })?;
    let unmasked = text_of(headers, MASKING) == Some(MASKING_NONE);
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .header(SEC_WEBSOCKET_PROTOCOL, version.subprotocol());
    if unmasked {
        response = response.header(MASKING, MASKING_NONE);
    }
    let internal =
        |e: hyper::http::Error| refusal(StatusCode::INTERNAL_SERVER_ERROR, RefusalCode::Internal, &e.to_string());
    let response = response.body(Body::empty()).map_err(internal)?;
    let side = if unmasked { Side::Unmasked } else { Side::Server };
    let workspace = match &purpose {
        Purpose::Park(_) => None,
        Purpose::Connect(workspace, _) => Some(workspace.clone()),
    };
    Ok((Admitted { purpose, certificate, workspace, side }, response))
}

/// The answer to a well-formed WebSocket handshake.
fn accept_key(method: &Method, headers: &HeaderMap) -> Option<String> {
    let has = |name, token: &str| {
        let value: Option<&str> = text_of(headers, name);
        value.is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes)?;
    let key_is_16_bytes = data_encoding::BASE64.decode(key).is_ok_and(|key| key.len() == 16);
    let good = method == Method::GET
        && has(CONNECTION.as_str(), "upgrade")
        && has(UPGRADE.as_str(), "websocket")
        && has(SEC_WEBSOCKET_VERSION.as_str(), "13")
        && key_is_16_bytes;
    good.then(|| derive_accept_key(key))
}

async fn upgraded(mut request: Request<Incoming>, peer: SocketAddr, side: Side) -> Option<Carrier<Tls>> {
    let upgraded = match hyper::upgrade::on(&mut request).await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%peer, %error, "upgrade failed");
            return None;
        }
    };
    drop(request);
    let Ok(parts) = upgraded.downcast::<TokioIo<Tls>>() else {
        tracing::error!("an upgraded connection changed its type");
        return None;
    };
    Some(Carrier::new(websocket(parts.io.into_inner(), parts.read_buf, side).await))
}

fn refuse(status: StatusCode, refusal: &Refusal) -> Response<Body> {
    let headers = [(hyper::header::CONTENT_TYPE, "application/json")];
    (status, headers, refusal.to_bytes()).into_response()
}

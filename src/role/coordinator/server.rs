//! The coordinator's port: an accept loop that no client can hold up, the upgrade to a WebSocket, and the HTTP API behind
//! it. With TLS, or without for a load balancer that ends TLS before it; or both, which serve the same.
//!
//! A connection costs nothing but a bounded task until its handshake is done; each step has a time of its own.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::api;
use super::balancer::{Balancer, client_of};
use super::drain::Drain;
use super::membership::Membership;
use super::newcomers::{MAX_NEWCOMERS, Newcomers};
use super::own::OwnCertificate;
use super::registry::Registry;
use super::rendezvous::Rendezvous;
use super::stream::Stream;
pub use super::upgrade::{CONNECT_PATH, PARK_PATH};
use super::upgrade::{Proof, Purpose, admit, upgraded};
use crate::identity::certificate::PeerCertificate;
use crate::role::ACCEPT_PAUSE;
use crate::role::files::Lock;
use crate::transport::read_ahead::ReadAhead;
use crate::wire::limits::HANDSHAKE_TIMEOUT;
use crate::wire::{Refusal, RefusalCode};

/// Connections at a time, parked ones included; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 32 * 1024;

/// File descriptors that this takes: the connections, the database, and room to say no.
pub const MAX_DESCRIPTORS: u64 = MAX_CONNECTIONS as u64 + 1024;

/// How long a client may take to send the head of a request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// As [`HEAD_TIMEOUT`], for a load balancer, which reads heads whole before it passes them on. It may keep a connection
/// for the next request, usually for a minute, and has to be the one that closes it: a request that is on its way
/// meanwhile would be lost.
const BALANCER_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a request of the API may take from its head to its answer, with the arrival of its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// How long a stop waits for goodbyes, once what was relayed is parted.
const PART_TIMEOUT: Duration = Duration::from_secs(5);

/// The right to be a connection, which goes along when it is upgraded.
type Permit = Arc<OwnedSemaphorePermit>;

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    membership: Membership,
    rendezvous: Arc<Rendezvous<Stream>>,
    api: axum::Router,
    permits: Arc<Semaphore>,
    newcomers: Arc<Newcomers>,
    tasks: TaskTracker,
}

/// Where clients come in; at least one of the two ports.
#[derive(Debug, Default)]
pub struct Listeners {
    /// TLS ends here.
    pub tls: Option<TcpListener>,
    /// TLS ends at a load balancer.
    pub plain: Option<(TcpListener, Balancer)>,
    /// The right to serve, which a successor needs besides: let go with the last port.
    pub right: Option<Lock>,
}

/// Who is at the other end of an accepted connection, and what is spoken there.
#[derive(Clone)]
enum Front {
    Tls(Arc<ArcSwap<ServerConfig>>),
    Plain(Arc<Balancer>),
}

/// Serves `registry`'s members on `listeners` until `drain` begins; then its ports are free at once, and it ends when what
/// it relays has, or as soon as `drain` says. `names` are DNS names and addresses for the certificate.
pub async fn run(
    listeners: Listeners,
    registry: Registry,
    names: Vec<String>,
    drain: Drain,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let own = OwnCertificate::new(registry.clone(), names)?;
    let (membership, look) = Membership::new(registry.clone());
    let shared = Shared {
        registry: Arc::new(registry.clone()),
        rendezvous: Arc::new(Rendezvous::new(membership.revoked(), own.steps(), drain.clone())),
        membership,
        api: api::router(registry.clone()),
        permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        newcomers: Newcomers::new(MAX_NEWCOMERS),
        tasks: TaskTracker::new(),
    };
    let with_tls = listeners.tls.map(|listener| (listener, Front::Tls(own.tls())));
    let plain = listeners.plain.map(|(listener, balancer)| (listener, Arc::new(balancer)));
    let balancer = plain.as_ref().map(|(_, balancer)| balancer.clone());
    let renew = Box::pin(own.keep_fresh(balancer, shared.membership.revision()));
    let plain = plain.map(|(listener, balancer)| (listener, Front::Plain(balancer)));
    let accepting =
        with_tls.into_iter().chain(plain).map(|(listener, front)| accept(listener, front, &shared, &drain.stop));
    let serve = async {
        futures::future::try_join_all(accepting).await?;
        drop(listeners.right);
        end(&shared.tasks, &drain).await;
        Ok(())
    };
    tokio::select! {
        served = serve => served,
        () = renew => Ok(()),
        () = look => Ok(()),
    }
}

/// Waits for what is relayed and asked, which has been told to leave, as long as `drain` says; then for its goodbyes.
async fn end(tasks: &TaskTracker, drain: &Drain) {
    tasks.close();
    if tokio::time::timeout(drain.relays, tasks.wait()).await.is_ok() {
        return;
    }
    tracing::info!(left = tasks.len(), "parting what is still relayed");
    drain.part.cancel();
    if tokio::time::timeout(PART_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "stopping without waiting for the last connections");
    }
}

/// Accepts until `stop`.
async fn accept(listener: TcpListener, front: Front, shared: &Shared, stop: &CancellationToken) -> io::Result<()> {
    loop {
        let next = async {
            let permit = shared.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((permit, listener.accept().await))
        };
        let (permit, accepted) = tokio::select! {
            next = next => next?,
            () = stop.cancelled() => return Ok(()),
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that died in the queue: neither ends the server.
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A balancer brings everybody: those it speaks for are counted at their requests.
        let newcomer = match &front {
            Front::Plain(balancer) if balancer.is_trusted(peer.ip()) => None,
            _ => match shared.newcomers.admit(peer.ip()) {
                Some(newcomer) => Some(newcomer),
                None => {
                    tracing::debug!(%peer, "too many connections of this address");
                    continue;
                }
            },
        };
        let connection = connection(tcp, peer, front.clone(), shared.clone(), Arc::new(permit), stop.clone());
        shared.tasks.spawn(async move {
            connection.await;
            drop(newcomer);
        });
    }
}

/// Serves one connection. From `stop` on it takes no further request; one that is under way gets its answer: a one-time
/// code that was used and not answered would be lost.
async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    front: Front,
    shared: Shared,
    permit: Permit,
    stop: CancellationToken,
) {
    let _ = tcp.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(30));
    let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    let (stream, proof, head_timeout) = match front {
        Front::Tls(config) => {
            let acceptor = TlsAcceptor::from(config.load_full());
            let accepting = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(ReadAhead::new(tcp)));
            let Some(accepted) = stop.run_until_cancelled(accepting).await else { return };
            let tls = match accepted {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => return tracing::info!(%peer, %error, "TLS refused"),
                Err(_) => return tracing::info!(%peer, "TLS took too long"),
            };
            let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(PeerCertificate::parse);
            let certificate = match certificate.transpose() {
                Ok(certificate) => certificate,
                Err(error) => return tracing::info!(%peer, %error, "certificate refused"),
            };
            (Stream::Tls(Box::new(tls)), Proof::Handshake(certificate), HEAD_TIMEOUT)
        }
        Front::Plain(balancer) => {
            let timeout = if balancer.is_trusted(peer.ip()) { BALANCER_TIMEOUT } else { HEAD_TIMEOUT };
            (Stream::Plain(tcp), Proof::Assertion(balancer), timeout)
        }
    };
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (shared, proof, permit) = (shared.clone(), proof.clone(), permit.clone());
        async move {
            Ok::<_, Infallible>(match &proof {
                Proof::Handshake(_) => route(request, peer, proof, shared, permit).await,
                Proof::Assertion(balancer) if balancer.is_trusted(peer.ip()) => {
                    let client = client_of(peer, request.headers());
                    match shared.newcomers.admit(client.ip()) {
                        Some(_newcomer) => route(request, client, proof, shared, permit).await,
                        None => too_many(),
                    }
                }
                Proof::Assertion(_) => stranger(peer),
            })
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(MAX_HEAD);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

fn stranger(peer: SocketAddr) -> Response<Body> {
    tracing::info!(%peer, "refused: not a load balancer's address");
    let text = "only the load balancer speaks here without TLS. hint: use the coordinator's public address; if you are the load balancer, `serve --trusted-proxy` has to name your address";
    refuse(StatusCode::FORBIDDEN, &Refusal::new(RefusalCode::Misdirected, text))
}

fn too_many() -> Response<Body> {
    let text = "too many requests of this address at once. hint: try again later";
    refuse(StatusCode::TOO_MANY_REQUESTS, &Refusal::new(RefusalCode::Busy, text))
}

async fn route(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    proof: Proof,
    shared: Shared,
    permit: Permit,
) -> Response<Body> {
    let path = request.uri().path();
    if path != PARK_PATH && !path.starts_with(CONNECT_PATH) {
        request.extensions_mut().insert(peer);
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
    match admit(&request, &proof, &shared.registry).await {
        Ok((admitted, response)) => {
            let tasks = shared.tasks.clone();
            tasks.spawn(async move {
                // Each stage in a box of its own: a parked connection, of which there are many, must not hold for
                // days the room that the upgrade needed or that a join would need.
                let Some(carrier) = Box::pin(upgraded(request, peer, admitted.side)).await else { return };
                let work: Pin<Box<dyn Future<Output = ()> + Send>> = match admitted.purpose {
                    Purpose::Park(workspace) => {
                        Box::pin(shared.rendezvous.park(workspace, admitted.certificate.pin, carrier))
                    }
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

fn refuse(status: StatusCode, refusal: &Refusal) -> Response<Body> {
    let headers = [(hyper::header::CONTENT_TYPE, "application/json")];
    (status, headers, refusal.to_bytes()).into_response()
}

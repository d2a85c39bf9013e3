//! One session of one laptop: what it may ask of the workspace, stream by stream.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::devices;
use super::direct::Addresses;
use super::sessions::Sessions;
use super::state::StubState;
use crate::identity::KeyPin;
use crate::service::forward::serve_connect;
use crate::service::process::{ProcessDefaults, serve_process};
use crate::service::remote::serve_listen;
use crate::service::udp::serve_udp;
use crate::service::udp_associate::serve_udp_associate;
use crate::session::establish::Session;
use crate::session::framed::FramedStream;
use crate::session::held::HeldOpener;
use crate::session::mux::MuxStream;
use crate::session::opener::{Opener, SessionOpener};
use crate::wire::limits::{MAX_CALLS, MAX_LISTENERS};
use crate::wire::open::Accepted;
use crate::wire::{Open, Refusal, RefusalCode, StreamRequest};

/// The workspace as a laptop's streams see it.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Its directory: where processes start and relative socket paths are looked up.
    pub dir: PathBuf,
    /// The environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Where it can be reached without the coordinator.
    pub direct: Addresses,
}

#[derive(Clone)]
struct Shared {
    workspace: Arc<Workspace>,
    state: Arc<Mutex<StubState>>,
    sessions: Arc<Sessions>,
    device: KeyPin,
    opener: SessionOpener,
    processes: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
}

/// Serves the session until it ends or `end` is cancelled, which whoever took its place does; then everything it started is
/// gone. At `stop` this program ends, and the laptop is told.
pub async fn serve(
    mut session: Session,
    workspace: Arc<Workspace>,
    state: Arc<Mutex<StubState>>,
    sessions: Arc<Sessions>,
    end: CancellationToken,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let shared = Shared {
        workspace,
        state,
        sessions,
        device: session.peer.pin,
        opener: SessionOpener::new(session.opener.clone(), &session.lifeline),
        processes: Arc::new(Semaphore::new(MAX_CALLS)),
        listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
    };
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = session.acceptor.accept() => match stream {
                Some(stream) => {
                    let shared = shared.clone();
                    streams.spawn(async move { serve_stream(stream, shared).await });
                }
                None => break,
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            () = end.cancelled() => break,
            () = stop.cancelled() => {
                // A laptop that is told nothing would wait for this stub to come back.
                session.end().await;
                streams.shutdown().await;
                return Ok(());
            }
        }
    }
    session.end_streams(&mut streams).await;
    drop(session.acceptor);
    Ok(())
}

async fn serve_stream(stream: MuxStream, shared: Shared) {
    let (open, mut stream) = match FramedStream::accept_by(stream, &shared.opener.way()).await {
        Ok(opened) => opened,
        Err(error) => return tracing::debug!(%error, "a stream did not open"),
    };
    let Open { request, trace } = open;
    let kind = request.name();
    tracing::debug!(kind, trace, "stream");
    let outcome = match request {
        StreamRequest::Hello { version, instance } => {
            tracing::info!(version, instance, "the laptop says hello");
            let accepted = Accepted {
                version: Some(env!("CARGO_PKG_VERSION").into()),
                direct: Some(shared.workspace.direct.now()),
                ..Accepted::default()
            };
            let answered = stream.accepted(&accepted).await;
            let _ = stream.writer.close().await;
            answered.map_err(Into::into)
        }
        StreamRequest::Connect { target } => {
            Box::pin(serve_connect(stream, &target, &shared.workspace.dir)).await.map(drop)
        }
        StreamRequest::Udp { target } => Box::pin(serve_udp(stream, &shared.opener.way(), &target)).await,
        StreamRequest::UdpAssociate {} => Box::pin(serve_udp_associate(stream, &shared.opener.way())).await,
        StreamRequest::Listen { bind, listener } => match permit(&shared.listeners) {
            Some(_permit) => {
                let dir = &shared.workspace.dir;
                let closed = shared.opener.mux.draining();
                let opener = HeldOpener::new(shared.opener.clone());
                Box::pin(serve_listen(stream, &bind, listener, opener, dir, closed)).await
            }
            None => return stream.refuse(&busy("listeners")).await,
        },
        StreamRequest::Process(request) => match permit(&shared.processes) {
            Some(_permit) => {
                let workspace = &shared.workspace;
                let defaults = ProcessDefaults { cwd: workspace.dir.clone(), env: workspace.env.clone() };
                Box::pin(serve_process(stream, request, &defaults)).await.map(drop)
            }
            None => return stream.refuse(&busy("processes")).await,
        },
        StreamRequest::Call {} => {
            devices::serve(stream, &shared.opener.way(), shared.device, &shared.state, &shared.sessions)
                .await
                .map_err(Into::into)
        }
        StreamRequest::Accepted { .. } | StreamRequest::Unknown => {
            let text =
                format!("a workspace does not serve streams of kind `{kind}`. hint: is the stub of the same release?");
            return stream.refuse(&Refusal::new(RefusalCode::Unsupported, text)).await;
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(kind, %error, "stream ended");
    }
}

fn permit(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    semaphore.clone().try_acquire_owned().ok()
}

fn busy(what: &str) -> Refusal {
    Refusal::new(RefusalCode::Busy, format!("too many {what} in this session. hint: end some and try again"))
}

//! The workspace's own socket: programs here call their laptop through it. It lets calls pass and nothing else.
//!
//! A Unix socket, 0600; only the user that runs the stub, and root, may connect. The laptop decides on every call.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::laptops::Laptops;
use crate::service::copy::splice;
use crate::session::framed::FramedStream;
use crate::wire::limits::MAX_CALLS;
use crate::wire::{FrameKind, Refusal, RefusalCode, StreamRequest};

/// The socket's name in the state directory.
pub const SOCKET: &str = "stub.sock";

/// The environment variable that tells programs in the workspace where the socket is.
pub const SOCKET_ENV: &str = "NEXUS_STUB_SOCKET";

/// A bound socket; the file is removed with it.
#[derive(Debug)]
pub struct Gateway {
    listener: UnixListener,
    path: PathBuf,
}

impl Gateway {
    /// Binds the socket at `path`. A file left by a stub that is gone is replaced; a live one is refused.
    pub fn bind(path: &Path) -> io::Result<Gateway> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let text = format!("another nexus-stub serves {}. hint: stop it first", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        let _ = std::fs::remove_file(path);
        let bind = UnixListener::bind(path);
        let listener = bind.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Gateway { listener, path: path.to_owned() })
    }

    /// Serves until `stop`.
    pub async fn run(self, laptops: Arc<Laptops>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(MAX_CALLS));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            if !may_connect(&stream) {
                tracing::warn!("another user tried to use the workspace's socket");
                continue;
            }
            let (laptops, permits, stop) = (laptops.clone(), permits.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = pass(stream, &laptops, &permits) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether the process at the other end is the same user's, or root's.
fn may_connect(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn pass(stream: UnixStream, laptops: &Laptops, permits: &Semaphore) {
    let Ok((open, local)) = FramedStream::accept(stream).await else { return };
    if !matches!(open.request, StreamRequest::Call {}) {
        let text = format!("the workspace's socket takes calls, not `{}`", open.request.name());
        return local.refuse(&Refusal::new(RefusalCode::Unsupported, text)).await;
    }
    let Ok(_permit) = permits.try_acquire() else {
        let text = "too many calls at once. hint: wait for some to finish";
        return local.refuse(&Refusal::new(RefusalCode::Busy, text)).await;
    };
    let remote = match laptops.open().await {
        Ok(remote) => remote,
        Err(refusal) => return local.refuse(&refusal).await,
    };
    let Ok(payload) = open.to_bytes() else { return };
    let mut remote = FramedStream::new(remote);
    if remote.writer.send(FrameKind::Open, &payload).await.is_err() {
        let refusal = Refusal::new(RefusalCode::Unavailable, "the laptop's connection broke. hint: try again");
        return local.refuse(&refusal).await;
    }
    let _ = splice(local.into_inner(), remote.into_inner()).await;
}

//! The local socket between a running `nexus-proxy up` and the other commands.
//!
//! A connection begins with a `Message` frame, which is a call to the running program, or with an `Open` frame, which
//! is passed to the workspace as it is. The socket is 0600 in a 0700 directory, and only its owner is served.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};

use crate::role::files;
use crate::session::framed::{FramedStream, StreamError};
use crate::wire::call::{Request, Response};
use crate::wire::name::WorkspaceName;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// The calls that a running `up` answers.
pub const METHODS: [&str; 3] = ["status", "down", "forward"];

/// The socket of a workspace below the run directory.
pub fn socket_path(run_dir: &Path, workspace: &WorkspaceName) -> PathBuf {
    run_dir.join(format!("{workspace}.sock"))
}

/// The listening end; the file is removed with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket. There is one for each workspace: a second `up` is refused.
    pub fn bind(path: &Path) -> io::Result<ControlSocket> {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let text = "it is up already. hint: `nexus-proxy status` shows it, `nexus-proxy down` ends it";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).map_err(|e| {
            let hint = "hint: a socket's path may have about 100 bytes; a shorter NEXUS_HOME helps";
            io::Error::new(e.kind(), format!("{}: {e}. {hint}", path.display()))
        })?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(ControlSocket { listener, path: path.to_owned() })
    }

    /// The next connection of the owner's.
    pub async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let own = nix::unistd::geteuid().as_raw();
                    if stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
                        return stream;
                    }
                    tracing::warn!("another user tried to use the control socket");
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket failed to accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects to a running `up`.
pub async fn connect(run_dir: &Path, workspace: &WorkspaceName) -> Result<UnixStream, Refusal> {
    let path = socket_path(run_dir, workspace);
    UnixStream::connect(&path).await.map_err(|_| {
        let text =
            format!("workspace `{workspace}` is not up. hint: run `nexus-proxy up {workspace}` in another terminal");
        Refusal::new(RefusalCode::Unavailable, text)
    })
}

/// Calls a running `up`. The stream stays open: a forward lives as long as it does.
pub async fn call<A: DeserializeOwned>(
    stream: UnixStream,
    method: &str,
    params: Value,
) -> Result<(A, FramedStream<UnixStream>), Refusal> {
    let mut stream = FramedStream::new(stream);
    let sent = stream.writer.send_json(FrameKind::Message, &Request::new(method, params)).await;
    sent.map_err(|e| StreamError::from(e).into_refusal())?;
    let frame = stream.reader.expect().await.map_err(StreamError::into_refusal)?;
    let response: Response = frame.json()?;
    let result = response.outcome()?;
    let answer = serde_json::from_value(result).map_err(|e| {
        let text = format!("the running program answers in another shape: {e}. hint: restart it with this release");
        Refusal::new(RefusalCode::Unsupported, text)
    })?;
    Ok((answer, stream))
}

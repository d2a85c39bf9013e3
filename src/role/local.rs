//! Calls between programs on one machine, over a Unix socket: one request, one response, each in a `Message` frame. The
//! sockets are their user's alone.
//!
//! Only this user and root are listened to, and believed.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};

use crate::session::framed::{FramedStream, StreamError};
use crate::wire::call::{Request, Response};
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// How often [`hung_up`] looks: the kernel tells nobody who does not read.
const HUNG_UP_POLL: Duration = Duration::from_secs(1);

/// Whether the process at the other end is the same user's, or root's.
pub fn is_own(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Binds a socket that only this user may use.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let listener = UnixListener::bind(path).map_err(named)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

/// Whether a connection failed because nobody listens: no file, or one that was left behind.
pub fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Ready when the program at the other end is gone, within a second: also while what it sent is not read, where no read
/// would tell.
pub async fn hung_up(socket: BorrowedFd<'_>) {
    loop {
        let mut looks = [PollFd::new(socket, PollFlags::empty())];
        // A look that fails tells nothing; the stream's own errors will.
        let _ = poll(&mut looks, PollTimeout::ZERO);
        if looks[0].any().unwrap_or(false) {
            return;
        }
        tokio::time::sleep(HUNG_UP_POLL).await;
    }
}

/// Whether it is certain that nobody listens at `path`. Waits for nobody: a queue that is full is somebody's, who may have been
/// stopped.
pub async fn is_deserted(path: &Path) -> bool {
    UnixStream::connect(path).await.is_err_and(|error| is_nobody(&error))
}

/// Calls the program at the other end. The stream is good for what the two agreed on.
pub async fn call<A: DeserializeOwned>(
    stream: UnixStream,
    method: &str,
    params: Value,
) -> Result<(A, FramedStream<UnixStream>), StreamError> {
    let mut stream = FramedStream::new(stream);
    stream.writer.send_json(FrameKind::Message, &Request::new(method, params)).await?;
    let frame = stream.reader.expect().await?;
    match frame.kind {
        FrameKind::Message => {}
        FrameKind::Refuse => return Err(StreamError::Refused(frame.refusal())),
        kind => return Err(StreamError::OutOfPlace(kind)),
    }
    let response: Response = frame.json().map_err(StreamError::Refused)?;
    let result = response.outcome().map_err(StreamError::Refused)?;
    let answer = serde_json::from_value(result).map_err(|e| {
        let text = format!("the running program answers in another shape: {e}. hint: restart it with this release");
        StreamError::Refused(Refusal::new(RefusalCode::Unsupported, text))
    })?;
    Ok((answer, stream))
}

/// Answers a call.
pub async fn answer(
    stream: &mut FramedStream<UnixStream>,
    id: Value,
    outcome: Result<Value, Refusal>,
) -> io::Result<()> {
    stream.writer.send_json(FrameKind::Message, &Response::new(id, outcome)).await
}

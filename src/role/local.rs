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

/// What to do where a socket is somebody else's.
const ANOTHER_PLACE: &str = "use another place (NEXUS_HOME on a laptop, --state for a stub)";

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

/// Connects to this user's program that listens at `path`; `None` where nobody does. `Timeout` when it lets nobody in,
/// `Denied` when the socket is another user's, `Busy` when it cannot be told whether anybody listens.
pub async fn connect(path: &Path) -> Result<Option<UnixStream>, Refusal> {
    match UnixStream::connect(path).await {
        Ok(stream) if is_own(&stream) => Ok(Some(stream)),
        Ok(_) => {
            let text = format!("another user listens at {}. hint: remove it, or {ANOTHER_PLACE}", path.display());
            Err(Refusal::new(RefusalCode::Denied, text))
        }
        Err(error) if is_nobody(&error) => Ok(None),
        Err(error) => Err(not_let_in(path, &error)),
    }
}

/// Why it could not connect to a socket at which somebody may well listen.
fn not_let_in(path: &Path, error: &io::Error) -> Refusal {
    let path = path.display();
    let (code, text) = match error.kind() {
        // Its queue is full of those who asked before.
        io::ErrorKind::WouldBlock => {
            let text = format!(
                "the process that listens at {path} does not answer. hint: it is stopped or stuck, or very many ask at once; \
                 `pgrep -a nexus-` shows it, `kill -CONT PID` lets one that was stopped go on, and `kill -KILL PID` ends it"
            );
            (RefusalCode::Timeout, text)
        }
        io::ErrorKind::PermissionDenied => {
            let text = format!(
                "{path} may not be opened: {error}. hint: it is another user's, as after `sudo -E`; ask as that user, or \
                 {ANOTHER_PLACE}"
            );
            (RefusalCode::Denied, text)
        }
        _ => {
            let text = format!(
                "whether anybody listens at {path} cannot be told: {error}. hint: try again; `ulimit -n` shows how many \
                 files a program may have open, and a socket's path may have about 100 bytes"
            );
            (RefusalCode::Busy, text)
        }
    };
    Refusal::new(code, text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_named_and_is_not_taken_for_nobody() {
        let cases = [
            (nix::errno::Errno::EAGAIN, RefusalCode::Timeout),
            (nix::errno::Errno::EACCES, RefusalCode::Denied),
            (nix::errno::Errno::EPERM, RefusalCode::Denied),
            (nix::errno::Errno::EMFILE, RefusalCode::Busy),
            (nix::errno::Errno::ENFILE, RefusalCode::Busy),
        ];
        for (number, code) in cases {
            let error = io::Error::from(number);
            assert!(!is_nobody(&error), "{error}");
            let refusal = not_let_in(Path::new("/run/box.sock"), &error);
            assert_eq!(refusal.code, code, "{refusal}");
            assert!(refusal.message.contains("/run/box.sock") && refusal.message.contains("hint:"), "{refusal}");
            assert!(code == RefusalCode::Timeout || refusal.message.contains(&error.to_string()), "{refusal}");
        }
    }
}

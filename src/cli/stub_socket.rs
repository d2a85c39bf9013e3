//! Where the stub's socket is, for programs of the workspace, and how it is reached.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::UnixStream;

use super::failure::{self, Failure};
use super::home;
use crate::role::stub::gateway::{SOCKET, SOCKET_ENV};
use crate::role::stub::local;
use crate::role::stub::status::{METHOD, Status};
use crate::session::framed::StreamError;
use crate::wire::{Refusal, RefusalCode};

/// The environment variable that tells where a stub's state is.
pub const STATE_ENV: &str = "NEXUS_STUB_STATE";

/// For how long a stub is waited for that does not listen: longer than one takes to take over from another.
const TAKE_OVER: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile: nothing tells when a socket appears.
const TAKE_OVER_POLL: Duration = Duration::from_millis(20);

/// Where the stub listens. What is said on the command line goes before what `environment` has.
pub fn place(
    socket: Option<PathBuf>,
    state: Option<PathBuf>,
    environment: impl Fn(&'static str) -> Option<OsString>,
) -> PathBuf {
    let is_said = |path: &Path, name| environment(name).is_none_or(|value| value != path.as_os_str());
    match (socket, state) {
        (Some(socket), Some(state)) if is_said(&state, STATE_ENV) && !is_said(&socket, SOCKET_ENV) => {
            state.join(SOCKET)
        }
        (Some(socket), _) => socket,
        (None, state) => state.unwrap_or_else(home::stub_state).join(SOCKET),
    }
}

/// Connects to the stub. While one takes over from another, nobody listens for a moment.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + TAKE_OVER;
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if local::is_nobody(&error) && Instant::now() < deadline => {
                tokio::time::sleep(TAKE_OVER_POLL).await;
            }
            connected => return connected,
        }
    }
}

/// As [`connect`], to a stub that answers: it is asked how it is, before it is asked for what may rightly take long, such as a
/// tool of the laptop.
pub async fn connect_awake(socket: &Path) -> Result<UnixStream, Failure> {
    let connect = async || {
        connect(socket).await.map_err(|e| {
            let text = format!(
                "the stub does not answer at {}: {e}. hint: is `nexus-stub run` running here?",
                socket.display()
            );
            Failure::new(failure::UNAVAILABLE, text)
        })
    };
    match status(connect().await?).await {
        Err(refusal) if refusal.code == RefusalCode::Timeout => Err(refusal.into()),
        // Whatever it said, it answers.
        _ => connect().await,
    }
}

/// Asks the stub at the other end how it is. A process that was stopped still has its socket: it is not waited for.
pub async fn status(stream: UnixStream) -> Result<Status, Refusal> {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    match local::call(stream, METHOD, Value::Null).await.map_err(StreamError::into_refusal) {
        Ok((status, _)) => Ok(status),
        Err(refusal) if refusal.code == RefusalCode::Timeout => {
            let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
            let text = format!(
                "the stub, process {pid}, does not answer in time. hint: it is stopped or stuck; `kill -CONT {pid}` lets one \
                 that was stopped go on"
            );
            Err(Refusal::new(RefusalCode::Timeout, text))
        }
        Err(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_environment_and_a_socket_before_its_directory() {
        let environment = |name| (name == SOCKET_ENV).then(|| OsString::from("/env/s"));
        let at = |socket: Option<&str>, state: Option<&str>| {
            place(socket.map(PathBuf::from), state.map(PathBuf::from), environment)
        };
        assert_eq!(at(Some("/env/s"), None), Path::new("/env/s"));
        assert_eq!(at(Some("/env/s"), Some("/said")), Path::new("/said").join(SOCKET));
        assert_eq!(at(Some("/said/s"), Some("/said/too")), Path::new("/said/s"));
        assert_eq!(at(None, Some("/said")), Path::new("/said").join(SOCKET));
        assert_eq!(at(None, None), home::stub_state().join(SOCKET));
        let both = |name| Some(OsString::from(if name == SOCKET_ENV { "/env/s" } else { "/env" }));
        assert_eq!(place(Some("/env/s".into()), Some("/env".into()), both), Path::new("/env/s"));
    }
}

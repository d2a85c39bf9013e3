//! Connects to a target, and says in words a person can act on why it could not.
//!
//! Names are resolved here, on the side that dials. Refuses to decide whether a target is allowed.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout};

use crate::service::copy::Socket;
use crate::wire::limits::DIAL_TIMEOUT;
use crate::wire::{Endpoint, Refusal, RefusalCode};

/// Addresses of one name that are tried; a name with more is a mistake or a trap.
const MAX_ADDRESSES: usize = 16;

/// The machine this runs on, for sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where the agent works.
    Workspace,
    /// Where its owner sits.
    Laptop,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Workspace => "in the workspace",
            Place::Laptop => "on the laptop",
        })
    }
}

/// A connection to `target`; relative socket paths start at `base_dir`. All addresses of a name are tried in turn,
/// within [`DIAL_TIMEOUT`] as a whole.
pub async fn dial(target: &Endpoint, base_dir: &Path, place: Place) -> Result<Socket, Refusal> {
    match target {
        Endpoint::Tcp { host, port } => {
            let deadline = Instant::now() + DIAL_TIMEOUT;
            let addresses = resolve(host, *port, place).await?;
            dial_any(&addresses, deadline).await.map_err(|e| refusal(&e, target, place))
        }
        Endpoint::Unix { path } => {
            match timeout(DIAL_TIMEOUT, UnixStream::connect(socket_path(path, base_dir))).await {
                Ok(Ok(socket)) => Ok(socket.into()),
                Ok(Err(e)) => Err(refusal(&e, target, place)),
                Err(_) => Err(refusal(&ErrorKind::TimedOut.into(), target, place)),
            }
        }
        Endpoint::Udp { .. } => Err(Refusal::new(
            RefusalCode::InvalidArguments,
            format!("{target} takes datagrams, not a connection. hint: ask for a UDP flow"),
        )),
    }
}

/// The addresses of `host`, at least one, within [`DIAL_TIMEOUT`].
pub async fn resolve(host: &str, port: u16, place: Place) -> Result<Vec<SocketAddr>, Refusal> {
    if host.is_empty() || port == 0 {
        let message = format!("{host:?} port {port} is no target. hint: name a host and a port from 1 to 65535");
        return Err(Refusal::new(RefusalCode::InvalidArguments, message));
    }
    let unknown = |why: &dyn fmt::Display| {
        let message = format!(
            "the name {host} is not known {place}: {why}. \
             hint: names are resolved {place}; check the spelling or give an address"
        );
        Refusal::new(RefusalCode::NotFound, message)
    };
    match timeout(DIAL_TIMEOUT, lookup_host((host, port))).await {
        Err(_) => Err(Refusal::new(
            RefusalCode::Timeout,
            format!("looking up {host} {place} took over {DIAL_TIMEOUT:?}. hint: check the name servers there"),
        )),
        Ok(Err(e)) => Err(unknown(&e)),
        Ok(Ok(found)) => {
            let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
            if addresses.is_empty() { Err(unknown(&"it has no address")) } else { Ok(addresses) }
        }
    }
}

/// `path`, from `base_dir` if it is relative.
pub(crate) fn socket_path(path: &str, base_dir: &Path) -> PathBuf {
    base_dir.join(path)
}

async fn dial_any(addresses: &[SocketAddr], deadline: Instant) -> io::Result<Socket> {
    let mut last = io::Error::from(ErrorKind::TimedOut);
    for (i, address) in addresses.iter().enumerate() {
        // What is left is shared, so that one silent address does not take the time of those behind it.
        let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - i) as u32;
        if share == Duration::ZERO {
            break;
        }
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket.into()),
            Ok(Err(e)) => last = e,
            Err(_) => last = ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn refusal(error: &io::Error, target: &Endpoint, place: Place) -> Refusal {
    let unix = matches!(target, Endpoint::Unix { .. });
    let (code, message) = match error.kind() {
        ErrorKind::ConnectionRefused => (
            RefusalCode::TargetRefused,
            format!("nothing listens on {target} {place}. hint: start the service there, or check the address"),
        ),
        ErrorKind::NotFound if unix => (
            RefusalCode::NotFound,
            format!("there is no socket {target} {place}. hint: start the service that makes it, or check the path"),
        ),
        ErrorKind::PermissionDenied => (
            RefusalCode::Denied,
            format!(
                "{target} may not be used {place}: {error}. hint: check the permissions of the path or the firewall"
            ),
        ),
        ErrorKind::TimedOut => (
            RefusalCode::Timeout,
            format!("{target} did not answer {place} in time. hint: check that it is up and not behind a firewall"),
        ),
        _ => (
            RefusalCode::TargetUnreachable,
            format!("{target} cannot be reached {place}: {error}. hint: check the address and the network there"),
        ),
    };
    Refusal::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::free_port;

    async fn refused(target: Endpoint) -> Refusal {
        dial(&target, Path::new("/nonexistent"), Place::Workspace).await.unwrap_err()
    }

    #[tokio::test]
    async fn what_cannot_be_dialled_is_explained() {
        let port = free_port().await;
        let closed = refused(Endpoint::Tcp { host: "127.0.0.1".into(), port }).await;
        assert_eq!(closed.code, RefusalCode::TargetRefused);
        assert!(closed.message.starts_with(&format!("nothing listens on 127.0.0.1:{port} in the workspace. hint:")));
        assert_eq!(refused(Endpoint::Tcp { host: "".into(), port: 1 }).await.code, RefusalCode::InvalidArguments);
        assert_eq!(refused(Endpoint::Tcp { host: "a b".into(), port: 1 }).await.code, RefusalCode::NotFound);
        assert_eq!(refused(Endpoint::Unix { path: "absent.sock".into() }).await.code, RefusalCode::NotFound);
        assert_eq!(
            refused(Endpoint::Udp { host: "127.0.0.1".into(), port: 1 }).await.code,
            RefusalCode::InvalidArguments
        );
    }
}

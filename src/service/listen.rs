//! Listens on a TCP port or a Unix socket.
//!
//! A Unix socket is reachable by its owner only, from its first moment, and its file goes when the listener does.
//! The file of a listener that died is replaced; one that is alive, or a file of another kind, is not. Every interface
//! is bound only if the caller names it.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket as RawSocket, Type};
use tokio::net::{TcpListener, UdpSocket, UnixListener, lookup_host};

use crate::service::copy::Socket;
use crate::service::dial::{Place, socket_path};
use crate::wire::{Endpoint, Refusal, RefusalCode};

/// Connections the kernel keeps for us before we take them.
const BACKLOG: i32 = 1024;

/// Pause after a failed accept: the machine is out of descriptors, and trying at once changes nothing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    bound: Endpoint,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

impl Listener {
    /// Listens on `bind`: port 0 picks one, `*` is every interface, relative paths start at `base_dir`.
    pub async fn bind(bind: &Endpoint, base_dir: &Path, place: Place) -> Result<Listener, Refusal> {
        let result = match bind {
            Endpoint::Tcp { host, port } => bind_tcp(host, *port).await,
            Endpoint::Unix { path } => bind_unix(path, &socket_path(path, base_dir)).await,
            Endpoint::Udp { .. } => Err(io::Error::new(ErrorKind::InvalidInput, "UDP has no connections")),
        };
        result.map_err(|e| bind_refusal(&e, bind, place))
    }

    /// Where it listens, with the port that was picked.
    pub fn bound(&self) -> &Endpoint {
        &self.bound
    }

    /// The next connection, and who it is from. Safe to cancel. Errors that pass are waited out.
    pub async fn accept(&self) -> (Socket, String) {
        loop {
            let accepted = match &self.kind {
                Kind::Tcp(listener) => listener.accept().await.map(|(tcp, peer)| (tcp.into(), peer.to_string())),
                Kind::Unix { listener, .. } => listener.accept().await.map(|(unix, _)| {
                    let peer = unix.peer_cred().ok().and_then(|cred| cred.pid());
                    (unix.into(), peer.map_or_else(|| "unix".to_owned(), |pid| format!("process {pid}")))
                }),
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::debug!(%error, bound = %self.bound, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A UDP socket on `host` and `port`, and where it is.
pub(crate) async fn bind_udp(host: &str, port: u16, place: Place) -> Result<(UdpSocket, Endpoint), Refusal> {
    let bind = async {
        let addresses = bind_addresses(host, port).await?;
        let socket = UdpSocket::bind(&addresses[..]).await?;
        let bound = socket.local_addr()?;
        Ok((socket, Endpoint::Udp { host: host.to_owned(), port: bound.port() }))
    };
    bind.await.map_err(|e: io::Error| bind_refusal(&e, &Endpoint::Udp { host: host.to_owned(), port }, place))
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<Listener> {
    let addresses = bind_addresses(host, port).await?;
    let listener = TcpListener::bind(&addresses[..]).await?;
    let bound = Endpoint::Tcp { host: host.to_owned(), port: listener.local_addr()?.port() };
    Ok(Listener { kind: Kind::Tcp(listener), bound })
}

async fn bind_addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the address to listen on is empty"));
    }
    let host = if host == "*" { "0.0.0.0" } else { host };
    Ok(lookup_host((host, port)).await?.collect())
}

async fn bind_unix(path: &str, at: &Path) -> io::Result<Listener> {
    let (raw, file) = match claim(at) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            make_way(at).await?;
            claim(at)?
        }
        claimed => claimed?,
    };
    raw.listen(BACKLOG)?;
    raw.set_nonblocking(true)?;
    let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(raw)))?;
    Ok(Listener { kind: Kind::Unix { listener, _file: file }, bound: Endpoint::Unix { path: path.to_owned() } })
}

/// Binds, and narrows the mode before anyone can connect: that takes a `listen`.
fn claim(at: &Path) -> io::Result<(RawSocket, SocketFile)> {
    let raw = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    raw.bind(&SockAddr::unix(at)?)?;
    let made = fs::symlink_metadata(at)?;
    let file = SocketFile { path: at.to_owned(), id: (made.dev(), made.ino()) };
    fs::set_permissions(at, fs::Permissions::from_mode(0o600))?;
    Ok((raw, file))
}

/// Removes the socket file of a listener that is dead.
async fn make_way(at: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(at)?.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
    }
    match tokio::net::UnixStream::connect(at).await {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(at),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

/// Removes the file it stands for, unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_refusal(error: &io::Error, bind: &Endpoint, place: Place) -> Refusal {
    let (code, why) = match error.kind() {
        ErrorKind::AddrInUse => (
            RefusalCode::AddressInUse,
            "it is in use. hint: stop what listens there, or choose another; port 0 picks a free one".to_owned(),
        ),
        ErrorKind::AlreadyExists => (RefusalCode::AddressInUse, format!("{error}. hint: choose another path")),
        ErrorKind::PermissionDenied => (
            RefusalCode::Denied,
            "permission denied. hint: choose a port above 1023, or a directory that you can write to".to_owned(),
        ),
        ErrorKind::NotFound => (RefusalCode::NotFound, "there is no such directory. hint: create it first".to_owned()),
        ErrorKind::AddrNotAvailable => (
            RefusalCode::InvalidArguments,
            format!("that is no address {place}. hint: 127.0.0.1 always is; * means every interface"),
        ),
        _ => (RefusalCode::InvalidArguments, format!("{error}. hint: check the address or the path")),
    };
    Refusal::new(code, format!("cannot listen on {bind} {place}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    async fn bind(endpoint: &Endpoint, dir: &Path) -> Result<Listener, Refusal> {
        Listener::bind(endpoint, dir, Place::Laptop).await
    }

    #[tokio::test]
    async fn a_port_is_picked_and_a_taken_one_refused() {
        let any = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
        let listener = bind(&any, Path::new("/")).await.unwrap();
        let taken = bind(listener.bound(), Path::new("/")).await.unwrap_err();
        assert_eq!(taken.code, RefusalCode::AddressInUse);
        assert!(taken.message.contains("hint:"), "{taken}");
        for host in ["", "192.0.2.1"] {
            let foreign = Endpoint::Tcp { host: host.into(), port: 0 };
            assert_eq!(bind(&foreign, Path::new("/")).await.unwrap_err().code, RefusalCode::InvalidArguments);
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let here = Endpoint::Unix { path: "s".into() };
        let listener = bind(&here, dir.path()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&here, dir.path()).await.unwrap_err().code, RefusalCode::AddressInUse);
        UnixStream::connect(&path).await.unwrap();
        drop(listener);
        assert!(!path.exists());
        assert_eq!(bind(&here, &dir.path().join("no")).await.unwrap_err().code, RefusalCode::NotFound);
    }

    #[tokio::test]
    async fn a_dead_socket_file_is_replaced_and_another_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let here = Endpoint::Unix { path: path.to_str().unwrap().into() };
        drop(bind(&here, Path::new("/")).await.unwrap());
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&here, Path::new("/")).await.unwrap_err().code, RefusalCode::AddressInUse);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}

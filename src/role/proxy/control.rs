//! The local socket between a running `nexus-proxy up` and the other commands.
//!
//! A connection begins with a `Message` frame, which is a call to the running program, or with an `Open` frame, which
//! is passed to the workspace as it is. The socket is 0600 in a 0700 directory, and only its owner is served.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};

use crate::role::right::{self, NotHad, Right};
use crate::role::{ACCEPT_PAUSE, files, local};
use crate::session::framed::{FramedStream, StreamError};
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// How long an `up` that was told to end may take: its stub and its coordinator have several seconds each.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an `up` may take for an answer that waits for nobody: it has it at hand.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often its end is looked for: nothing tells it across processes.
const END_POLL: Duration = Duration::from_millis(20);

/// The socket of a workspace below the run directory.
pub fn socket_path(run_dir: &Path, workspace: &WorkspaceName) -> PathBuf {
    run_dir.join(format!("{workspace}.sock"))
}

/// The right to keep a workspace up, which is the right to its socket. Both files are removed with it: where there is no socket,
/// everything that belonged to it is down.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _right: Right,
}

impl Claim {
    /// Claims the socket at `path`. Refused while another process has it; one that is about to end is waited for.
    pub async fn new(path: &Path) -> io::Result<Claim> {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        match Right::have(path, END_TIMEOUT).await {
            Ok(right) => Ok(Claim { path: path.to_owned(), _right: right }),
            Err(NotHad::Served | NotHad::Held) => Err(io::Error::new(io::ErrorKind::AddrInUse, "it is up already")),
            Err(NotHad::Io(error)) => Err(error),
        }
    }

    /// Binds the socket. A file that was left by a process that is gone is replaced.
    pub fn bind(&self) -> io::Result<ControlSocket> {
        ControlSocket::bind(&self.path)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        // Last, and while it is locked: whoever has the next one may bind.
        let _ = std::fs::remove_file(right::file_of(&self.path));
    }
}

/// Waits until the process that has the socket at `path` is done; whether it was in time.
pub async fn ended(path: &Path) -> bool {
    let deadline = Instant::now() + END_TIMEOUT;
    while path.exists() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(END_POLL).await;
    }
    true
}

/// The listening end of a claimed socket.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
}

impl ControlSocket {
    fn bind(path: &Path) -> io::Result<ControlSocket> {
        let _ = std::fs::remove_file(path);
        let listener = local::bind(path).map_err(|e| {
            let hint = "hint: a socket's path may have about 100 bytes; a shorter NEXUS_HOME helps";
            io::Error::new(e.kind(), format!("{e}. {hint}"))
        })?;
        Ok(ControlSocket { listener })
    }

    /// The next connection of the owner's.
    pub async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if local::is_own(&stream) {
                        return stream;
                    }
                    tracing::warn!("another user tried to use the control socket");
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket failed to accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The socket of an `up` that has handed over and lives on until what it has is done; its file goes with it. It answers
/// `status` and `down`.
#[derive(Debug)]
pub struct Door {
    /// The listening end.
    pub socket: ControlSocket,
    path: PathBuf,
}

impl Door {
    /// Opens one beside the workspace's socket. One process may hand a workspace over more than once.
    pub fn open(run_dir: &Path, workspace: &WorkspaceName) -> io::Result<Door> {
        let path = run_dir.join(format!("{workspace}.{}-{:04x}.sock", std::process::id(), rand::random::<u16>()));
        Ok(Door { socket: ControlSocket::bind(&path)?, path })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The sockets of those that handed this workspace over, or any. What killed processes left is removed.
pub async fn doors(run_dir: &Path, workspace: Option<&WorkspaceName>) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
    let is_one = |name: &str| {
        let parts = name.strip_suffix(".sock").and_then(|name| name.split_once('.'));
        parts.is_some_and(|(of, _)| workspace.map_or_else(|| of.parse::<WorkspaceName>().is_ok(), |w| of == w.as_str()))
    };
    let mut found = Vec::new();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_one)) {
        let path = entry.path();
        if local::is_deserted(&path).await {
            let _ = std::fs::remove_file(&path);
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What to do where a workspace is not up.
pub fn how_up(workspace: &WorkspaceName) -> String {
    format!("hint: run `nexus-proxy up {workspace}` in another terminal, with --coordinator URL for a remote workspace")
}

/// Connects to a running `up`.
pub async fn connect(run_dir: &Path, workspace: &WorkspaceName) -> Result<UnixStream, Refusal> {
    connect_at(&socket_path(run_dir, workspace)).await.map_err(|refusal| match refusal.code {
        RefusalCode::Unavailable => {
            let text = format!("workspace `{workspace}` is not up. {}", how_up(workspace));
            Refusal::new(RefusalCode::Unavailable, text)
        }
        _ => refusal,
    })
}

/// As [`connect`], to one that answers: it is asked how it is, before it is asked for what may rightly take long, such as a
/// program in a workspace whose way is being mended.
pub async fn connect_awake(run_dir: &Path, workspace: &WorkspaceName) -> Result<UnixStream, Refusal> {
    match ask::<Value>(connect(run_dir, workspace).await?, "status").await {
        Err(refusal) if refusal.code == RefusalCode::Timeout => Err(refusal),
        // Whatever it said, it answers.
        _ => connect(run_dir, workspace).await,
    }
}

/// Connects to the `up` whose socket is at `path`. `Unavailable` only where it is certain that none is there.
pub async fn connect_at(path: &Path) -> Result<UnixStream, Refusal> {
    local::connect(path).await?.ok_or_else(|| {
        Refusal::new(RefusalCode::Unavailable, format!("nobody listens at {}. hint: it has ended", path.display()))
    })
}

/// Calls a running `up`. The stream stays open: a forward lives as long as it does.
pub async fn call<A: DeserializeOwned>(
    stream: UnixStream,
    method: &str,
    params: Value,
) -> Result<(A, FramedStream<UnixStream>), Refusal> {
    local::call(stream, method, params).await.map_err(StreamError::into_refusal)
}

/// As [`call`], for what is answered at once. A process that was stopped still has its socket: it is not waited for.
pub async fn ask<A: DeserializeOwned>(
    stream: UnixStream,
    method: &str,
) -> Result<(A, FramedStream<UnixStream>), Refusal> {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    tokio::time::timeout(ANSWER_TIMEOUT, call(stream, method, Value::Null)).await.unwrap_or_else(|_| {
        let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
        let text = format!(
            "process {pid} does not answer within {} s. hint: it is stopped or stuck, or only beginning; `kill -CONT {pid}` \
             lets one that was stopped go on, and where that and a moment do not help, `kill -KILL {pid}` ends it",
            ANSWER_TIMEOUT.as_secs()
        );
        Err(Refusal::new(RefusalCode::Timeout, text))
    })
}

/// Waits until the process at the other end of `stream`, which was told to end, is done, whose socket is at `path`; whether
/// it was in time.
pub async fn ends(mut stream: FramedStream<UnixStream>, path: &Path) -> bool {
    let _ = tokio::time::timeout(END_TIMEOUT, stream.reader.next()).await;
    ended(path).await
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claim_leaves_no_file_and_is_had_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.sock");
        drop(Claim::new(&path).await.unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let second = Claim::new(&path).await.unwrap();
        let _socket = second.bind().unwrap();
        let refused = Claim::new(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn of_many_that_come_and_go_one_at_a_time_has_the_claim() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.sock");
        let held = std::sync::atomic::AtomicU32::new(0);
        let one = || async {
            for _ in 0..5 {
                let claim = Claim::new(&path).await.unwrap();
                assert_eq!(held.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                drop(claim);
            }
        };
        futures::future::join_all((0..8).map(|_| one())).await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// A listener at `path` that lets nobody in, and those who fill its queue.
    async fn stopped(path: &Path) -> (socket2::Socket, Vec<UnixStream>) {
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) = UnixStream::connect(path).await {
            queue.push(stream);
        }
        (listener, queue)
    }

    #[tokio::test]
    async fn who_was_stopped_is_up_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let workspace: WorkspaceName = "box".parse().unwrap();
        assert_eq!(
            connect(dir.path(), &workspace).await.unwrap_err().code,
            RefusalCode::Unavailable,
            "there is no file"
        );
        let path = socket_path(dir.path(), &workspace);
        let claim = Claim::new(&path).await.unwrap();
        let _stopped = stopped(&path).await;
        let refusal = connect(dir.path(), &workspace).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Timeout, "{refusal}");
        assert_eq!(Claim::new(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(claim);
    }

    /// Such as `up` under `sudo -E`, whose socket is root's. A socket of another kind fails for everybody.
    #[tokio::test]
    async fn a_socket_that_cannot_be_opened_is_not_taken_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let workspace: WorkspaceName = "box".parse().unwrap();
        let _other_kind = std::os::unix::net::UnixDatagram::bind(socket_path(dir.path(), &workspace)).unwrap();
        let refusal = connect(dir.path(), &workspace).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Busy, "{refusal}");
        assert!(refusal.message.contains("box.sock") && !refusal.message.contains("is not up"), "{refusal}");
    }

    #[tokio::test]
    async fn a_door_of_one_that_was_stopped_is_found_and_one_that_was_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [stands, left] = ["box.1-0001.sock", "box.1-0002.sock"].map(|name| dir.path().join(name));
        let _stopped = stopped(&stands).await;
        drop(stopped(&left).await);
        assert_eq!(doors(dir.path(), None).await, [stands]);
        assert!(!left.exists());
    }
}

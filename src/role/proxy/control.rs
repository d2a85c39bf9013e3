//! The local socket between a running `nexus-proxy up` and the other commands.
//!
//! A connection begins with a `Message` frame, which is a call to the running program, or with an `Open` frame, which
//! is passed to the workspace as it is. The socket is 0600 in a 0700 directory, and only its owner is served.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
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

/// Bytes of a lock's file that are read: a process, and a path that a socket can have.
const MAX_HOLDER: u64 = 4096;

/// How often its end is looked for: nothing tells it across processes.
const END_POLL: Duration = Duration::from_millis(20);

/// The socket of a workspace below the run directory.
pub fn socket_path(run_dir: &Path, workspace: &WorkspaceName) -> PathBuf {
    run_dir.join(format!("{workspace}.sock"))
}

/// The lock of whoever keeps a workspace up, below the data directory.
pub fn held_path(data_dir: &Path, workspace: &WorkspaceName) -> PathBuf {
    data_dir.join("up").join(format!("{workspace}.lock"))
}

/// Why a workspace cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process has it, and its socket.
    #[error("it is up already")]
    Up,
    /// Another process has it, whose socket is somewhere else.
    #[error("process {} keeps it up already, with another run directory: its socket is {}", .0.pid, .0.socket.display())]
    Elsewhere(Holder),
    /// The files cannot be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Who has a workspace, as its lock in the data directory says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its control socket.
    pub socket: PathBuf,
}

impl Holder {
    /// Whom the lock at `file` names; `None` where whoever has it has not said so, or something else is written there.
    pub fn read(file: &Path) -> Option<Holder> {
        let mut text = Vec::new();
        File::open(file).ok()?.take(MAX_HOLDER).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// The right to keep a workspace up, which one process has: a lock on a file beside the socket, and one on a file in the data
/// directory for those that have the same keys and state and another run directory. The files are removed with it: where there
/// is no socket, everything that belonged to it is down. The right ends with its process, however that ends.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _locks: [Lock; 2],
}

impl Claim {
    /// Claims the socket at `path`, and the workspace whose lock in the data directory is `held`. Refused while another process
    /// has either; one that is about to end is waited for.
    pub async fn new(path: &Path, held: &Path) -> Result<Claim, ClaimError> {
        for dir in [path.parent(), held.parent()].into_iter().flatten() {
            files::private_dir(dir)?;
        }
        let beside = match Right::have(path, END_TIMEOUT).await {
            Ok(right) => Lock { file: right::file_of(path), right },
            Err(NotHad::Served | NotHad::Held) => return Err(ClaimError::Up),
            Err(NotHad::Io(error)) => return Err(error.into()),
        };
        let deadline = Instant::now() + END_TIMEOUT;
        let held = loop {
            if let Some(right) = Right::take(held)? {
                break Lock { file: held.to_owned(), right };
            }
            let is_late = Instant::now() >= deadline;
            // Whoever has just taken it has not said so yet.
            match Holder::read(held) {
                Some(holder) if is_late || !local::is_deserted(&holder.socket).await => {
                    return Err(ClaimError::Elsewhere(holder));
                }
                None if is_late => return Err(ClaimError::Up),
                _ => tokio::time::sleep(END_POLL).await,
            }
        };
        let holder = Holder { pid: std::process::id(), socket: path.to_owned() };
        if let Err(error) = held.right.say(&serde_json::to_vec(&holder).unwrap_or_default()) {
            // On a full disk, say. It is held all the same.
            tracing::warn!(%error, "an `up` with another run directory will not be told which process this is");
        }
        Ok(Claim { path: path.to_owned(), _locks: [beside, held] })
    }

    /// Binds the socket. A file that was left by a process that is gone is replaced.
    pub fn bind(&self) -> io::Result<ControlSocket> {
        ControlSocket::bind(&self.path)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A right whose file goes with it.
#[derive(Debug)]
struct Lock {
    file: PathBuf,
    right: Right,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked: whoever has the next one may bind.
        let _ = std::fs::remove_file(&self.file);
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

    /// The paths of a claim whose run directory is called `run`, of the only data directory.
    fn places(dir: &Path, run: &str) -> (PathBuf, PathBuf) {
        let workspace: WorkspaceName = "box".parse().unwrap();
        (socket_path(&dir.join(run), &workspace), held_path(&dir.join("data"), &workspace))
    }

    fn is_empty(dir: &Path) -> bool {
        std::fs::read_dir(dir).unwrap().count() == 0
    }

    #[tokio::test]
    async fn a_claim_leaves_no_file_and_is_had_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, held) = places(dir.path(), "run");
        let first = Claim::new(&path, &held).await.unwrap();
        for lock in [path.with_extension("lock"), held.clone()] {
            assert!(Right::take(&lock).unwrap().is_none());
        }
        drop(first);
        assert!(is_empty(path.parent().unwrap()) && is_empty(held.parent().unwrap()));
        let second = Claim::new(&path, &held).await.unwrap();
        let _socket = second.bind().unwrap();
        assert!(matches!(Claim::new(&path, &held).await, Err(ClaimError::Up)));
    }

    #[tokio::test]
    async fn of_many_that_come_and_go_one_at_a_time_has_the_claim() {
        let dir = tempfile::tempdir().unwrap();
        let has = std::sync::atomic::AtomicU32::new(0);
        let one = |number: usize| {
            let (has, (path, held)) = (&has, places(dir.path(), ["one", "other"][number % 2]));
            async move {
                for _ in 0..5 {
                    let claim = Claim::new(&path, &held).await.unwrap();
                    assert_eq!(has.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    has.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(claim);
                }
            }
        };
        futures::future::join_all((0..8).map(one)).await;
        assert!(["one", "other", "data/up"].iter().all(|name| is_empty(&dir.path().join(name))));
    }

    #[tokio::test]
    async fn who_has_another_run_directory_is_told_which_process_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, held) = places(dir.path(), "one");
        // What one that was killed has left.
        files::private_dir(held.parent().unwrap()).unwrap();
        std::fs::write(&held, "x".repeat(1000)).unwrap();
        let first = Claim::new(&path, &held).await.unwrap();
        let socket = first.bind().unwrap();
        let (other, _) = places(dir.path(), "other");
        let Err(ClaimError::Elsewhere(holder)) = Claim::new(&other, &held).await else { panic!("it has none") };
        assert_eq!((holder.pid, holder.socket), (std::process::id(), path));
        assert!(is_empty(other.parent().unwrap()), "it is as it was");
        drop((socket, first));
        drop(Claim::new(&other, &held).await.unwrap());
    }

    #[test]
    fn a_lock_that_says_something_else_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let held = dir.path().join("box.lock");
        assert_eq!(Holder::read(&held), None, "there is none");
        let holder = Holder { pid: 1, socket: "/run/box.sock".into() };
        let said = serde_json::to_string(&holder).unwrap();
        let beyond = " ".repeat(MAX_HOLDER as usize - said.len() + 1) + &said;
        for (text, named) in [("", None), ("x", None), ("{}", None), (&beyond, None), (&beyond[1..], Some(&holder))] {
            std::fs::write(&held, text).unwrap();
            assert_eq!(Holder::read(&held).as_ref(), named);
        }
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
        let (path, held) = (socket_path(dir.path(), &workspace), held_path(dir.path(), &workspace));
        let claim = Claim::new(&path, &held).await.unwrap();
        let _stopped = stopped(&path).await;
        let refusal = connect(dir.path(), &workspace).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Timeout, "{refusal}");
        assert!(matches!(Claim::new(&path, &held).await, Err(ClaimError::Up)));
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

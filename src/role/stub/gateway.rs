//! The workspace's own socket: programs here call their laptop through it, and a successor of this stub asks it to hand
//! over, or how it is. It lets calls pass and nothing else.
//!
//! A Unix socket, 0600; only the user that runs the stub, and root, may connect. The laptop decides on every call. A
//! connection begins with an `Open` frame, which is passed on, or with a `Message` frame, which is for the stub itself.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call;
use super::hand_over::{self, Asked, HandedOver};
use super::kin::{self, Kin};
use super::laptops::Laptops;
use super::local;
use super::status::{self, Told};
use crate::role::ACCEPT_PAUSE;
use crate::role::right::{self, NotHad, Right};
use crate::session::framed::{FramedStream, StreamError};
use crate::wire::call::Request;
use crate::wire::limits::{MAX_CALLS, MAX_OPEN, OPEN_TIMEOUT};
use crate::wire::{FrameKind, Open, Refusal, RefusalCode, StreamRequest};

/// The socket's name in the state directory.
pub const SOCKET: &str = "stub.sock";

/// The environment variable that tells programs in the workspace where the socket is.
pub const SOCKET_ENV: &str = "NEXUS_STUB_SOCKET";

/// For how long the right to the socket may seem to be had by somebody who only looks whether it is.
const LOOKED_AT: Duration = Duration::from_millis(500);

/// Connections at a time that have not begun a call: they have asked nothing yet, or ask the stub itself. More wait in the
/// kernel's queue, so that whoever says nothing takes no descriptor from the calls that run.
const MAX_ASKING: usize = MAX_CALLS;

/// How long a call waits for a laptop after a take-over: laptops that were there come back at once.
const EXPECTED: Duration = Duration::from_secs(5);

/// Who may use the socket beside calls, and what for.
#[derive(Debug)]
pub struct Doorbell {
    /// Where successors that ask are heard, and what they must have; without it none is.
    pub successors: Option<(mpsc::Sender<Asked>, Kin)>,
    /// When this stub took over from another, if it did.
    pub took_over: Option<Instant>,
    /// How the stub is.
    pub told: Arc<Told>,
}

/// A bound socket, and the right to have it. The socket's file is removed and the right freed with it.
#[derive(Debug)]
pub struct Gateway {
    listener: UnixListener,
    path: PathBuf,
    /// The file that was bound, by its device and number.
    file: (u64, u64),
    _right: Right,
}

impl Gateway {
    /// Binds the socket at `path`. A file left by a stub that is gone is replaced; a live one is refused.
    pub async fn bind(path: &Path) -> io::Result<Gateway> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        // Until it is bound, nobody else may take what is there for a file that was left behind.
        let right = match Right::have(path, LOOKED_AT).await {
            Ok(right) => right,
            Err(NotHad::Served) => return Err(another(path).await),
            Err(NotHad::Held) => return Err(without_file(path)),
            Err(NotHad::Io(error)) => return Err(named(error)),
        };
        match UnixStream::connect(path).await {
            Ok(_) => return Err(another(path).await),
            Err(error) if local::is_nobody(&error) => {}
            Err(error) => {
                let text = format!(
                    "{}: whether another nexus-stub serves it cannot be told: {error}. hint: its path may have about 100 \
                     bytes, and it must be this user's",
                    path.display()
                );
                return Err(io::Error::new(error.kind(), text));
            }
        }
        let _ = std::fs::remove_file(path);
        let listener = local::bind(path)?;
        let file = identity(path).map_err(named)?;
        Ok(Gateway { listener, path: path.to_owned(), file, _right: right })
    }

    /// Whether somebody may have the socket at `path`: also one whose file there is gone, which has the right all the same.
    pub async fn is_served(path: &Path) -> bool {
        !local::is_deserted(path).await || Right::is_had(path)
    }

    /// Lets connections in until `taking` is cancelled; then the file is gone. Calls are tasks of `calls`, which go on
    /// until `stop`.
    pub async fn run(
        self,
        laptops: Arc<Laptops>,
        bell: Doorbell,
        calls: TaskTracker,
        taking: CancellationToken,
        stop: CancellationToken,
    ) {
        let (asking, permits) = (Arc::new(Semaphore::new(MAX_ASKING)), Arc::new(Semaphore::new(MAX_CALLS)));
        let bell = Arc::new(bell);
        loop {
            let accepted = tokio::select! {
                accepted = local::accept(&self.listener, &asking) => accepted,
                () = taking.cancelled() => return,
            };
            let (stream, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a program of the workspace failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !local::is_own(&stream) {
                tracing::warn!("another user tried to use the workspace's socket");
                continue;
            }
            let (laptops, bell, permits, stop) = (laptops.clone(), bell.clone(), permits.clone(), stop.clone());
            calls.spawn(async move {
                tokio::select! {
                    () = serve(stream, place, &laptops, &bell, &permits) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which file is at `path`: its device and number.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| right::identity(&file))
}

async fn another(path: &Path) -> io::Error {
    let process = local::pid_at(path).await.ok().flatten().map(|pid| format!(" (process {pid})")).unwrap_or_default();
    let text = format!(
        "another nexus-stub{process} serves {}. hint: with --take-over this one takes its place, and breaks nothing",
        path.display()
    );
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

fn without_file(path: &Path) -> io::Error {
    let text = format!(
        "another nexus-stub serves {}, and that file is gone. hint: end it (`pgrep nexus-stub`), with what runs through it",
        path.display()
    );
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

/// `place` is held until a call begins, which has a permit of its own.
async fn serve(
    stream: UnixStream,
    place: OwnedSemaphorePermit,
    laptops: &Laptops,
    bell: &Doorbell,
    permits: &Semaphore,
) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let mut local = FramedStream::new(stream);
    local.reader.limit(MAX_OPEN);
    let refusal = match tokio::time::timeout(OPEN_TIMEOUT, local.reader.expect()).await {
        Err(_) => Refusal::new(RefusalCode::Timeout, "nothing was asked in time"),
        Ok(Err(StreamError::Io(_) | StreamError::Truncated)) => return,
        Ok(Err(error)) => error.into_refusal(),
        Ok(Ok(frame)) => match frame.kind {
            FrameKind::Open => match Open::parse(&frame.payload) {
                Ok(open) => return pass(local, place, &open, laptops, bell, permits).await,
                Err(refusal) => refusal,
            },
            FrameKind::Message => match Request::parse(&frame.payload) {
                Ok(request) => return own(local, pid, request, laptops, bell).await,
                Err(refusal) => refusal,
            },
            kind => StreamError::OutOfPlace(kind).into_refusal(),
        },
    };
    local.refuse(&refusal).await;
}

/// A call to this stub itself.
async fn own(
    mut local: FramedStream<UnixStream>,
    pid: Option<i32>,
    request: Request,
    laptops: &Laptops,
    bell: &Doorbell,
) {
    if request.method == status::METHOD {
        let answer = bell.told.status(laptops).await;
        return drop(local::answer(&mut local, request.id, answer).await);
    }
    let is_of_kin = [kin::METHOD, hand_over::METHOD].contains(&request.method.as_str());
    let (request, outcome) = match &bell.successors {
        Some((successors, kin)) if is_of_kin => match kin.hear(&mut local, request).await {
            Ok(request) if request.method == hand_over::METHOD => (request, hear(successors, pid).await),
            Ok(request) => unknown(request),
            Err(why) => return tracing::warn!(pid, why, "somebody asked for a hand-over, and was refused"),
        },
        None if is_of_kin => (request, Err(hand_over::belongs_to_its_parent())),
        _ => unknown(request),
    };
    let _ = local::answer(&mut local, request.id, hand_over::answered(outcome)).await;
}

fn unknown(request: Request) -> (Request, Result<HandedOver, Refusal>) {
    let text = format!("a stub does not know the method `{}`", crate::wire::refusal::printable(&request.method));
    (request, Err(Refusal::new(RefusalCode::Unsupported, text)))
}

/// Has a successor's request answered by the stub's life.
async fn hear(successors: &mpsc::Sender<Asked>, pid: Option<i32>) -> Result<HandedOver, Refusal> {
    let gone = || Refusal::new(RefusalCode::Unavailable, "this stub is about to end. hint: try again");
    let (asking, answer) = oneshot::channel();
    successors.send(Asked { pid, answer: asking }).await.map_err(|_| gone())?;
    answer.await.unwrap_or_else(|_| Err(gone()))
}

async fn pass(
    local: FramedStream<UnixStream>,
    place: OwnedSemaphorePermit,
    open: &Open,
    laptops: &Laptops,
    bell: &Doorbell,
    permits: &Semaphore,
) {
    if !matches!(open.request, StreamRequest::Call {}) {
        let text = format!("the workspace's socket takes calls, not `{}`", open.request.name());
        return local.refuse(&Refusal::new(RefusalCode::Unsupported, text)).await;
    }
    let Ok(_permit) = permits.try_acquire() else {
        let text = "too many calls at once. hint: wait for some to finish";
        return local.refuse(&Refusal::new(RefusalCode::Busy, text)).await;
    };
    drop(place);
    let socket = local.into_inner();
    let watched = socket.as_fd().try_clone_to_owned();
    let local = FramedStream::new(socket);
    let watched = match watched {
        Ok(watched) => watched,
        Err(error) => return local.refuse(&without_descriptor(&error)).await,
    };
    // Nobody is left to hear the answer: on a way that is interrupted it could be waited for as long as the session lives.
    tokio::select! {
        () = call(local, open, laptops, bell) => {}
        () = local::hung_up(watched.as_fd()) => tracing::debug!("a program hung up on its call"),
    }
}

fn without_descriptor(error: &io::Error) -> Refusal {
    let text = format!(
        "the stub has no descriptor left for it: {error}. hint: wait for some calls to finish, or start nexus-stub where \
         `ulimit -n` is higher"
    );
    Refusal::new(RefusalCode::Busy, text)
}

/// A call to the laptop: to its end, or to that of the session.
async fn call(local: FramedStream<UnixStream>, open: &Open, laptops: &Laptops, bell: &Doorbell) {
    let patience = bell.took_over.map(|at| EXPECTED.saturating_sub(at.elapsed())).unwrap_or_default();
    let remote = match laptops.open_within(patience).await {
        Ok(opened) => opened,
        Err(refusal) => return local.refuse(&refusal).await,
    };
    match FramedStream::open(remote, open).await {
        Ok(remote) => call::pass(local, remote).await,
        Err(_) => {
            let refusal = Refusal::new(RefusalCode::Unavailable, "the laptop's connection broke. hint: try again");
            local.refuse(&refusal).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::*;
    use crate::identity::KeyPin;
    use crate::role::stub::earlier::Earlier;
    use crate::role::stub::laptops::tests::session;

    /// How long a connection that is not let in is looked at.
    const A_WHILE: Duration = Duration::from_millis(200);

    /// How long a busy machine may take for what is to happen.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn bell(dir: &Path) -> Doorbell {
        let earlier = Earlier::new(dir, Kin::load_or_make(dir).unwrap());
        let told = Arc::new(Told::new("box".into(), "https://localhost".into(), earlier));
        Doorbell { successors: None, took_over: None, told }
    }

    #[tokio::test]
    async fn one_at_a_time_has_the_socket_and_removes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        assert!(!Gateway::is_served(&path).await, "there is nothing");
        let gateway = Gateway::bind(&path).await.unwrap();
        assert!(Gateway::is_served(&path).await);
        let refused = Gateway::bind(&path).await.unwrap_err();
        assert!(refused.to_string().contains("--take-over"), "{refused}");
        // Somebody cleaned up; or as it is for a moment while another one binds it.
        std::fs::remove_file(&path).unwrap();
        assert!(Gateway::is_served(&path).await, "whoever has it goes on");
        let refused = Gateway::bind(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(!refused.to_string().contains("--take-over"), "nobody can be asked: {refused}");
        let other = local::bind(&path).unwrap();
        drop(gateway);
        assert!(!local::is_deserted(&path).await, "it was not its own");
        let refused = Gateway::bind(&path).await.unwrap_err();
        assert_eq!(
            refused.kind(),
            io::ErrorKind::AddrInUse,
            "who has no lock, as an older release, serves all the same"
        );
        drop(other);
        assert!(!Gateway::is_served(&path).await);
        drop(Gateway::bind(&path).await.expect("a file that was left behind, and a lock that is free"));
        assert!(!path.exists());
    }

    /// A program that begins a call. Its laptop does not answer.
    async fn begin(path: &Path) -> FramedStream<UnixStream> {
        let open = Open::new(StreamRequest::Call {});
        let mut call = FramedStream::open(UnixStream::connect(path).await.unwrap(), &open).await.unwrap();
        call.writer.send_json(FrameKind::Message, &Request::new("tools.list", Value::Null)).await.unwrap();
        call
    }

    #[tokio::test]
    async fn a_call_on_a_way_that_says_nothing_ends_with_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let laptops = Arc::new(Laptops::default());
        let (opener, lifeline, _kept) = session().await;
        laptops.enter(KeyPin::from_bytes([1; 32]), "anna".parse().unwrap(), opener, lifeline).await.unwrap();
        let (calls, taking) = (TaskTracker::new(), CancellationToken::new());
        let gateway = Gateway::bind(&path).await.unwrap();
        tokio::spawn(gateway.run(laptops, bell(dir.path()), calls.clone(), taking.clone(), taking.child_token()));
        let mut begun = Vec::new();
        for _ in 0..8 {
            begun.push(begin(&path).await);
        }
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(calls.len(), begun.len(), "each with its permit");
        // One that has said all waits for its answer; the others are killed.
        let mut waits = begun.pop().unwrap();
        waits.writer.close().await.unwrap();
        drop(begun);
        tokio::time::timeout(PATIENCE, async {
            while calls.len() > 1 {
                tokio::time::sleep(A_WHILE).await;
            }
        })
        .await
        .expect("the others end");
        assert!(tokio::time::timeout(2 * A_WHILE, waits.reader.next()).await.is_err(), "it goes on");
        taking.cancel();
    }

    #[tokio::test]
    async fn who_asks_nothing_takes_a_bounded_number_of_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let (calls, taking) = (TaskTracker::new(), CancellationToken::new());
        let gateway = Gateway::bind(&path).await.unwrap();
        let running = tokio::spawn(gateway.run(
            Arc::default(),
            bell(dir.path()),
            calls.clone(),
            taking.clone(),
            taking.child_token(),
        ));
        let mut silent = Vec::new();
        for _ in 0..MAX_ASKING {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        let ask = local::call::<IgnoredAny>(UnixStream::connect(&path).await.unwrap(), "unheard of", Value::Null);
        let mut ask = std::pin::pin!(ask);
        assert!(tokio::time::timeout(A_WHILE, &mut ask).await.is_err(), "it waits in the queue");
        assert_eq!(calls.len(), MAX_ASKING);
        assert!(!local::is_deserted(&path).await, "somebody listens all the same");
        silent.pop();
        match ask.await {
            Err(StreamError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Unsupported),
            other => panic!("{other:?}"),
        }
        taking.cancel();
        running.await.unwrap();
        assert!(!path.exists());
    }
}

//! `-L`: connections to a port of the laptop go to a target in the workspace.
//!
//! The opener's side listens and relays at once, without waiting for the answer; a refusal resets the connection.
//! The acceptor's side dials. Neither decides whether it may: the caller did.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::service::copy::{Answer, Counts, Meter, Socket, relay_metered};
use crate::service::dial::{Place, dial};
use crate::service::listen::Listener;
use crate::service::stats::ForwardStats;
use crate::service::term::Term;
use crate::session::framed::{FramedStream, Io, StreamError};
use crate::session::opener::Opener;
use crate::wire::limits::MAX_STREAMS;
use crate::wire::open::Accepted;
use crate::wire::{Endpoint, Open, Refusal, RefusalCode, StreamRequest};

/// How long a connection waits for a session: a laptop that wakes up has one within seconds, and a browser that is
/// told at once that nothing is there does not ask again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections of one listener that are kept: as many as a session has streams, and as many as the kernel would keep besides, which
/// wait for one to be free.
const MAX_KEPT: usize = MAX_STREAMS + 1024;

/// First pause before a stream is tried again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The workspace's end of a `Connect` stream: dials, answers, relays. Relative socket paths start at `base_dir`.
pub async fn serve_connect<S: Io>(
    stream: FramedStream<S>,
    target: &Endpoint,
    base_dir: &Path,
) -> Result<Counts, StreamError> {
    let meter = Meter::default();
    dial_and_relay(stream, target, base_dir, Place::Workspace, &meter).await?;
    Ok(meter.counts())
}

pub(crate) async fn dial_and_relay<S: Io>(
    mut stream: FramedStream<S>,
    target: &Endpoint,
    base_dir: &Path,
    place: Place,
    meter: &Meter,
) -> Result<(), StreamError> {
    match dial(target, base_dir, place).await {
        Ok(socket) => {
            socket.arm_reset();
            stream.accepted(&Accepted::default()).await?;
            relay_metered(socket, stream, Answer::Given, meter).await
        }
        Err(refusal) => {
            stream.refuse(&refusal).await;
            Err(StreamError::Refused(refusal))
        }
    }
}

/// A listener on the laptop whose connections go to a target in the workspace.
#[derive(Debug)]
pub struct LocalForward<O> {
    listener: Listener,
    target: Endpoint,
    opener: O,
    stats: Arc<ForwardStats>,
}

impl<O: Opener> LocalForward<O> {
    /// Listens on `bind`: TCP, where port 0 picks one, or a Unix socket that only its owner can use.
    pub async fn bind(opener: O, bind: &Endpoint, target: Endpoint) -> Result<LocalForward<O>, Refusal> {
        let listener = Listener::bind(bind, Path::new(""), Place::Laptop).await?;
        Ok(LocalForward { listener, target, opener, stats: Arc::default() })
    }

    /// Where it listens, with the port that was picked.
    pub fn bound(&self) -> &Endpoint {
        self.listener.bound()
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<ForwardStats> {
        self.stats.clone()
    }

    /// Counts in `stats` from here on.
    pub fn counted_in(self, stats: Arc<ForwardStats>) -> Self {
        Self { stats, ..self }
    }

    /// Forwards for its term; connections that are open at its end are reset.
    pub async fn run(self, term: impl Into<Term>) {
        let LocalForward { listener, target, opener, stats } = self;
        let request = || StreamRequest::Connect { target: target.clone() };
        let accept = async |listener: &Listener, tasks: &mut JoinSet<()>| {
            forward_all(listener, tasks, &opener, &stats, |_| request()).await
        };
        term.into().serve(listener, accept).await;
    }
}

/// Accepts for ever, and forwards each connection on a stream of its own, as a task in `tasks`.
pub(crate) async fn forward_all<O: Opener>(
    listener: &Listener,
    tasks: &mut JoinSet<()>,
    opener: &O,
    stats: &Arc<ForwardStats>,
    request: impl Fn(String) -> StreamRequest,
) {
    let serve = |socket: Socket, peer| {
        socket.arm_reset();
        forward_one(socket, opener.clone(), Open::new(request(peer)), stats.clone())
    };
    accept_all(listener, tasks, stats, serve).await;
}

/// Accepts for ever, and has each connection served, which comes with who it is from, as a task in `tasks`. One that is too
/// many is reset: it would hang in the kernel's queue otherwise, with nobody to tell why.
pub(crate) async fn accept_all<F: Future<Output = ()> + Send + 'static>(
    listener: &Listener,
    tasks: &mut JoinSet<()>,
    stats: &ForwardStats,
    serve: impl Fn(Socket, String) -> F,
) {
    loop {
        tokio::select! {
            biased;
            // What is over makes room first.
            Some(_) = tasks.join_next() => {}
            (socket, _) = listener.accept(), if tasks.len() >= MAX_KEPT => {
                socket.reset();
                stats.failed(crowded());
            }
            (socket, peer) = listener.accept(), if tasks.len() < MAX_KEPT => {
                tasks.spawn(serve(socket, peer));
            }
        }
    }
}

/// Why a listener that has [`MAX_KEPT`] connections takes no other one.
fn crowded() -> Refusal {
    let text = format!("{MAX_KEPT} connections came through this port, and have not ended");
    Refusal::new(RefusalCode::Busy, format!("{text}. hint: close some connections and try again"))
}

async fn forward_one<O: Opener>(socket: Socket, opener: O, open: Open, stats: Arc<ForwardStats>) {
    let _open = stats.begin();
    let result = match open_patiently(&opener, &open).await {
        Ok(stream) => relay_metered(socket, stream, Answer::Due, &stats.meter).await,
        Err(refusal) => {
            socket.reset();
            Err(StreamError::Refused(refusal))
        }
    };
    if let Err(error) = result {
        let refusal = error.into_refusal();
        tracing::debug!(kind = open.request.name(), %refusal, "a forwarded connection failed");
        stats.failed(refusal);
    }
}

/// A stream with its open frame sent. No session, or too many streams, is waited out for up to [`PATIENCE`].
pub(crate) async fn open_patiently<O: Opener>(opener: &O, open: &Open) -> Result<FramedStream<O::Io>, Refusal> {
    open_within(opener, open, PATIENCE).await
}

async fn open_within<O: Opener>(opener: &O, open: &Open, patience: Duration) -> Result<FramedStream<O::Io>, Refusal> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let attempt = async { FramedStream::open(opener.open().await?, open).await.map_err(StreamError::into_refusal) };
        let refusal = match timeout_at(deadline, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(refusal)) => refusal,
            Err(_) => Refusal::new(
                RefusalCode::Timeout,
                format!(
                    "no stream could be opened within {patience:?}. hint: see the state of the session with `nexus-proxy status`"
                ),
            ),
        };
        let passing = matches!(refusal.code, RefusalCode::Unavailable | RefusalCode::Busy);
        if !passing || Instant::now() + pause > deadline {
            return Err(refusal);
        }
        sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;

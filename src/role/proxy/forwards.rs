//! The forwards of one tunnel: what listens where, and how it is doing. They outlive every session; listeners in the
//! workspace are opened again in each.

mod here;
mod one_place;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::here::Here;
use self::one_place::{is_one_place, leads_to_itself};
use super::tunnel::TunnelOpener;
use crate::service::dial::Place;
use crate::service::forward_spec::{DynamicSpec, ForwardSpec, SpecError};
use crate::service::remote::RemoteForward;
use crate::service::stats::ForwardStats;
use crate::service::term::Term;
use crate::session::opener::{Opener, SessionOpener};
use crate::wire::limits::MAX_LISTENERS;
use crate::wire::{Endpoint, Refusal, RefusalCode};

/// How long a listener in the workspace that could not be opened waits for the next attempt.
const RETRY: Duration = Duration::from_secs(3);

/// The first wait for a port that who had it before may be about to let go; it doubles, there up to [`RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// How long ports may take to close, those in the workspace among them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a new `-R` waits for the workspace's verdict before it goes on in the background.
const FIRST_VERDICT: Duration = Duration::from_secs(10);

/// What kind of forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardKind {
    /// `-L`: listens on the laptop.
    Local,
    /// `-R`: listens in the workspace.
    Remote,
    /// `-D`: SOCKS5 on the laptop.
    Dynamic,
}

impl ForwardKind {
    /// The option of the command line.
    pub fn flag(self) -> &'static str {
        match self {
            ForwardKind::Local => "-L",
            ForwardKind::Remote => "-R",
            ForwardKind::Dynamic => "-D",
        }
    }

    /// Where it listens.
    pub fn listens(self) -> Place {
        match self {
            ForwardKind::Local | ForwardKind::Dynamic => Place::Laptop,
            ForwardKind::Remote => Place::Workspace,
        }
    }

    /// What a person wrote for one of this kind, once it is certain that it means something. A relative path of a socket on the
    /// laptop is made whole: it begins in the directory of this process, and who listens there, or connects, may be in another.
    /// One in the workspace stays as it is, and begins in the workspace's directory.
    pub fn checked(self, text: &str) -> Result<String, String> {
        if self == ForwardKind::Dynamic {
            return text.parse::<DynamicSpec>().map(|_| text.to_owned()).map_err(|e| e.to_string());
        }
        let mut spec: ForwardSpec = text.parse().map_err(|e: SpecError| e.to_string())?;
        let here = if self == ForwardKind::Local { &mut spec.bind } else { &mut spec.target };
        match here {
            Endpoint::Unix { path } if !path.starts_with('/') => {
                *path = whole(path)?;
                Ok(spec.to_string())
            }
            _ => Ok(text.to_owned()),
        }
    }
}

/// A relative path with the directory of this process before it.
fn whole(path: &str) -> Result<String, String> {
    let hint = "hint: write the whole path of the socket, or begin in another directory";
    let whole = std::path::absolute(path).map_err(|e| format!("{path} is relative to nothing: {e}. {hint}"))?;
    match whole.to_str() {
        Some(whole) if !whole.contains(':') => Ok(whole.to_owned()),
        _ => Err(format!("{path} begins in a directory whose path a forward cannot have: {}. {hint}", whole.display())),
    }
}

/// A forward that is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// What kind.
    pub kind: ForwardKind,
    /// As on the command line: `8080:127.0.0.1:3000`. Paths on the laptop are whole ([`ForwardKind::checked`]).
    pub spec: String,
    /// Where it listens instead: one that is asked for again keeps the port that was picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Endpoint>,
}

impl ForwardRequest {
    /// A forward that begins.
    pub fn new(kind: ForwardKind, spec: impl Into<String>) -> ForwardRequest {
        ForwardRequest { kind, spec: spec.into(), at: None }
    }

    /// Whether both say the same on the command line, wherever they listen.
    pub fn is_again(&self, other: &ForwardRequest) -> bool {
        (self.kind, &self.spec) == (other.kind, &other.spec)
    }
}

/// What becomes of a forward whose port is refused at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is none.
    Ends,
    /// It is asked for again until it can be had; its status says why not. A forward that went on so far, before its program
    /// was replaced, is worth no less after that, and an address of a network that is away comes back.
    Waits,
}

/// How a forward is doing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForwardStatus {
    /// Its number in this run.
    pub id: u32,
    /// What kind.
    pub kind: ForwardKind,
    /// Where it listens.
    pub listen: String,
    /// Where it leads; nothing for SOCKS.
    pub target: Option<String>,
    /// Whether connections get through now.
    pub ready: bool,
    /// Why not, or the last refusal.
    pub error: Option<String>,
    /// Connections (or UDP flows) open now.
    pub open: u64,
    /// Connections since it began.
    pub total: u64,
    /// Bytes from the laptop to the workspace.
    pub sent: u64,
    /// Bytes from the workspace to the laptop.
    pub received: u64,
}

#[derive(Debug)]
struct Entry {
    request: ForwardRequest,
    target: Option<Endpoint>,
    stats: Arc<ForwardStats>,
    listening: watch::Receiver<Listening>,
    term: Term,
    /// Goes to the program that takes over: it belongs to the `up`, and not to a command or the configuration.
    handed_on: bool,
    _end: DropGuard,
}

#[derive(Debug, Clone)]
enum Listening {
    Waiting(Endpoint),
    At(Endpoint),
    Refused(Endpoint, Refusal),
}

impl Listening {
    fn endpoint(&self) -> &Endpoint {
        match self {
            Listening::Waiting(at) | Listening::At(at) | Listening::Refused(at, _) => at,
        }
    }
}

#[derive(Debug, Default)]
struct Entries {
    last: u32,
    of: BTreeMap<u32, Entry>,
    /// Those that are still to be added.
    announced: Vec<ForwardRequest>,
    /// No more are taken.
    closed: bool,
}

/// The forwards of one tunnel.
#[derive(Debug)]
pub struct Forwards {
    opener: TunnelOpener,
    entries: Mutex<Entries>,
    tasks: TaskTracker,
    stop: CancellationToken,
    shares_localhost: bool,
}

impl Forwards {
    /// No forwards yet; all end with `stop`. A workspace on this machine shares its localhost.
    pub fn new(opener: TunnelOpener, tasks: TaskTracker, stop: CancellationToken, shares_localhost: bool) -> Forwards {
        Forwards { opener, entries: Mutex::default(), tasks, stop, shares_localhost }
    }

    /// Adds a forward; gives its number and where it listens.
    pub async fn add(&self, request: &ForwardRequest, refused: Refused) -> Result<ForwardStatus, Refusal> {
        let bad = |e: &dyn std::fmt::Display| Refusal::new(RefusalCode::InvalidArguments, e.to_string());
        match request.kind {
            ForwardKind::Dynamic => {
                let spec: DynamicSpec = request.spec.parse().map_err(|e| bad(&e))?;
                self.add_here(request, spec.bind, None, refused).await
            }
            ForwardKind::Local => {
                let spec: ForwardSpec = request.spec.parse().map_err(|e| bad(&e))?;
                self.add_here(request, spec.bind, Some(spec.target), refused).await
            }
            ForwardKind::Remote => {
                let spec: ForwardSpec = request.spec.parse().map_err(|e| bad(&e))?;
                if self.shares_localhost && is_one_place(&spec.bind, &spec.target) {
                    return Err(leads_to_itself(&spec.bind));
                }
                let (opener, term) = (self.opener.clone(), Term::until(self.stop.child_token()));
                let bind = request.at.clone().unwrap_or(spec.bind);
                let (report, listening) = watch::channel(Listening::Waiting(bind.clone()));
                let id = self.insert(request, Some(spec.target), Arc::default(), listening.clone(), term.clone())?;
                self.tasks.spawn(async move {
                    let keep = keep_listening(opener, bind, id, report, &term.close);
                    term.end.run_until_cancelled(keep).await;
                    term.closed.cancel();
                });
                self.first_verdict(id, listening, refused).await
            }
        }
    }

    /// Adds one that listens on the laptop, where it is said to or did before; without a target it serves SOCKS.
    async fn add_here(
        &self,
        request: &ForwardRequest,
        bind: Endpoint,
        target: Option<Endpoint>,
        refused: Refused,
    ) -> Result<ForwardStatus, Refusal> {
        let (term, stats) = (Term::until(self.stop.child_token()), Arc::default());
        let bind = request.at.clone().unwrap_or(bind);
        let here = Here { opener: self.opener.clone(), bind, target, stats };
        let bound = here.bind().await;
        // What is there already is said to be in use.
        if self.shares_localhost && bound.is_ok() && here.target.as_ref().is_some_and(|to| is_one_place(&here.bind, to))
        {
            return Err(leads_to_itself(&here.bind));
        }
        let listening = match &bound {
            Ok(port) => Listening::At(port.bound().clone()),
            Err(refusal) if refused == Refused::Waits => Listening::Refused(here.bind.clone(), refusal.clone()),
            Err(refusal) => return Err(refusal.clone()),
        };
        let (report, listening) = watch::channel(listening);
        let id = self.insert(request, here.target.clone(), here.stats.clone(), listening, term.clone())?;
        self.tasks.spawn(here.keep(bound, report, term));
        self.status_of(id).ok_or_else(removed)
    }

    /// Ends a forward.
    pub fn remove(&self, id: u32) {
        self.entries().of.remove(&id);
    }

    /// Closes every port, and takes no more forwards. Connections that are open go on. Returns when the ports are closed,
    /// or cannot be told to be.
    pub async fn close(&self) {
        let terms: Vec<Term> = {
            let mut entries = self.entries();
            entries.closed = true;
            entries.of.values().map(|entry| entry.term.clone()).collect()
        };
        terms.iter().for_each(|term| term.close.cancel());
        let all = futures::future::join_all(terms.iter().map(|term| term.closed.cancelled()));
        if tokio::time::timeout(CLOSE_TIMEOUT, all).await.is_err() {
            tracing::warn!("a port could not be closed in time");
        }
    }

    /// What to ask for to have a forward again, where it is.
    pub fn again(&self, id: u32) -> Option<ForwardRequest> {
        let entries = self.entries();
        let entry = entries.of.get(&id)?;
        let at = entry.listening.borrow().endpoint().clone();
        Some(ForwardRequest { at: Some(at), ..entry.request.clone() })
    }

    /// These will be added with [`add_own`](Self::add_own). They go to the program that takes over, also when it comes before.
    pub fn announce(&self, own: &[ForwardRequest]) {
        self.entries().announced = own.to_vec();
    }

    /// Adds one of those that were announced.
    pub async fn add_own(&self, request: &ForwardRequest, refused: Refused) -> Result<ForwardStatus, Refusal> {
        let status = self.add(request, refused).await?;
        let mut entries = self.entries();
        if let Some(entry) = entries.of.get_mut(&status.id) {
            entry.handed_on = true;
        }
        if let Some(at) = entries.announced.iter().position(|one| one == request) {
            entries.announced.remove(at);
        }
        Ok(status)
    }

    /// What the program that takes over asks for to have those that go to it, where they are.
    pub fn handed_on(&self) -> Vec<ForwardRequest> {
        let (ids, announced): (Vec<u32>, _) = {
            let entries = self.entries();
            let own = entries.of.iter().filter(|(_, entry)| entry.handed_on);
            (own.map(|(id, _)| *id).collect(), entries.announced.clone())
        };
        ids.into_iter().filter_map(|id| self.again(id)).chain(announced).collect()
    }

    /// Where a connection that listener `id` accepted in the workspace leads, and where it is counted.
    pub fn target(&self, id: u32) -> Option<(Endpoint, Arc<ForwardStats>)> {
        let entries = self.entries();
        let entry = entries.of.get(&id).filter(|e| e.request.kind == ForwardKind::Remote)?;
        Some((entry.target.clone()?, entry.stats.clone()))
    }

    /// Why the port of a forward cannot be had, if it cannot.
    pub fn refusal(&self, id: u32) -> Option<String> {
        let listening = self.entries().of.get(&id)?.listening.borrow().clone();
        match listening {
            Listening::Refused(_, refusal) => Some(refusal.to_string()),
            _ => None,
        }
    }

    /// How all are doing.
    pub fn status(&self) -> Vec<ForwardStatus> {
        let ids: Vec<u32> = self.entries().of.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.status_of(id)).collect()
    }

    fn insert(
        &self,
        request: &ForwardRequest,
        target: Option<Endpoint>,
        stats: Arc<ForwardStats>,
        listening: watch::Receiver<Listening>,
        term: Term,
    ) -> Result<u32, Refusal> {
        let mut entries = self.entries();
        if entries.closed {
            term.end.cancel();
            let text = "another `nexus-proxy up` takes over this workspace. hint: try again";
            return Err(Refusal::new(RefusalCode::Unavailable, text));
        }
        if entries.of.len() >= MAX_LISTENERS {
            term.end.cancel();
            let text = format!("{MAX_LISTENERS} forwards exist already. hint: end some first");
            return Err(Refusal::new(RefusalCode::Busy, text));
        }
        entries.last += 1;
        let id = entries.last;
        let (request, end) = (request.clone(), term.end.clone().drop_guard());
        entries.of.insert(id, Entry { request, target, stats, listening, term, handed_on: false, _end: end });
        Ok(id)
    }

    async fn first_verdict(
        &self,
        id: u32,
        mut listening: watch::Receiver<Listening>,
        refused: Refused,
    ) -> Result<ForwardStatus, Refusal> {
        let verdict = listening.wait_for(|state| !matches!(state, Listening::Waiting(_)));
        let refusal = match tokio::time::timeout(FIRST_VERDICT, verdict).await {
            Ok(Ok(state)) => match &*state {
                Listening::Refused(_, refusal) => Some(refusal.clone()),
                _ => None,
            },
            _ => None,
        };
        if let Some(refusal) = refusal.filter(|_| refused == Refused::Ends) {
            self.remove(id);
            return Err(refusal);
        }
        self.status_of(id).ok_or_else(removed)
    }

    fn status_of(&self, id: u32) -> Option<ForwardStatus> {
        let (up, interrupted) = (self.opener.is_up(), self.opener.is_interrupted());
        let entries = self.entries();
        let entry = entries.of.get(&id)?;
        let listening = entry.listening.borrow().clone();
        let counts = entry.stats.bytes();
        let error = match &listening {
            Listening::Refused(_, refusal) => Some(refusal.to_string()),
            _ if !up => Some("the tunnel is down".into()),
            _ if interrupted => Some("the connection to the workspace is interrupted, and being mended".into()),
            _ => entry.stats.last_error_on(self.opener.way_since()).map(|refusal| refusal.to_string()),
        };
        Some(ForwardStatus {
            id,
            kind: entry.request.kind,
            listen: listening.endpoint().to_string(),
            target: entry.target.as_ref().map(ToString::to_string),
            ready: up && !interrupted && matches!(listening, Listening::At(_)),
            error,
            open: entry.stats.open(),
            total: entry.stats.total(),
            sent: counts.sent,
            received: counts.received,
        })
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn removed() -> Refusal {
    Refusal::new(RefusalCode::Cancelled, "the forward was removed")
}

/// Opens the listener in every session, until the port is to be closed. A port that was picked once is asked for again.
async fn keep_listening(
    mut opener: TunnelOpener,
    mut bind: Endpoint,
    id: u32,
    report: watch::Sender<Listening>,
    close: &CancellationToken,
) {
    let mut last = None;
    let mut wait = FIRST_RETRY;
    while let Some(session) = close.run_until_cancelled(opener.session_after(last.as_ref())).await.flatten() {
        // What was asked for is closed in order, unless there is no way to hear of it.
        let way = session.way();
        let opened = tokio::select! {
            opened = RemoteForward::open(&session, &bind, id) => opened,
            () = async { tokio::join!(gone(&session), way.lost()); } => {
                last = Some(session);
                continue;
            }
            () = async { tokio::join!(close.cancelled(), way.lost()); } => return,
        };
        match opened {
            Ok((bound, mut listener)) => {
                bind = bound;
                wait = FIRST_RETRY;
                report.send_replace(Listening::At(bind.clone()));
                let Some(why) = close.run_until_cancelled(listener.lost()).await else {
                    if let Err(why) = listener.close().await {
                        tracing::warn!(%bind, %why, "a listener in the workspace may not be closed");
                    }
                    return;
                };
                tracing::debug!(%bind, %why, "a listener in the workspace is gone");
                report.send_replace(Listening::Waiting(bind.clone()));
                // Lost with its session: the next one is asked at once. Lost alone: not at once again.
                let ended = tokio::time::timeout(RETRY, gone(&session)).await.is_ok();
                last = ended.then_some(session);
            }
            Err(_) if session.mux.is_draining() => last = Some(session),
            Err(refusal) => {
                // The session before this one may be about to let go of it.
                let pause = if refusal.code == RefusalCode::AddressInUse { wait } else { RETRY };
                wait = (wait * 2).min(RETRY);
                report.send_replace(Listening::Refused(bind.clone(), refusal));
                close.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
        }
    }
}

/// Until nothing can be asked of a session any more.
async fn gone(session: &SessionOpener) {
    tokio::select! {
        () = session.mux.closed() => {}
        () = session.mux.draining() => {}
    }
}

#[cfg(test)]
#[path = "forwards_tests.rs"]
mod tests;

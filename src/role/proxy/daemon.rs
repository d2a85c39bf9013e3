//! A running `up`: the tunnel, its forwards, the control socket, and the workspace's calls.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::{ControlSocket, Door};
use super::forwards::{ForwardRequest, ForwardStatus, Forwards, Refused};
use super::tunnel::{Tunnel, TunnelError};
use crate::role::local;
use crate::service::call::server;
use crate::service::copy::splice;
use crate::service::laptop::Laptop;
use crate::service::remote::serve_accepted;
use crate::session::framed::{Frame, FramedStream};
use crate::session::mux::MuxStream;
use crate::session::opener::Opener;
use crate::session::way::Way;
use crate::wire::call::{Request, Response};
use crate::wire::{FrameKind, Open, Refusal, RefusalCode, StreamRequest};

/// How long the first frame of a local command may take.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an `up` with a workspace of its own cannot hand over.
const INSIDE: &str = "its workspace and its coordinator live inside the running `nexus-proxy up`, and end with it. \
    hint: `nexus-proxy down` ends them with all that runs in them; a workspace with a coordinator of its own \
    (--coordinator) can be handed over";

/// How long a stop waits for what is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// What `status` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The workspace.
    pub workspace: String,
    /// The process that keeps it up.
    pub pid: u32,
    /// Its program version.
    pub version: String,
    /// The coordinator's address.
    pub coordinator: String,
    /// This device's name there.
    pub device: String,
    /// Seconds since `up`.
    pub uptime_s: u64,
    /// How the tunnel is: `state` and what belongs to it.
    pub tunnel: Value,
    /// The way its bytes take.
    pub path: String,
    /// Connections, processes and calls that still run on earlier sessions.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub earlier: usize,
    /// The forwards.
    pub forwards: Vec<ForwardStatus>,
    /// Where the log goes, when it runs in the background.
    pub log: Option<PathBuf>,
    /// It takes nothing new any more: another program has the workspace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handed_over: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// What an `up` answers that has handed over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandedOver {
    /// Its process.
    pub pid: u32,
    /// Connections, processes and calls that go on there until they are done.
    pub open: usize,
    /// Its own forwards, whose ports are free: not those of other commands, nor of its configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardRequest>,
}

/// The last message to a command whose forward is to be asked for again, of the `up` that took over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Moved {
    /// What to ask for.
    pub again: ForwardRequest,
}

/// A running `up`.
pub struct Daemon {
    tunnel: Arc<Tunnel>,
    device: String,
    forwards: Forwards,
    laptop: Arc<Laptop>,
    log: Option<PathBuf>,
    began: Instant,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Why it cannot hand over.
    bound: Option<String>,
    /// Held while it hands over.
    handing: Mutex<()>,
    /// It takes nothing new any more: the next program does.
    handed: CancellationToken,
    /// This one follows another that would take its place again, and is not up yet.
    following: AtomicBool,
    /// The next program, until it is up.
    successor: std::sync::Mutex<Option<FramedStream<UnixStream>>>,
    /// Its control socket is closed.
    silent: CancellationToken,
}

impl Daemon {
    /// A daemon around a tunnel; `stop` ends it. A workspace on this machine shares its localhost.
    pub fn new(
        tunnel: Tunnel,
        device: String,
        laptop: Laptop,
        log: Option<PathBuf>,
        shares_localhost: bool,
        stop: CancellationToken,
    ) -> Arc<Daemon> {
        let tasks = TaskTracker::new();
        let forwards = Forwards::new(tunnel.opener(), tasks.clone(), stop.clone(), shares_localhost);
        Arc::new(Daemon {
            tunnel: Arc::new(tunnel),
            device,
            forwards,
            laptop: Arc::new(laptop),
            log,
            began: Instant::now(),
            tasks,
            stop,
            bound: shares_localhost.then(|| INSIDE.to_owned()),
            handing: Mutex::default(),
            handed: CancellationToken::new(),
            following: AtomicBool::new(false),
            successor: std::sync::Mutex::default(),
            silent: CancellationToken::new(),
        })
    }

    /// Returns when it has handed over to another program: with what goes on here until it is done.
    pub async fn handed_over(&self) -> HandedOver {
        self.handed.cancelled().await;
        HandedOver { pid: std::process::id(), open: self.tunnel.earlier(), forwards: self.forwards.handed_on() }
    }

    /// After [`Daemon::handed_over`]: whether the program that asked came up. It says so, or is gone without.
    pub async fn is_followed(&self) -> bool {
        // Held until the answer has left.
        drop(self.handing.lock().await);
        let successor = self.successor().take();
        match successor {
            Some(mut stream) => {
                matches!(stream.reader.next().await, Ok(Some(frame)) if frame.kind == FrameKind::Message)
            }
            None => false,
        }
    }

    /// Whether this one follows another, and is not up yet. Forwards of other commands stay where they will be found again if
    /// it never is.
    pub fn set_following(&self, following: bool) {
        self.following.store(following, Ordering::Relaxed);
    }

    /// Answers `status` and `down` after the hand-over, for ever. One at a time: both are done at once.
    pub async fn keep_door(&self, door: &Door) {
        loop {
            let mut stream = FramedStream::new(door.socket.accept().await);
            let Ok(Ok(frame)) = tokio::time::timeout(LOCAL_TIMEOUT, stream.reader.expect()).await else { continue };
            match frame.kind {
                FrameKind::Message => self.answer_at_door(&frame, &mut stream).await,
                _ => stream.refuse(&gone()).await,
            }
        }
    }

    async fn answer_at_door(&self, frame: &Frame, stream: &mut FramedStream<UnixStream>) {
        let Ok(request) = Request::parse(&frame.payload) else { return };
        let outcome = match request.method.as_str() {
            "status" => Ok(serde_json::to_value(self.status()).unwrap_or_default()),
            "down" => Ok(Value::Null),
            _ => Err(gone()),
        };
        let _ = stream.writer.send_json(FrameKind::Message, &Response::new(request.id, outcome)).await;
        if request.method == "down" {
            self.stop.cancel();
        }
    }

    fn successor(&self) -> std::sync::MutexGuard<'_, Option<FramedStream<UnixStream>>> {
        self.successor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnel.
    pub fn tunnel(&self) -> &Arc<Tunnel> {
        &self.tunnel
    }

    /// The forwards.
    pub fn forwards(&self) -> &Forwards {
        &self.forwards
    }

    /// Runs until stopped; then everything it started is gone.
    pub async fn run(self: Arc<Self>, socket: ControlSocket) -> Result<(), TunnelError> {
        let control = {
            let (daemon, stop) = (self.clone(), self.stop.clone());
            async move {
                loop {
                    let stream = tokio::select! {
                        stream = socket.accept() => stream,
                        () = stop.cancelled() => return,
                        () = daemon.handed.cancelled() => {
                            drop(socket);
                            return daemon.silent.cancel();
                        }
                    };
                    let daemon = daemon.clone();
                    daemon.tasks.clone().spawn(async move {
                        tokio::select! {
                            () = daemon.local(stream) => {}
                            () = daemon.stop.cancelled() => {}
                        }
                    });
                }
            }
        };
        self.tasks.spawn(control);
        let serve = {
            let daemon = self.clone();
            move |stream, way| {
                let daemon = daemon.clone();
                async move { daemon.incoming(stream, way).await }
            }
        };
        let outcome = Box::pin(self.tunnel.clone().run(serve, self.stop.clone())).await;
        self.tasks.close();
        if self.tunnel.is_leaving() {
            // What was open is done: what is left is an answer, or the last words of a local connection.
            let done = async { drop(tokio::join!(self.handing.lock(), self.tasks.wait())) };
            let done = tokio::time::timeout(STOP_TIMEOUT, done);
            self.stop.run_until_cancelled(done).await;
        }
        self.stop.cancel();
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await;
        outcome
    }

    /// How everything is.
    pub fn status(&self) -> Status {
        // A copy: whoever asks again while the state is lent, as the forwards do, waits for a change that waits for it.
        let tunnel = self.tunnel.state().borrow().clone();
        Status {
            workspace: self.tunnel.workspace().to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            coordinator: self.tunnel.client().url().to_string(),
            device: self.device.clone(),
            uptime_s: self.began.elapsed().as_secs(),
            tunnel: serde_json::to_value(&tunnel).unwrap_or_default(),
            path: tunnel.path().into(),
            earlier: self.tunnel.earlier(),
            forwards: self.forwards.status(),
            log: self.log.clone(),
            handed_over: self.handed.is_cancelled(),
        }
    }

    /// A stream that the workspace opened: a call, or a connection to a port that we asked it to listen on.
    async fn incoming(&self, stream: MuxStream, way: Way) {
        let Ok((open, stream)) = FramedStream::accept_by(stream, &way).await else { return };
        match open.request {
            StreamRequest::Call {} => server::serve(stream, &way, &self.laptop, self.tunnel.workspace()).await,
            StreamRequest::Accepted { listener, peer } => match self.forwards.target(listener) {
                Some((target, stats)) => {
                    tracing::debug!(listener, peer, %target, "a connection from the workspace");
                    if let Err(error) = Box::pin(serve_accepted(stream, &way, &target, &stats)).await {
                        tracing::debug!(%target, error = error.to_string(), "a connection from the workspace ended");
                    }
                }
                None => {
                    let text = "no forward of that number exists on the laptop";
                    stream.refuse(&Refusal::new(RefusalCode::NotDeclared, text)).await;
                }
            },
            request => {
                tracing::warn!(target: "audit", kind = request.name(), "the workspace asked for what it may not have");
                let text = format!("a laptop does not serve streams of kind `{}`", request.name());
                stream.refuse(&Refusal::new(RefusalCode::Unsupported, text)).await;
            }
        }
    }

    /// A connection from another command on this laptop.
    async fn local(&self, stream: UnixStream) {
        let mut stream = FramedStream::new(stream);
        let Ok(Ok(frame)) = tokio::time::timeout(LOCAL_TIMEOUT, stream.reader.expect()).await else { return };
        match frame.kind {
            FrameKind::Message => self.local_call(frame, stream).await,
            FrameKind::Open => match Open::parse(&frame.payload) {
                Ok(open) => self.pass(&open, stream).await,
                Err(refusal) => stream.refuse(&refusal).await,
            },
            _ => {}
        }
    }

    async fn local_call(&self, frame: Frame, mut stream: FramedStream<UnixStream>) {
        let Ok(request) = Request::parse(&frame.payload) else { return };
        if request.method == "hand_over" {
            return self.answer_hand_over(request, stream).await;
        }
        let mut lease = None;
        let outcome = match request.method.as_str() {
            "status" => Ok(serde_json::to_value(self.status()).unwrap_or_default()),
            "down" => Ok(Value::Null),
            "forward" if self.following.load(Ordering::Relaxed) => {
                let text = "it takes over from another and is not up yet. hint: try again in a moment";
                Err(Refusal::new(RefusalCode::Unavailable, text))
            }
            "forward" => match serde_json::from_value::<ForwardRequest>(request.params) {
                Ok(asked) => self.forwards.add(&asked, Refused::Ends).await.map(|status| {
                    lease = Some(status.id);
                    serde_json::to_value(status).unwrap_or_default()
                }),
                Err(error) => Err(Refusal::new(RefusalCode::InvalidArguments, error.to_string())),
            },
            method => {
                let text = format!("the running program does not know `{method}`. hint: restart it with this release");
                Err(Refusal::new(RefusalCode::Unsupported, text))
            }
        };
        let _ = stream.writer.send_json(FrameKind::Message, &Response::new(request.id, outcome)).await;
        if let Some(id) = lease {
            // The forward lives as long as the command that asked for it.
            tokio::select! {
                _ = stream.reader.next() => self.forwards.remove(id),
                () = self.silent.cancelled() => if let Some(again) = self.forwards.again(id) {
                    let _ = stream.writer.send_json(FrameKind::Message, &Moved { again }).await;
                }
            }
        }
        if request.method == "down" {
            self.stop.cancel();
        }
    }

    async fn answer_hand_over(&self, request: Request, mut stream: FramedStream<UnixStream>) {
        let Ok(_handing) = self.handing.try_lock() else {
            let text = "it hands over to another already. hint: try again in a moment";
            let answer = Response::new(request.id, Err(Refusal::new(RefusalCode::Busy, text)));
            return drop(stream.writer.send_json(FrameKind::Message, &answer).await);
        };
        let outcome = self.hand_over(request.params["coordinator"].as_str()).await;
        let has_handed_over = outcome.is_ok();
        let outcome = outcome.map(|handed| serde_json::to_value(handed).unwrap_or_default());
        // Within the lock: this program may be done, and waits for it.
        let sent = stream.writer.send_json(FrameKind::Message, &Response::new(request.id, outcome)).await;
        if has_handed_over && sent.is_ok() {
            *self.successor() = Some(stream);
        }
    }

    /// Closes what takes anything new, and tells the workspace; what is open goes on. Only for a program that reaches the
    /// workspace by way of the same `coordinator`.
    async fn hand_over(&self, coordinator: Option<&str>) -> Result<HandedOver, Refusal> {
        if let Some(why) = &self.bound {
            return Err(Refusal::new(RefusalCode::InvalidArguments, why));
        }
        let own = self.tunnel.client().url().to_string();
        if coordinator != Some(&own) {
            let text = format!(
                "it reaches the workspace through {own}, and the new one would have another workspace of that name. hint: \
                 say `--coordinator {own}`"
            );
            return Err(Refusal::new(RefusalCode::InvalidArguments, text));
        }
        let handed = self.tunnel.hand_over(self.forwards.close()).await;
        if self.tunnel.is_leaving() {
            // Its ports are closed and its session drains, whether or not anybody follows: if not, its own next session.
            self.handed.cancel();
            self.silent.cancelled().await;
        }
        handed?;
        Ok(self.handed_over().await)
    }

    /// Passes a local command's stream to the workspace, as it is.
    async fn pass(&self, open: &Open, local: FramedStream<UnixStream>) {
        if !matches!(open.request, StreamRequest::Process(_) | StreamRequest::Connect { .. } | StreamRequest::Call {}) {
            let text = format!("the control socket does not pass streams of kind `{}`", open.request.name());
            return local.refuse(&Refusal::new(RefusalCode::Unsupported, text)).await;
        }
        // First of all, because it may fail: what was opened would end with this connection, without a reason.
        let socket = local.into_inner();
        let watched = socket.as_fd().try_clone_to_owned();
        let local = FramedStream::new(socket);
        let socket = match watched {
            Ok(socket) => socket,
            Err(error) => return local.refuse(&without_descriptor(&error)).await,
        };
        let remote = match self.tunnel.opener().open().await {
            Ok(remote) => remote,
            Err(refusal) => return local.refuse(&refusal).await,
        };
        match FramedStream::open(remote, open).await {
            Ok(remote) => {
                tokio::select! {
                    _ = splice(local.into_inner(), remote.into_inner()) => {}
                    () = local::hung_up(socket.as_fd()) => {}
                }
            }
            Err(error) => local.refuse(&error.into_refusal()).await,
        }
    }
}

fn without_descriptor(error: &io::Error) -> Refusal {
    let text = format!(
        "the running `nexus-proxy up` has no descriptor left for it: {error}. hint: end some connections or programs, or start \
         `up` where `ulimit -n` is higher"
    );
    Refusal::new(RefusalCode::Busy, text)
}

fn gone() -> Refusal {
    let text = "this program has handed the workspace over. hint: ask again; the one that took over answers";
    Refusal::new(RefusalCode::Unavailable, text)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::super::forwards::ForwardKind;
    use super::super::profile::tests::profile;
    use super::super::tunnel_state::TunnelState;
    use super::*;
    use crate::service::keychain::Keychain;
    use crate::transport::client::CoordinatorClient;

    /// How often it is asked how everything is, while that changes all the time.
    const ASKED: usize = 20_000;

    /// How long all of those answers may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn daemon(dir: &std::path::Path) -> Arc<Daemon> {
        let profile = profile(dir);
        let url = "https://127.0.0.1:1".parse().unwrap();
        let client = CoordinatorClient::new(url, profile.trust.clone(), profile.credential.clone());
        let tunnel = Tunnel::new(client, profile, "box".parse().unwrap());
        let laptop = Laptop::new(dir, "~/.nexus/config.yaml", Keychain::file_only(dir));
        Daemon::new(tunnel, "laptop".into(), laptop, None, false, CancellationToken::new())
    }
    #[tokio::test]
    async fn who_asks_how_it_is_does_not_stop_what_changes_that() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = daemon(dir.path());
        for _ in 0..4 {
            let forward = ForwardRequest::new(ForwardKind::Dynamic, "0");
            daemon.forwards.add_own(&forward, Refused::Waits).await.unwrap();
        }
        let changing = Arc::new(AtomicBool::new(true));
        thread::spawn({
            let (daemon, changing) = (daemon.clone(), changing.clone());
            move || {
                for number in 0.. {
                    if !changing.load(Ordering::Relaxed) {
                        return;
                    }
                    daemon.tunnel.publish(TunnelState::Failed { why: number.to_string() });
                }
            }
        });
        let (answered, done) = mpsc::channel();
        thread::spawn(move || answered.send((0..ASKED).all(|_| daemon.status().path.is_empty())));
        let answered = done.recv_timeout(PATIENCE);
        changing.store(false, Ordering::Relaxed);
        assert_eq!(answered, Ok(true), "they wait for each other");
    }
}

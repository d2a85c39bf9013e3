//! `nexus-proxy up`: composes coordinator, workspace and tunnel, shows how they are, and takes them down again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::descriptors;
use super::failure::{self, Failure};
use super::hand_over::{Predecessor, live_on, take_over};
use super::home::Home;
use super::log::Common;
use super::output::Output;
use super::proxy::ForwardFlags;
use super::requests::Requests;
use super::signals;
use super::tell::Told;
use super::way::within_line;
use crate::role::files;
use crate::role::proxy::config::Config;
use crate::role::proxy::control::{Claim, ClaimError, ControlSocket, held_path, socket_path};
use crate::role::proxy::daemon::Daemon;
use crate::role::proxy::profile::{self, Profile};
use crate::role::proxy::tunnel::{Tunnel, TunnelError, TunnelState};
use crate::role::proxy::tunnel_state::Doing;
use crate::service::dial::Place;
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::CoordinatorClient;
use crate::wire::name::{DeviceName, WorkspaceName};

/// How long a tunnel may be on its way before a line says what it waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long what a process had may still seem to be its own after its end, and how often that is looked at: nothing tells
/// it across processes.
const LET_GO: Duration = Duration::from_secs(1);
const LET_GO_POLL: Duration = Duration::from_millis(50);

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct Up {
    /// The workspace.
    #[arg(default_value = "default")]
    pub workspace: WorkspaceName,
    /// A coordinator that this device is paired with; without it one is started inside, and the workspace is a
    /// directory on this machine.
    #[arg(long, env = "NEXUS_COORDINATOR")]
    pub coordinator: Option<CoordinatorUrl>,
    #[command(flatten)]
    pub forwards: ForwardFlags,
    /// Goes on in the background once the tunnel is up; `nexus-proxy down WORKSPACE` ends it.
    #[arg(long)]
    pub detach: bool,
    /// The configuration [default: ~/.nexus/config.yaml].
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The authorities that certify the load balancer before the coordinator, when they have changed since `pair`.
    #[arg(long, requires = "coordinator")]
    pub ca_file: Option<PathBuf>,
    /// Goes through the coordinator even where the workspace can be reached directly.
    #[arg(long)]
    pub no_direct: bool,
    /// Takes the place of the `nexus-proxy up` that runs for this workspace: an update breaks nothing.
    ///
    /// That one takes nothing new any more and ends when its connections, processes and calls are done; Ctrl-C there ends
    /// it at once. Give the same --coordinator. Its forwards go on here, with their ports, beside those that are given here;
    /// those of the configuration are the ones that it has now. When this one ends before it is up, that one takes its place
    /// again. One that has its workspace inside (no --coordinator) cannot hand over.
    #[arg(long)]
    pub take_over: bool,
    /// With --take-over: of the other one's -L, -R and -D, only those go on that are given here again.
    #[arg(long, requires = "take_over")]
    pub drop_forwards: bool,
    /// This process is the background one.
    #[arg(long, hide = true)]
    pub background: Option<PathBuf>,
}

/// Runs `up`.
pub async fn run(up: Up, common: &Common) -> Result<u8, Failure> {
    let home = Home::find()?;
    if up.detach {
        return super::detach::run(up, &home, common).await;
    }
    let (output, is_background) = (Output::new(common.json), up.background.is_some());
    let outcome = Box::pin(foreground(up, &home, output)).await;
    if let (Err(failure), true) = (&outcome, is_background) {
        // For whoever started it: its log may be on a full disk.
        output.line("failed", &failure.message, &json!({"event": "failed", "error": failure.json()}));
    }
    outcome
}

async fn foreground(up: Up, home: &Home, output: Output) -> Result<u8, Failure> {
    let began = Instant::now();
    descriptors::raise(descriptors::OF_A_TUNNEL);
    let config = super::proxy::load(up.config.as_deref(), home)?;
    let mut forwards = Requests::new(up.forwards.requests(), super::proxy::configured(&config)?);
    // Until this one is up it may end in any way: then the other one takes its place again.
    let mut predecessor = if up.take_over { take_over(&up, &mut forwards, home, output).await? } else { None };
    // Held until everything is down, or handed over.
    let (held, socket) = claim(&up, home).await?;
    let mut held = Some(held);
    let stop = CancellationToken::new();
    let interrupted = signals::ask_for_end(stop.clone());
    let log = bound_logs(up.background.as_deref(), home.audit());
    let plan = Plan { up: &up, home, output, config: &config, forwards, stop: &stop };
    let work = async {
        let mut local = Local::default();
        let outcome = session(&plan, None, began, socket, &mut held, &mut local, &mut predecessor).await;
        local.stop().await;
        outcome
    };
    tokio::select! {
        outcome = work => outcome?,
        () = interrupted => {}
        () = log => unreachable!("logs are looked after for ever"),
    }
    if let Some(Predecessor { pid, .. }) = &predecessor {
        let text = format!("this one was not up; process {pid} takes its place again");
        output.line("take-over", &text, &json!({"event": "given_back", "pid": pid}));
    }
    let text = if held.is_some() { "everything is taken down" } else { "what went on here is over" };
    output.line("down", text, &json!({"event": "down"}));
    Ok(0)
}

/// The right to keep the workspace up, and its socket.
async fn claim(up: &Up, home: &Home) -> Result<(Claim, ControlSocket), Failure> {
    let refused = |error: ClaimError| {
        let name = &up.workspace;
        let mut text = format!("workspace `{name}`: {error}");
        // The workspace inside another `up` cannot be handed over.
        let is_handed = up.coordinator.is_some();
        match &error {
            ClaimError::Up => {
                text += &format!(". hint: `nexus-proxy status {name}` shows it, `nexus-proxy down {name}` ends it");
                if is_handed {
                    text += "; the same command with --take-over takes its place, and what runs goes on";
                }
            }
            ClaimError::Elsewhere(holder) => {
                text += &format!(". hint: `kill {}` ends it; where XDG_RUNTIME_DIR is as it was there, ", holder.pid);
                text += &format!("`nexus-proxy status {name}` shows it");
                if is_handed {
                    text += ", and the same command with --take-over takes its place";
                }
            }
            ClaimError::Io(_) => {}
        }
        Failure::new(failure::FAILED, text)
    };
    let path = socket_path(&home.run, &up.workspace);
    let claim = Claim::new(&path, &held_path(&home.data, &up.workspace)).await.map_err(refused)?;
    let socket = claim.bind().map_err(|error| refused(error.into()))?;
    Ok((claim, socket))
}

/// The same after somebody who had it is gone: the system may take a moment to let go of what was theirs.
async fn claim_again(up: &Up, home: &Home) -> Result<(Claim, ControlSocket), Failure> {
    let deadline = Instant::now() + LET_GO;
    loop {
        match claim(up, home).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(LET_GO_POLL).await,
            claimed => return claimed,
        }
    }
}

async fn bound_logs(log: Option<&Path>, audit: PathBuf) {
    match log {
        Some(log) => drop(tokio::join!(files::bound_log(log), files::bound_log(&audit))),
        None => files::bound_log(&audit).await,
    }
}

/// What an `up` is made of, when it begins and when it takes its place again.
struct Plan<'a> {
    up: &'a Up,
    home: &'a Home,
    output: Output,
    config: &'a Config,
    forwards: Requests,
    /// Ends all of it.
    stop: &'a CancellationToken,
}

/// What runs on this machine besides the tunnel; ended in the reverse order.
#[derive(Default)]
struct Local {
    #[cfg(feature = "coordinator")]
    stub: Option<super::embedded::StubProcess>,
    #[cfg(feature = "coordinator")]
    coordinator: Option<super::embedded::Embedded>,
}

impl Local {
    async fn stop(self) {
        #[cfg(feature = "coordinator")]
        {
            if let Some(stub) = self.stub {
                stub.stop().await;
            }
            if let Some(coordinator) = self.coordinator {
                coordinator.stop().await;
            }
        }
    }

    /// Returns when something that must not end has.
    async fn broke(&mut self) -> String {
        #[cfg(feature = "coordinator")]
        if let Some(stub) = &mut self.stub {
            return stub.ended().await;
        }
        std::future::pending().await
    }
}

/// One life of this program: from its session's beginning until it is told to end, fails, or has handed over and is done. A
/// life after the first has the profile that was read for it.
fn session<'a>(
    plan: &'a Plan<'_>,
    again: Option<Profile>,
    began: Instant,
    socket: ControlSocket,
    held: &'a mut Option<Claim>,
    local: &'a mut Local,
    predecessor: &'a mut Option<Predecessor>,
) -> LocalBoxFuture<'a, Result<(), Failure>> {
    Box::pin(live(plan, again, began, socket, held, local, predecessor))
}

/// Reads the profile in `dir`; what failed, and whether that may pass.
pub(super) async fn load_profile(dir: &Path, url: &CoordinatorUrl) -> Result<Profile, (Failure, bool)> {
    Profile::load(dir, url).await.map_err(|error| {
        let passes = error.is_passing();
        (Failure::new(if passes { failure::UNAVAILABLE } else { failure::USAGE }, error), passes)
    })
}

/// Waits until the profile can be read, while somebody else writes it: what is open is not worse off for that. Nobody has the
/// workspace meanwhile, and `status` says so.
async fn wait_for_profile(plan: &Plan<'_>) -> Result<Profile, Failure> {
    let Plan { up, home, output, stop, .. } = plan;
    let Some(url) = &up.coordinator else {
        return Err(Failure::new(failure::FAILED, "its workspace was inside and has ended"));
    };
    let dir = profile::directory(&home.data.join("coordinators"), url);
    let mut said = None;
    loop {
        let loaded = stop.run_until_cancelled(load_profile(&dir, url)).await;
        let why = match loaded {
            Some(Err((failure, true))) => failure.message,
            Some(loaded) => return loaded.map_err(|(failure, _)| failure),
            None => return Err(Failure::new(failure::FAILED, "this program is ending")),
        };
        if said.as_ref() == Some(&why) {
            continue;
        }
        tracing::warn!(why, "this program does not take its place again yet");
        let text =
            format!("the other one is gone; this one takes its place again as soon as it can: {}", within_line(&why));
        output.line("take-over", &text, &json!({"event": "waits_for_profile", "why": why}));
        said = Some(why);
    }
}

async fn live(
    plan: &Plan<'_>,
    again: Option<Profile>,
    began: Instant,
    socket: ControlSocket,
    held: &mut Option<Claim>,
    local: &mut Local,
    predecessor: &mut Option<Predecessor>,
) -> Result<(), Failure> {
    let Plan { up, home, output, .. } = *plan;
    let is_first = again.is_none();
    let (profile, url) = match &up.coordinator {
        Some(url) => {
            let dir = profile::directory(&home.data.join("coordinators"), url);
            let profile = match again {
                Some(profile) => profile,
                None => load_profile(&dir, url).await.map_err(|(failure, _)| failure)?,
            };
            let url = &profile.url(url.clone());
            if up.ca_file.is_some() {
                super::ca_file::keep(&dir, url, up.ca_file.as_deref())?;
            }
            output.line(
                "coordinator",
                &url.authority(),
                &json!({"event": "coordinator", "url": url, "embedded": false}),
            );
            let text = format!("{} (remote)", up.workspace);
            output.line("workspace", &text, &json!({"event": "workspace", "name": up.workspace, "driver": null}));
            (profile, url.clone())
        }
        None => embed(up, home, output, local).await?,
    };
    let device = profile.device().to_string();
    let outer = profile.outer(&url).map_err(|e| Failure::new(failure::REFUSED, e))?;
    let client = CoordinatorClient::new(url, profile.trust.clone(), profile.credential.clone()).with_outer(outer);
    let tunnel = Tunnel::new(client, profile, up.workspace.clone()).with_direct(!up.no_direct).with_was_up(!is_first);
    let on_this_machine = up.coordinator.is_none();
    let log = up.background.clone();
    let stop = plan.stop.child_token();
    let daemon = Daemon::new(tunnel, device, plan.config.declared(), log, on_this_machine, stop.clone());
    daemon.set_following(predecessor.is_some());
    daemon.forwards().announce(&plan.forwards.own);
    let mut running: LocalBoxFuture<'_, Result<(), TunnelError>> = Box::pin(daemon.clone().run(socket));
    let over = tokio::select! {
        _ = daemon.handed_over() => Over::Handed(None),
        outcome = &mut running => Over::Handed(Some(outcome)),
        failed = show(daemon.clone(), &plan.forwards, is_first, predecessor, output, began) => Over::Failed(failed),
        how = local.broke() => {
            let places = home.data.join("local").join(up.workspace.as_str()).join("stub.log");
            let text = format!("the workspace's stub ended ({how}). hint: its log is {}", places.display());
            Over::Failed(Failure::new(failure::FAILED, text))
        }
    };
    match over {
        Over::Failed(failure) => {
            stop.cancel();
            let _ = running.await;
            return Err(failure);
        }
        Over::Handed(Some(outcome)) if daemon.handed_over().now_or_never().is_none() => {
            return outcome.map_err(|error| Failure::new(failure::REFUSED, error));
        }
        // Whoever hands over and has nothing open is done before it was said.
        Over::Handed(Some(outcome)) => running = Box::pin(std::future::ready(outcome)),
        Over::Handed(None) => {}
    }
    *held = None;
    let nobody = &mut None;
    let take_back = async move {
        let profile = wait_for_profile(plan).await?;
        let (claim, socket) = claim_again(up, home).await?;
        *held = Some(claim);
        let life = async move {
            session(plan, Some(profile), Instant::now(), socket, held, local, nobody).await?;
            Ok(held.is_some())
        };
        let life: LocalBoxFuture<'_, Result<bool, Failure>> = Box::pin(life);
        Ok(life)
    };
    live_on(&daemon, running, take_back, home, output, plan.stop).await
}

/// How a life went on to its end.
enum Over {
    /// It has handed over, or has ended, with this outcome.
    Handed(Option<Result<(), TunnelError>>),
    Failed(Failure),
}

#[cfg(feature = "coordinator")]
async fn embed(up: &Up, home: &Home, output: Output, local: &mut Local) -> Result<(Profile, CoordinatorUrl), Failure> {
    use super::embedded::{Embedded, Places};
    let places = Places::new(home, &up.workspace);
    if places.are_new()
        && let Some(url) = profile::met_at(&home.data.join("coordinators"), &up.workspace)
    {
        let text = format!(
            "without --coordinator a directory on this laptop becomes a workspace `{0}`, and one of that name was met at {url}. hint: \
             `nexus-proxy up {0} --coordinator {url}` is for that one; give a new one another name, or, when that one is no more, run \
             `nexus-proxy forget {0} --coordinator {url}`",
            up.workspace
        );
        return Err(Failure::new(failure::USAGE, text));
    }
    let embedded = Embedded::start(&places).await?;
    let url = embedded.url.clone();
    let json = json!({"event": "coordinator", "url": url, "embedded": true});
    output.line("coordinator", &format!("embedded, {}", url.authority()), &json);
    let mut profile = embedded.profile(&places, &device_name()).await?;
    local.stub = Some(embedded.workspace(&places, &up.workspace, &mut profile).await?);
    local.coordinator = Some(embedded);
    let text = format!("{} (process driver, no isolation)", up.workspace);
    let json = json!({"event": "workspace", "name": up.workspace, "driver": "process", "directory": places.workspace});
    output.line("workspace", &text, &json);
    Ok((profile, url))
}

#[cfg(not(feature = "coordinator"))]
async fn embed(_: &Up, _: &Home, _: Output, _: &mut Local) -> Result<(Profile, CoordinatorUrl), Failure> {
    let text = "this build has no coordinator inside. hint: name one with --coordinator https://HOST:PORT";
    Err(Failure::new(failure::USAGE, text))
}

/// This device's name: the host's, made to fit.
pub fn device_name() -> DeviceName {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = host.split('.').next().unwrap_or_default().chars().take(40).map(fit).collect();
    let name = name.trim_matches('-');
    name.parse().or_else(|_| "laptop".parse()).unwrap_or_else(|_| unreachable!("`laptop` is a name"))
}

/// Adds the forwards, those that listen here at once, and tells how things are; ends only when a forward cannot be had at all.
async fn show(
    daemon: Arc<Daemon>,
    forwards: &Requests,
    is_first: bool,
    predecessor: &mut Option<Predecessor>,
    output: Output,
    began: Instant,
) -> Failure {
    let mut state = daemon.tunnel().state();
    let mut first = true;
    let mut told = Told::default();
    if let Err(refusal) = forwards.add(Place::Laptop, &daemon, is_first, output).await {
        return refusal.into();
    }
    loop {
        let now = state.borrow_and_update().clone();
        let json = json!({"event": "tunnel", "tunnel": now});
        let mut news = told.news(&now);
        if news.begins {
            let took = match now {
                TunnelState::Up { took_ms, .. } if !first => took_ms,
                _ => began.elapsed().as_millis() as u64,
            };
            if first {
                // Before the line that says it is up, so that whoever waits for that line finds them there.
                if let Err(refusal) = forwards.add(Place::Workspace, &daemon, is_first, output).await {
                    return refusal.into();
                }
                first = false;
                daemon.set_following(false);
                if let Some(predecessor) = predecessor.take() {
                    predecessor.let_go().await;
                }
            }
            news.lines.insert(0, format!("up in {took} ms, end-to-end verified"));
        }
        match output.is_json() {
            true if news.changed => output.line("tunnel", "", &json),
            true => {}
            false => news.lines.iter().for_each(|line| output.line("tunnel", line, &json)),
        }
        let waits_for = match *state.borrow() {
            TunnelState::Connecting { doing: Doing::ReachesCoordinator, .. } => {
                Some("waiting for the coordinator (is it there, and the network to it?)")
            }
            TunnelState::Connecting { .. } => {
                Some("waiting for the workspace's stub (is `nexus-stub run` running there?)")
            }
            _ => None,
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = tokio::time::sleep(PATIENCE), if waits_for.is_some() => {
                let text = waits_for.unwrap_or_default();
                output.line("tunnel", text, &json!({"event": "waiting", "for": text, "tunnel": now}));
                if state.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        }
    }
}

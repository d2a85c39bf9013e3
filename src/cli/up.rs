//! `nexus-proxy up`: composes coordinator, workspace and tunnel, shows how they are, and takes them down again.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use futures::FutureExt;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::descriptors;
use super::failure::{self, Failure};
use super::hand_over::{linger, take_over};
use super::home::Home;
use super::log::{Common, LogFormat};
use super::output::Output;
use super::proxy::ForwardFlags;
use super::signals;
use super::way::{path_text, within_line};
use crate::lifeline::Route;
use crate::role::files;
use crate::role::proxy::config::Config;
use crate::role::proxy::control::{Claim, ControlSocket, socket_path};
use crate::role::proxy::daemon::Daemon;
use crate::role::proxy::profile::{self, Profile};
use crate::role::proxy::tunnel::{Tunnel, TunnelState};
use crate::role::proxy::tunnel_state::Doing;
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::CoordinatorClient;
use crate::wire::name::{DeviceName, WorkspaceName};

/// How long a tunnel may be on its way before a line says what it waits for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long `up --detach` waits for the tunnel before it leaves it on its way.
const DETACH_PATIENCE: Duration = Duration::from_secs(30);

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
    /// Goes on in the background once the tunnel is up; `nexus-proxy down` ends it.
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
    /// it at once. Give the same --coordinator, and the same -L, -R and -D: they are not passed on, and their ports are
    /// closed until this one opens them. Forwards of `nexus-proxy forward` move by themselves. One that has its workspace
    /// inside (no --coordinator) cannot hand over.
    #[arg(long)]
    pub take_over: bool,
    /// This process is the background one.
    #[arg(long, hide = true)]
    pub background: Option<PathBuf>,
}

/// Runs `up`.
pub async fn run(up: Up, common: &Common) -> Result<u8, Failure> {
    let home = Home::find()?;
    if up.detach {
        return detach(up, &home, common).await;
    }
    Box::pin(foreground(up, &home, Output::new(common.json))).await
}

async fn foreground(up: Up, home: &Home, output: Output) -> Result<u8, Failure> {
    let began = Instant::now();
    descriptors::raise(descriptors::OF_A_TUNNEL);
    let config = super::proxy::load(up.config.as_deref(), home)?;
    let mut requests = up.forwards.requests();
    requests.extend(super::proxy::configured(&config)?);
    let refused = |e| Failure::new(failure::FAILED, format!("workspace `{}`: {e}", up.workspace));
    if up.take_over {
        take_over(&up.workspace, up.coordinator.as_ref(), home, output).await?;
    }
    // Held until everything is down, or handed over.
    let claim = Claim::new(&socket_path(&home.run, &up.workspace)).await.map_err(refused)?;
    let socket = claim.bind().map_err(refused)?;
    let mut claim = Some(claim);
    let stop = CancellationToken::new();
    let interrupted = signals::ask_for_end(stop.clone());
    let work = async {
        let mut local = Local::default();
        let session = session(&up, home, output, began, &config, requests, socket, &mut claim, &mut local, &stop);
        let outcome = Box::pin(session).await;
        local.stop().await;
        outcome
    };
    tokio::select! {
        outcome = work => outcome?,
        () = interrupted => {}
    }
    let text = if claim.is_some() { "everything is taken down" } else { "what went on here is done" };
    output.line("down", text, &json!({"event": "down"}));
    Ok(0)
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

#[expect(clippy::too_many_arguments, reason = "called once, from the function above, which owns all of them")]
async fn session(
    up: &Up,
    home: &Home,
    output: Output,
    began: Instant,
    config: &Config,
    requests: Vec<crate::role::proxy::forwards::ForwardRequest>,
    socket: ControlSocket,
    claim: &mut Option<Claim>,
    local: &mut Local,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let (profile, url) = match &up.coordinator {
        Some(url) => {
            let dir = profile::directory(&home.data.join("coordinators"), url);
            let profile = Profile::load(&dir, url).map_err(|e| Failure::new(failure::USAGE, e))?;
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
    let tunnel = Tunnel::new(client, profile, up.workspace.clone()).with_direct(!up.no_direct);
    let on_this_machine = up.coordinator.is_none();
    let log = up.background.clone();
    let daemon = Daemon::new(tunnel, device, config.declared(), log, on_this_machine, stop.clone());
    let mut running = Box::pin(daemon.clone().run(socket));
    let shown = show(daemon.clone(), requests, output, began);
    let log = async {
        let audit = home.audit();
        match &up.background {
            Some(log) => drop(tokio::join!(files::bound_log(log), files::bound_log(&audit))),
            None => files::bound_log(&audit).await,
        }
    };
    let failed = tokio::select! {
        () = linger(&daemon, claim, output) => {
            let text = "a connection went on for a day after the hand-over. hint: it is ended with this process";
            Failure::new(failure::FAILED, text)
        }
        () = log => unreachable!("a log is looked after for ever"),
        outcome = &mut running => {
            // Whoever hands over and has nothing open is done before it was said.
            if claim.is_some() {
                linger(&daemon, claim, output).now_or_never();
            }
            return outcome.map_err(|error| Failure::new(failure::REFUSED, error));
        }
        failed = shown => failed,
        how = local.broke() => {
            let places = home.data.join("local").join(up.workspace.as_str()).join("stub.log");
            let text = format!("the workspace's stub ended ({how}). hint: its log is {}", places.display());
            Failure::new(failure::FAILED, text)
        }
    };
    stop.cancel();
    let _ = running.await;
    Err(failed)
}

#[cfg(feature = "coordinator")]
async fn embed(up: &Up, home: &Home, output: Output, local: &mut Local) -> Result<(Profile, CoordinatorUrl), Failure> {
    use super::embedded::{Embedded, Places};
    let places = Places::new(home, &up.workspace);
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

/// Adds the forwards and tells how things are; ends only when a forward cannot be had at all.
async fn show(
    daemon: Arc<Daemon>,
    requests: Vec<crate::role::proxy::forwards::ForwardRequest>,
    output: Output,
    began: Instant,
) -> Failure {
    let mut state = daemon.tunnel().state();
    let mut first = true;
    let mut told = Told::Nothing;
    loop {
        let now = state.borrow_and_update().clone();
        let json = json!({"event": "tunnel", "tunnel": now});
        // A state repeats with another round trip or another time to wait; a person is told what is new.
        let before = std::mem::replace(&mut told, Told::of(&now));
        match now {
            _ if before == told => {}
            TunnelState::Connecting { .. } => {}
            // The usual beginning, through the coordinator and then directly, is not news.
            TunnelState::Up { path: Route::Direct, moves: 1, .. }
                if matches!(before, Told::Up { .. }) && !output.is_json() => {}
            TunnelState::Up { path, round_trip_ms, .. }
                if matches!(before, Told::Up { .. } | Told::Resuming { .. }) =>
            {
                let path = path_text(path, round_trip_ms);
                let went = if matches!(before, Told::Up { .. }) { "moved" } else { "goes on" };
                output.line("tunnel", &format!("{went}, {path}; nothing was lost"), &json);
            }
            TunnelState::Resuming { why, last, retry_ms, .. } => {
                let last = last.map(|last| format!("; {}", within_line(&last))).unwrap_or_default();
                let next =
                    if retry_ms > 0 { format!(", tried in {:.1} s", retry_ms as f64 / 1000.0) } else { String::new() };
                output.line(
                    "tunnel",
                    &format!("interrupted: {why}; everything waits for another connection{next}{last}"),
                    &json,
                );
            }
            TunnelState::Up { took_ms, .. } => {
                let took = if first { began.elapsed().as_millis() as u64 } else { took_ms };
                if first {
                    // Before the line that says it is up, so that whoever waits for that line finds them there.
                    for request in &requests {
                        match daemon.forwards().add(request).await {
                            Ok(status) => super::proxy::show_forward(output, &status),
                            Err(refusal) => return refusal.into(),
                        }
                    }
                    first = false;
                }
                output.line("tunnel", &format!("up in {took} ms, end-to-end verified"), &json);
            }
            TunnelState::Waiting { why, retry_ms, .. } => {
                let retry = retry_ms as f64 / 1000.0;
                let why = within_line(&why);
                output.line("tunnel", &format!("down: {why} (next attempt in {retry:.1} s)"), &json);
            }
            TunnelState::Failed { .. } => {}
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
                output.line("tunnel", text, &json!({"event": "waiting"}));
                if state.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// What a person was told of the tunnel last.
#[derive(PartialEq)]
enum Told {
    Nothing,
    Up { since: time::OffsetDateTime, path: Route, moves: u64 },
    Resuming { last: Option<String> },
    Down { why: String, retry_ms: u64 },
}

impl Told {
    fn of(state: &TunnelState) -> Told {
        match state {
            TunnelState::Connecting { .. } | TunnelState::Failed { .. } => Told::Nothing,
            TunnelState::Up { since, path, moves, .. } => Told::Up { since: *since, path: *path, moves: *moves },
            TunnelState::Resuming { last, .. } => Told::Resuming { last: last.clone() },
            TunnelState::Waiting { why, retry_ms, .. } => Told::Down { why: why.clone(), retry_ms: *retry_ms },
        }
    }
}

/// Starts the same command in the background, waits until its tunnel is up, and leaves it.
async fn detach(up: Up, home: &Home, common: &Common) -> Result<u8, Failure> {
    let output = Output::new(common.json);
    files::private_dir(&home.data)?;
    let log = home.data.join(format!("{}.log", up.workspace));
    let file = files::log(&log)?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("--json").arg(format!("-{}", "v".repeat(common.verbose.max(1).into())));
    command.args(["--log-format", if common.log_format == LogFormat::Json { "json" } else { "text" }]);
    command.args(["up", up.workspace.as_str()]).arg("--background").arg(&log);
    if let Some(url) = &up.coordinator {
        command.args(["--coordinator", &url.to_string()]);
    }
    if let Some(file) = &up.ca_file {
        command.arg("--ca-file").arg(file);
    }
    if let Some(config) = &up.config {
        command.arg("--config").arg(config);
    }
    if up.no_direct {
        command.arg("--no-direct");
    }
    if up.take_over {
        command.arg("--take-over");
    }
    command.args(up.forwards.arguments());
    // A process group of its own, so that Ctrl-C on this terminal does not reach it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe to the background process"))?;
    let mut lines = BufReader::new(stdout).lines();
    let mut interrupted = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let deadline = tokio::time::Instant::now() + DETACH_PATIENCE;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = interrupted.recv() => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(nix::unistd::Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                }
                let _ = child.wait().await;
                return Ok(130);
            }
            () = tokio::time::sleep_until(deadline) => {
                let text = format!(
                    "the tunnel is not up yet; it goes on trying in the background. hint: `nexus-proxy status {}`, log {}",
                    up.workspace,
                    log.display()
                );
                return Err(Failure::new(failure::UNAVAILABLE, text));
            }
        };
        let Some(line) = line else { break };
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let text = match event["event"].as_str() {
            Some("coordinator") => format!("  coordinator  {}", event["url"].as_str().unwrap_or_default()),
            Some("workspace") => format!("  workspace    {}", event["name"].as_str().unwrap_or_default()),
            Some("took_over") => format!("  take-over    took over from process {}", event["pid"]),
            Some("forward") => {
                let forward = &event["forward"];
                format!(
                    "  forward      {} → {}",
                    forward["listen"].as_str().unwrap_or_default(),
                    forward["target"].as_str().unwrap_or("SOCKS5")
                )
            }
            Some("tunnel") => match event["tunnel"]["state"].as_str() {
                Some("up") => "  tunnel       up, end-to-end verified; in the background".to_owned(),
                Some("waiting") => {
                    format!("  tunnel       down: {}", event["tunnel"]["why"].as_str().unwrap_or_default())
                }
                _ => continue,
            },
            _ => continue,
        };
        output.plain(&text, &event);
        if event["tunnel"]["state"] == "up" {
            return Ok(0);
        }
    }
    let status = child.wait().await?;
    let tail = std::fs::read_to_string(&log).unwrap_or_default();
    let last = tail.lines().last().unwrap_or_default();
    let why = serde_json::from_str::<serde_json::Value>(last).ok();
    let why = why.and_then(|v| {
        let message = v["error"]["message"].as_str()?;
        let hint = v["error"]["hint"].as_str();
        Some(hint.map_or_else(|| message.to_owned(), |hint| format!("{message}. hint: {hint}")))
    });
    let text =
        why.unwrap_or_else(|| format!("the background process ended ({status}). hint: its log is {}", log.display()));
    Err(Failure::new(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(failure::FAILED), text))
}

//! A first run with nothing configured: a coordinator inside this process, on loopback, and a workspace that is a
//! directory with a stub as a child process. Real TLS, real pairing, real enrolment; only no second machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::coordinator;
use super::failure::{self, Failure};
use super::home::Home;
use crate::role::coordinator::drain::Drain;
use crate::role::coordinator::registry::{AddWorkspace, Registry};
use crate::role::coordinator::server;
use crate::role::files;
use crate::role::local;
use crate::role::proxy::profile::{Profile, ProfileError};
use crate::role::stub::gateway::{SOCKET, SOCKET_ENV};
use crate::role::stub::state::StubState;
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::ClientError;
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::{Refusal, RefusalCode};

/// How long a stub that lost its parent may take to end what runs in the workspace.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often its end is looked for: it is no child of this process.
const ORPHAN_POLL: Duration = Duration::from_millis(20);

/// Bytes of a Unix socket's path on every system that this runs on.
const MAX_SOCKET_PATH: usize = 103;

/// Where things of an embedded workspace are, below the data directory.
#[derive(Debug, Clone)]
pub struct Places {
    coordinator: PathBuf,
    profile: PathBuf,
    state: PathBuf,
    bin: PathBuf,
    /// The workspace's own directory.
    pub workspace: PathBuf,
    /// What the stub says.
    pub log: PathBuf,
}

impl Places {
    /// The places of a workspace.
    pub fn new(home: &Home, workspace: &WorkspaceName) -> Places {
        let root = home.data.join("local").join(workspace.as_str());
        Places {
            coordinator: root.join("coordinator"),
            profile: root.join("profile"),
            state: root.join("stub"),
            bin: root.join("bin"),
            workspace: root.join("workspace"),
            log: root.join("stub.log"),
        }
    }

    /// Whether nothing was made there yet.
    pub fn are_new(&self) -> bool {
        ![&self.coordinator, &self.profile, &self.state, &self.workspace].into_iter().any(|place| place.exists())
    }
}

/// A coordinator inside this process.
#[derive(Debug)]
pub struct Embedded {
    registry: Registry,
    task: tokio::task::JoinSet<()>,
    stop: CancellationToken,
    /// Its address on loopback.
    pub url: CoordinatorUrl,
}

impl Embedded {
    /// Starts it on a free port.
    pub async fn start(places: &Places) -> Result<Embedded, Failure> {
        let registry = coordinator::registry(&places.coordinator).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = CoordinatorUrl::from(listener.local_addr()?);
        let stop = CancellationToken::new();
        let mut task = tokio::task::JoinSet::new();
        let listeners = server::Listeners { tls: Some(listener), ..server::Listeners::default() };
        // Laptop and workspace end with it: there is nobody to wait for.
        let drain = Drain::new(stop.clone(), Duration::ZERO);
        let serve = server::run(listeners, registry.clone(), vec!["127.0.0.1".into()], drain);
        task.spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the embedded coordinator ended");
            }
        });
        Ok(Embedded { registry, task, stop, url })
    }

    /// This device's profile, paired anew when there is none.
    pub async fn profile(&self, places: &Places, device: &DeviceName) -> Result<Profile, Failure> {
        match Profile::load(&places.profile, &self.url).await {
            Ok(profile) if profile.trust.shares(self.registry.authorities().trust()) => return Ok(profile),
            Err(error @ ProfileError::Held { .. }) => return Err(Failure::new(failure::FAILED, error)),
            _ => {}
        }
        let failed = |refusal| own_fault(places, refusal);
        let code = self.registry.invite(Duration::from_secs(60), SystemTime::now()).await.map_err(failed)?;
        // A lost profile leaves its device behind; a fresh name needs no cleaning up first.
        let known = self.registry.list_devices().await.map_err(failed)?;
        let mut name = device.clone();
        for n in 2.. {
            if !known.iter().any(|d| d.name == name) {
                break;
            }
            name = format!("{:.55}-{n}", device.as_str()).parse().map_err(|e| Failure::new(failure::FAILED, e))?;
        }
        let profile = Profile::pair(&places.profile, &self.url, &code.reveal(), name).await;
        profile.map_err(|error| match error {
            ProfileError::Coordinator(ClientError::Refused(refusal)) => failed(refusal),
            error => Failure::new(failure::FAILED, error),
        })
    }

    /// Starts the workspace's stub, enrolling it when it is new.
    pub async fn workspace(
        &self,
        places: &Places,
        workspace: &WorkspaceName,
        profile: &mut Profile,
    ) -> Result<StubProcess, Failure> {
        let socket = places.state.join(SOCKET);
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            let text = format!("{} is too long for a socket", socket.display());
            let hint = format!(
                "set NEXUS_HOME to a directory whose path is shorter by {}",
                socket.as_os_str().len() - MAX_SOCKET_PATH
            );
            return Err(Failure::new(failure::USAGE, format!("{text}. hint: {hint} bytes")));
        }
        files::private_dir(&places.state)?;
        // Its processes may change the mode of their own directory; the one above it keeps others out.
        std::fs::create_dir_all(&places.workspace)?;
        let pin = profile.credential.key.pin();
        let enrolled = StubState::load(&places.state)
            .is_ok_and(|state| state.admits(&pin) && state.trust.shares(self.registry.authorities().trust()));
        let mut code = None;
        if !enrolled {
            let _ = std::fs::remove_file(places.state.join("stub.json"));
            let exists = self.registry.workspace(workspace).await.is_ok();
            let options = AddWorkspace { reissue: exists, ..AddWorkspace::default() };
            let added = self.registry.add_workspace(workspace, &options, SystemTime::now()).await;
            code = Some(added.map_err(|refusal| own_fault(places, refusal))?);
            let failed = |e: ProfileError| Failure::new(failure::FAILED, e);
            let writing = profile.writing().await.map_err(failed)?;
            profile.forget(&writing, workspace).map_err(failed)?;
        }
        let code = code.map(|code| code.reveal());
        orphan_ended(&places.state.join(SOCKET)).await;
        StubProcess::start(places, &self.url, code.as_ref().map(|code| code.as_str()))
    }

    /// Ends it; clients are told.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(6), self.task.join_next()).await;
    }
}

/// What the coordinator inside refused. Of a fault of its own it says no more than that its log has it: to whoever reads this
/// that is the log of this program.
fn own_fault(places: &Places, refusal: Refusal) -> Failure {
    match refusal.code {
        RefusalCode::Internal => {
            let text = format!(
                "the coordinator inside cannot keep what it must; the log of this command says why. hint: is the disk full? \
                 the data is in {}",
                places.coordinator.display()
            );
            Failure::new(failure::FAILED, text)
        }
        _ => refusal.into(),
    }
}

/// Waits for a stub that a killed `up` left behind: it ends by itself, but not at once, and would keep the new one from
/// the socket. Nobody else's can be there, since this process has the workspace.
async fn orphan_ended(socket: &Path) {
    let deadline = Instant::now() + ORPHAN_TIMEOUT;
    while !local::is_deserted(socket).await && Instant::now() < deadline {
        tokio::time::sleep(ORPHAN_POLL).await;
    }
}

/// The stub of a workspace on this machine, a child process. Ends when its standard input does, so that it cannot
/// outlive this process, however that ends.
#[derive(Debug)]
pub struct StubProcess {
    child: Child,
    // Held apart: waiting for a child closes the standard input that it holds itself.
    stdin: Option<ChildStdin>,
}

impl StubProcess {
    fn start(places: &Places, url: &CoordinatorUrl, code: Option<&str>) -> Result<StubProcess, Failure> {
        let program = link_stub(&places.bin)?;
        let log = files::log(&places.log)?;
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
        let mut command = Command::new(&program);
        command
            .args(["run", "-v", "--exit-with-stdin", "--coordinator", &url.to_string()])
            // For this machine only: nobody else has business at a workspace that is a directory here.
            .args(["--direct-listen", "127.0.0.1:0"])
            .arg("--state")
            .arg(&places.state)
            .arg("--workspace")
            .arg(&places.workspace)
            .current_dir(&places.workspace)
            // Nothing of this shell's environment: it may hold secrets that the workspace must not see.
            .env_clear()
            .env("PATH", format!("{}:{path}", places.bin.display()))
            .env("HOME", &places.workspace)
            .env(SOCKET_ENV, places.state.join(SOCKET))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C on the terminal is for this process; the stub's end is ours to order.
            .process_group(0)
            .kill_on_drop(true);
        for name in ["LANG", "LC_ALL", "TERM", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(code) = code {
            command.env("NEXUS_ENROLL", code);
        }
        let mut child =
            command.spawn().map_err(|e| Failure::new(failure::FAILED, format!("{}: {e}", program.display())))?;
        let stdin = child.stdin.take();
        Ok(StubProcess { child, stdin })
    }

    /// Returns when the stub ends by itself, with how.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Ends it: politely, then not.
    pub async fn stop(mut self) {
        drop(self.stdin.take());
        if tokio::time::timeout(Duration::from_secs(6), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Puts `nexus-stub` into the workspace's own program directory: the program beside this one, or this one under that
/// name, since it is both.
fn link_stub(bin: &Path) -> Result<PathBuf, Failure> {
    files::private_dir(bin)?;
    let own = std::env::current_exe()?;
    let beside = own.with_file_name("nexus-stub");
    let target = if beside.is_file() { beside } else { own };
    let link = bin.join("nexus-stub");
    if std::fs::read_link(&link).ok().as_ref() != Some(&target) {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&target, &link)?;
    }
    Ok(link)
}

//! Laptop, coordinator and workspace as three programs, the way that the session's bytes take over a simulated wire.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::link::{Link, Wire};
use super::rig::{Home, Process, Programs, Way, free_port};

/// What the workspace is called.
const WORKSPACE: &str = "box";

/// A `nexus-coordinator serve` with data of its own.
#[derive(Debug)]
pub struct Coordinator<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
    folder: TempDir,
    programs: &'a Programs,
}

impl Coordinator<'_> {
    /// One that knows nobody.
    pub fn start(programs: &Programs) -> Result<Coordinator<'_>> {
        let folder = TempDir::new()?;
        let mut command = Command::new(programs.path("nexus-coordinator"));
        command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
        let process = Process::start(command)?;
        let address =
            process.says(|line| serde_json::from_str::<Value>(line).ok()?["address"].as_str()?.parse().ok())?;
        Ok(Coordinator { address, process, folder, programs })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The code that a command of its operator makes.
    fn code(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(self.programs.path("nexus-coordinator"));
        command.arg("--data").arg(self.data()).arg("--json").args(words);
        let output = command.output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        Ok(answer["code"].as_str().context("no code")?.to_owned())
    }
}

/// A tunnel over a wire, up.
#[derive(Debug)]
pub struct Distant<'a> {
    // Dropped in this order: forwards before what they belong to, programs before what they talk to.
    forwards: Vec<Process>,
    _up: Process,
    _stub: Process,
    home: Home<'a>,
    workspace: TempDir,
    _links: Vec<Link>,
    _coordinator: Coordinator<'a>,
}

impl Distant<'_> {
    /// Pairs, enrols, and waits until the tunnel is up, by this way. `wire` is the laptop's: to the coordinator, and to the
    /// workspace when there is a direct way.
    pub fn start(programs: &Programs, wire: Wire, way: Way) -> Result<Distant<'_>> {
        let coordinator = Coordinator::start(programs)?;
        let workspace = TempDir::new()?;
        let home = Home::new(programs)?;
        let near = Link::with(coordinator.address.port(), wire);
        let url = near.url();
        // The first device of an enrolment is the one that is paired by then.
        home.proxy(&["pair", &url, &coordinator.code(&["invite"])?, "--name", "bench"], |_| Some(()))?;
        let mut stub = Command::new(programs.path("nexus-stub"));
        stub.args(["-v", "run", "--coordinator", &format!("https://{}", coordinator.address)]);
        stub.arg("--enroll").arg(coordinator.code(&["workspace", "add", WORKSPACE])?);
        stub.arg("--state").arg(workspace.path().join("state")).arg("--workspace").arg(workspace.path());
        let mut links = vec![near];
        if way == Way::Direct {
            let port = free_port()?;
            let direct = Link::with(port, wire);
            stub.env("NEXUS_DIRECT_LISTEN", format!("127.0.0.1:{port}"));
            stub.env("NEXUS_DIRECT_ADVERTISE", direct.address());
            links.push(direct);
        }
        let stub = Process::start(stub)?;
        stub.says(|line| line.contains("ready for laptops").then_some(()))?;
        let up = home.up_by(way, &[WORKSPACE, "--coordinator", &url])?;
        let (_up, _stub, _links, _coordinator) = (up, stub, links, coordinator);
        Ok(Distant { forwards: Vec::new(), _up, _stub, home, workspace, _links, _coordinator })
    }

    /// Forwards a free port of the laptop to `port` of the workspace, and gives it.
    pub fn forward(&mut self, port: u16) -> Result<u16> {
        let (process, port) = self.home.forward(WORKSPACE, port)?;
        self.forwards.push(process);
        Ok(port)
    }

    /// The socket on which programs in the workspace call the laptop.
    pub fn stub_socket(&self) -> PathBuf {
        self.workspace.path().join("state/stub.sock")
    }
}

//! The programs under test, in a home of their own, and what the kernel says about them: processor time and memory.
//! Every process is ended by its own id when its owner is dropped.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;
use tempfile::TempDir;

/// How long a program may take to come up. No figure: only the difference between slow and stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// The programs, copied: a build that goes on at the same time must not change what is measured.
#[derive(Debug)]
pub struct Programs {
    folder: TempDir,
}

impl Programs {
    /// Copies them from where cargo built them.
    pub fn copied() -> Result<Programs> {
        let folder = TempDir::new()?;
        for built in [
            env!("CARGO_BIN_EXE_nexus-proxy"),
            env!("CARGO_BIN_EXE_nexus-stub"),
            env!("CARGO_BIN_EXE_nexus-coordinator"),
        ] {
            let name = Path::new(built).file_name().context("a program has a name")?;
            fs::copy(built, folder.path().join(name)).with_context(|| format!("cannot copy {built}"))?;
        }
        Ok(Programs { folder })
    }

    /// The path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A process and the lines it says. Ended on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    what: String,
}

impl Process {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Result<Process> {
        let what = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let (sender, lines) = channel();
        if let Some(out) = child.stdout.take() {
            collect(out, sender.clone());
        }
        if let Some(err) = child.stderr.take() {
            collect(err, sender);
        }
        Ok(Process { child, lines, what })
    }

    /// Starts what listens on `port`, until it does.
    pub fn listening(command: Command, port: u16) -> Result<Process> {
        let mut process = Process::start(command)?;
        let deadline = Instant::now() + PATIENCE;
        while !listens(port) {
            if Instant::now() > deadline || process.child.try_wait()?.is_some() {
                let said: Vec<String> = process.lines.try_iter().collect();
                bail!("{} does not listen on {port}:\n{}", process.what, said.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(process)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of which `find` makes something.
    pub fn says<T>(&self, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let mut said = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            match find(&line) {
                Some(found) => return Ok(found),
                None => said.push(line),
            }
        }
        bail!("{} did not say what was expected:\n{}", self.what, said.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn collect(from: impl Read + Send + 'static, into: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // Read on when nobody listens any more: a full pipe would stop the program.
            let _ = into.send(line);
        }
    });
}

/// A home with nothing in it, and `nexus-proxy` run with it.
#[derive(Debug)]
pub struct Home<'a> {
    programs: &'a Programs,
    folder: TempDir,
}

impl Home<'_> {
    /// An empty one.
    pub fn new(programs: &Programs) -> Result<Home<'_>> {
        Ok(Home { programs, folder: TempDir::new()? })
    }

    /// `nexus-proxy` with these words, to its end or to the first line of which `find` makes something.
    pub fn proxy<T>(&self, words: &[&str], find: impl Fn(&Value) -> Option<T>) -> Result<(Process, T)> {
        let mut command = Command::new(self.programs.path("nexus-proxy"));
        command.arg("--json").args(words).env("NEXUS_HOME", self.folder.path()).current_dir(self.folder.path());
        let process = Process::start(command)?;
        let found = process.says(|line| find(&serde_json::from_str(line).ok()?))?;
        Ok((process, found))
    }

    /// `nexus-proxy up`, until the tunnel is.
    pub fn up(&self) -> Result<Process> {
        self.up_with(&[])
    }

    /// As [`up`](Self::up), with more words.
    pub fn up_with(&self, words: &[&str]) -> Result<Process> {
        let up = |event: &Value| (event["tunnel"]["state"] == "up").then_some(());
        Ok(self.proxy(&[&["up"], words].concat(), up)?.0)
    }

    /// The same, until the tunnel goes by this way.
    pub fn up_by(&self, way: Way, words: &[&str]) -> Result<Process> {
        if way == Way::Relay {
            return self.up_with(&[words, &["--no-direct"]].concat());
        }
        let goes = |event: &Value| (event["tunnel"]["path"] == "direct").then_some(());
        Ok(self.proxy(&[&["up"], words].concat(), goes)?.0)
    }

    /// Forwards a free port of the laptop to `port` of a workspace for as long as the process lives, and gives it.
    pub fn forward(&self, workspace: &str, port: u16) -> Result<(Process, u16)> {
        let spec = format!("0:127.0.0.1:{port}");
        let listen = |event: &Value| event["forward"]["listen"].as_str()?.rsplit(':').next()?.parse().ok();
        self.proxy(&["forward", workspace, "-L", &spec], listen)
    }

    /// The socket on which programs in the workspace call the laptop.
    pub fn stub_socket(&self) -> PathBuf {
        self.folder.path().join("data/local/default/stub/stub.sock")
    }
}

/// A tunnel: `up` with a coordinator inside, its stub, and forwards.
#[derive(Debug)]
pub struct Tunnel<'a> {
    // Dropped in this order: forwards before what they belong to.
    forwards: Vec<Process>,
    up: Process,
    stub: u32,
    home: Home<'a>,
}

/// The way that a tunnel's bytes take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the coordinator.
    Relay,
    /// To the stub's own port, as without further words.
    Direct,
}

impl Tunnel<'_> {
    /// A tunnel, up, by this way.
    pub fn start(programs: &Programs, way: Way) -> Result<Tunnel<'_>> {
        let home = Home::new(programs)?;
        let up = home.up_by(way, &[])?;
        let stub = children(up.pid()).into_iter().next().context("`up` has a stub")?;
        Ok(Tunnel { forwards: Vec::new(), up, stub, home })
    }

    /// Forwards a free port of the laptop to `port` of the workspace, and gives it.
    pub fn forward(&mut self, port: u16) -> Result<u16> {
        let (process, port) = self.home.forward("default", port)?;
        self.forwards.push(process);
        Ok(port)
    }

    /// The process of `up`.
    pub fn up_pid(&self) -> u32 {
        self.up.pid()
    }

    /// The process of the stub.
    pub fn stub_pid(&self) -> u32 {
        self.stub
    }

    /// The socket on which programs in the workspace call the laptop.
    pub fn stub_socket(&self) -> PathBuf {
        self.home.stub_socket()
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Whether anything listens on `port`. Connects to nothing.
fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    ["tcp", "tcp6"].iter().any(|table| {
        let table = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == LISTEN
        })
    })
}

/// What follows the command's name in `/proc/PID/stat`, from the state on: field 3 of proc(5) is the first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// The processes that `pid` started and that still run.
pub fn children(pid: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    all.filter(|child| stat(*child).is_some_and(|s| s.get(1) == Some(&pid.to_string()))).collect()
}

/// `pid` and everything below it.
pub fn family(pid: u32) -> Vec<u32> {
    let below = children(pid).into_iter().flat_map(family);
    std::iter::once(pid).chain(below).collect()
}

/// Seconds of processor time that these processes have used, of their own and of the kernel's on their behalf.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = stat(*pid)?;
        Some(stat.get(11)?.parse::<f64>().ok()? + stat.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / per_second
}

/// Bytes of memory of a process: what it alone has, and its share of what it shares; all that is resident when the
/// kernel does not say.
pub fn memory(pid: u32) -> Result<f64> {
    let of = |file: &str, name: &str| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    };
    of("smaps_rollup", "Pss").or_else(|| of("status", "VmRSS")).context("the process has ended")
}

//! The laptop, with a home of its own: what a person types, and what they see.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::coordinator::without_proxies;
use super::place::Place;
use super::program::{Run, Running};
use super::transfers::RECOVERY;
use super::until;
use super::wait::within;

/// A laptop: an empty `NEXUS_HOME`, and `nexus-proxy` run with it.
#[derive(Debug)]
pub struct Laptop {
    home: TempDir,
    place: Place,
}

impl Laptop {
    /// On this host.
    pub fn new() -> Laptop {
        Laptop::at(&Place::Here)
    }

    /// At `place`.
    pub fn at(place: &Place) -> Laptop {
        Laptop { home: TempDir::new().expect("a temporary folder"), place: place.clone() }
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where everything of this laptop is.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where its configuration is.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config.yaml")
    }

    /// Writes its configuration.
    pub fn configure(&self, yaml: &str) {
        fs::write(self.config(), yaml).expect("a file of ours");
    }

    /// `nexus-proxy` with these words, to be changed further before it runs.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_nexus-proxy"));
        program.args(words).env("NEXUS_HOME", self.home.path()).current_dir(self.home.path());
        without_proxies(&mut program);
        program
    }

    /// Runs `nexus-proxy` with these words to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Run {
        Run::of(self.place.run(self.command(words)))
    }

    /// Another home with the same keys: the same device, started a second time.
    pub fn twin(&self) -> Laptop {
        let twin = Laptop::at(&self.place);
        let (from, to) = (self.home().join("data"), twin.home().join("data"));
        Run::of(super::program::command("cp", [&"-a".into(), &from, &to])).ok();
        twin
    }

    /// `nexus-proxy pair` with a fresh code; the device is called `name`.
    #[track_caller]
    pub fn pair(&self, url: &str, code: &str, name: &str) -> Run {
        self.run(&["pair", url, code, "--name", name])
    }

    /// `nexus-proxy up` with these words; returns when the tunnel is up.
    #[track_caller]
    pub fn up(&self, words: &[&str]) -> Up<'_> {
        self.up_as(self.command(&[&["up"], words].concat()))
    }

    /// As [`up`](Self::up), with a command that was made by [`command`](Self::command).
    #[track_caller]
    pub fn up_as(&self, command: Command) -> Up<'_> {
        let mut program = Running::start(self.place.run(command));
        until_up(&mut program);
        Up { program, laptop: self }
    }

    /// Runs `argv` in a workspace.
    #[track_caller]
    pub fn exec(&self, workspace: &str, argv: &[&str]) -> Run {
        self.exec_with_input(workspace, argv, b"")
    }

    /// Runs `argv` in a workspace, with this on standard input.
    #[track_caller]
    pub fn exec_with_input(&self, workspace: &str, argv: &[&str], input: &[u8]) -> Run {
        let command = self.command(&[&["exec", workspace, "--"], argv].concat());
        Run::with_input(self.place.run(command), input)
    }

    /// Runs `nexus-stub` with these words in the workspace `default`, as an agent there would.
    #[track_caller]
    pub fn stub(&self, words: &[&str]) -> Run {
        self.exec("default", &[&["nexus-stub"], words].concat())
    }

    /// `nexus-proxy forward` with these words; returns when it has said a line that contains `ready`.
    #[track_caller]
    pub fn forward(&self, workspace: &str, words: &[&str], ready: &str) -> (String, Running) {
        let command = self.command(&[&["forward", workspace], words].concat());
        let mut program = Running::start(self.place.run(command));
        let line = program.says(ready);
        (line, program)
    }

    /// A forward from a free port here to `target` in the workspace `box`; it lasts as long as what is returned.
    #[track_caller]
    pub fn forward_to(&self, target: impl Display) -> (u16, Running) {
        let (line, program) = self.forward("box", &["-L", &format!("0:{target}")], "forward");
        (port_in(&line), program)
    }

    /// A forward that lasts as long as what is returned, and the port that was picked for it.
    #[track_caller]
    pub fn forward_on_free_port(&self, flag: &str, spec: &str) -> (u16, Running) {
        let (line, program) = self.forward("default", &[flag, spec], "forward");
        (port_in(&line), program)
    }

    /// The directory of the workspace `default`.
    pub fn workspace(&self) -> PathBuf {
        self.home.path().join("data/local/default/workspace")
    }

    /// What `nexus-proxy status --json` says about the only workspace.
    #[track_caller]
    pub fn workspace_status(&self) -> serde_json::Value {
        let mut status = self.status();
        let workspaces = status["workspaces"].as_array().map(Vec::len);
        assert_eq!(workspaces, Some(1), "{status}");
        status["workspaces"][0].take()
    }

    /// Waits until the session with the only workspace goes by `path`, with another one behind it or without.
    #[track_caller]
    pub fn until_it_goes(&self, path: &str, standby: bool) -> serde_json::Value {
        let tunnel = || self.workspace_status()["tunnel"].clone();
        let goes = || {
            let tunnel = tunnel();
            (tunnel["path"] == path && tunnel["standby"] == standby).then_some(tunnel)
        };
        within(RECOVERY, goes).unwrap_or_else(|| panic!("not {path}, standby {standby}: {}", tunnel()))
    }

    /// What `nexus-proxy status --json` says.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let text = self.run(&["status", "--json"]).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status --json is not JSON ({e}):\n{text}"))
    }

    /// `nexus-proxy down`.
    #[track_caller]
    pub fn down(&self) -> Run {
        self.run(&["down"])
    }
}

/// Waits for the line about the tunnel, which must be up; the log around it may speak of tunnels too, and on a busy machine a
/// line before it says what is waited for.
#[track_caller]
fn until_up(program: &mut Running) {
    let said = |line: &String| {
        let text = line.starts_with("  tunnel ") && !line.contains(" waiting for ");
        text || line.starts_with("{\"event\":\"tunnel\"")
    };
    let line = until("`up` to speak of its tunnel, or to end", || {
        let ended = program.has_ended().is_some();
        let line = program.lines().into_iter().find(said);
        (line.is_some() || ended).then_some(line)
    });
    let up = line.is_some_and(|line| line.contains(" up in ") || line.contains("\"state\":\"up\""));
    assert!(up, "the tunnel is not up:\n{}", program.output());
}

/// A `nexus-proxy up` in the foreground. Ended on drop.
#[derive(Debug)]
pub struct Up<'a> {
    /// The process.
    pub program: Running,
    laptop: &'a Laptop,
}

impl Up<'_> {
    /// How many tunnels it has had.
    pub fn tunnels(&self) -> usize {
        self.program.lines().iter().filter(|line| line.contains("end-to-end verified")).count()
    }

    /// How often its session went on with another connection.
    pub fn resumed(&self) -> usize {
        self.program.lines().iter().filter(|line| line.contains("nothing was lost")).count()
    }

    /// Ctrl-C, and how it ended.
    #[track_caller]
    pub fn ctrl_c(mut self) -> ExitStatus {
        self.program.signal(Signal::SIGINT);
        self.program.ends()
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("nexus-proxy up in {} said:\n{}", self.laptop.home().display(), self.program.output());
        }
    }
}

/// The port at the end of the address in `line`, as `forward` prints it.
#[track_caller]
pub fn port_in(line: &str) -> u16 {
    line.split(|c: char| !c.is_ascii_digit() && c != ':')
        .filter_map(|word| word.rsplit_once(':')?.1.parse().ok())
        .find(|port| *port != 0)
        .unwrap_or_else(|| panic!("no port in `{line}`"))
}

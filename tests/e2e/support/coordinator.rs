//! The coordinator and the stub of a workspace, as those who run them start them.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::place::Place;
use super::program::{Run, Running, command, take_surroundings};

/// Takes the proxies of whoever runs the tests out of a program's environment.
pub fn without_proxies(command: &mut Command) {
    for variable in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY"] {
        command.env_remove(variable);
    }
}

/// A `nexus-coordinator serve` with a data directory of its own.
#[derive(Debug)]
pub struct Coordinator {
    /// Its port, the same after a restart.
    pub port: u16,
    /// The process.
    pub program: Running,
    place: Place,
    options: Vec<String>,
    data: TempDir,
}

impl Coordinator {
    /// On this host.
    #[track_caller]
    pub fn start() -> Coordinator {
        Coordinator::start_at(&Place::Here, &[])
    }

    /// At `place`, with more options of `serve`.
    #[track_caller]
    pub fn start_at(place: &Place, options: &[&str]) -> Coordinator {
        let data = TempDir::new().expect("a temporary folder");
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let (port, program) = Running::on_free_port(|port| serve(place, data.path(), port, &options));
        Coordinator { port, program, place: place.clone(), options, data }
    }

    /// On this host, from a shell that lets its programs open only so many files unless they ask for more.
    #[track_caller]
    pub fn start_with_open_files(soft: u32) -> Coordinator {
        let data = TempDir::new().expect("a temporary folder");
        let (port, program) = Running::on_free_port(|port| {
            let serve = serve(&Place::Here, data.path(), port, &[]);
            let mut shell = command("sh", ["-c", &format!("ulimit -S -n {soft}; exec \"$0\" \"$@\"")]);
            shell.arg(serve.get_program()).args(serve.get_args());
            take_surroundings(&mut shell, &serve);
            shell
        });
        Coordinator { port, program, place: Place::Here, options: Vec::new(), data }
    }

    /// Its address, for those who reach it as `host`.
    pub fn url(&self, host: impl Display) -> String {
        format!("https://{host}:{}", self.port)
    }

    /// Where its authority and its database are.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.program.signal(Signal::SIGKILL);
        self.program.ends();
    }

    /// Starts it again, on the same port with the same data.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.program = Running::start(serve(&self.place, self.data.path(), self.port, &self.options));
        self.program.says("listening");
    }

    /// Tells it to end, and starts the next one at once, on the same port with the same data; gives the old one.
    #[track_caller]
    pub fn replace(&mut self) -> Running {
        self.program.signal(Signal::SIGTERM);
        self.successor()
    }

    /// Starts the next one beside one that was told to end; gives that one.
    #[track_caller]
    pub fn successor(&mut self) -> Running {
        let next = Running::start(serve(&self.place, self.data.path(), self.port, &self.options));
        let old = std::mem::replace(&mut self.program, next);
        self.program.says("listening");
        old
    }

    /// Another coordinator, with another authority, at its address. Its own has to be ended first.
    #[track_caller]
    pub fn impostor(&self) -> (TempDir, Running) {
        let data = TempDir::new().expect("a temporary folder");
        let mut program = Running::start(serve(&self.place, data.path(), self.port, &self.options));
        program.says("listening");
        (data, program)
    }

    /// Forgets everything and starts again at the same address: another authority.
    #[track_caller]
    pub fn start_anew(&mut self) {
        self.data = TempDir::new().expect("a temporary folder");
        self.start_again();
    }

    /// A command of its operator, to be run.
    pub fn command(&self, words: &[&str]) -> Command {
        program(self.data.path(), words)
    }

    /// Runs a command of its operator to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Run {
        Run::of(self.command(words))
    }

    /// The pin of a device's key.
    #[track_caller]
    pub fn pin_of(&self, device: &str) -> String {
        let devices = self.run(&["device", "list"]).ok();
        let line = devices.lines().find(|line| line.contains(device)).expect("a device");
        line.split_whitespace().find(|word| word.starts_with("sha256:")).expect("its pin").to_owned()
    }

    /// A pairing code.
    #[track_caller]
    pub fn invite(&self) -> String {
        self.code(&["invite"])
    }

    /// An enrolment code for a new workspace.
    #[track_caller]
    pub fn add_workspace(&self, name: &str) -> String {
        self.code(&["workspace", "add", name])
    }

    /// The code that a command makes.
    #[track_caller]
    pub fn code(&self, words: &[&str]) -> String {
        let text = self.run(&[&["--json"], words].concat()).ok();
        let json: serde_json::Value = serde_json::from_str(&text).expect("--json is JSON");
        json["code"].as_str().expect("a code").to_owned()
    }
}

fn program(data: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-coordinator"));
    command.arg("--data").arg(data).args(words);
    without_proxies(&mut command);
    command
}

fn serve(place: &Place, data: &Path, port: u16, options: &[String]) -> Command {
    let mut command = program(data, &["-v", "serve", "--listen", &format!("{}:{port}", place.bind())]);
    command.args(options);
    place.run(command)
}

/// A workspace's machine: a directory, and the stub's state beside it.
#[derive(Debug)]
pub struct Machine {
    /// The workspace's directory.
    pub workspace: TempDir,
    place: Place,
    url: String,
    state: TempDir,
    env: Vec<(String, String)>,
}

impl Machine {
    /// At `place`, for a coordinator at `url`. Nothing runs yet.
    pub fn at(place: &Place, url: &str) -> Machine {
        let folder = || TempDir::new().expect("a temporary folder");
        let (workspace, state) = (folder(), folder());
        Machine { workspace, place: place.clone(), url: url.to_owned(), state, env: Vec::new() }
    }

    /// With a variable of its environment.
    pub fn env(mut self, key: &str, value: &str) -> Machine {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A machine made from a copy of this one's disk, as it is now.
    #[track_caller]
    pub fn cloned(&self) -> Machine {
        let clone = Machine::at(&self.place, &self.url);
        let entries = std::fs::read_dir(self.state()).expect("the state").map(|entry| entry.expect("an entry"));
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            std::fs::copy(entry.path(), clone.state().join(entry.file_name())).expect("a copy");
        }
        Machine { env: self.env.clone(), ..clone }
    }

    /// What `nexus-stub status` says here.
    #[track_caller]
    pub fn status(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-stub"));
        command.arg("--state").arg(self.state()).arg("status").env_remove("NEXUS_STUB_SOCKET");
        Run::of(command).ok()
    }

    /// Where the stub's key and certificate are.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// `nexus-stub run`, with an enrolment code when it is the first time.
    pub fn command(&self, code: Option<&str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-stub"));
        command.args(["-v", "run", "--coordinator", &self.url]).arg("--state").arg(self.state.path());
        command.arg("--workspace").arg(self.workspace.path());
        command.args(code.iter().flat_map(|code| ["--enroll", code]));
        without_proxies(&mut command);
        for variable in ["NEXUS_ENROLL", "NEXUS_COORDINATOR", "NEXUS_STUB_STATE", "NEXUS_STUB_SOCKET"] {
            command.env_remove(variable);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        self.place.run(command)
    }

    /// `nexus-stub run` that takes over from the one that runs.
    pub fn take_over(&self) -> Command {
        let mut command = self.command(None);
        command.arg("--take-over");
        command
    }

    /// Runs a stub that takes over from the one that runs, until laptops can come.
    #[track_caller]
    pub fn successor(&self) -> Running {
        let mut stub = Running::start(self.take_over());
        stub.says("took over");
        stub.says("ready for laptops");
        stub
    }

    /// Runs the stub until laptops can come.
    #[track_caller]
    pub fn stub(&self, code: Option<&str>) -> Running {
        let mut stub = Running::start(self.command(code));
        stub.says("ready for laptops");
        stub
    }
}

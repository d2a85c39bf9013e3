//! How `up` begins, ends, and begins again: nothing is left behind, and nothing is lost that should be kept.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::linked::Frozen;
use crate::support::*;

/// What an `up` holds of the machine.
#[derive(Debug)]
struct Holdings {
    processes: Vec<u32>,
    ports: Vec<u16>,
}

impl Holdings {
    /// Of the only `up` there is, whose own process is among them.
    #[track_caller]
    fn of(laptop: &Laptop) -> Holdings {
        let status = laptop.workspace_status();
        let pid = status["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a process id");
        let mut processes = kernel::children(pid);
        assert_eq!(processes.len(), 1, "the stub is the only child");
        processes.push(pid);
        let forwards = status["forwards"].as_array().expect("a list of forwards");
        let listening = forwards.iter().filter_map(|forward| forward["listen"].as_str());
        let ports = listening.chain(status["coordinator"].as_str()).map(|at| laptop::port_in(&format!(" {at}")));
        let holdings = Holdings { processes, ports: ports.collect() };
        let here = std::process::id();
        assert!(holdings.ports.iter().all(|port| program::listens(here, *port)), "{holdings:?}: {status}");
        holdings
    }

    #[track_caller]
    fn are_gone(&self) {
        for pid in &self.processes {
            until(&format!("the end of process {pid}"), || (!kernel::runs(*pid)).then_some(()));
        }
        for port in &self.ports {
            assert!(!program::listens(std::process::id(), *port), "port {port} is still open");
        }
    }
}

/// The socket files below `folder`.
fn sockets(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("a file of ours");
        if kind.is_dir() {
            found.extend(sockets(&entry.path()));
        } else if kind.is_socket() {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn ctrl_c_leaves_nothing() {
    let laptop = Laptop::new();
    let target = "0:127.0.0.1:9";
    let up = laptop.up(&["-L", target, "-R", target, "-D", "0"]);
    let holdings = Holdings::of(&laptop);
    assert_eq!(sockets(laptop.home()).len(), 2, "the stub's and our own");
    let mut exec =
        Running::start(laptop.command(&["exec", "default", "--", "sh", "-c", "echo pid $$; exec sleep 600"]));
    let remote: u32 = exec.says("pid").trim_start_matches("pid ").parse().unwrap();
    let mut forward = laptop.forward_on_free_port("-L", target).1;

    assert_eq!(up.ctrl_c().code(), Some(0));
    holdings.are_gone();
    assert_eq!(sockets(laptop.home()), [""; 0]);
    until("the end of what ran in the workspace", || (!kernel::runs(remote)).then_some(()));
    assert_eq!(exec.ends().code(), Some(125), "{}", exec.output());
    assert_eq!(forward.ends().code(), Some(3));
    assert!(forward.output().contains("is not up any more"), "{}", forward.output());
}

#[test]
fn down_ends_up_and_all_that_is_its() {
    let laptop = Laptop::new();
    let mut up = laptop.up(&["-L", "0:127.0.0.1:9"]);
    let holdings = Holdings::of(&laptop);
    laptop.down().ok();
    assert_eq!(up.program.ends().code(), Some(0), "{}", up.program.output());
    holdings.are_gone();
    assert_eq!(sockets(laptop.home()), [""; 0]);
    assert_eq!(laptop.run(&["status"]).status.code(), Some(3));
}

#[test]
fn a_killed_up_takes_its_stub_along_and_can_be_had_again() {
    let laptop = Laptop::new();
    let mut up = laptop.up(&["-L", "0:127.0.0.1:9"]);
    let holdings = Holdings::of(&laptop);
    up.program.signal(Signal::SIGKILL);
    up.program.ends();
    holdings.are_gone();
    assert_eq!(laptop.run(&["status"]).status.code(), Some(3), "a socket without a program is nothing");
    drop(up);

    let _again = laptop.up(&[]);
    assert_eq!(laptop.exec("default", &["echo", "again"]).ok(), "again\n");
    assert_eq!(devices(&laptop).len(), 1);
}

#[test]
fn up_waits_for_the_stub_of_one_that_was_killed() {
    let laptop = Laptop::new();
    laptop.up(&[]).ctrl_c();
    // As a stub that has lost its parent and is still busy with its end.
    let path = laptop.home().join("data/local/default/stub/stub.sock");
    let orphan = UnixListener::bind(&path).unwrap();
    let mut up = Running::start(laptop.command(&["up"]));
    orphan.set_nonblocking(true).unwrap();
    until("somebody to look for the orphan", || orphan.accept().ok());
    fs::remove_file(&path).unwrap();
    drop(orphan);
    up.says("tunnel       up in");
    assert_eq!(laptop.exec("default", &["echo", "again"]).ok(), "again\n");
}

#[test]
fn identity_outlives_up() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    fs::write(laptop.workspace().join("kept"), "kept").unwrap();
    let (devices_before, pins) = (devices(&laptop), workspaces(&laptop));
    assert_eq!((devices_before.len(), pins.len()), (1, 1));
    up.ctrl_c();
    for _ in 0..2 {
        let up = laptop.up(&[]);
        assert_eq!(laptop.exec("default", &["cat", "kept"]).ok(), "kept");
        assert_eq!((devices(&laptop), workspaces(&laptop)), (devices_before.clone(), pins.clone()));
        up.ctrl_c();
    }
}

/// The devices that the embedded coordinator knows, as name and key.
fn devices(laptop: &Laptop) -> BTreeSet<String> {
    listed(laptop, "device")
}

fn workspaces(laptop: &Laptop) -> BTreeSet<String> {
    listed(laptop, "workspace")
}

fn listed(laptop: &Laptop, what: &str) -> BTreeSet<String> {
    let mut coordinator = Command::new(env!("CARGO_BIN_EXE_nexus-coordinator"));
    coordinator.args(["--json", what, "list", "--data"]).arg(laptop.home().join("data/local/default/coordinator"));
    let list: Vec<Value> = serde_json::from_str(&Run::of(coordinator).ok()).expect("a JSON list");
    list.iter().map(|entry| format!("{} {}", entry["name"], entry["pin"])).collect()
}

#[test]
fn a_second_up_is_refused_and_the_first_goes_on() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    for words in [&["up"][..], &["up", "--detach"]] {
        let second = laptop.run(words);
        assert_eq!(second.status.code(), Some(1), "{words:?}: {}", second.stderr);
        let said = second.err();
        assert!(said.contains("it is up already") && said.contains("hint: `nexus-proxy status default`"), "{said}");
    }
    laptop.exec("default", &["true"]).ok();
    let _other = laptop.up(&["other"]);
    assert_eq!(laptop.status()["workspaces"].as_array().map(Vec::len), Some(2), "another workspace is another matter");
    assert_eq!(laptop.exec("other", &["echo", "other"]).ok(), "other\n");
}

/// Lets a process that was stopped go on, however the test ends.
struct Continued<'a>(&'a Running);

impl Drop for Continued<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

#[test]
fn an_up_that_is_stopped_is_not_waited_for() {
    let laptop = Laptop::new();
    let stopped = laptop.up(&["stopped"]);
    let _other = laptop.up(&["other"]);
    stopped.program.signal(Signal::SIGSTOP);
    let continued = Continued(&stopped.program);
    let process = format!("process {} does not answer", stopped.program.pid());
    let all = laptop.run(&["status"]).ok();
    assert!(all.contains(&format!("stopped: {process}")) && all.contains("other (process"), "{all}");
    let json = laptop.status();
    assert_eq!(
        (&json["workspaces"][0]["workspace"], &json["failed"][0]["workspace"]),
        (&"other".into(), &"stopped".into())
    );
    for words in [["status", "stopped"], ["down", "stopped"]] {
        let asked = laptop.run(&words);
        assert_eq!(asked.status.code(), Some(1), "{words:?}: {}", asked.stderr);
        let said = asked.err();
        assert!(said.contains(&process) && said.contains("hint: it is stopped or stuck"), "{said}");
    }
    drop(continued);
    // What it was told while it stood still, it does.
    let mut stopped = stopped;
    assert_eq!(stopped.program.ends().code(), Some(0), "{}", stopped.program.output());
}

/// What these ask for may rightly take long, and so no time bounds that.
#[test]
fn an_up_that_is_stopped_keeps_no_command_waiting() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let frozen = Frozen::new(up.program.pid());
    let commands: [(&[&str], i32); 3] = [
        (&["exec", "default", "--", "touch", "mark"], 125),
        (&["forward", "default", "-L", "0:127.0.0.1:9"], 1),
        (&["device", "list", "default"], 1),
    ];
    let asked = commands.map(|(words, code)| (Running::start(laptop.command(words)), code));
    for (mut command, code) in asked {
        command.says(&format!("process {} does not answer", up.program.pid()));
        command.says("hint: it is stopped or stuck");
        assert_eq!(command.ends().code(), Some(code), "{}", command.output());
    }
    drop(frozen);
    laptop.exec("default", &["true"]).ok();
    assert!(!laptop.workspace().join("mark").exists(), "what was given up is not done later");
}

#[test]
fn a_stub_that_is_stopped_keeps_no_command_waiting() {
    let laptop = Laptop::new();
    laptop.configure("version: 1\ntools: {hi: {argv: [echo, hi]}}\n");
    let up = laptop.up(&[]);
    let [stub] = kernel::children(up.program.pid())[..] else { panic!("the stub is the only child") };
    let socket = laptop.home().join("data/local/default/stub/stub.sock");
    let command = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-stub"));
        command.arg("--socket").arg(&socket).args(words);
        command
    };
    let frozen = Frozen::new(stub);
    let commands: [&[&str]; 5] =
        [&["tool", "list"], &["token", "github"], &["file", "read", "a"], &["config", "get", "a"], &["status"]];
    for mut asked in commands.map(|words| Running::start(command(words))) {
        asked.says(&format!("process {stub}, does not answer"));
        asked.says("hint: it is stopped or stuck");
        assert_eq!(asked.ends().code(), Some(1), "{}", asked.output());
    }
    drop(frozen);
    assert_eq!(Run::of(command(&["tool", "call", "hi"])).ok(), "hi\n");
}

/// Takes a detached `up` down, however the test ends.
struct Detached<'a>(&'a Laptop);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        let mut down = self.0.command(&["down"]);
        let _ = down.output();
    }
}

#[test]
fn a_detached_up_goes_on_until_down() {
    let laptop = Laptop::new();
    let _detached = Detached(&laptop);
    let said = laptop.run(&["up", "--detach", "-L", "0:127.0.0.1:9"]).ok();
    for word in ["coordinator", "workspace    default", "forward", "in the background"] {
        assert!(said.contains(word), "no `{word}` in\n{said}");
    }
    let holdings = Holdings::of(&laptop);
    assert_eq!(laptop.exec("default", &["echo", "hi"]).ok(), "hi\n");
    let log = laptop.workspace_status()["log"].as_str().map(str::to_owned);
    assert!(log.is_some_and(|log| Path::new(&log).is_file()), "status names the log");
    laptop.down().ok();
    holdings.are_gone();
    assert_eq!(sockets(laptop.home()), [""; 0]);
}

#[test]
fn a_detached_up_that_fails_says_why() {
    let laptop = Laptop::new();
    laptop.configure("version: 1\ntols: {}\n");
    let up = laptop.run(&["up", "--detach"]);
    assert_eq!(up.status.code(), Some(2), "{}", up.stderr);
    assert!(up.stderr.contains("unknown key `tols`") && up.stderr.contains("did you mean `tools`"), "{}", up.stderr);

    laptop.configure("version: 1\ntools: [\n");
    let up = laptop.run(&["up", "--detach"]);
    assert_eq!(up.status.code(), Some(2), "{}", up.stderr);
    assert!(up.stderr.contains("config.yaml:") && !up.stderr.contains("its log is"), "{}", up.stderr);

    laptop.configure("");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("{}:127.0.0.1:9", taken.local_addr().unwrap().port());
    let up = laptop.run(&["up", "--detach", "-L", &spec]);
    assert_eq!(up.status.code(), Some(1), "{}", up.stderr);
    assert!(up.stderr.contains("in use") && up.stderr.contains("hint:"), "{}", up.stderr);
    assert_eq!(laptop.run(&["status"]).status.code(), Some(3));
}

/// A disk that is full takes a log's name, and nothing in it.
#[test]
fn a_detached_up_whose_log_takes_nothing_says_why_it_failed_and_comes_up_otherwise() {
    let laptop = Laptop::new();
    let log = laptop.home().join("data/default.log");
    fs::create_dir_all(log.parent().expect("a folder")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    laptop.configure("version: 1\ntols: {}\n");
    let up = laptop.run(&["up", "--detach"]);
    assert_eq!(up.status.code(), Some(2), "{}", up.stderr);
    assert!(up.stderr.contains("unknown key `tols`") && up.stderr.contains("did you mean `tools`"), "{}", up.stderr);

    laptop.configure("version: 1\n");
    let _detached = Detached(&laptop);
    laptop.run(&["up", "--detach", "-v"]).ok();
    laptop.exec("default", &["true"]).ok();
}

#[test]
fn events_are_json_lines() {
    let laptop = Laptop::new();
    let mut command = laptop.command(&["--json", "up", "-L", "0:127.0.0.1:9"]);
    command.env("NEXUS_LOG", "off");
    let up = laptop.up_as(command);
    let down: Value = serde_json::from_str(&laptop.run(&["--json", "down"]).ok()).unwrap();
    assert_eq!(down["down"], "default");
    let lines = until("the last event", || {
        let lines = up.program.lines();
        lines.last().is_some_and(|line| line.contains("\"down\"")).then_some(lines)
    });
    let events: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).expect(l)).collect();
    let mut names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    // The tunnel may have moved to the direct way meanwhile.
    names.dedup();
    assert_eq!(names, ["coordinator", "workspace", "forward", "tunnel", "down"]);
    assert_eq!((&events[0]["embedded"], &events[1]["driver"]), (&true.into(), &"process".into()));
    assert_eq!((&events[2]["forward"]["kind"], &events[3]["tunnel"]["state"]), (&"local".into(), &"up".into()));
}

#[test]
fn the_environment_of_the_laptop_stays_there() {
    const CANARY: &str = "canary-7f3b1c";
    let laptop = Laptop::new();
    let mut command = laptop.command(&["up", "-vv"]);
    for name in ["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "MY_OWN", "NEXUS_ENROLL", "LD_LIBRARY_PATH"]
    {
        command.env(name, CANARY);
    }
    let up = laptop.up_as(command);
    let inside = laptop.exec("default", &["env"]).ok();
    assert!(inside.contains("NEXUS_STUB_SOCKET="), "{inside}");
    assert!(!inside.contains(CANARY) && !inside.contains("NEXUS_ENROLL"), "{inside}");
    let [stub] = kernel::children(up.program.pid())[..] else { panic!("the stub is the only child") };
    let surroundings = kernel::surroundings(stub);
    assert!(surroundings.contains("NEXUS_STUB_SOCKET=") && !surroundings.contains(CANARY), "{surroundings}");
    // The command that runs a program has an environment as well.
    let mut exec = laptop.command(&["exec", "default", "--", "env"]);
    exec.env("GITHUB_TOKEN", CANARY);
    assert!(!Run::of(exec).ok().contains(CANARY));
}

#[test]
fn of_many_at_once_one_comes_up() {
    let laptop = Laptop::new();
    for _ in 0..3 {
        let mut all: Vec<Running> = (0..6).map(|_| Running::start(laptop.command(&["up"]))).collect();
        until("five of six to be refused, and one to be up", || {
            let refused = all.iter_mut().filter_map(Running::has_ended).count();
            let up = all.iter().filter(|up| up.lines().iter().any(|line| line.starts_with("  tunnel "))).count();
            assert!(refused < 6 && up < 2, "{refused} refused, {up} up: {all:?}");
            (refused == 5 && up == 1).then_some(())
        });
        laptop.exec("default", &["true"]).ok();
        laptop.down().ok();
    }
}

#[test]
fn an_up_whose_stub_dies_says_so() {
    let laptop = Laptop::new();
    let mut up = laptop.up(&[]);
    let [stub] = kernel::children(up.program.pid())[..] else { panic!("the stub is the only child") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stub as i32), Signal::SIGKILL).unwrap();
    assert_eq!(up.program.ends().code(), Some(1), "{}", up.program.output());
    let said = up.program.output();
    let log = laptop.home().join("data/local/default/stub.log");
    assert!(said.contains("stub ended") && said.contains(&log.display().to_string()), "{said}");
    assert!(log.is_file());
    assert!(!laptop.home().join("run/default.sock").exists());
    drop(up);
    let _again = laptop.up(&[]);
    laptop.exec("default", &["true"]).ok();
}

#[test]
fn what_runs_in_the_workspace_ends_with_a_killed_up() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let script = "sleep 600 & echo pid $! $$; wait";
    let mut exec = Running::start(laptop.command(&["exec", "default", "--", "sh", "-c", script]));
    let line = exec.says("pid ");
    let pids: Vec<u32> = line.split(' ').skip(1).map(|pid| pid.parse().unwrap()).collect();
    up.program.signal(Signal::SIGKILL);
    assert_eq!(exec.ends().code(), Some(125), "{}", exec.output());
    for pid in pids {
        until("the end of what ran in the workspace", || (!kernel::runs(pid)).then_some(()));
    }
}

#[test]
fn up_may_be_ended_before_it_is_up() {
    let laptop = Laptop::new();
    for (after, signal) in
        [("coordinator", Signal::SIGINT), ("workspace", Signal::SIGTERM), ("workspace", Signal::SIGHUP)]
    {
        let mut up = Running::start(laptop.command(&["up"]));
        up.says(after);
        let children = kernel::children(up.pid());
        up.signal(signal);
        assert_eq!(up.ends().code(), Some(0), "{signal}: {}", up.output());
        assert!(!children.into_iter().any(kernel::runs), "{signal} left a child");
        assert_eq!(sockets(laptop.home()), [""; 0]);
    }
    let _up = laptop.up(&[]);
    laptop.exec("default", &["true"]).ok();
}

/// As after `su`, or in a job of `cron`: the keys and the state are the same, and the sockets are elsewhere.
#[test]
fn a_second_up_with_another_run_directory_is_refused_and_told_who_has_the_workspace() {
    let world = Linked::new();
    let first = Linked::up(&world.near, &world.laptop);
    let (home, url) = (world.laptop.home(), world.near.url());
    std::os::unix::fs::symlink(home.join("data"), home.join("nexus-proxy")).unwrap();
    let words = ["up", "box", "--no-direct", "--coordinator", &url];
    let elsewhere = |more: &[&str]| {
        let mut command = world.laptop.command(&[&words, more].concat());
        command.env_remove("NEXUS_HOME").env("HOME", home).env("XDG_DATA_HOME", home);
        command.env("XDG_RUNTIME_DIR", home.join("runtime"));
        command
    };
    let is_told = |refused: Run, pid: u32| {
        assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
        let said = [format!("process {pid} keeps it up already"), format!("hint: `kill {pid}` ends it")];
        assert!(said.iter().all(|said| refused.stderr.contains(said)), "{}", refused.stderr);
        assert!(refused.stderr.contains("with --take-over"), "{}", refused.stderr);
    };
    for more in [&[][..], &["--take-over"]] {
        is_told(Run::of(elsewhere(more)), first.program.pid());
    }
    world.laptop.exec("box", &["true"]).ok();
    // A crash leaves no claim.
    first.program.signal(Signal::SIGKILL);
    drop(first);
    let second = world.laptop.up_as(elsewhere(&[]));
    is_told(world.laptop.run(&words), second.program.pid());
    assert_eq!(second.ctrl_c().code(), Some(0));
}

#[test]
fn without_a_home_of_its_own_it_uses_the_users() {
    let laptop = Laptop::new();
    let (home, run) = (laptop.home().join("user"), laptop.home().join("runtime"));
    for folder in [&home, &run] {
        fs::create_dir(folder).unwrap();
    }
    let command = |words: &[&str]| {
        let mut command = laptop.command(words);
        command.env_remove("NEXUS_HOME").env("HOME", &home).env("XDG_RUNTIME_DIR", &run);
        for variable in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"] {
            command.env_remove(variable);
        }
        command
    };
    fs::create_dir(home.join(".nexus")).unwrap();
    fs::write(home.join(".nexus/config.yaml"), "version: 1\ntools: {hi: {argv: [echo, hi]}}\n").unwrap();
    let _up = laptop.up_as(command(&["up"]));
    assert!(home.join(".local/share/nexus-proxy/local/default/workspace").is_dir());
    assert_eq!(sockets(&run).len(), 1);
    let words = ["exec", "default", "--", "nexus-stub", "tool", "call", "hi"];
    assert_eq!(Run::of(command(&words)).ok(), "hi\n");
    let undeclared = ["exec", "default", "--", "nexus-stub", "tool", "call", "ho"];
    assert!(Run::of(command(&undeclared)).err().contains("add it to ~/.nexus/config.yaml"));
    Run::of(command(&["down"])).ok();
}

#[test]
fn up_may_follow_down_at_once() {
    let laptop = Laptop::new();
    let mut up = laptop.up(&[]);
    // It cannot end by itself, and must not be there any more when `down` returns.
    let [stub] = kernel::children(up.program.pid())[..] else { panic!("the stub is the only child") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stub as i32), Signal::SIGSTOP).unwrap();
    laptop.down().ok();
    assert!(!kernel::runs(stub), "the stub is still there");
    let _again = laptop.up(&[]);
    laptop.exec("default", &["true"]).ok();
    assert_eq!(up.program.ends().code(), Some(0), "{}", up.program.output());
}

/// What a command left in the background lives on while the workspace is up, even in a session of its own, and ends
/// with it.
#[test]
fn what_was_left_in_the_background_ends_with_the_workspace() {
    let laptop = Laptop::new();
    let mut up = laptop.up(&[]);
    let script = "sleep 300 >/dev/null 2>&1 & echo $!; setsid sleep 300 >/dev/null 2>&1 & echo $!";
    let pids = laptop.exec("default", &["sh", "-c", script]).ok();
    let pids: Vec<u32> = pids.lines().map(|pid| pid.trim().parse().expect("a process id")).collect();
    assert_eq!(pids.len(), 2);
    assert!(laptop.exec("default", &["true"]).status.success());
    assert!(pids.iter().all(|pid| kernel::runs(*pid)), "{pids:?} live on");
    laptop.down().ok();
    assert_eq!(up.program.ends().code(), Some(0), "{}", up.program.output());
    until("the background processes are gone", || pids.iter().all(|pid| !kernel::runs(*pid)).then_some(()));
}

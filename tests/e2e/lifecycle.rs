//! How `up` begins, ends, and begins again: nothing is left behind, and nothing is lost that should be kept.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

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
        let pid = u32::try_from(status["pid"].as_u64().unwrap()).unwrap();
        let mut processes = kernel::children(pid);
        assert_eq!(processes.len(), 1, "the stub is the only child");
        processes.push(pid);
        let listening = status["forwards"].as_array().unwrap().iter().map(|f| f["listen"].as_str().unwrap());
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
        let kind = entry.file_type().unwrap();
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
    let list: Vec<Value> = serde_json::from_str(&Run::of(coordinator).ok()).unwrap();
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
        assert!(said.contains("it is up already") && said.contains("hint: `nexus-proxy status`"), "{said}");
    }
    laptop.exec("default", &["true"]).ok();
    let _other = laptop.up(&["other"]);
    assert_eq!(laptop.status()["workspaces"].as_array().map(Vec::len), Some(2), "another workspace is another matter");
    assert_eq!(laptop.exec("other", &["echo", "other"]).ok(), "other\n");
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

    laptop.configure("");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("{}:127.0.0.1:9", taken.local_addr().unwrap().port());
    let up = laptop.run(&["up", "--detach", "-L", &spec]);
    assert_eq!(up.status.code(), Some(1), "{}", up.stderr);
    assert!(up.stderr.contains("in use") && up.stderr.contains("hint:"), "{}", up.stderr);
    assert_eq!(laptop.run(&["status"]).status.code(), Some(3));
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
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
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

//! Three hosts: laptop and workspace reach the coordinator and not each other, and lose it in every way there is.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::laptop::{Up, port_in};
use crate::support::program::command;
use crate::support::*;

/// A laptop that is paired, a workspace `box` whose stub is ready. Programs end before their hosts do.
struct World {
    laptop: Laptop,
    stub: Running,
    machine: Machine,
    /// Before the coordinator, at its host: between it and the laptop, and between it and the workspace.
    near: Link,
    far: Link,
    coordinator: Coordinator,
    hosts: Hosts,
}

/// How long a byte is under way from one host to another.
const DELAY: Duration = Duration::from_millis(10);

impl World {
    #[track_caller]
    fn new() -> World {
        let hosts = Hosts::new();
        let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
        let wire = Wire { delay: DELAY, ..Wire::default() };
        let link = |host| hosts.coordinator.link(host, coordinator.port, wire);
        let (near, far) = (link(Hosts::COORDINATOR_FOR_LAPTOP), link(Hosts::COORDINATOR_FOR_WORKSPACE));
        let laptop = Laptop::at(&hosts.laptop);
        laptop.pair(&near.url(), &coordinator.invite(), "anna").ok();
        let machine = Machine::at(&hosts.workspace, &far.url());
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        World { laptop, stub, machine, near, far, coordinator, hosts }
    }

    fn url(&self) -> String {
        self.near.url()
    }

    #[track_caller]
    fn up(&self) -> Up<'_> {
        self.laptop.up(&["box", "--coordinator", &self.url()])
    }

    fn at_laptop(&self, command: Command) -> Run {
        Run::of(self.hosts.laptop.run(command))
    }
}

fn curl(words: &[&str]) -> Command {
    command("curl", [&["-q", "-sS", "--fail", "--noproxy", "", "--connect-timeout", "3"], words].concat())
}

/// Waits until a program runs in the workspace again.
#[track_caller]
fn works(laptop: &Laptop) {
    until("a program in the workspace", || {
        let run = laptop.exec("box", &["echo", "hi"]);
        (run.status.success() && run.text() == "hi\n").then_some(())
    });
}

#[test]
fn everything_works_across_hosts_that_cannot_reach_each_other() {
    let world = World::new();
    let mut up = world.up();
    let there = world.laptop.exec("box", &["sh", "-c", "pwd; ip -o -4 address"]).ok();
    assert!(there.contains(&*world.machine.workspace.path().to_string_lossy()), "{there}");
    assert!(there.contains("10.77.2.2") && !there.contains("10.77.1.2"), "it runs on the workspace's host: {there}");

    let nginx = Nginx::start_at(&world.hosts.workspace);
    fs::write(nginx.root.join("page"), "from the workspace\n").unwrap();
    let direct = format!("http://{}:{}/page", Hosts::WORKSPACE, nginx.addr.port());
    world.at_laptop(curl(&[&direct])).err();
    let back = format!("http://{}:9/", Hosts::LAPTOP);
    let refused = Run::of(world.hosts.workspace.run(curl(&[&back]))).err();
    assert!(!refused.contains("onnection refused"), "the workspace's host has no way to the laptop's: {refused}");

    let local = format!("0:127.0.0.1:{}", nginx.addr.port());
    let (line, _forward) = world.laptop.forward("box", &["-L", &local], "forward");
    let page = format!("http://127.0.0.1:{}/page", port_in(&line));
    assert_eq!(world.at_laptop(curl(&[&page])).ok(), "from the workspace\n");

    let (line, _socks) = world.laptop.forward("box", &["-D", "0"], "forward");
    let socks = format!("127.0.0.1:{}", port_in(&line));
    assert_eq!(world.at_laptop(curl(&["--socks5-hostname", &socks, &direct])).ok(), "from the workspace\n");

    let postgres = Postgres::start_at(&world.hosts.laptop);
    let (line, _remote) =
        world.laptop.forward("box", &["-R", &format!("0:127.0.0.1:{}", postgres.port)], "in the workspace");
    let asked = Postgres::client(port_in(&line), "select 6 * 7");
    assert_eq!(Run::of(world.hosts.workspace.run(asked)).ok(), "42\n");

    let iperf3 = Iperf3::start_at(&world.hosts.workspace);
    let (line, _bulk) = world.laptop.forward("box", &["-L", &format!("0:127.0.0.1:{}", iperf3.port)], "forward");
    let sent = world.at_laptop(Iperf3::client(port_in(&line), "20M", &[])).ok();
    let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
    // Its control connection overtakes the data: the server stops counting a little early.
    assert!(sent["end"]["sum_received"]["bytes"].as_u64().unwrap() >= 4 << 20, "{sent}");

    assert!(up.program.has_ended().is_none());
    assert_eq!(up.tunnels(), 1, "one session carried all of it:\n{}", up.program.output());
    assert!(up.ctrl_c().success());
}

#[test]
fn a_coordinator_that_crashed_and_came_back_has_its_state_and_its_tunnels() {
    let mut world = World::new();
    let url = world.url();
    let up = world.laptop.up(&["box", "--coordinator", &url]);
    let before = (world.coordinator.run(&["device", "list"]).ok(), world.coordinator.run(&["workspace", "list"]).ok());
    for times in 1..3 {
        world.coordinator.kill();
        until("the laptop to see it", || world.laptop.status()["workspaces"][0]["tunnel"]["why"].as_str().map(drop));
        world.coordinator.start_again();
        until("the session to go on by itself", || (up.resumed() == times).then_some(()));
        works(&world.laptop);
    }
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    let after = (world.coordinator.run(&["device", "list"]).ok(), world.coordinator.run(&["workspace", "list"]).ok());
    assert_eq!(before, after);
    assert!(before.0.contains("anna") && before.1.contains("enrolled"), "{before:?}");
}

#[test]
fn a_coordinator_that_is_stopped_says_when_to_come_back() {
    let mut world = World::new();
    let url = world.url();
    let up = world.laptop.up(&["box", "--coordinator", &url]);
    let mut old = world.coordinator.replace();
    until("the session to go on by itself", || (up.resumed() == 1).then_some(()));
    assert!(old.ends().success(), "{}", old.output());
    works(&world.laptop);
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_network_that_answers_for_the_coordinator_is_waited_out() {
    let mut coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    let laptop = Laptop::new();
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&Place::Here, &url);
    let stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let up = laptop.up(&["box", "--coordinator", &url]);
    drop(stub);
    coordinator.kill();
    let (data, impostor) = coordinator.impostor();
    until("the laptop to see through it", || {
        // Why there is no session, or what became of the last attempt to resume the one there was.
        let tunnel = laptop.status()["workspaces"][0]["tunnel"].clone();
        let said = [&tunnel["why"], &tunnel["last"]].map(|said| said.as_str().unwrap_or_default().to_owned());
        said.iter().any(|said| said.contains("another authority")).then_some(())
    });
    drop((impostor, data));
    coordinator.start_again();
    let _stub = machine.stub(None);
    until("the tunnel to come back by itself", || (up.tunnels() == 2).then_some(()));
    works(&laptop);
}

#[test]
fn a_stub_that_crashed_comes_back_without_enrolling_anew() {
    let mut world = World::new();
    let url = world.url();
    let up = world.laptop.up(&["box", "--coordinator", &url]);
    world.stub.signal(Signal::SIGKILL);
    world.stub.ends();
    world.stub = world.machine.stub(None);
    until("the tunnel to come back by itself", || (up.tunnels() == 2).then_some(()));
    works(&world.laptop);
}

#[test]
fn a_wire_that_was_out_and_is_in_again_carries_on() {
    let mut world = World::new();
    let url = world.url();
    let up = world.laptop.up(&["box", "--coordinator", &url]);
    let laptop = world.hosts.laptop.clone();

    // For a moment: nobody notices, though another connection may be sooner than what was lost and is sent again.
    world.hosts.set_link(&laptop, false);
    let mut waiting = Running::start(laptop.run(world.laptop.command(&["exec", "box", "--", "echo", "hi"])));
    assert!(waiting.has_ended().is_none());
    world.hosts.set_link(&laptop, true);
    waiting.says("hi");
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());

    // For so long that the other end of the connection is gone: the session goes on with another one.
    let before = up.resumed();
    world.hosts.set_link(&laptop, false);
    world.coordinator.kill();
    world.coordinator.start_again();
    world.hosts.set_link(&laptop, true);
    works(&world.laptop);
    until("the session to go on", || (up.resumed() > before).then_some(()));
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn two_laptops_work_at_once_and_a_later_one_is_told_why_not() {
    let world = World::new();
    let second = Laptop::at(&world.hosts.laptop);
    second.pair(&world.url(), &world.coordinator.invite(), "bert").ok();
    let machine = Machine::at(&world.hosts.workspace, &world.far.url());
    let _stub = machine.stub(Some(&world.coordinator.add_workspace("shared")));
    let late = Laptop::at(&world.hosts.laptop);
    let pin = late.pair(&world.url(), &world.coordinator.invite(), "late").ok();

    let url = world.url();
    let words = ["shared", "--coordinator", &url];
    let (first_up, second_up) = (world.laptop.up(&words), second.up(&words));
    std::thread::scope(|scope| {
        for laptop in [&world.laptop, &second] {
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(laptop.exec("shared", &["echo", "hi"]).ok(), "hi\n");
                }
            });
        }
    });

    let refused = late.run(&["up", "shared", "--coordinator", &url]);
    assert_eq!(refused.status.code(), Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("does not admit this device"), "{}", refused.stderr);
    let pin = pin.lines().find_map(|line| line.strip_prefix("this device's key: ")).expect("pair says the key");
    assert!(refused.stderr.contains(&format!("`nexus-proxy device add shared {pin}`")), "{}", refused.stderr);
    assert_eq!((first_up.tunnels(), second_up.tunnels()), (1, 1), "the others did not notice");
    assert_eq!(world.laptop.exec("shared", &["echo", "hi"]).ok(), "hi\n");

    // A laptop that the workspace knows admits it, and can take it off again.
    assert!(world.laptop.run(&["device", "add", "shared", pin]).ok().contains(pin));
    let mut late_up = late.up(&words);
    assert!(second.run(&["device", "list", "shared"]).ok().contains(pin));
    assert!(!second.run(&["device", "remove", "shared", pin]).ok().contains(pin));
    until("the session of the removed device to end", || late_up.program.has_ended());
    drop(late_up);
    let refused = late.run(&["up", "shared", "--coordinator", &url]);
    assert!(refused.stderr.contains("does not admit this device"), "{}", refused.stderr);
}

#[test]
fn a_laptop_that_comes_again_takes_over_from_its_old_session() {
    let mut world = World::new();
    let up = world.laptop.up(&["box", "--coordinator", &world.url()]);
    world.stub.says("anna connected");
    // It hangs, and its connection with it: only the stub can end that session.
    up.program.signal(Signal::SIGSTOP);
    let twin = world.laptop.twin();
    let _again = twin.up(&["box", "--coordinator", &world.url()]);
    world.stub.says("anna left");
    assert_eq!(twin.exec("box", &["echo", "hi"]).ok(), "hi\n");
    up.program.signal(Signal::SIGKILL);
}

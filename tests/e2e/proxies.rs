//! Behind a corporate proxy: the coordinator is reached through it, or as `NO_PROXY` says, past it.

use std::process::Command;

use crate::support::*;

/// What `HTTPS_PROXY` and `NO_PROXY` say.
struct Office {
    https_proxy: String,
    no_proxy: &'static str,
}

impl Office {
    fn with(https_proxy: String) -> Office {
        Office { https_proxy, no_proxy: "" }
    }

    fn around(&self, mut command: Command) -> Command {
        command.env("HTTPS_PROXY", &self.https_proxy).env("NO_PROXY", self.no_proxy);
        command
    }

    fn pair(&self, laptop: &Laptop, hosts: &Hosts, url: &str, code: &str) -> Run {
        Run::of(hosts.laptop.run(self.around(laptop.command(&["pair", url, code, "--name", "anna"]))))
    }
}

/// The address of the coordinator that each side cannot reach: that of the other's wire.
const HIDDEN_FROM_LAPTOP: std::net::Ipv4Addr = Hosts::COORDINATOR_FOR_WORKSPACE;
const HIDDEN_FROM_WORKSPACE: std::net::Ipv4Addr = Hosts::COORDINATOR_FOR_LAPTOP;

#[track_caller]
fn everything_goes_through(auth: bool) {
    let hosts = Hosts::new();
    let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
    let squid = Squid::start_at(&hosts.coordinator, auth);
    let laptop = Laptop::at(&hosts.laptop);
    let url = coordinator.url(HIDDEN_FROM_LAPTOP);
    let code = coordinator.invite();
    let direct = laptop.pair(&url, &code, "anna");
    assert_eq!(direct.status.code(), Some(3), "without the proxy there is no way: {}", direct.stderr);
    assert!(direct.stderr.contains("HTTPS_PROXY"), "{}", direct.stderr);

    let office = Office::with(squid.url(Hosts::COORDINATOR_FOR_LAPTOP));
    office.pair(&laptop, &hosts, &url, &code).ok();
    let machine = Machine::at(&hosts.workspace, &coordinator.url(HIDDEN_FROM_WORKSPACE))
        .env("HTTPS_PROXY", &squid.url(Hosts::COORDINATOR_FOR_WORKSPACE));
    let stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let up = laptop.up_as(office.around(laptop.command(&["up", "box", "--coordinator", &url])));
    let megabyte = "x".repeat(1 << 20);
    assert_eq!(laptop.exec_with_input("box", &["cat"], megabyte.as_bytes()).ok(), megabyte);
    drop((up, stub));

    // It writes a line when a connection ends: two of the laptop (pair, up), three of the stub (enrol, session, parked).
    let lines = |host| {
        let target = format!("CONNECT {host}:{}", coordinator.port);
        squid.log().lines().filter(|line| line.contains(&target) && line.contains("/200")).count()
    };
    until("all connections in squid's log", || (lines(HIDDEN_FROM_LAPTOP) >= 2).then_some(()));
    until("all connections in squid's log", || (lines(HIDDEN_FROM_WORKSPACE) >= 3).then_some(()));
    assert_eq!(squid.log().contains(Squid::LOGIN.0), auth, "it knew who came: {}", squid.log());
}

#[test]
fn everything_goes_through_an_open_proxy() {
    everything_goes_through(false);
}

#[test]
fn everything_goes_through_a_proxy_that_asks_for_a_password() {
    everything_goes_through(true);
}

#[test]
fn a_wrong_password_and_a_dead_proxy_are_told_in_a_sentence() {
    let hosts = Hosts::new();
    let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
    let squid = Squid::start_at(&hosts.coordinator, true);
    let url = coordinator.url(HIDDEN_FROM_LAPTOP);
    let laptop = Laptop::at(&hosts.laptop);
    let right = squid.url(Hosts::COORDINATOR_FOR_LAPTOP);
    Office::with(right.clone()).pair(&laptop, &hosts, &url, &coordinator.invite()).ok();

    let wrong = right.replace(Squid::LOGIN.1, "close-sesame");
    let none = format!("http://{}:{}", Hosts::COORDINATOR_FOR_LAPTOP, squid.addr.port());
    let dead = format!("http://{}:9", Hosts::COORDINATOR_FOR_LAPTOP);
    let cases = [
        (&wrong, "put its user and password into HTTPS_PROXY"),
        (&none, "put its user and password into HTTPS_PROXY"),
        (&dead, "check the proxy's address in HTTPS_PROXY"),
    ];
    for (proxy, hint) in cases {
        let office = Office::with(proxy.clone());
        let paired = office.pair(&Laptop::at(&hosts.laptop), &hosts, &url, &coordinator.invite());
        assert_eq!(paired.status.code(), Some(3), "{}", paired.stderr);
        assert!(
            paired.stderr.contains(&format!("the proxy http://{}:", Hosts::COORDINATOR_FOR_LAPTOP)),
            "{}",
            paired.stderr
        );
        assert!(paired.stderr.contains(hint), "{}", paired.stderr);

        // It may pass: `up` goes on trying, and says why.
        let up = laptop.command(&["up", "box", "--coordinator", &url]);
        let mut up = Running::start(hosts.laptop.run(office.around(up)));
        let line = up.says("tunnel");
        assert!(line.contains(hint), "{line}");
        assert!(up.has_ended().is_none());
        assert!(!up.output().contains("sesame") && !paired.stderr.contains("sesame"), "no password is printed");
    }

    let machine = Machine::at(&hosts.workspace, &coordinator.url(HIDDEN_FROM_WORKSPACE))
        .env("HTTPS_PROXY", &wrong.replace("10.77.1.1", "10.77.2.1"));
    let stub = Run::of(machine.command(Some(&coordinator.add_workspace("box"))));
    assert_eq!(stub.status.code(), Some(3), "{}", stub.stderr);
    assert!(stub.stderr.contains("HTTPS_PROXY"), "{}", stub.stderr);
}

#[test]
fn no_proxy_leads_past_it() {
    let hosts = Hosts::new();
    let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
    let squid = Squid::start_at(&hosts.coordinator, false);
    let laptop = Laptop::at(&hosts.laptop);
    let url = coordinator.url(Hosts::COORDINATOR_FOR_LAPTOP);
    let office = Office { https_proxy: squid.url(Hosts::COORDINATOR_FOR_LAPTOP), no_proxy: "example.com,10.77.0.0/16" };
    office.pair(&laptop, &hosts, &url, &coordinator.invite()).ok();
    let machine = Machine::at(&hosts.workspace, &coordinator.url(Hosts::COORDINATOR_FOR_WORKSPACE))
        .env("HTTPS_PROXY", &squid.url(Hosts::COORDINATOR_FOR_WORKSPACE))
        .env("NO_PROXY", "10.77.2.1");
    let stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let up = laptop.up_as(office.around(laptop.command(&["up", "box", "--coordinator", &url])));
    assert_eq!(laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    drop((up, stub));
    // A connection of our own through it is in the log; what came before it would be as well.
    let other = Laptop::at(&hosts.laptop);
    Office::with(office.https_proxy)
        .pair(&other, &hosts, &coordinator.url(HIDDEN_FROM_LAPTOP), &coordinator.invite())
        .err();
    until("the one connection in squid's log", || (!squid.log().is_empty()).then_some(()));
    assert_eq!(squid.log().lines().count(), 1, "{}", squid.log());
}

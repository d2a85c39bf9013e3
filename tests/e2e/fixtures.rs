//! The fixtures themselves, each with its own client and no tunnel between: when a story fails, it is not for them.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::program::{command, free_port, listens};
use crate::support::*;

/// What is at `url`.
fn fetch(url: &str, more: &[&str]) -> Run {
    Run::of(curl(&[&["--noproxy", "", url], more].concat()))
}

#[test]
fn nginx_serves_to_curl() {
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    assert_eq!(fetch(&nginx.url("hello"), &[]).ok(), "hello\n");
    assert!(fetch(&nginx.url("absent"), &[]).err().contains("404"));
}

#[test]
fn python_serves_to_curl() {
    let server = HttpServer::start();
    fs::write(server.root.join("hello"), "hello\n").unwrap();
    assert_eq!(fetch(&server.url("hello"), &[]).ok(), "hello\n");
}

#[test]
fn postgres_answers_psql() {
    let postgres = Postgres::start();
    assert_eq!(postgres.psql(postgres.port, "select 6 * 7").ok(), "42\n");
    let mut stranger = Postgres::client(postgres.port, "select 1");
    stranger.env("PGPASSWORD", "wrong");
    assert!(Run::of(stranger).err().contains("authentication failed"));
}

#[test]
fn redis_answers_its_client() {
    let redis = Redis::start();
    assert_eq!(Run::of(Redis::client(redis.port, &["set", "a", "1"])).ok(), "OK\n");
    assert_eq!(Run::of(Redis::client(redis.port, &["get", "a"])).ok(), "1\n");
}

#[test]
fn iperf3_measures_both_ways() {
    let server = Iperf3::start();
    for more in [&[][..], &["-R"], &["-u", "-b", "0"]] {
        let report = Run::of(Iperf3::client(server.port, "1M", more)).ok();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["end"].is_object() && report["error"].is_null(), "{more:?}: {report}");
    }
}

#[test]
fn sshd_lets_its_key_in() {
    let sshd = Sshd::start();
    let run = Run::with_input(sshd.client(sshd.port, &["there", "cat; exit 7"]), b"through\0and back");
    assert_eq!(run.stdout, b"through\0and back");
    assert_eq!(run.status.code(), Some(7), "{}", run.stderr);
}

#[test]
fn git_clones_and_pushes() {
    let daemon = GitDaemon::start();
    let folder = TempDir::new().unwrap();
    let clone = folder.path().join("clone");
    Run::of(git::git(&["clone", "-q", &GitDaemon::url(daemon.port), &clone.to_string_lossy()])).ok();
    assert_eq!(fs::read_to_string(clone.join("README")).unwrap(), GitDaemon::README);
    for words in [&["commit", "-q", "--allow-empty", "-m", "Second"][..], &["push", "-q", "origin", "main"]] {
        let mut git = git::git(words);
        git.current_dir(&clone);
        Run::of(git).ok();
    }
    let mut log = git::git(&["log", "-1", "--format=%s", "main"]);
    log.current_dir(&daemon.repository);
    assert_eq!(Run::of(log).ok(), "Second\n");
}

#[test]
fn squid_tunnels() {
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    let squid = Squid::start();
    let through = |proxy: &str| fetch(&nginx.url("hello"), &["--proxytunnel", "--proxy", proxy]);
    assert_eq!(through(&squid.url("127.0.0.1")).ok(), "hello\n");
    let line = format!("CONNECT 127.0.0.1:{}", nginx.addr.port());
    until("the tunnel in squid's log", || squid.log().contains(&line).then_some(()));

    let squid = Squid::with_basic_auth();
    assert_eq!(through(&squid.url("127.0.0.1")).ok(), "hello\n");
    let anonymous = format!("http://127.0.0.1:{}", squid.addr.port());
    assert!(through(&anonymous).err().contains("407"));
}

#[test]
fn the_hosts_reach_the_coordinator_and_not_each_other() {
    let hosts = Hosts::new();
    let nginx = Nginx::start_at(&hosts.coordinator);
    let at_laptop = Nginx::start_at(&hosts.laptop);
    let at_workspace = Nginx::start_at(&hosts.workspace);
    for server in [&nginx, &at_laptop, &at_workspace] {
        fs::write(server.root.join("hello"), "hello\n").unwrap();
    }
    let asks = |place: &Place, host: IpAddr, server: &Nginx| {
        let url = format!("http://{host}:{}/hello", server.addr.port());
        Run::of(place.run(command("curl", ["-q", "-sS", "--fail", "--noproxy", "*", "--connect-timeout", "3", &url])))
    };
    assert_eq!(asks(&hosts.laptop, Hosts::COORDINATOR_FOR_LAPTOP.into(), &nginx).ok(), "hello\n");
    assert_eq!(asks(&hosts.workspace, Hosts::COORDINATOR_FOR_WORKSPACE.into(), &nginx).ok(), "hello\n");
    asks(&hosts.laptop, Hosts::WORKSPACE.into(), &at_workspace).err();
    asks(&hosts.workspace, Hosts::LAPTOP.into(), &at_laptop).err();
    asks(&hosts.laptop, Hosts::COORDINATOR_FOR_WORKSPACE.into(), &nginx).err();
    assert!(
        TcpStream::connect_timeout(&at_laptop.addr, Duration::from_secs(1)).is_err(),
        "this host is not among them"
    );

    hosts.set_link(&hosts.laptop, false);
    asks(&hosts.laptop, Hosts::COORDINATOR_FOR_LAPTOP.into(), &nginx).err();
    hosts.set_link(&hosts.laptop, true);
    until("the wire to work again", || {
        asks(&hosts.laptop, Hosts::COORDINATOR_FOR_LAPTOP.into(), &nginx).status.success().then_some(())
    });

    let names = Run::of(command("ip", ["netns", "list"])).ok();
    let Place::Namespace(name) = &hosts.laptop else { panic!("a namespace") };
    assert!(names.contains(name.as_str()));
    let name = name.clone();
    drop((nginx, at_laptop, at_workspace, hosts));
    assert!(!Run::of(command("ip", ["netns", "list"])).ok().contains(&name), "namespaces are deleted on drop");
}

#[test]
fn what_is_dropped_is_gone() {
    let nginx = Nginx::start();
    let (port, root) = (nginx.addr.port(), nginx.root.clone());
    assert!(listens(std::process::id(), port));
    drop(nginx);
    assert!(!listens(std::process::id(), port), "nobody listens any more");
    assert!(!root.exists(), "its folder is deleted");
}

#[test]
fn a_program_is_listened_to_line_by_line() {
    let mut program = Running::start(command("sh", ["-c", "echo one; echo two >&2; printf three; exit 3"]));
    assert_eq!(program.says("tw"), "two");
    assert_eq!(program.says("three"), "three");
    assert_eq!(program.ends().code(), Some(3));
    let mut program = Running::start(command("sleep", ["600"]));
    assert!(program.has_ended().is_none());
    assert!(!program.stop(nix::sys::signal::Signal::SIGTERM).success());
}

#[test]
fn failures_say_what_happened() {
    let panics = |f: fn()| {
        let panic = std::panic::catch_unwind(f).unwrap_err();
        *panic.downcast::<String>().unwrap()
    };
    assert!(panics(|| drop(find("no-such-program"))).contains("hint: scripts/test"));
    assert!(panics(|| drop(Running::start(command("sh", ["-c", "echo odd"])).says("even"))).contains("odd"));
    let never = || drop(Running::on_free_port(|_| command("sh", ["-c", "echo port taken >&2; exit 1"])));
    assert!(panics(never).contains("port taken"));
}

#[test]
fn a_laptop_has_a_home_of_its_own() {
    let (a, b) = (Laptop::new(), Laptop::new());
    assert_ne!(a.home(), b.home());
    a.configure("tools: {}\n");
    assert!(a.config().is_file() && !b.config().exists());
    let command = a.command(&["status"]);
    assert!(command.get_envs().any(|(key, value)| key == "NEXUS_HOME" && value == Some(a.home().as_os_str())));
    assert_eq!(laptop::port_in("forwarding 127.0.0.1:0 from 127.0.0.1:43117 to 3000"), 43117);
    assert_ne!(free_port(), 0);
}

#[test]
fn a_conversation_is_one_connection() {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let mut talk = Dialogue::redis(redis.port);
    let mut session = Dialogue::with(Postgres::session(postgres.port));
    session.say("begin; create table kept (word text);");
    for _ in 0..12 {
        talk.echo();
        session.ask(PATIENCE, |word| format!("insert into kept values ('{word}') returning word;"));
    }
    session.say("commit;");
    session.ends_well();
    assert_eq!(postgres.psql(postgres.port, "select count(*) from kept").ok(), "12\n");
    // Without its server it ends, and does not look for it again.
    drop(redis);
    talk.program.ends();
}

#[test]
fn a_frozen_program_stands_still_and_goes_on() {
    let mut counting = Running::start(command("sh", ["-c", "while sleep 0.01; do echo on; done"]));
    counting.says("on");
    let frozen = linked::Frozen::new(counting.pid());
    assert!(kernel::is_stopped(counting.pid()));
    let heard = counting.heard();
    drop(frozen);
    assert!(!kernel::is_stopped(counting.pid()));
    counting.says_after(heard + 5, PATIENCE, "on");
}

#[test]
fn what_a_process_holds_is_counted() {
    let before = kernel::footprint(std::process::id());
    let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    let with_files = kernel::footprint(std::process::id());
    // Other tests are in the same process, and open and close files too.
    assert!(before.memory > 1 << 20 && before.threads > 0 && with_files.files > files.len(), "{with_files:?}");
}

#[test]
fn the_same_seed_makes_the_same_faults() {
    let ten = |mut faults: faults::Faults| {
        let next = |_| (faults.next(), faults.wires(2), faults.below(1000));
        (0..10).map(next).collect::<Vec<_>>()
    };
    assert_eq!(ten(faults::Faults::of(7)), ten(faults::Faults::of(7)));
    assert_ne!(ten(faults::Faults::of(7)), ten(faults::Faults::of(8)));
}

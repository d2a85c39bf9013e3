//! An update of the laptop's program: `nexus-proxy up --take-over` takes everything new, and what is open goes on in the
//! old program until it is done.
//!
//! Proof is the work of programs that never try a second time: what they moved has its sum, and a conversation goes
//! on where it was.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::laptop::{Up, port_in};
use crate::support::linked::Frozen;
use crate::support::program::free_port;
use crate::support::transfers::{RECOVERY, digest};
use crate::support::*;

/// Bytes of a download: seconds on the wire.
const LARGE: usize = 24 << 20;

/// How long such a download may take, with all that happens meanwhile.
const MOST: Duration = Duration::from_secs(120);

/// A wire on which a download lasts for some hand-overs.
fn narrow() -> Wire {
    Wire::new(30_000_000, Duration::from_millis(5))
}

/// `up` with these words besides, by way of the coordinator.
#[track_caller]
fn up<'a>(world: &'a Linked, words: &[&str]) -> Up<'a> {
    let near = world.near.url();
    world.laptop.up(&[&["box", "--no-direct", "--coordinator", &near], words].concat())
}

/// A download of a large file through `port`, which is certain to be under way.
struct Download {
    program: Running,
    folder: TempDir,
    expected: String,
}

impl Download {
    #[track_caller]
    fn start(nginx: &Nginx, port: u16) -> Download {
        let original = nginx.root.join("large");
        if !original.exists() {
            fs::write(&original, rand::random_iter::<u8>().take(LARGE).collect::<Vec<_>>()).expect("a file of ours");
        }
        let folder = TempDir::new().expect("a temporary folder");
        let url = format!("http://127.0.0.1:{port}/large");
        let file = folder.path().join("large").display().to_string();
        let program = Running::start(curl(&["--max-time", &MOST.as_secs().to_string(), "-o", &file, &url]));
        let download = Download { program, folder, expected: digest(&original) };
        download.moves();
        download
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("large")
    }

    fn size(&self) -> u64 {
        fs::metadata(self.file()).map_or(0, |file| file.len())
    }

    /// Waits until more has arrived.
    #[track_caller]
    fn moves(&self) {
        let before = self.size();
        until("more of the download", || (self.size() > before).then_some(()));
    }

    /// Whether it is on its way still.
    #[track_caller]
    fn is_under_way(&mut self) -> bool {
        self.program.has_ended().is_none()
    }

    /// Waits for its end: all of it is there.
    #[track_caller]
    fn completes(self) {
        let (file, expected) = (self.file(), self.expected);
        self.program.completes(MOST);
        assert_eq!(digest(&file), expected, "what arrived is not what was sent");
        drop(self.folder);
    }
}

/// A port that leads to `redis` as long as what is returned with it: a forward of a command's own.
#[track_caller]
fn leased(world: &Linked, redis: &Redis) -> (u16, Running) {
    world.forward(format!("127.0.0.1:{}", redis.port))
}

/// A connection to a Redis on `port` of the loopback that has been of use.
#[track_caller]
fn talk_to(port: u16) -> TcpStream {
    let mut talk = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    talk.set_read_timeout(Some(PATIENCE)).expect("a socket");
    assert_eq!(ping(&mut talk), Ok(()));
    talk
}

/// Whether the Redis at the other end answers, or how the connection ended.
fn ping(talk: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut answer = [0; 7];
    talk.write_all(b"PING\r\n").map_err(|error| error.kind())?;
    talk.read_exact(&mut answer).map_err(|error| error.kind())?;
    assert_eq!(&answer, b"+PONG\r\n");
    Ok(())
}

/// The process that `status` speaks of.
fn pid(laptop: &Laptop) -> u64 {
    laptop.workspace_status()["pid"].as_u64().expect("a process id")
}

#[test]
fn what_is_open_goes_on_across_two_updates_of_the_laptop() {
    let (nginx, redis) = (Nginx::start(), Redis::start());
    let world = Linked::new();
    let [web, data, back, socks] = [(); 4].map(|()| free_port());
    let forwards = [
        "-L".to_owned(),
        format!("{web}:{}", nginx.addr),
        "-L".to_owned(),
        format!("{data}:127.0.0.1:{}", redis.port),
        "-R".to_owned(),
        format!("{back}:127.0.0.1:{}", redis.port),
        "-D".to_owned(),
        socks.to_string(),
    ];
    let forwards: Vec<&str> = forwards.iter().map(String::as_str).collect();
    let mut first = up(&world, &forwards);
    let (leased_port, leased) = leased(&world, &redis);
    world.near.set_wire(narrow());

    // Both directions of a connection, one of the workspace's, one of a command's forward, and a process.
    let mut talks = [data, back, leased_port].map(Dialogue::redis);
    talks.iter_mut().for_each(Dialogue::echo);
    let lines = "while read line; do echo \"$line\"; done";
    let mut process = Dialogue::with(world.laptop.command(&["exec", "box", "--", "sh", "-c", lines]));
    process.ask(PATIENCE, str::to_owned);
    let mut download = Download::start(&nginx, web);
    assert_eq!(pid(&world.laptop), u64::from(first.program.pid()));

    let again = [&forwards[..], &["--take-over"]].concat();
    let mut second = up(&world, &again);
    first.program.says("handed over");
    assert!(second.program.output().contains("took over"), "{}", second.program.output());
    let mut third = up(&world, &again);
    second.program.says("handed over");
    assert_eq!(pid(&world.laptop), u64::from(third.program.pid()));
    assert!(download.is_under_way(), "it was over before the second update:\n{}", download.program.output());

    // What is open goes on, over broken connections as ever; what is new is the third's.
    world.near.reset();
    for talk in &mut talks {
        talk.echo_within(RECOVERY);
    }
    process.ask(RECOVERY, str::to_owned);
    download.moves();
    for port in [data, back, leased_port] {
        let mut talk = Dialogue::redis(port);
        talk.echo();
        talk.ends_well();
    }
    let socks = format!("socks5h://127.0.0.1:{socks}");
    fs::write(nginx.root.join("small"), "small").expect("a file of ours");
    let url = format!("http://{}/small", nginx.addr);
    Run::of(curl(&["-x", &socks, &url])).ok();
    let forwards = world.laptop.workspace_status()["forwards"].clone();
    let mut totals: Vec<_> =
        forwards.as_array().unwrap().iter().filter_map(|forward| forward["total"].as_u64()).collect();
    totals.sort_unstable();
    assert_eq!(totals, [0, 1, 1, 1, 1], "each of the new connections is the third's: {forwards}");
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert!(first.program.has_ended().is_none(), "{}", first.program.output());

    download.completes();
    talks.into_iter().for_each(Dialogue::ends_well);
    process.ends_well();
    for old in [&mut first, &mut second] {
        assert!(old.program.ends().success(), "{}", old.program.output());
        assert!(old.program.output().contains("is done"), "{}", old.program.output());
    }
    assert_eq!(third.tunnels(), 1, "{}", third.program.output());
    assert!(third.program.has_ended().is_none() && kernel::runs(world.stub.pid()));
    drop(leased);
}

/// Where `status` says that forwards listen, by the kind of them.
fn listening(laptop: &Laptop) -> Vec<(String, String)> {
    let status = laptop.workspace_status();
    let of = |one: &serde_json::Value| Some((one["kind"].as_str()?.into(), one["listen"].as_str()?.into()));
    status["forwards"].as_array().expect("a list").iter().map(|one| of(one).expect("two words")).collect()
}

#[test]
fn forwards_go_to_the_next_program_with_their_ports_unless_they_are_dropped() {
    let redis = Redis::start();
    let world = Linked::new();
    let (local, remote) = (format!("0:127.0.0.1:{}", redis.port), format!("0:127.0.0.1:{}", redis.port));
    let first = up(&world, &["-L", &local, "-R", &remote, "-D", "0"]);
    let had = listening(&world.laptop);
    assert_eq!(had.len(), 3, "{}", first.program.output());

    // Without a word about them, and once more after that.
    let second = up(&world, &["--take-over"]);
    assert_eq!(listening(&world.laptop), had, "{}", second.program.output());
    let third = up(&world, &["--take-over", "-R", "0:127.0.0.1:9"]);
    let has = listening(&world.laptop);
    assert_eq!(has.len(), 4, "{}", third.program.output());
    assert!(had.iter().all(|one| has.contains(one)), "{has:?}");
    for (kind, at) in &had {
        let port = port_in(&format!(" {at}"));
        if kind != "dynamic" {
            assert_eq!(ping(&mut talk_to(port)), Ok(()), "{kind}");
        }
    }

    let fourth = up(&world, &["--take-over", "--drop-forwards", "-L", &local]);
    assert_eq!(listening(&world.laptop), had[..1], "{}", fourth.program.output());
    for dropped in [format!("-R {remote}"), "-R 0:127.0.0.1:9".into(), "-D 0".into()] {
        let line = format!("its forward {dropped} ends");
        assert!(fourth.program.output().contains(&line), "{line}:\n{}", fourth.program.output());
    }
}

#[test]
fn forwards_of_a_program_that_was_never_up_go_to_the_next_one() {
    let redis = Redis::start();
    let mut world = Linked::new();
    world.stub.stop(Signal::SIGTERM);
    let near = world.near.url();
    let words = ["up", "box", "--no-direct", "--coordinator", &near];
    // Nothing of the second's: it waits for that port.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let remote = format!("{port}:127.0.0.1:{}", redis.port);
    let mut first = Running::start(world.laptop.command(&[&words[..], &["-R", &remote, "-D", "0"]].concat()));
    first.says("waiting for the workspace's stub");
    let had = listening(&world.laptop);
    assert_eq!(had.len(), 1, "what listens here has begun: {had:?}");
    let mut second = Running::start(world.laptop.command(&[&words[..], &["--take-over"]].concat()));
    second.says("took over");
    world.stub = world.machine.stub(None);
    second.says_after(0, RECOVERY, "end-to-end verified");
    let has = listening(&world.laptop);
    assert_eq!((has.len(), &has[0]), (2, &had[0]), "{}", second.output());
    let forward = || world.laptop.workspace_status()["forwards"][1].take();
    assert!(forward()["error"].as_str().is_some_and(|error| error.contains("in use")), "{}", forward());
    drop(taken);
    until("the port", || (forward()["ready"] == true).then_some(()));
    assert_eq!(ping(&mut talk_to(port)), Ok(()));
}

#[test]
fn a_take_over_in_the_background_goes_on_in_the_background() {
    let redis = Redis::start();
    let world = Linked::new();
    let near = world.near.url();
    let words = ["up", "box", "--coordinator", &near, "--detach"];
    world.laptop.run(&words).ok();
    let first = pid(&world.laptop);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let said = world.laptop.run(&[&words[..], &["--take-over"]].concat()).ok();
    assert!(said.contains(&format!("took over from process {first}")), "{said}");
    assert_ne!(pid(&world.laptop), first);
    talk.echo();
    let runs = |pid: u64| kernel::runs(pid.try_into().expect("a process id"));
    assert!(runs(first));
    talk.ends_well();
    until("the end of the first", || (!runs(first)).then_some(()));
    world.laptop.run(&["down", "box"]).ok();
}

#[test]
fn where_nothing_runs_there_is_nothing_to_take_over() {
    let world = Linked::new();
    let first = up(&world, &["--take-over"]);
    let near = world.near.url();
    let refused = world.laptop.run(&["up", "box", "--coordinator", &near]).err();
    assert!(refused.contains("up already") && refused.contains("--take-over"), "{refused}");
    assert_eq!(first.ctrl_c().code(), Some(0));
}

#[test]
fn a_workspace_inside_up_is_not_handed_over() {
    let laptop = Laptop::new();
    let mut up = laptop.up(&[]);
    let refused = laptop.run(&["up", "--take-over"]).err();
    assert!(refused.contains("inside") && refused.contains("hint:"), "{refused}");
    // Nothing was closed for that.
    assert_eq!(laptop.exec("default", &["echo", "hi"]).ok(), "hi\n");
    assert!(up.program.has_ended().is_none() && !up.program.output().contains("handed over"));
}

#[test]
fn an_interrupted_session_is_not_handed_over() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = up(&world, &[]);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = Dialogue::redis(port);
    talk.echo();
    // The coordinator is there, and the workspace is not.
    world.far.black_hole();
    let near = world.near.url();
    let refused = world.laptop.run(&["up", "box", "--coordinator", &near, "--take-over"]).err();
    assert!(refused.contains("interrupted") && refused.contains("hint:"), "{refused}");
    world.far.heal();
    talk.echo_within(RECOVERY);
    let mut other = Dialogue::redis(port);
    other.echo_within(RECOVERY);
    assert!(first.program.has_ended().is_none(), "{}", first.program.output());
    talk.ends_well();
    other.ends_well();
}

#[test]
fn ctrl_c_ends_what_goes_on_after_a_hand_over() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = up(&world, &[]);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = talk_to(port);
    let second = up(&world, &["--take-over"]);
    first.program.says("handed over");
    assert_eq!(ping(&mut talk), Ok(()));
    first.program.signal(Signal::SIGINT);
    assert_eq!(first.program.ends().code(), Some(0), "{}", first.program.output());
    assert_eq!(ping(&mut talk), Err(ErrorKind::ConnectionReset), "what is cut must not look complete");
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert_eq!(second.tunnels(), 1, "{}", second.program.output());
}

/// What `status` knows of those that have handed over: process, and connections that go on there.
fn handed_over(laptop: &Laptop) -> Vec<(u64, u64)> {
    let status = laptop.status();
    let of = |one: &serde_json::Value| Some((one["pid"].as_u64()?, one["earlier"].as_u64()?));
    status["handed_over"].as_array().expect("a list").iter().map(|one| of(one).expect("two numbers")).collect()
}

#[test]
fn status_and_down_know_those_that_handed_over() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = up(&world, &[]);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = talk_to(port);
    assert_eq!(handed_over(&world.laptop), []);
    let mut second = up(&world, &["--take-over"]);
    first.program.says("handed over");
    until("the first to be known", || {
        (handed_over(&world.laptop) == [(u64::from(first.program.pid()), 1)]).then_some(())
    });
    assert_eq!(pid(&world.laptop), u64::from(second.program.pid()));
    let shown = world.laptop.run(&["status"]).ok();
    assert!(shown.contains("1 connection until done"), "{shown}");
    assert_eq!(ping(&mut talk), Ok(()));
    let said = world.laptop.run(&["down", "box"]).ok();
    assert!(said.contains(&format!("process {}", first.program.pid())) && said.contains("1 connection"), "{said}");
    for up in [&mut first, &mut second] {
        assert_eq!(up.program.ends().code(), Some(0), "{}", up.program.output());
    }
    assert_eq!(ping(&mut talk), Err(ErrorKind::ConnectionReset), "what is cut must not look complete");
    let files = fs::read_dir(world.laptop.home().join("run")).expect("its folder");
    let sockets: Vec<_> =
        files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "sock")).collect();
    assert_eq!(sockets, Vec::<PathBuf>::new());
}

#[test]
fn what_was_handed_over_can_be_ended_when_nothing_else_is_up() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = up(&world, &[]);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = talk_to(port);
    let second = up(&world, &["--take-over"]);
    first.program.says("handed over");
    assert_eq!(second.ctrl_c().code(), Some(0));
    assert_eq!(ping(&mut talk), Ok(()), "it was up, so its end is not the end of what it took over from");
    world.laptop.run(&["down", "box"]).ok();
    assert_eq!(first.program.ends().code(), Some(0), "{}", first.program.output());
    assert!(world.laptop.run(&["down", "box"]).err().contains("not up"));
}

#[test]
fn a_port_that_somebody_else_has_is_found_before_anything_is_handed_over() {
    let redis = Redis::start();
    let world = Linked::new();
    let port = free_port();
    let mut first = up(&world, &["-L", &format!("{port}:127.0.0.1:{}", redis.port)]);
    let mut talk = talk_to(port);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let spec = format!("{}:127.0.0.1:9", taken.local_addr().expect("bound").port());
    let near = world.near.url();
    let own = format!("{port}:127.0.0.1:{}", redis.port);
    let words = ["up", "box", "--no-direct", "--coordinator", &near, "--take-over", "-L", &own];
    let refused = world.laptop.run(&[&words[..], &["-L", &spec]].concat()).err();
    assert!(refused.contains("in use") && refused.contains("goes on as before"), "{refused}");
    assert!(!first.program.output().contains("handed over"), "{}", first.program.output());
    assert_eq!(ping(&mut talk), Ok(()));
    assert_eq!(ping(&mut talk_to(port)), Ok(()));
    // What the running one has itself is no hindrance.
    let _second = world.laptop.up(&words[1..]);
    first.program.says("handed over");
    assert_eq!(ping(&mut talk), Ok(()));
    assert_eq!(ping(&mut talk_to(port)), Ok(()));
}

#[test]
fn a_coordinator_that_is_away_is_found_before_anything_is_handed_over() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let near = world.near.url();
    let mut first = world.laptop.up(&["box", "--coordinator", &near]);
    world.until_it_goes("direct", true);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = talk_to(port);
    world.coordinator.kill();
    let refused = world.laptop.run(&["up", "box", "--coordinator", &near, "--take-over"]).err();
    assert!(refused.contains("not taken over"), "{refused}");
    assert_eq!(ping(&mut talk), Ok(()));
    assert!(!first.program.output().contains("handed over") && first.program.has_ended().is_none());
}

/// A wire on which a successor needs seconds to come up: time to end it meanwhile.
fn long() -> Wire {
    Wire::new(1_000_000_000, Duration::from_millis(400))
}

/// However a successor with these words ends before it is up: the one that handed over takes its place again, and nothing
/// was lost.
#[track_caller]
fn is_taken_back(words: &[&str], end: impl FnOnce(&mut Running)) {
    let redis = Redis::start();
    let world = Linked::new();
    let port = free_port();
    let mut first = up(&world, &["-L", &format!("{port}:127.0.0.1:{}", redis.port)]);
    let (leased_port, _forward) = leased(&world, &redis);
    let mut talks = vec![talk_to(port), talk_to(leased_port)];
    let near = world.near.url();
    let take_over = ["up", "box", "--no-direct", "--coordinator", &near, "--take-over"];
    world.near.set_wire(long());
    let mut second = Running::start(world.laptop.command(&[&take_over, words].concat()));
    first.program.says("handed over");
    end(&mut second);
    second.ends();
    assert!(!second.output().contains("end-to-end verified"), "it was up:\n{}", second.output());
    first.program.says("takes its place again");
    world.near.set_wire(narrow());
    until("the first to be up again", || (first.tunnels() == 2).then_some(()));
    talks.push(talk_to(port));
    until("the command's forward", || TcpStream::connect(("127.0.0.1", leased_port)).ok());
    talks.push(talk_to(leased_port));
    assert_eq!(pid(&world.laptop), u64::from(first.program.pid()));
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    // And it can be taken over from once more.
    let mut third = up(&world, &["--take-over"]);
    let said = || first.program.output().matches("handed over to").count();
    until("it to hand over again", || (said() == 2).then_some(()));
    for talk in &mut talks {
        assert_eq!(ping(talk), Ok(()));
    }
    drop(talks);
    assert!(first.program.ends().success(), "{}", first.program.output());
    assert!(third.program.has_ended().is_none(), "{}", third.program.output());
}

#[test]
fn a_successor_that_is_interrupted_before_it_is_up_gives_the_workspace_back() {
    is_taken_back(&[], |second| second.signal(Signal::SIGINT));
}

#[test]
fn a_successor_that_is_killed_before_it_is_up_gives_the_workspace_back() {
    is_taken_back(&[], |second| second.signal(Signal::SIGKILL));
}

#[test]
fn a_successor_that_is_refused_a_port_in_the_workspace_gives_it_back() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let spec = format!("{}:127.0.0.1:9", taken.local_addr().expect("bound").port());
    is_taken_back(&["-R", &spec], |second| drop(second.says("in use")));
}

/// A network that answers in the coordinator's place, as those of hotels do, decides nothing for a program that was up.
#[test]
fn who_takes_its_place_again_waits_for_who_answers_in_the_coordinators_place() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let near = world.near.url();
    let words = ["box", "--no-direct", "--coordinator", &near];
    let mut first = world.laptop.up(&words);
    let mut open = world.talk(&redis);
    world.near.set_wire(long());
    let take_over = [&["up"], &words[..], &["--take-over"]].concat();
    let mut second = Running::start(world.laptop.command(&take_over));
    first.program.says("handed over");
    world.near.refuse();
    second.signal(Signal::SIGKILL);
    second.ends();
    assert!(!second.output().contains("end-to-end verified"), "it was up:\n{}", second.output());
    world.coordinator.kill();
    let impostor = world.coordinator.impostor();
    world.near.set_wire(narrow());
    world.near.heal();
    first.program.says("takes its place again");
    until("it to see through who answers", || {
        let tunnel = world.laptop.workspace_status()["tunnel"].clone();
        tunnel["why"].as_str().is_some_and(|why| why.contains("another authority")).then_some(())
    });
    drop(impostor);
    world.coordinator.start_again();
    open.talk.echo_within(RECOVERY);
    until("the first to be up again", || (first.tunnels() == 2).then_some(()));
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    open.talk.ends_well();
}

/// What comes up in its place, and what takes its place again, has the inherited port when that is free, and goes on until then.
#[test]
fn a_forward_that_cannot_be_had_for_the_moment_ends_neither_program() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let taken = [(); 2].map(|()| free_port());
    let specs = taken.map(|port| format!("{port}:127.0.0.1:{}", redis.port));
    let near = world.near.url();
    let words = ["box", "--no-direct", "--coordinator", &near];
    let mut first = world.laptop.up(&[&words[..], &["-R", &specs[0]]].concat());
    world.stub.stop(Signal::SIGTERM);
    let mut others: Vec<_> = taken.iter().map(|port| TcpListener::bind(("127.0.0.1", *port)).expect("free")).collect();
    world.stub = world.machine.stub(None);
    let error = || world.laptop.workspace_status()["forwards"][0]["error"].as_str().map(str::to_owned);
    until("the port to be in use", || error().filter(|error| error.contains("in use")));
    let (port, _forward) = leased(&world, &redis);
    let mut talk = talk_to(port);

    // Its own is refused, and it ends.
    let heard = first.program.heard();
    let own = ["--take-over", "-R", &specs[1]];
    let mut second = Running::start(world.laptop.command(&[&["up"], &words[..], &own].concat()));
    second.says("took over");
    assert!(!second.ends().success(), "{}", second.output());
    first.program.says_after(heard, RECOVERY, "takes its place again");
    first.program.says_after(heard, RECOVERY, "end-to-end verified");
    assert_eq!(pid(&world.laptop), u64::from(first.program.pid()));
    assert_eq!(ping(&mut talk), Ok(()));

    let mut third = up(&world, &["--take-over"]);
    third.program.says("in use");
    assert_eq!(ping(&mut talk), Ok(()));
    drop(others.remove(0));
    until("the port", || error().is_none().then_some(()));
    assert_eq!(ping(&mut talk_to(taken[0])), Ok(()));
    drop(talk);
    assert!(first.program.ends().success(), "{}", first.program.output());
}

/// The one that was to follow is gone, and a third has come up meanwhile.
#[test]
fn a_workspace_that_another_one_has_is_not_taken_back_and_what_is_open_goes_on() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = up(&world, &[]);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = talk_to(port);
    let near = world.near.url();
    world.near.set_wire(long());
    let words = ["up", "box", "--no-direct", "--coordinator", &near, "--take-over"];
    let mut second = Running::start(world.laptop.command(&words));
    first.program.says("handed over");
    let stopped = Frozen::new(first.program.pid());
    second.signal(Signal::SIGKILL);
    second.ends();
    assert!(!second.output().contains("end-to-end verified"), "it was up:\n{}", second.output());
    world.near.set_wire(narrow());
    let mut third = up(&world, &[]);
    drop(stopped);
    first.program.says("it is up already");
    assert_eq!(ping(&mut talk), Ok(()));
    drop(talk);
    assert!(first.program.ends().success(), "{}", first.program.output());
    assert!(third.program.has_ended().is_none(), "{}", third.program.output());
}

#[test]
fn of_many_updates_within_one_connection_the_oldest_session_makes_room() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut ups = Vec::new();
    let mut talks = Vec::new();
    // Four sessions that drain, the one that stands, and one more.
    for _ in 0..6 {
        ups.push(up(&world, &["--take-over"]));
        let port = free_port();
        let spec = format!("{port}:127.0.0.1:{}", redis.port);
        // Its port is let go with the conversation on it, and nothing asks for it again.
        let (_, forward) = world.laptop.forward("box", &["-L", &spec], "forward");
        talks.push((talk_to(port), forward));
    }
    let first = &mut ups[0].program;
    assert!(!first.ends().success(), "{}", first.output());
    assert!(first.output().contains("were handed over"), "{}", first.output());
    let outcomes: Vec<_> = talks.iter_mut().map(|(talk, _)| ping(talk)).collect();
    assert_eq!(outcomes, [&[Err(ErrorKind::ConnectionReset)][..], &[Ok(()); 5]].concat());
}

#[test]
fn a_revoked_device_loses_what_it_handed_over() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = up(&world, &[]);
    let (port, _forward) = leased(&world, &redis);
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let mut second = up(&world, &["--take-over"]);
    first.program.says("handed over");
    talk.echo();
    world.coordinator.run(&["device", "revoke", "anna"]).ok();
    until("the conversation to end", || talk.program.has_ended());
    for up in [&mut first, &mut second] {
        assert!(!up.program.ends().success(), "{}", up.program.output());
        assert!(up.program.output().contains("revoked"), "{}", up.program.output());
    }
}

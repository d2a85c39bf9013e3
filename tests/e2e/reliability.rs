//! A connection through a forward outlives what happens between laptop and workspace: wires that break, fall silent or
//! cut a message in two, a coordinator that crashes, programs that stand still.
//!
//! Proof is the work of programs that never try a second time: what they moved has its sum, and a conversation goes
//! on where it was. `NEXUS_LONG=1` makes everything longer; `NEXUS_SEED` makes other faults.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::faults::Faults;
use crate::support::laptop::{Laptop, port_in};
use crate::support::linked::Frozen;
use crate::support::told::Told;
use crate::support::transfers::{RECOVERY, Transfers};
use crate::support::wait::{judged, within};
use crate::support::*;

/// Bytes of one transfer.
pub const TRANSFER: usize = 64 << 20;

/// Bytes after which transfers are certainly under way.
pub const UNDER_WAY: u64 = 2_000_000;

/// A wire on which something is always under way when it is cut, and a transfer takes seconds.
pub fn wide() -> Wire {
    Wire::new(200_000_000, Duration::from_millis(5))
}

/// How long something lasts: seconds in the usual run, and in the long one.
pub fn lasts(usual: u64, long: u64) -> Duration {
    Duration::from_secs(if is_long() { long } else { usual })
}

/// Gives the session's wires a speed and a delay.
pub fn slow_down(world: &World) {
    world.wires().iter().for_each(|link| link.set_wire(wide()));
}

/// A world with a Redis in the workspace, and a conversation with it.
#[track_caller]
pub fn talk_to(redis: &Redis, world: &World) -> (Dialogue, Running) {
    let (port, forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    (talk, forward)
}

/// Waits until the transfers have moved more than is under way anywhere.
#[track_caller]
pub fn until_it_moves(what: &str, transfers: &mut Transfers, world: &World) {
    let goal = world.moved() + UNDER_WAY;
    transfers.go_on_until(what, || world.moved() >= goal);
}

/// Bytes that a process says at a time: half a megabyte a second.
const TELLS: usize = 25_000;

/// Faults in the usual run.
const FAULTS: u64 = 30;

/// A connection that comes during a fault is held until the session goes on. A machine that is busy elsewhere may keep one for too long
/// in so many faults.
const REFUSES_ONE: usize = 15;

/// Connections that the long run breaks at least. Some faults break none, and how many it takes is up to the seed.
const BROKEN: u64 = 1000;

/// Faults at the session's wires, one after another, with transfers on it.
#[track_caller]
fn transfers_survive(way: Way) {
    let world = World::by(way);
    slow_down(&world);
    let up = world.up();
    let mut faults = Faults::new();
    let mut transfers = Transfers::start(&world.linked, TRANSFER);
    let links = world.wires();
    let before: Vec<u64> = links.iter().map(|link| link.counts().accepted).collect();
    let mut broken = vec![0; links.len()];
    let mut number = 0;
    while if is_long() { broken.iter().sum::<u64>() < BROKEN } else { number < FAULTS } {
        number += 1;
        let goal = world.moved() + 1 + faults.below(UNDER_WAY);
        transfers.go_on_until(&format!("bytes before fault {number}"), || world.moved() >= goal);
        let (fault, wires) = (faults.next(), faults.wires(links.len()));
        println!("fault {number}: {fault:?} at {wires:?}; counted from the laptop");
        for at in wires {
            // A wire that is struck right after another one may have no connection to break.
            let stood = links[at].counts().open > 0;
            faults.strike(fault, links[at]);
            broken[at] += u64::from(fault.breaks() && stood);
        }
        transfers.go_on_until("the harm", || !links.iter().any(|link| link.harm_is_due()));
    }
    until_it_moves("bytes after the last fault", &mut transfers, &world);
    transfers.finish_refusing(number as usize / REFUSES_ONE);
    println!("{way:?}: {number} faults broke at least {broken:?} connections at the wires, counted from the laptop");
    assert_eq!(up.tunnels(), 1, "one session carried all of it:\n{}", up.program.output());
    for (at, link) in links.into_iter().enumerate() {
        let again = link.counts().accepted - before[at];
        assert!(broken[at] > 0 && again >= broken[at], "{again} connections after {} that were broken", broken[at]);
    }
}

#[test]
fn transfers_survive_whatever_a_wire_does() {
    transfers_survive(Way::Relay);
}

#[test]
fn transfers_survive_whatever_the_direct_wire_does() {
    transfers_survive(Way::Direct);
}

#[test]
fn transfers_survive_whatever_a_wire_behind_a_balancer_does() {
    transfers_survive(Way::Balanced);
}

/// A call of a program in the workspace that the laptop works on for as long as its owner likes, and that prints all the while.
struct Call {
    program: Running,
    enough: PathBuf,
}

impl Call {
    /// Bytes of a line. There are a few in a second, and so more than anybody keeps while nothing can leave.
    const LINE: usize = 50_000;

    /// What the laptop must declare.
    fn declare(laptop: &Laptop) {
        let (enough, line) = (laptop.home().join("enough"), Call::LINE);
        let script = format!(
            "echo begins; until [ -e {} ]; do yes | head -c {} | tr -d \"\\n\"; echo; sleep 0.2; done; echo done",
            enough.display(),
            2 * line
        );
        let tool = format!("{{argv: [sh, -c, '{script}'], timeout: 1h, max_output: 1GiB}}");
        laptop.configure(&format!("version: 1\ntools: {{works: {tool}}}\n"));
    }

    /// Calls, until the laptop works on it.
    #[track_caller]
    fn begin(world: &World) -> Call {
        let mut stub = Command::new(env!("CARGO_BIN_EXE_nexus-stub"));
        stub.arg("--state").arg(world.linked.machine.state()).args(["tool", "call", "works"]);
        let mut program = Running::start(stub);
        program.says("begins");
        Call { program, enough: world.linked.laptop.home().join("enough") }
    }

    /// The laptop gets done, and the whole answer arrives.
    #[track_caller]
    fn ends_well(self) {
        fs::write(&self.enough, "").expect("a file of ours");
        let mut program = self.program;
        let status = within(RECOVERY, || program.has_ended());
        program.ended_well(status);
        let mut lines = program.lines();
        // That it waits, it says on standard error.
        lines.retain(|line| !line.starts_with("nexus-stub: the connection to the laptop"));
        let whole = |line: &String| line.len() == Call::LINE && line.bytes().all(|byte| byte == b'y');
        let [first, between @ .., last] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((first.as_str(), last.as_str()), ("begins", "done"));
        assert!(!between.is_empty() && between.iter().all(whole), "{:?}", between.iter().map(String::len));
        println!("a call printed {} bytes meanwhile", between.len() * (Call::LINE + 1));
    }
}

/// Something happens to each wire of the session, and then to all wires, with transfers, conversations from either side, a call and a
/// process under way.
#[track_caller]
fn an_outage_is_survived(way: Way, begin: impl Fn(&Link), time: Duration) {
    let redis = Redis::start();
    let world = World::by(way);
    slow_down(&world);
    Call::declare(&world.linked.laptop);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    let back = format!("0:127.0.0.1:{}", redis.port);
    let (line, _back) = world.linked.laptop.forward("box", &["-R", &back], "forward");
    let mut talks_back = Dialogue::redis(port_in(&line));
    talks_back.echo();
    let call = Call::begin(&world);
    let told = Told::start(&world, TELLS);
    let mut transfers = Transfers::start(&world.linked, TRANSFER);
    let each = world.wires().into_iter().map(|link| vec![link]);
    for links in each.chain([world.all_wires()]) {
        until_it_moves("bytes before the outage", &mut transfers, &world);
        links.iter().for_each(|link| begin(link));
        std::thread::sleep(time);
        links.iter().for_each(|link| link.heal());
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        println!("{way:?}: out for {time:?} at {} wires; an answer {:?} after that", links.len(), began.elapsed());
        talks_back.echo_within(RECOVERY);
        told.more(told.arrived());
        until_it_moves("bytes after the outage", &mut transfers, &world);
    }
    transfers.finish();
    talk.ends_well();
    talks_back.ends_well();
    told.ends_well();
    call.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_wire_that_holds_everything_for_a_while_is_waited_out() {
    an_outage_is_survived(Way::Relay, Link::hold, lasts(3, 30));
}

#[test]
fn a_direct_wire_that_holds_everything_for_a_while_is_waited_out() {
    an_outage_is_survived(Way::Direct, Link::hold, lasts(3, 30));
}

#[test]
fn a_wire_behind_a_balancer_that_holds_everything_for_a_while_is_waited_out() {
    an_outage_is_survived(Way::Balanced, Link::hold, lasts(3, 30));
}

#[test]
fn a_black_hole_is_survived() {
    an_outage_is_survived(Way::Relay, Link::black_hole, lasts(3, 30));
}

#[test]
fn a_black_hole_on_the_direct_way_is_survived() {
    an_outage_is_survived(Way::Direct, Link::black_hole, lasts(3, 30));
}

#[test]
fn a_black_hole_behind_a_balancer_is_survived() {
    an_outage_is_survived(Way::Balanced, Link::black_hole, lasts(3, 30));
}

#[test]
fn a_wire_that_is_half_dead_is_survived() {
    an_outage_is_survived(Way::Relay, |link| link.half_open(Direction::Up), lasts(3, 30));
}

#[test]
fn a_direct_wire_that_is_half_dead_toward_the_workspace_is_survived() {
    an_outage_is_survived(Way::Direct, |link| link.half_open(Direction::Up), lasts(3, 30));
}

#[test]
fn a_direct_wire_that_is_half_dead_toward_the_laptop_is_survived() {
    an_outage_is_survived(Way::Direct, |link| link.half_open(Direction::Down), lasts(3, 30));
}

#[test]
fn a_wire_behind_a_balancer_that_is_half_dead_is_survived() {
    an_outage_is_survived(Way::Balanced, |link| link.half_open(Direction::Up), lasts(3, 30));
}

/// The coordinator crashes with transfers and a conversation under way, which go on when it is back.
#[track_caller]
fn a_crash_of_the_coordinator_is_survived(way: Way) {
    let redis = Redis::start();
    let mut world = World::by(way);
    slow_down(&world);
    // Its own, so that the coordinator can be changed while it is used.
    let laptop = world.linked.laptop.twin();
    let up = world.up_of(&laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let mut transfers = Transfers::of(&laptop, TRANSFER);
    for _ in 0..3 {
        until_it_moves("bytes before the crash", &mut transfers, &world);
        world.linked.coordinator.kill();
        world.linked.coordinator.start_again();
        until_it_moves("bytes after the crash", &mut transfers, &world);
        talk.echo();
    }
    transfers.finish();
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_coordinator_that_crashes_breaks_no_connection() {
    a_crash_of_the_coordinator_is_survived(Way::Relay);
}

#[test]
fn a_coordinator_that_crashes_breaks_no_direct_connection() {
    a_crash_of_the_coordinator_is_survived(Way::Direct);
}

#[test]
fn a_coordinator_behind_a_balancer_that_crashes_breaks_no_connection() {
    a_crash_of_the_coordinator_is_survived(Way::Balanced);
}

/// How a new connection to `port` of the loopback ends that says `greeting`, and what it heard until then; none while it
/// has no end within `time`.
#[track_caller]
fn end_of_a_new_one(port: u16, greeting: &[u8], time: Duration) -> Option<(Vec<u8>, Result<(), ErrorKind>)> {
    let mut open = TcpStream::connect(("127.0.0.1", port)).expect("the port is still ours");
    open.set_read_timeout(Some(time)).expect("a socket");
    open.write_all(greeting).expect("it is taken");
    let mut heard = Vec::new();
    let end = open.read_to_end(&mut heard).map(drop).map_err(|error| error.kind());
    (end != Err(ErrorKind::WouldBlock)).then_some((heard, end))
}

/// No authentication, and then a connection to a port in the workspace; and the answers: that it may, and that there was no
/// way for too long (RFC 1928: 6), nowhere.
const ASK_SOCKS: &[u8] = &[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 9];
const NO_WAY: &[u8] = &[5, 0, 5, 6, 0, 1, 0, 0, 0, 0, 0, 0];

#[track_caller]
fn listeners_whose_way_is_dead_say_so(way: Way) {
    let world = World::by(way);
    let _up = world.up();
    let laptop = &world.linked.laptop;
    let listens = |words: &[&str]| {
        let (line, forward) = laptop.forward("box", words, "forward");
        (laptop::port_in(&line), forward)
    };
    let local = listens(&["-L", "0:127.0.0.1:9"]);
    let remote = listens(&["-R", "0:127.0.0.1:9"]);
    let socks = listens(&["-D", "0"]);
    assert_eq!(world.tunnel()["state"], "up");
    for _ in 0..2 {
        world.laptops_wires().iter().for_each(|link| link.black_hole());
        let said = until("the tunnel to be said to be down, and why", || {
            let tunnel = world.tunnel();
            let down = tunnel["state"] == "resuming";
            (down && tunnel["why"].as_str().is_some_and(|why| !why.is_empty())).then_some(tunnel)
        });
        println!("{way:?}: while nothing arrives: {said}");
        // Nobody is left hanging on a connection that leads nowhere, and none looks complete.
        let reset = Some((Vec::new(), Err(ErrorKind::ConnectionReset)));
        assert_eq!(end_of_a_new_one(local.0, b"", PATIENCE), reset);
        assert_eq!(end_of_a_new_one(socks.0, ASK_SOCKS, PATIENCE), Some((NO_WAY.to_vec(), Ok(()))));
        // Nor in the workspace, as soon as that has noticed: it only listens, and the first connection tells.
        let ended = until("a connection in the workspace to be refused", || {
            end_of_a_new_one(remote.0, b"", Duration::from_secs(4))
        });
        assert_eq!(Some(ended), reset);
        world.laptops_wires().iter().for_each(|link| link.heal());
        until("the tunnel to be up again", || (world.tunnel()["state"] == "up").then_some(()));
        world.settle();
    }
}

#[test]
fn a_listener_whose_way_is_dead_says_so() {
    listeners_whose_way_is_dead_say_so(Way::Relay);
}

#[test]
fn a_listener_whose_direct_way_and_the_one_behind_it_are_dead_says_so() {
    listeners_whose_way_is_dead_say_so(Way::Direct);
}

/// How often a workspace is taken over, and how long that may take, with the start of the program: less than any answer of
/// the one before it would be waited for.
const TAKE_OVERS: usize = 3;
const TAKEN_OVER: Duration = Duration::from_secs(3);

#[track_caller]
fn a_new_login_takes_over_and_keeps_it(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let twins = [(); TAKE_OVERS].map(|()| world.linked.laptop.twin());
    let (mut former, mut asleep) = (vec![world.up()], Vec::new());
    let mut took = [Duration::MAX; TAKE_OVERS];
    for (twin, took) in twins.iter().zip(&mut took) {
        asleep.extend(former.last().map(|up| Frozen::new(up.program.pid())));
        let began = Instant::now();
        former.push(world.begin(twin, &[]));
        *took = began.elapsed();
        println!("{way:?}: taken over in {} ms, the start of the program among them", took.as_millis());
        // The next one takes over what goes this way.
        world.settle_of(twin);
    }
    // Nobody waited for the one before, which says nothing, to be found dead.
    let judged = judged(took);
    assert!(judged < TAKEN_OVER, "{judged:?}");
    let (last, twin) = (former.pop().expect("one at least"), &twins[TAKE_OVERS - 1]);
    let (port, _forward) = twin.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    drop(asleep);
    // Whether it ends or waits to be told what to do: it says so, and does not take the workspace back.
    for up in &mut former {
        up.program.says("took over");
        assert_eq!(last.tunnels(), 1, "it has been taken back:\n{}", up.program.output());
    }
    for _ in 0..5 {
        talk.echo();
        assert_eq!(twin.exec("box", &["echo", "hi"]).ok(), "hi\n");
    }
    assert_eq!(last.tunnels(), 1, "{}", last.program.output());
    talk.ends_well();
}

#[test]
fn a_new_login_of_a_device_takes_over_and_keeps_it() {
    a_new_login_takes_over_and_keeps_it(Way::Relay);
}

#[test]
fn a_new_login_of_a_device_takes_over_on_the_direct_way_and_keeps_it() {
    a_new_login_takes_over_and_keeps_it(Way::Direct);
}

#[test]
fn a_new_login_of_a_device_takes_over_behind_a_balancer_and_keeps_it() {
    a_new_login_takes_over_and_keeps_it(Way::Balanced);
}

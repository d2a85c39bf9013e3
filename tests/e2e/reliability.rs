//! A connection through a forward outlives what happens between laptop and workspace: wires that break, fall silent or
//! cut a message in two, a coordinator that crashes, programs that stand still.
//!
//! Proof is the work of programs that never try a second time: what they moved has its sum, and a conversation goes
//! on where it was. `NEXUS_LONG=1` makes everything longer; `NEXUS_SEED` makes other faults.

use std::time::{Duration, Instant};

use crate::support::linked::{Frozen, Talk};
use crate::support::transfers::{RECOVERY, Transfers};
use crate::support::wait::within;
use crate::support::*;

/// Bytes of one transfer.
const TRANSFER: usize = 64 << 20;

/// Bytes after which transfers are certainly under way.
const UNDER_WAY: u64 = 2_000_000;

/// A wire on which something is always under way when it is cut, and a transfer takes seconds.
fn wide() -> Wire {
    Wire::new(200_000_000, Duration::from_millis(5))
}

/// How long something lasts: seconds in the usual run, and in the long one.
fn lasts(usual: u64, long: u64) -> Duration {
    Duration::from_secs(if is_long() { long } else { usual })
}

fn slow_down(world: &Linked) {
    world.near.set_wire(wide());
    world.far.set_wire(wide());
}

/// Waits until the transfers have moved more than is under way anywhere.
#[track_caller]
fn until_it_moves(what: &str, transfers: &mut Transfers, world: &Linked) {
    let goal = world.moved() + UNDER_WAY;
    transfers.go_on_until(what, || world.moved() >= goal);
}

#[test]
fn transfers_survive_whatever_a_wire_does() {
    let cuts = if is_long() { 1000 } else { 30 };
    let world = Linked::new();
    slow_down(&world);
    let _up = Linked::up(&world.near, &world.laptop);
    let mut faults = faults::Faults::new();
    let mut transfers = Transfers::start(&world, TRANSFER);
    let links = [&world.near, &world.far];
    let before = links.map(|link| link.counts().accepted);
    let mut broken = [0; 2];
    for number in 1..=cuts {
        let goal = world.moved() + 1 + faults.below(UNDER_WAY);
        transfers.go_on_until(&format!("bytes before fault {number}"), || world.moved() >= goal);
        let (fault, wires) = (faults.next(), faults.wires());
        println!("fault {number}: {fault:?} at {wires:?}; 0 is the near wire, 1 the far one");
        for &at in wires {
            faults.strike(fault, links[at]);
            broken[at] += u64::from(fault != faults::Fault::Hold);
        }
        transfers.go_on_until("the cut", || !links.iter().any(|link| link.cut_is_due()));
    }
    until_it_moves("bytes after the last fault", &mut transfers, &world);
    transfers.finish();
    for (at, link) in links.into_iter().enumerate() {
        let again = link.counts().accepted - before[at];
        assert!(broken[at] > 0 && again >= broken[at], "{again} connections after {} that were broken", broken[at]);
    }
}

/// Something happens to the near wire, then to the far one, with transfers and a conversation under way.
#[track_caller]
fn an_outage_is_survived(begin: impl Fn(&Link), time: Duration) {
    let redis = Redis::start();
    let world = Linked::new();
    slow_down(&world);
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let mut transfers = Transfers::start(&world, TRANSFER);
    for (name, link) in [("near", &world.near), ("far", &world.far)] {
        until_it_moves("bytes before the outage", &mut transfers, &world);
        begin(link);
        std::thread::sleep(time);
        link.heal();
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        println!("out for {time:?} at the {name} wire; an answer {:?} after that", began.elapsed());
        until_it_moves("bytes after the outage", &mut transfers, &world);
    }
    transfers.finish();
    talk.ends_well();
}

#[test]
fn a_wire_that_holds_everything_for_a_while_is_waited_out() {
    an_outage_is_survived(Link::hold, lasts(3, 30));
}

#[test]
fn a_black_hole_is_survived() {
    an_outage_is_survived(Link::black_hole, lasts(3, 30));
}

#[test]
fn a_wire_that_is_half_dead_is_survived() {
    an_outage_is_survived(|link| link.half_open(Direction::Up), lasts(3, 30));
}

#[test]
fn a_coordinator_that_crashes_breaks_no_connection() {
    let redis = Redis::start();
    let mut world = Linked::new();
    slow_down(&world);
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let mut transfers = Transfers::start(&world, TRANSFER);
    for _ in 0..3 {
        let before = world.near.counts().down;
        transfers.go_on_until("bytes before the crash", || world.near.counts().down > before + UNDER_WAY);
        world.coordinator.kill();
        world.coordinator.start_again();
        let before = world.near.counts().down;
        transfers.go_on_until("bytes after the crash", || world.near.counts().down > before + UNDER_WAY);
        talk.echo();
    }
    transfers.finish();
    talk.ends_well();
}

/// For as long as any machine may need, however busy: the old coordinator ends by itself when nobody is left.
const DRAIN: [&str; 2] = ["--drain", "120s"];

#[test]
fn a_coordinator_that_is_replaced_interrupts_nothing() {
    let redis = Redis::start();
    let mut world = Linked::with(&DRAIN, |machine| machine);
    slow_down(&world);
    let up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let mut transfers = Transfers::start(&world, TRANSFER);
    for _ in 0..2 {
        until_it_moves("bytes before", &mut transfers, &world);
        let moved = up.resumed();
        let mut old = world.coordinator.replace();
        // What is relayed goes on there, until the laptop has another way, and then nothing keeps it.
        let mut longest = Duration::ZERO;
        let over = within(RECOVERY, || {
            let asked = Instant::now();
            talk.echo_within(RECOVERY);
            longest = longest.max(asked.elapsed());
            (up.resumed() > moved).then_some(())
        });
        assert!(over.is_some(), "the session did not go over:\n{}", up.program.output());
        println!("the coordinator was replaced; no answer took longer than {longest:?}");
        let ended = within(RECOVERY, || old.has_ended());
        old.ended_well(ended);
        until_it_moves("bytes after", &mut transfers, &world);
        talk.echo();
        world.stub.says_after(0, RECOVERY, "the coordinator is restarting");
    }
    transfers.finish();
    talk.ends_well();
    let said = up.program.output();
    assert!(!said.contains("interrupted") && up.tunnels() == 1, "{said}");
}

#[test]
fn a_direct_session_has_a_way_through_the_next_coordinator() {
    let redis = Redis::start();
    let (mut world, _way, _) = Linked::with_direct_way();
    let up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    world.until_it_goes("direct", true);
    let mut old = world.coordinator.replace();
    let ended = within(RECOVERY, || old.has_ended());
    old.ended_well(ended);
    world.until_it_goes("direct", true);
    talk.echo();
    talk.ends_well();
    assert!(!up.program.output().contains("interrupted"), "{}", up.program.output());
}

#[test]
fn a_coordinator_that_stops_ends_when_its_time_is_over_and_the_session_waits() {
    let redis = Redis::start();
    let mut world = Linked::with(&["--drain", "1s"], |machine| machine);
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    // Nobody follows: the port is free, and what is relayed goes on for as long as was said.
    world.coordinator.program.signal(nix::sys::signal::Signal::SIGTERM);
    world.coordinator.program.says("stopping");
    assert!(world.coordinator.program.ends().success(), "{}", world.coordinator.program.output());
    world.coordinator.start_again();
    talk.echo_within(RECOVERY);
    talk.ends_well();
}

#[test]
fn a_second_signal_ends_a_coordinator_at_once() {
    let mut world = Linked::with(&DRAIN, |machine| machine);
    let _up = Linked::up(&world.near, &world.laptop);
    let coordinator = &mut world.coordinator.program;
    coordinator.signal(nix::sys::signal::Signal::SIGTERM);
    coordinator.says("stopping");
    coordinator.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(coordinator.ends().code(), Some(130), "{}", coordinator.output());
}

#[test]
fn a_laptop_that_waits_for_its_workspace_is_told_to_come_back() {
    let mut world = Linked::with(&DRAIN, |machine| machine);
    assert!(world.stub.stop(nix::sys::signal::Signal::SIGTERM).success());
    let words = ["up", "box", "--no-direct", "--coordinator", &world.near.url()];
    let mut up = Running::start(world.laptop.command(&words));
    up.says("waiting for the workspace's stub");
    let mut old = world.coordinator.replace();
    up.says("the coordinator is restarting");
    assert!(old.ends().success(), "{}", old.output());
    world.stub = world.machine.stub(None);
    up.says("end-to-end verified");
    assert!(!up.output().contains("is not connected"), "{}", up.output());
}

/// A program stands still, and goes on: so does a conversation.
#[track_caller]
fn a_freeze_is_survived(what: &str, time: Duration, pid: impl Fn(&Linked, &laptop::Up<'_>) -> u32) {
    let redis = Redis::start();
    let world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let frozen = Frozen::new(pid(&world, &up));
    std::thread::sleep(time);
    drop(frozen);
    let began = Instant::now();
    talk.echo_within(RECOVERY);
    println!("{what} stood still for {time:?}; an answer {:?} after that", began.elapsed());
    talk.echo();
    talk.ends_well();
}

#[test]
fn a_laptop_that_slept_goes_on() {
    a_freeze_is_survived("the laptop", lasts(5, 180), |_, up| up.program.pid());
}

#[test]
fn a_workspace_that_stood_still_goes_on() {
    a_freeze_is_survived("the stub", lasts(5, 180), |world, _| world.stub.pid());
}

#[test]
fn a_coordinator_that_stood_still_goes_on() {
    a_freeze_is_survived("the coordinator", lasts(5, 180), |world, _| world.coordinator.program.pid());
}

#[test]
fn a_laptop_that_changes_its_address_keeps_its_connections() {
    let hosts = Hosts::new();
    let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
    let laptop = Laptop::at(&hosts.laptop);
    let url = coordinator.url(Hosts::COORDINATOR_FOR_LAPTOP);
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&hosts.workspace, &coordinator.url(Hosts::COORDINATOR_FOR_WORKSPACE));
    let _stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let redis = Redis::start_at(&hosts.workspace);
    let _up = laptop.up(&["box", "--coordinator", &url]);
    let (line, _forward) = laptop.forward("box", &["-L", &format!("0:127.0.0.1:{}", redis.port)], "forward");
    let mut talk = Dialogue::with(hosts.laptop.run(Dialogue::socat(laptop::port_in(&line))));
    talk.echo();
    let mut address = Hosts::LAPTOP;
    for last in [77, 78] {
        let next = std::net::Ipv4Addr::new(10, 77, 1, last);
        hosts.readdress(&hosts.laptop, address, next);
        address = next;
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        println!("at {next}; an answer {:?} after that", began.elapsed());
        assert_ne!(capture::connections(coordinator.program.pid(), coordinator.port, next), 0, "from the new address");
    }
    talk.ends_well();
}

#[test]
fn a_listener_whose_way_is_dead_says_so() {
    let world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let (port, _forward) = world.forward("127.0.0.1:9");
    let (line, _remote) = world.laptop.forward("box", &["-R", "0:127.0.0.1:9"], "forward");
    let remote = laptop::port_in(&line);
    let tunnel = || world.laptop.workspace_status()["tunnel"].clone();
    assert_eq!(tunnel()["state"], "up");
    for _ in 0..2 {
        world.near.black_hole();
        let said = until("the tunnel to be said to be down, and why", || {
            let tunnel = tunnel();
            let down = tunnel["state"] == "resuming";
            (down && tunnel["why"].as_str().is_some_and(|why| !why.is_empty())).then_some(tunnel)
        });
        println!("while nothing arrives: {said}");
        // Nobody is left hanging on a connection that leads nowhere.
        let ends = |port: u16, time: std::time::Duration| {
            let mut hopeless = std::net::TcpStream::connect(("127.0.0.1", port)).expect("the port is still ours");
            hopeless.set_read_timeout(Some(time)).expect("a socket");
            let ended = std::io::Read::read(&mut hopeless, &mut [0]);
            !matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
        };
        assert!(ends(port, PATIENCE), "it hangs");
        // Nor in the workspace, as soon as that has noticed: it only listens, and the first connection tells.
        until("a connection in the workspace to be refused", || {
            ends(remote, std::time::Duration::from_secs(4)).then_some(())
        });
        world.near.heal();
        until("the tunnel to be up again", || (tunnel()["state"] == "up").then_some(()));
    }
}

#[test]
fn a_new_login_of_a_device_takes_over_and_keeps_it() {
    let redis = Redis::start();
    let world = Linked::new();
    let mut first = Linked::up(&world.near, &world.laptop);
    let twin = world.laptop.twin();
    let frozen = Frozen::new(first.program.pid());
    let second = Linked::up(&world.near, &twin);
    let (line, _forward) = twin.forward("box", &["-L", &format!("0:127.0.0.1:{}", redis.port)], "forward");
    let mut talk = Dialogue::redis(laptop::port_in(&line));
    talk.echo();
    drop(frozen);
    // Whether it ends or waits to be told what to do: it says so, and does not take the workspace back.
    first.program.says("took over");
    assert_eq!(second.tunnels(), 1, "the first has taken it back:\n{}", first.program.output());
    for _ in 0..5 {
        talk.echo();
        assert_eq!(twin.exec("box", &["echo", "hi"]).ok(), "hi\n");
    }
    assert_eq!(second.tunnels(), 1, "{}", second.program.output());
    talk.ends_well();
}

//! A coordinator that stops, and the one after it: what it relays goes on until it has another way.

use std::time::{Duration, Instant};

use nexus_proxy::role::coordinator::drain::STUBS_FIRST;

use crate::reliability::{UNDER_WAY, wide};
use crate::support::linked::Talk;
use crate::support::transfers::{RECOVERY, Transfers};
use crate::support::wait::within;
use crate::support::*;

/// Bytes of one transfer.
const TRANSFER: usize = 32 << 20;

/// Waits until the transfers have moved more than is under way anywhere.
#[track_caller]
fn until_it_moves(what: &str, transfers: &mut Transfers, world: &Linked) {
    let goal = world.moved() + UNDER_WAY;
    transfers.go_on_until(what, || world.moved() >= goal);
}

/// For as long as any machine may need, however busy: the old coordinator ends by itself when nobody is left.
const DRAIN: [&str; 2] = ["--drain", "120s"];

#[test]
fn a_coordinator_that_is_replaced_interrupts_nothing() {
    let redis = Redis::start();
    let mut world = Linked::with(&DRAIN, |machine| machine);
    [&world.near, &world.far].iter().for_each(|link| link.set_wire(wide()));
    let up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let mut transfers = Transfers::start(&world, TRANSFER);
    for _ in 0..2 {
        until_it_moves("bytes before", &mut transfers, &world);
        let moved = up.resumed();
        let (near, began) = (&world.near, Instant::now());
        let before = near.counts().accepted;
        let came = || within(RECOVERY, || (near.counts().accepted > before).then(|| began.elapsed()));
        let mut longest = Duration::ZERO;
        let (mut old, over, came) = std::thread::scope(|scope| {
            let came = scope.spawn(came);
            let old = world.coordinator.replace();
            // What is relayed goes on there, until the laptop has another way, and then nothing keeps it.
            let over = within(RECOVERY, || {
                let asked = Instant::now();
                talk.echo_within(RECOVERY);
                longest = longest.max(asked.elapsed());
                (up.resumed() > moved).then_some(())
            });
            (old, over, came.join().expect("it only looks"))
        });
        assert!(over.is_some(), "the session did not go over:\n{}", up.program.output());
        println!(
            "the coordinator was replaced; no answer took longer than {longest:?}; the laptop came after {came:?}"
        );
        // It was told when to come, and no laptop is told to come sooner than that.
        assert!(came.is_some_and(|came| came >= STUBS_FIRST), "{came:?}");
        let ended = within(RECOVERY, || old.has_ended());
        old.ended_well(ended);
        until_it_moves("bytes after", &mut transfers, &world);
        talk.echo();
        world.stub.says_after(0, RECOVERY, "the coordinator is restarting");
    }
    transfers.finish_unrefused();
    talk.ends_well();
    let said = up.program.output();
    assert!(!said.contains("interrupted") && up.tunnels() == 1, "{said}");
}

#[test]
fn a_direct_session_has_a_way_through_the_next_coordinator() {
    let redis = Redis::start();
    // Longer than anything here is waited for: the old coordinator ends because nobody is left who stands by there.
    let mut world = Linked::with(&["--drain", "1h"], |machine| machine.env("NEXUS_DIRECT_LISTEN", "127.0.0.1:0"));
    let up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    world.until_it_goes("direct", true);
    let mut old = world.coordinator.replace();
    let ended = within(RECOVERY, || old.has_ended());
    old.ended_well(ended);
    world.until_it_goes("direct", true);
    until("nothing to be told of the old one any more", || {
        world.laptop.workspace_status()["tunnel"]["notice"].is_null().then_some(())
    });
    talk.echo();
    talk.ends_well();
    let said = up.program.output();
    assert!(said.contains("gone over to the next coordinator") && !said.contains("interrupted"), "{said}");
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

#[test]
fn a_coordinator_that_may_not_take_time_parts_at_once_and_the_session_waits_for_the_next() {
    let redis = Redis::start();
    let mut world = Linked::with(&["--drain", "0s"], |machine| machine);
    // Its own, so that the coordinator can be changed while it is used.
    let laptop = world.laptop.twin();
    let up = Linked::up(&world.near, &laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    for times in 1..=2 {
        let coordinator = &mut world.coordinator.program;
        coordinator.signal(nix::sys::signal::Signal::SIGTERM);
        let began = Instant::now();
        assert!(coordinator.ends().success(), "{}", coordinator.output());
        println!("a coordinator without time for its sessions ended after {:?}", began.elapsed());
        world.coordinator.start_again();
        talk.echo_within(RECOVERY);
        assert_eq!((up.tunnels(), up.resumed()), (1, times), "{}", up.program.output());
    }
    talk.ends_well();
}

#[test]
fn a_coordinator_that_stops_and_that_nobody_follows_is_told_of_before_anything_is_interrupted() {
    let redis = Redis::start();
    let mut world = Linked::with(&DRAIN, |machine| machine);
    let laptop = world.laptop.twin();
    let up = Linked::up(&world.near, &laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let tunnel = || laptop.workspace_status()["tunnel"].clone();
    assert!(tunnel()["notice"].is_null(), "{}", tunnel());
    world.coordinator.program.signal(nix::sys::signal::Signal::SIGTERM);
    let said = until("that nobody follows to be told", || {
        let tunnel = tunnel();
        let told = tunnel["notice"].as_str().is_some_and(|notice| notice.contains("not there yet"));
        told.then_some(tunnel)
    });
    assert_eq!(said["state"], "up", "{said}");
    let text = laptop.run(&["status"]).ok();
    assert!(text.contains("the coordinator is stopping"), "{text}");
    talk.echo();
    let mut old = world.coordinator.successor();
    let over = within(RECOVERY, || (tunnel()["notice"].is_null()).then_some(()));
    assert!(over.is_some(), "it does not go over: {}", tunnel());
    talk.echo();
    let ended = within(RECOVERY, || old.has_ended());
    old.ended_well(ended);
    talk.ends_well();
    let said = up.program.output();
    assert!(said.contains("gone over"), "{said}");
    // As lines of `up` itself, which a person reads: a terminal has no lines of the log.
    let lines = ["  up; the coordinator is stopping", "  up; what threatened the session is over"];
    assert!(lines.iter().all(|line| said.contains(line)), "{said}");
    assert!(!said.contains("interrupted") && up.tunnels() == 1, "{said}");
}

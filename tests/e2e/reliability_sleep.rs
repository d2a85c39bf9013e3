//! Programs that stand still, a laptop that sleeps and finds its connections gone, and one that wakes in another network.
//! What was open goes on.

use std::time::{Duration, Instant};

use crate::identity::{chain_below, has_expired};
use crate::reliability::{lasts, talk_to};
use crate::support::linked::Frozen;
use crate::support::transfers::RECOVERY;
use crate::support::*;

/// How often a recovery is looked at whose time is judged: the fastest tells what the programs can do, the others may tell
/// what else the machine did.
const LOOKS: usize = 3;

/// A program stands still, and goes on: so does a conversation. Gives the time from there to its first answer, at best.
#[track_caller]
fn a_freeze_is_survived(
    way: Way,
    what: &str,
    time: Duration,
    pid: impl Fn(&World, &laptop::Up<'_>) -> u32,
) -> Duration {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    let answers = [(); LOOKS].map(|()| {
        let frozen = Frozen::new(pid(&world, &up));
        std::thread::sleep(time);
        drop(frozen);
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        let took = began.elapsed();
        println!("{way:?}: {what} stood still for {time:?}; an answer {took:?} after that");
        talk.echo();
        took
    });
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    answers.into_iter().min().expect("one at least")
}

#[test]
fn a_laptop_that_slept_goes_on() {
    let best = a_freeze_is_survived(Way::Relay, "the laptop", lasts(5, 180), |_, up| up.program.pid());
    assert!(best < USABLE, "{best:?}");
}

#[test]
fn a_laptop_with_a_direct_session_that_slept_goes_on() {
    let best = a_freeze_is_survived(Way::Direct, "the laptop", lasts(5, 180), |_, up| up.program.pid());
    assert!(best < USABLE, "{best:?}");
}

#[test]
fn a_workspace_that_stood_still_goes_on() {
    a_freeze_is_survived(Way::Relay, "the stub", lasts(5, 180), |world, _| world.linked.stub.pid());
}

#[test]
fn a_workspace_with_a_direct_session_that_stood_still_goes_on() {
    a_freeze_is_survived(Way::Direct, "the stub", lasts(5, 180), |world, _| world.linked.stub.pid());
}

#[test]
fn a_coordinator_that_stood_still_goes_on() {
    a_freeze_is_survived(Way::Relay, "the coordinator", lasts(5, 180), |world, _| {
        world.linked.coordinator.program.pid()
    });
}

/// After sleep a laptop is usable again within this time: what it waits for at most when its connections are gone without a
/// word (`ALERT_PATIENCE`), and as much again to make another one. Without the look at the clocks it would be `LEAST_PATIENCE`.
const USABLE: Duration = Duration::from_secs(1);

/// As a laptop whose lid was closed finds it: the connections that it had are gone, and nobody tells.
#[track_caller]
fn connections_that_went_in_sleep_are_replaced(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    let time = lasts(5, 60);
    let answers = [(); LOOKS].map(|()| {
        let frozen = Frozen::new(up.program.pid());
        world.laptops_wires().iter().for_each(|link| link.forget_present());
        std::thread::sleep(time);
        drop(frozen);
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        let took = began.elapsed();
        println!("{way:?}: the laptop slept for {time:?} and lost its connections; an answer {took:?} after that");
        world.settle();
        took
    });
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    let best = answers.into_iter().min().expect("one at least");
    assert!(best < USABLE, "{best:?}");
}

#[test]
fn a_laptop_that_slept_and_lost_its_connections_is_usable_at_once() {
    connections_that_went_in_sleep_are_replaced(Way::Relay);
}

#[test]
fn a_laptop_that_slept_and_lost_its_direct_connection_is_usable_at_once() {
    connections_that_went_in_sleep_are_replaced(Way::Direct);
}

/// Both ends sleep until their certificates have ended; the coordinator was started anew meanwhile, and a router forgot.
#[test]
fn who_slept_past_a_certificates_end_and_a_restart_of_the_coordinator_goes_on() {
    let redis = Redis::start();
    let mut world = World::with(Way::Relay, &["--leaf-lifetime", "6s"]);
    let laptop = world.linked.laptop.twin();
    let up = world.up_of(&laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let asleep = [up.program.pid(), world.linked.stub.pid()].map(Frozen::new);
    world.all_wires().iter().for_each(|link| link.forget_present());
    world.linked.coordinator.kill();
    for folder in [laptop.home(), world.linked.machine.state()] {
        let chain = chain_below(folder);
        until("its certificate's end", || has_expired(&chain).then_some(()));
    }
    world.linked.coordinator.start_again();
    drop(asleep);
    let began = Instant::now();
    talk.echo_within(RECOVERY);
    println!("both slept past their certificates' end; an answer {:?} after that", began.elapsed());
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_laptop_that_changes_its_address_keeps_its_connections() {
    let world = World::across(Hosts::new(), Way::Relay);
    let wire = Wire { delay: Duration::from_millis(10), ..Wire::default() };
    world.wires().iter().for_each(|link| link.set_wire(wire));
    let redis = Redis::start_at(&world.workspace());
    let up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::with(world.laptops_place().run(Dialogue::socat(port)));
    talk.echo();
    let hosts = world.hosts.as_ref().expect("there are three");
    let mut address = Hosts::LAPTOP;
    for last in [77, 78] {
        let next = std::net::Ipv4Addr::new(10, 77, 1, last);
        hosts.readdress(&hosts.laptop, address, next);
        address = next;
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        println!("at {next}; an answer {:?} after that", began.elapsed());
        let (pid, port) = (world.linked.coordinator.program.pid(), world.linked.near.port);
        assert_ne!(capture::connections(pid, port, next), 0, "from the new address");
    }
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

//! Programs that stand still, a laptop that sleeps and finds its connections gone, and one that wakes in another network.
//! What was open goes on.

use std::time::{Duration, Instant};

use crate::identity::{chain_below, has_expired};
use crate::reliability::{lasts, talk_to};
use crate::support::linked::Frozen;
use crate::support::transfers::RECOVERY;
use crate::support::wait::{judged, within};
use crate::support::*;

/// How often a recovery is looked at whose time is judged.
const LOOKS: usize = 3;

/// After sleep a laptop is usable again within this time. Without the look at the clocks it would be `LEAST_PATIENCE`.
const USABLE: Duration = Duration::from_secs(1);

/// What a person waits for, from some moment on.
#[derive(Debug, Clone, Copy)]
struct Answers {
    /// Until a conversation that was open has its next answer.
    open: Duration,
    /// Until a command that is begun at that moment has run in the workspace.
    command: Duration,
}

impl Answers {
    /// From this moment on.
    #[track_caller]
    fn from_here(world: &World, talk: &mut Dialogue) -> Answers {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let command = scope.spawn(|| {
                let ran = || world.linked.laptop.exec("box", &["true"]).status.success();
                within(RECOVERY, || ran().then(|| began.elapsed())).expect("a command can be run again")
            });
            talk.echo_within(RECOVERY);
            let open = began.elapsed();
            Answers { open, command: command.join().expect("a command can be run again") }
        })
    }
}

#[track_caller]
fn were_soon(answers: [Answers; LOOKS]) {
    for judged in [judged(answers.map(|each| each.open)), judged(answers.map(|each| each.command))] {
        assert!(judged < USABLE, "{judged:?}, of {answers:?}");
    }
}

/// A program stands still, and goes on: so does a conversation, and commands can be run. Gives the times to that.
#[track_caller]
fn a_freeze_is_survived(
    way: Way,
    what: &str,
    time: Duration,
    pid: impl Fn(&World, &laptop::Up<'_>) -> u32,
) -> [Answers; LOOKS] {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    let answers = [(); LOOKS].map(|()| {
        let frozen = Frozen::new(pid(&world, &up));
        std::thread::sleep(time);
        drop(frozen);
        let took = Answers::from_here(&world, &mut talk);
        println!("{way:?}: {what} stood still for {time:?}; after that {took:?}");
        talk.echo();
        took
    });
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    answers
}

#[test]
fn a_laptop_that_slept_goes_on() {
    were_soon(a_freeze_is_survived(Way::Relay, "the laptop", lasts(5, 180), |_, up| up.program.pid()));
}

#[test]
fn a_laptop_with_a_direct_session_that_slept_goes_on() {
    were_soon(a_freeze_is_survived(Way::Direct, "the laptop", lasts(5, 180), |_, up| up.program.pid()));
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

/// What the laptop has on a wire says nothing more; that of others there goes on.
#[track_caller]
fn forget_those_of(up: &laptop::Up<'_>, link: &Link) {
    link.forget_those_from(&kernel::ports_toward(up.program.pid(), link.port));
}

/// As a laptop whose lid was closed finds it: the connections that it had are gone, and nobody tells.
#[track_caller]
fn connections_that_went_in_sleep_are_replaced(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    let time = lasts(5, 180);
    were_soon([(); LOOKS].map(|()| {
        let frozen = Frozen::new(up.program.pid());
        world.laptops_wires().into_iter().for_each(|link| forget_those_of(&up, link));
        std::thread::sleep(time);
        drop(frozen);
        let took = Answers::from_here(&world, &mut talk);
        println!("{way:?}: the laptop slept for {time:?} and lost its connections; after that {took:?}");
        world.settle();
        took
    }));
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

/// The coordinator is near, and the workspace far: another connection through the coordinator is dialled before the good one
/// can answer.
#[test]
fn a_laptop_that_slept_stays_on_its_way_when_that_is_good() {
    const AWAY: Duration = Duration::from_millis(200);
    let redis = Redis::start();
    let world = World::by(Way::Direct);
    let way = world.direct.as_ref().expect("that is the way");
    way.set_wire(Wire::new(1_000_000_000, AWAY));
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    // It would go over to the second as soon as that is there.
    assert_eq!(way.counts().accepted, 1, "it is dialled again while it is being taken");
    let left = || up.program.output().matches("through the coordinator").count();
    let before = left();
    for _ in 0..LOOKS {
        let frozen = Frozen::new(up.program.pid());
        std::thread::sleep(lasts(5, 5));
        drop(frozen);
        talk.echo_within(RECOVERY);
    }
    // A machine that is very busy answers late once.
    assert!(left() <= before + 1, "{}", up.program.output());
    talk.ends_well();
}

#[test]
fn a_laptop_that_slept_and_lost_its_connections_is_usable_at_once() {
    connections_that_went_in_sleep_are_replaced(Way::Relay);
}

#[test]
fn a_laptop_that_slept_and_lost_its_direct_connection_is_usable_at_once() {
    connections_that_went_in_sleep_are_replaced(Way::Direct);
}

#[test]
fn a_laptop_behind_a_balancer_that_slept_and_lost_its_connections_is_usable_at_once() {
    connections_that_went_in_sleep_are_replaced(Way::Balanced);
}

/// The next connection is dialled while the one that is dead is asked. One after the other, on a long way, would be the
/// patience there is for an answer, three round trips, and then four: TLS, the upgrade, the attach, and what was asked.
#[test]
fn a_laptop_far_away_that_slept_does_not_wait_first_and_then_dial() {
    const ROUND_TRIP: Duration = Duration::from_millis(500);
    let redis = Redis::start();
    let world = World::by(Way::Relay);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    world.linked.near.set_wire(Wire { delay: ROUND_TRIP / 2, ..Wire::default() });
    let answers = [(); LOOKS].map(|()| {
        // What is measured of this way.
        (0..5).for_each(|_| talk.echo());
        let frozen = Frozen::new(up.program.pid());
        forget_those_of(&up, &world.linked.near);
        std::thread::sleep(lasts(5, 180));
        drop(frozen);
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        println!(
            "{ROUND_TRIP:?} away the laptop slept and lost its connections; an answer {:?} after that",
            began.elapsed()
        );
        began.elapsed()
    });
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    let judged = judged(answers);
    assert!(judged < ROUND_TRIP * 6, "{judged:?}");
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

/// The kernel tells of another address, and then a connection is made at once. Looked for once a second it would be found after half
/// a second in the middle, and a heartbeat would be missed after `HEARTBEAT` and more.
const MOVED: Duration = Duration::from_millis(400);

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
    let moved = [77, 78, 79].map(|last| {
        let next = std::net::Ipv4Addr::new(10, 77, 1, last);
        hosts.readdress(&hosts.laptop, address, next);
        address = next;
        let began = Instant::now();
        // Nothing is said meanwhile.
        let (pid, port) = (world.linked.coordinator.program.pid(), world.linked.near.port);
        let there = within(RECOVERY, || (capture::connections(pid, port, next) != 0).then(|| began.elapsed()));
        let there = there.expect("a connection from the new address");
        talk.echo_within(RECOVERY);
        println!("at {next}; a connection {there:?} after that, an answer {:?}", began.elapsed());
        there
    });
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    let judged = judged(moved);
    assert!(judged < MOVED, "{judged:?}");
}

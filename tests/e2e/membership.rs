//! Who is let in, and who no longer is, over wires that break meanwhile: certificates are renewed, and what is revoked ends.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::link::Counts;
use crate::support::linked::Frozen;
use crate::support::transfers::RECOVERY;
use crate::support::wait::judged;
use crate::support::*;

/// Exit code for a device that is not let in.
const REFUSED: i32 = 4;

/// Within this time of its revocation what a device has open is over (ARCHITECTURE.md, what may never happen).
const CUT: Duration = Duration::from_secs(1);

/// Devices that are revoked one after another: the fastest end tells what the programs can do, the others may tell what else
/// the machine did.
const DEVICES: usize = 3;

/// A wire as long as one to another city.
fn long() -> Wire {
    Wire { delay: Duration::from_millis(20), ..Wire::default() }
}

/// A connection to the Redis behind `port`, on which an answer has come.
#[track_caller]
fn connected(port: u16) -> TcpStream {
    let mut open = TcpStream::connect(("127.0.0.1", port)).expect("the forward listens");
    open.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
    open.write_all(b"PING\r\n").expect("it is taken");
    let mut answer = [0; 7];
    open.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"+PONG\r\n");
    open
}

#[track_caller]
fn what_a_revoked_device_has_open_ends_at_once(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let mut ended = [Duration::MAX; DEVICES];
    for (number, ended) in ended.iter_mut().enumerate() {
        let name = format!("device-{number}");
        let laptop = world.another_laptop(&name);
        world.all_wires().iter().for_each(|link| link.set_wire(long()));
        let mut theirs = world.up_of(&laptop);
        let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
        let mut open = connected(port);
        world.linked.coordinator.run(&["device", "revoke", &name]).ok();
        let began = Instant::now();
        let end = open.read(&mut [0]).map_err(|error| error.kind());
        *ended = began.elapsed();
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "what is cut must not look complete");
        assert_eq!(theirs.program.ends().code(), Some(REFUSED), "{}", theirs.program.output());
        theirs.program.says("revoked");
        println!("{way:?}: a connection of a revoked device ended after {ended:?}, `up` after {:?}", began.elapsed());
    }
    assert_eq!(up.tunnels(), 1, "the others did not notice: {}", up.program.output());
    let took = judged(ended);
    assert!(took < CUT, "{took:?} of {ended:?}");
}

on_ways! {
    what_a_revoked_device_has_open_ends_at_once:
    fn a_revoked_device_is_cut_off_at_once() on Relay;
    fn a_revoked_device_is_cut_off_at_once_on_the_direct_way() on Direct;
    fn a_revoked_device_is_cut_off_at_once_behind_a_balancer() on Balanced;
}

/// A wire that bulk fills, slow enough that it is the wire that is busy, and not the machine.
fn slow() -> Wire {
    Wire::new(40_000_000, Duration::from_millis(20))
}

/// Bytes of bulk that nobody finishes.
const ENDLESS: u64 = 8 << 30;

/// Bytes of bulk that fill a wire and all queues before it.
const FILLED: u64 = 4 << 20;

/// A `curl` that downloads and one that uploads, through a forward of `laptop`, from and to a web server in the workspace.
struct Bulk {
    ways: [Running; 2],
    _forward: Running,
}

impl Bulk {
    #[track_caller]
    fn of(laptop: &Laptop, nginx: &Nginx) -> Bulk {
        let (port, forward) = laptop.forward_to(nginx.addr);
        let (large, url) = (nginx.root.join("large"), format!("http://127.0.0.1:{port}"));
        let ways = [
            ["-o", "/dev/null", &format!("{url}/large")],
            ["-T", &large.to_string_lossy(), &format!("{url}/another-{port}")],
        ];
        let start = |words: [&str; 3]| Running::start(curl(&[&["--max-time", "600"], &words[..]].concat()));
        Bulk { ways: ways.map(start), _forward: forward }
    }
}

/// Bulk fills every wire both ways: what the revoked device has under way, and what another one has through the coordinator,
/// where the workspace's parked connection goes. The workspace's end is judged; the laptop's, which is behind what it still has to
/// read, is looked at.
#[track_caller]
fn bulk_holds_no_revocation_up(way: Way) {
    let (redis, nginx) = (Redis::start(), Nginx::start());
    let large = std::fs::File::create(nginx.root.join("large")).expect("a file of ours");
    large.set_len(ENDLESS).expect("a file with nothing in it");
    let world = World::by(way);
    let ours = &world.linked.laptop;
    let up = ours.up(&["box", "--no-direct", "--coordinator", &world.url()]);
    let devices: [String; DEVICES] = std::array::from_fn(|number| format!("device-{number}"));
    let laptops = devices.each_ref().map(|name| world.another_laptop(name));
    let mut other = Bulk::of(ours, &nginx);
    world.all_wires().iter().for_each(|link| link.set_wire(slow()));
    let mut ended = [Duration::MAX; DEVICES];
    for ((name, laptop), ended) in devices.iter().zip(&laptops).zip(&mut ended) {
        let mut theirs = world.up_of(laptop);
        let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
        let mut open = connected(port);
        let mut bulk = Bulk::of(laptop, &nginx);
        let left = format!("{name} left");
        let before: Vec<_> = world.all_wires().into_iter().map(|link| (link, link.counts())).collect();
        until("every wire to be full both ways", || {
            let full = |(link, before): &(&Link, Counts)| {
                let now = link.counts();
                now.up > before.up + FILLED && now.down > before.down + FILLED
            };
            before.iter().all(full).then_some(())
        });
        world.linked.coordinator.run(&["device", "revoke", name]).ok();
        let began = Instant::now();
        open.set_nonblocking(true).expect("a socket of ours");
        let (mut at_laptop, mut at_workspace) = (None, None);
        let ((end, at_laptop), at_workspace) = until("both ends of the session to be over", || {
            at_laptop = at_laptop.or_else(|| {
                let end = open.read(&mut [0]).map_err(|error| error.kind());
                (end != Err(ErrorKind::WouldBlock)).then(|| (end, began.elapsed()))
            });
            let has_left = || world.linked.stub.output().contains(&left);
            at_workspace = at_workspace.or_else(|| has_left().then(|| began.elapsed()));
            at_laptop.zip(at_workspace)
        });
        println!(
            "{way:?}: beside bulk it ended after {at_workspace:?}, and after {at_laptop:?} for the laptop's program"
        );
        *ended = at_workspace;
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "what is cut must not look complete");
        assert_eq!(theirs.program.ends().code(), Some(REFUSED), "{}", theirs.program.output());
        for way in &mut bulk.ways {
            assert!(!way.ends().success(), "{}", way.output());
        }
    }
    for way in &mut other.ways {
        assert!(way.has_ended().is_none(), "the others did not notice: {}", way.output());
    }
    assert_eq!(up.tunnels(), 1, "the others did not notice: {}", up.program.output());
    let judged = judged(ended);
    assert!(judged < CUT, "{judged:?}");
}

#[test]
fn a_revoked_device_is_cut_off_though_bulk_fills_the_wires() {
    bulk_holds_no_revocation_up(Way::Relay);
}

#[test]
fn a_revoked_device_is_cut_off_on_the_direct_way_though_bulk_fills_the_wires() {
    bulk_holds_no_revocation_up(Way::Direct);
}

#[test]
fn a_revoked_device_is_cut_off_behind_a_balancer_though_bulk_fills_the_wires() {
    bulk_holds_no_revocation_up(Way::Balanced);
}

/// The laptop stands still, so it is the workspace that ends the session. Counted from before the operator's command.
#[track_caller]
fn the_session_of_a_revoked_device_ends_though_that_does_nothing(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let mut ended = [Duration::MAX; DEVICES];
    for (number, ended) in ended.iter_mut().enumerate() {
        let name = format!("device-{number}");
        let laptop = world.another_laptop(&name);
        let mut theirs = world.up_of(&laptop);
        let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
        let _open = connected(port);
        let (frozen, left) = (Frozen::new(theirs.program.pid()), format!("{name} left"));
        let has_left = || world.linked.stub.output().contains(&left);
        assert!(!has_left(), "{}", world.linked.stub.output());
        let began = Instant::now();
        world.linked.coordinator.run(&["device", "revoke", &name]).ok();
        until("the workspace to end the session", || has_left().then_some(()));
        *ended = began.elapsed();
        println!("{way:?}: the session of a revoked device that stands still ended after {ended:?}");
        drop(frozen);
        assert_eq!(theirs.program.ends().code(), Some(REFUSED), "{}", theirs.program.output());
    }
    assert_eq!(up.tunnels(), 1, "the others did not notice: {}", up.program.output());
    let judged = judged(ended);
    assert!(judged < CUT, "{judged:?}");
}

on_ways! {
    the_session_of_a_revoked_device_ends_though_that_does_nothing:
    fn the_workspace_ends_the_session_of_a_revoked_device() on Relay;
    fn the_workspace_ends_the_direct_session_of_a_revoked_device() on Direct;
    fn the_workspace_behind_a_balancer_ends_the_session_of_a_revoked_device() on Balanced;
}

/// A device is revoked while nothing reaches it, and does not come back when something does.
#[track_caller]
fn a_device_that_is_revoked_in_an_outage_stays_out(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let _up = world.up();
    let laptop = world.another_laptop("bert");
    let mut theirs = world.up_of(&laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    world.laptops_wires().iter().for_each(|link| link.black_hole());
    world.linked.coordinator.run(&["device", "revoke", "bert"]).ok();
    world.laptops_wires().iter().for_each(|link| link.heal());
    assert_eq!(theirs.program.ends().code(), Some(REFUSED), "{}", theirs.program.output());
    until("the conversation to end", || talk.program.has_ended());
    let again = laptop.run(&["up", "box", "--coordinator", &world.url()]);
    assert_eq!(again.status.code(), Some(REFUSED), "{}", again.stderr);
    assert!(again.stderr.contains("revoked"), "{}", again.stderr);
}

on_ways! {
    a_device_that_is_revoked_in_an_outage_stays_out:
    fn who_was_revoked_while_the_wire_was_out_stays_out() on Relay;
    fn who_was_revoked_while_the_wire_before_a_balancer_was_out_stays_out() on Balanced;
}

/// Connections break again and again, also those on which a certificate is asked for.
#[track_caller]
fn certificates_are_renewed_over_wires_that_break(way: Way) {
    let redis = Redis::start();
    let world = World::with(way, &["--leaf-lifetime", "6s"]);
    let up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    let mut faults = faults::Faults::new();
    let wires = world.all_wires();
    for folder in [world.linked.laptop.home(), world.linked.machine.state()] {
        let chain = find_below(folder, "chain.pem").expect("a chain.pem");
        let mut seen = vec![std::fs::read(&chain).expect("a chain")];
        until("two renewals", || {
            for link in &wires {
                link.harm_after(Direction::BOTH[faults.below(2) as usize], 1 + faults.below(10_000), Harm::Cut);
            }
            talk.echo_within(RECOVERY);
            let now = std::fs::read(&chain).expect("a chain");
            if !seen.contains(&now) {
                seen.push(now);
            }
            (seen.len() == 3).then_some(())
        });
    }
    wires.iter().for_each(|link| link.heal());
    world.settle();
    talk.echo_within(RECOVERY);
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "the session outlived its certificates: {}", up.program.output());
}

on_ways! {
    certificates_are_renewed_over_wires_that_break:
    fn certificates_are_renewed_over_a_wire_that_breaks() on Relay;
    fn certificates_are_renewed_on_the_direct_way_over_a_wire_that_breaks() on Direct;
    fn certificates_are_renewed_behind_a_balancer_over_a_wire_that_breaks() on Balanced;
}

/// The workspace is taken away under a session. Who has it open hears of it, and does not try on.
#[track_caller]
fn who_has_a_workspace_that_is_removed_is_told(way: Way) {
    let redis = Redis::start();
    let mut world = World::by(way);
    let laptop = world.linked.laptop.twin();
    let mut up = world.up_of(&laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    world.linked.coordinator.run(&["workspace", "remove", "box"]).ok();
    let began = Instant::now();
    assert_eq!(up.program.ends().code(), Some(REFUSED), "{}", up.program.output());
    let took = began.elapsed();
    println!("{way:?}: the workspace was removed; `up` ended {took:?} after that");
    assert!(took < CUT_AT_LAST, "{took:?}");
    let said = up.program.output();
    assert!(said.contains("the workspace `box` was removed") && said.contains("hint:"), "{said}");
    until("the conversation to end", || talk.program.has_ended());
    let stub = &mut world.linked.stub;
    assert_eq!(stub.ends().code(), Some(REFUSED), "{}", stub.output());
    assert!(stub.output().contains("was removed"), "{}", stub.output());
}

on_ways! {
    who_has_a_workspace_that_is_removed_is_told:
    fn a_workspace_that_is_removed_ends_the_up_that_has_it() on Relay;
    fn a_workspace_that_is_removed_ends_the_up_that_has_it_directly() on Direct;
}

#[test]
fn an_up_that_waits_for_its_workspace_ends_when_that_is_removed() {
    let world = Linked::new();
    let mut waits = Linked::up(&world.near, &world.laptop);
    // Its stub is gone: the session waits, and its laptop with it.
    world.stub.signal(nix::sys::signal::Signal::SIGKILL);
    waits.program.says("interrupted");
    world.coordinator.run(&["workspace", "remove", "box"]).ok();
    assert_eq!(waits.program.ends().code(), Some(REFUSED), "{}", waits.program.output());
    assert!(waits.program.output().contains("was removed"), "{}", waits.program.output());
}

/// A stop of the coordinator takes as long as any machine may need.
const DRAIN: [&str; 2] = ["--drain", "120s"];

/// How long after its revocation a device's session may stand on a busy machine. On a quiet one it is a second.
const CUT_AT_LAST: Duration = Duration::from_secs(5);

/// A device is revoked while its session goes on through a coordinator that stops, and another one serves already.
#[track_caller]
fn a_device_that_is_revoked_during_a_drain_is_cut_off(way: Way) {
    let redis = Redis::start();
    let mut world = World::with(way, &DRAIN);
    let laptop = world.linked.laptop.twin();
    let mut up = world.up_of(&laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    // The laptop cannot go over: what it has at the old one stays there.
    world.linked.near.refuse();
    let heard = world.linked.stub.heard();
    let mut old = world.linked.coordinator.replace();
    world.linked.stub.says_after(heard, RECOVERY, "ready for laptops");
    talk.echo();
    assert!(old.has_ended().is_none(), "the laptop has something there: {}", old.output());
    let heard = world.linked.stub.heard();
    world.linked.coordinator.run(&["device", "revoke", "anna"]).ok();
    let began = Instant::now();
    world.linked.stub.says_after(heard, RECOVERY, "anna left");
    let took = began.elapsed();
    println!("{way:?}: revoked during a drain; the session ended after {took:?}");
    assert!(took < CUT_AT_LAST, "{took:?}");
    // Nothing is left there, so it ends long before its time.
    assert!(old.ends().success(), "{}", old.output());
    world.linked.near.heal();
    assert_eq!(up.program.ends().code(), Some(REFUSED), "{}", up.program.output());
    assert!(up.program.output().contains("revoked"), "{}", up.program.output());
    until("the conversation to end", || talk.program.has_ended());
}

on_ways! {
    a_device_that_is_revoked_during_a_drain_is_cut_off:
    fn who_is_revoked_during_a_drain_is_cut_off() on Relay;
    fn who_is_revoked_during_a_drain_is_cut_off_on_the_direct_way() on Direct;
}

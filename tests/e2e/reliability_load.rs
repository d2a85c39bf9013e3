//! Much at once, and the same thing often: nothing stands still, and nothing piles up.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use nexus_proxy::lifeline::core::{MAX_CARRIERS, SLACK as KEPT_SLACK};
use nexus_proxy::lifeline::path::MOST_WINDOW;
use nexus_proxy::session::mux::{FIRST_WINDOW, POOL, SEND_QUEUE};
use nexus_proxy::transport::carrier::WRITE_BUFFER;
use nexus_proxy::wire::limits::MAX_CARRIER_MESSAGE;
use serde_json::Value;

use crate::support::faults::Faults;
use crate::support::kernel::{Footprint, footprint};
use crate::support::transfers::RECOVERY;
use crate::support::*;

/// Streams that are saturated at once.
const STREAMS: u64 = 64;

/// What one session may make an end of it hold (docs/reliability.md, Bounds): what is kept to be sent again, what arrived and
/// was not read, what waits to be sent, and what carriers hold.
const SESSION: u64 = MOST_WINDOW
    + KEPT_SLACK
    + POOL as u64
    + STREAMS * (FIRST_WINDOW as u64 + SEND_QUEUE as u64)
    + MAX_CARRIERS as u64 * (WRITE_BUFFER as u64 + MAX_CARRIER_MESSAGE as u64);

/// An `iperf3` that saturates a forward both ways, and the memory of those who carry it.
struct Saturation {
    client: Running,
    pids: [u32; 2],
    before: [u64; 2],
    most: [u64; 2],
    _server: Iperf3,
    _forward: Running,
}

impl Saturation {
    #[track_caller]
    fn start(world: &World, up: &laptop::Up<'_>, seconds: u32) -> Saturation {
        let server = Iperf3::start();
        let wire = Wire::new(200_000_000, Duration::from_millis(10));
        world.wires().iter().for_each(|link| link.set_wire(wire));
        let (port, forward) = world.linked.forward(format!("127.0.0.1:{}", server.port));
        let mut client = command("iperf3", ["-J", "-c", "127.0.0.1", "-p", &port.to_string()]);
        // Small buffers in the kernel, which otherwise take some seconds of either way and hide whether it moves.
        client.args(["-P", &STREAMS.to_string(), "--bidir", "--get-server-output", "-w", "128K"]);
        client.args(["-t", &seconds.to_string()]);
        let pids = [up.program.pid(), world.linked.stub.pid()];
        let before = pids.map(|pid| footprint(pid).memory);
        let client = Running::start(client);
        Saturation { client, pids, before, most: [0; 2], _server: server, _forward: forward }
    }

    fn look(&mut self) {
        for (most, pid) in self.most.iter_mut().zip(self.pids) {
            *most = footprint(pid).memory.max(*most);
        }
    }

    /// Looks at the memory until the end; gives the speeds of each second in bit/s, up and down.
    #[track_caller]
    fn ends(&mut self) -> [Vec<f64>; 2] {
        const MOST: Duration = Duration::from_secs(240);
        let status = wait::within(MOST, || {
            self.look();
            self.client.has_ended()
        });
        let status = status.unwrap_or_else(|| panic!("iperf3 stands still:\n{}", self.client.output()));
        // What it said is complete when its end is seen and its readers are through.
        until("the end of its report", || self.client.lines().last().is_some_and(|line| line == "}").then_some(()));
        let said = self.client.output();
        let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
        assert!(status.success(), "{}", report["error"]);
        // What arrived; a sender counts what waits as well.
        [(&report["server_output_json"], "sum"), (&report, "sum_bidir_reverse")].map(|(report, way)| {
            let intervals = report["intervals"].as_array().unwrap_or_else(|| panic!("no intervals: {said}"));
            let sums = intervals.iter().map(|i| &i[way]);
            sums.filter(|sum| sum["sender"] == false)
                .map(|sum| sum["bits_per_second"].as_f64().expect("a sum"))
                .collect()
        })
    }

    /// Each end held no more than before and what the session may make it hold.
    #[track_caller]
    fn stayed_within_bounds(&self) {
        let mb = |bytes: [u64; 2]| bytes.map(|bytes| bytes / 1_000_000);
        println!("memory of laptop and stub: {:?} MB before, {:?} at most", mb(self.before), mb(self.most));
        println!("a session may take {} MB", SESSION / 1_000_000);
        for (most, before) in self.most.iter().zip(self.before) {
            assert!(*most < before + SESSION, "{most} bytes, {before} before");
        }
    }
}

#[track_caller]
fn saturated_streams_never_stand_still(way: Way) {
    let world = World::by(way);
    let up = world.up();
    let mut saturation = Saturation::start(&world, &up, if is_long() { 60 } else { 8 });
    let speeds = saturation.ends();
    for (way, speeds) in ["up", "down"].into_iter().zip(speeds) {
        println!("{way}: {:.0?} Mbit/s", speeds.iter().map(|speed| speed / 1e6).collect::<Vec<_>>());
        assert!(speeds.len() >= 8, "{} seconds", speeds.len());
        assert!(speeds.iter().all(|speed| *speed > 0.0), "{way} stood still: {speeds:?}");
    }
    saturation.stayed_within_bounds();
    // It was only busy: no heartbeat waited so long that a connection was given up.
    let said = up.program.output();
    assert!(up.tunnels() == 1 && !said.contains("interrupted"), "{said}");
    assert_eq!(world.linked.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
}

#[test]
fn sixty_four_streams_saturated_both_ways_never_stand_still() {
    saturated_streams_never_stand_still(Way::Relay);
}

#[test]
fn sixty_four_streams_saturated_both_ways_never_stand_still_on_the_direct_way() {
    saturated_streams_never_stand_still(Way::Direct);
}

/// Wires fail in every way while both ends have as much to send as they may hold.
#[track_caller]
fn memory_stays_within_its_bounds_across_outages(way: Way) {
    let world = World::by(way);
    let up = world.up();
    let mut faults = Faults::new();
    let mut saturation = Saturation::start(&world, &up, if is_long() { 60 } else { 10 });
    let count = std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (wires, all) = (world.wires(), world.all_wires());
        let faults = scope.spawn(move || {
            let mut count = 0;
            // After each of them an outage, in which everybody fills what there is to fill.
            while stopped.recv_timeout(Duration::from_secs(1)).is_err_and(|e| e == RecvTimeoutError::Timeout) {
                let (fault, at) = (faults.next(), faults.below(wires.len() as u64) as usize);
                faults.strike(fault, wires[at]);
                all.iter().for_each(|link| link.hold());
                std::thread::sleep(Duration::from_millis(500));
                all.iter().for_each(|link| link.heal());
                count += 1;
            }
            count
        });
        saturation.ends();
        drop(stop);
        faults.join().expect("nothing there fails")
    });
    println!("{way:?}: {count} outages");
    assert!(count > 0);
    saturation.stayed_within_bounds();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn memory_stays_within_its_bounds_while_wires_fail() {
    memory_stays_within_its_bounds_across_outages(Way::Relay);
}

#[test]
fn memory_stays_within_its_bounds_while_direct_wires_fail() {
    memory_stays_within_its_bounds_across_outages(Way::Direct);
}

/// What a program may have more of in the end than in the beginning.
const SLACK: Footprint = Footprint {
    // The allocator's habits, not what a session leaves behind: that would be thousands of times this.
    memory: 24 << 20,
    // Threads that wait a while for more blocking work.
    threads: 4,
    // A connection that is being made.
    files: 4,
};

/// Resets the laptop's and the workspace's wires in turn, and waits each time for another connection and an answer.
#[track_caller]
fn reconnecting_leaves_nothing(way: Way) {
    let times = if is_long() { 10_000 } else { 30 };
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let linked = &world.linked;
    let pids = [up.program.pid(), linked.stub.pid(), linked.coordinator.program.pid()];
    let wires = world.all_wires();
    let mut reconnect = |number: usize| {
        let link = wires[number % wires.len()];
        let before = link.counts().accepted;
        link.reset();
        talk.echo_within(RECOVERY);
        until("another connection", || (link.counts().accepted > before).then_some(()));
    };
    // The first ones pay for what is there once.
    (0..5).for_each(&mut reconnect);
    let before = pids.map(footprint);
    (0..times).for_each(&mut reconnect);
    let mut after = before;
    let back = wait::within(PATIENCE, || {
        after = pids.map(footprint);
        let fits = |before: &Footprint, after: &Footprint| {
            after.memory <= before.memory + SLACK.memory
                && after.threads <= before.threads + SLACK.threads
                && after.files <= before.files + SLACK.files
        };
        before.iter().zip(&after).all(|(before, after)| fits(before, after)).then_some(())
    });
    println!("laptop, stub, coordinator before: {before:?}\nafter {times} more reconnects: {after:?}");
    assert!(back.is_some(), "something has piled up: {before:?}, then {after:?}");
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn reconnecting_leaves_nothing_behind() {
    reconnecting_leaves_nothing(Way::Relay);
}

#[test]
fn reconnecting_directly_leaves_nothing_behind() {
    reconnecting_leaves_nothing(Way::Direct);
}

#[test]
fn reconnecting_behind_a_balancer_leaves_nothing_behind() {
    reconnecting_leaves_nothing(Way::Balanced);
}

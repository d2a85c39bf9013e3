//! Much at once, and the same thing often: nothing stands still, and nothing piles up.

use std::time::Duration;

use serde_json::Value;

use crate::support::kernel::{Footprint, footprint};
use crate::support::*;

/// Seconds in which a sender fills the windows of 64 streams at once and then waits until they are empty: what it counts as
/// sent says nothing of the way yet.
const FILLING: usize = 3;

/// Resident bytes that `up` and the stub may each have while 64 streams are saturated both ways: twice 64 times the
/// 256 KiB that a stream may hold, the bytes that wait for their acknowledgement, and the program itself.
const MOST_MEMORY: u64 = 256 << 20;

#[test]
fn sixty_four_streams_saturated_both_ways_never_stand_still() {
    let seconds = if is_long() { "60" } else { "8" };
    let iperf3 = Iperf3::start();
    let world = Linked::new();
    let wire = Wire::new(200_000_000, Duration::from_millis(10));
    world.near.set_wire(wire);
    world.far.set_wire(wire);
    let up = Linked::up(&world.near, &world.laptop);
    let (port, _forward) = world.forward(format!("127.0.0.1:{}", iperf3.port));
    let mut client = command("iperf3", ["-J", "-c", "127.0.0.1", "-p", &port.to_string()]);
    // Small buffers in the kernel, which otherwise take some seconds of either way and hide whether it moves.
    client.args(["-P", "64", "--bidir", "-w", "128K", "-t", seconds]);
    let mut running = Running::start(client);
    let pids = [up.program.pid(), world.stub.pid()];
    let mut most = [0; 2];
    let status = until_ended(&mut running, || {
        for (most, pid) in most.iter_mut().zip(pids) {
            *most = footprint(pid).memory.max(*most);
        }
    });
    let report: Value = serde_json::from_str(&running.output()).unwrap_or_else(|e| panic!("{e}: {}", running.output()));
    assert!(status.success(), "{}", report["error"]);
    let intervals = report["intervals"].as_array().expect("intervals");
    assert!(intervals.len() >= FILLING + 5, "{} intervals", intervals.len());
    for way in ["sum", "sum_bidir_reverse"] {
        let speeds: Vec<f64> = intervals.iter().map(|i| i[way]["bits_per_second"].as_f64().expect("a sum")).collect();
        println!("{way}: {:.0?} Mbit/s", speeds.iter().map(|speed| speed / 1e6).collect::<Vec<_>>());
        assert!(speeds[FILLING..].iter().all(|speed| *speed > 0.0), "{way} stood still: {speeds:?}");
    }
    println!("most memory of laptop and stub: {:?} MB", most.map(|bytes| bytes / 1_000_000));
    assert!(most.iter().all(|bytes| *bytes < MOST_MEMORY), "{most:?} bytes");
    // It was only busy.
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
}

/// Looks around until it ends.
#[track_caller]
fn until_ended(program: &mut Running, mut look: impl FnMut()) -> std::process::ExitStatus {
    const MOST: Duration = Duration::from_secs(180);
    let status = wait::within(MOST, || {
        look();
        program.has_ended()
    });
    let status = status.unwrap_or_else(|| panic!("iperf3 stands still:\n{}", program.output()));
    // What it said is complete when its end is seen and its readers are through.
    until("the end of its report", || program.lines().last().is_some_and(|line| line == "}").then_some(()));
    status
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

#[test]
fn reconnecting_leaves_nothing_behind() {
    let times = if is_long() { 10_000 } else { 30 };
    let redis = Redis::start();
    let world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    let (port, _forward) = world.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let pids = [up.program.pid(), world.stub.pid(), world.coordinator.program.pid()];
    let mut reconnect = |number: usize| {
        let link = if number.is_multiple_of(2) { &world.near } else { &world.far };
        let before = link.counts().accepted;
        link.reset();
        talk.echo();
        assert!(link.counts().accepted > before, "the answer came over a new connection");
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
}

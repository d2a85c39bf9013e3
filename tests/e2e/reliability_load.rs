//! Much at once, and the same thing often: nothing stands still, and nothing piles up.

use std::collections::BTreeMap;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use nexus_proxy::lifeline::core::{MAX_CARRIERS, SLACK as KEPT_SLACK};
use nexus_proxy::lifeline::path::MOST_WINDOW;
use nexus_proxy::role::proxy::climb::WORTH;
use nexus_proxy::session::mux::{FIRST_WINDOW, POOL, SEND_QUEUE};
use nexus_proxy::transport::carrier::WRITE_BUFFER;
use nexus_proxy::transport::relay::RELAY_BUFFERS;
use nexus_proxy::wire::limits::MAX_CARRIER_MESSAGE;
use serde_json::Value;

use crate::support::faults::Faults;
use crate::support::kernel::{Footprint, footprint, peak};
use crate::support::linked::Frozen;
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

/// What the coordinator may hold of it: each carrier is a relay there.
const RELAYS: u64 = (MAX_CARRIERS * RELAY_BUFFERS) as u64;

/// Bits of one stream's fair part of what arrives: whenever so many arrived for each of them, each has to have moved. A few
/// pieces, as large as the multiplexer makes them.
const PART: f64 = 8.0 * 256.0 * 1024.0;

/// How much more than another one a stream may move in all. All have the same to send; what differs is when they began.
const UNFAIR: f64 = 8.0;

/// Bytes that pass between two looks while everything stands still: heartbeats, and attempts to reach who has stopped.
const STILL: u64 = 32 << 10;

/// Bytes that pass when it goes on.
const GOES_ON: u64 = 8 << 20;

/// What arrived on each stream in one second, in bits.
type Second = BTreeMap<u64, f64>;

/// Wires that are saturated soon.
#[track_caller]
fn over_slow_wires(way: Way) -> World {
    let world = World::by(way);
    let wire = Wire::new(200_000_000, Duration::from_millis(10));
    world.wires().iter().for_each(|link| link.set_wire(wire));
    world
}

/// A way on which windows are as large as they get.
#[track_caller]
fn over_a_long_and_fast_way(way: Way) -> World {
    let world = World::by(way);
    world.stretch(1_000_000_000, Duration::from_millis(75));
    world
}

/// The memory of laptop, stub and coordinator.
struct Memory {
    pids: [u32; 3],
    before: [u64; 3],
}

impl Memory {
    /// Of those of `world`, from here on.
    fn of(world: &World, up: &laptop::Up<'_>) -> Memory {
        let pids = [up.program.pid(), world.linked.stub.pid(), world.linked.coordinator.program.pid()];
        Memory { pids, before: pids.map(|pid| footprint(pid).memory) }
    }

    /// The most that each of them has had, however shortly.
    #[track_caller]
    fn most(&self) -> [u64; 3] {
        self.pids.map(peak)
    }

    /// Each of them held no more than before and what the session may make it hold.
    #[track_caller]
    fn stayed_within_bounds(&self) {
        let bounds = [SESSION, SESSION, RELAYS + HABITS];
        let most = self.most();
        println!(
            "memory of laptop, stub and coordinator: {:?} MB before, {:?} at most; a session may take {:?} MB",
            megabytes(self.before),
            megabytes(most),
            megabytes(bounds)
        );
        for ((most, before), bound) in most.into_iter().zip(self.before).zip(bounds) {
            assert!(most < before + bound, "{most} bytes, {before} before");
        }
    }
}

/// Bytes as a person reads them.
fn megabytes(bytes: [u64; 3]) -> [u64; 3] {
    bytes.map(|bytes| bytes / 1_000_000)
}

/// Two `iperf3` that saturate a forward each, one up and one down, and the memory of those who carry it. One that does both
/// takes it for granted that its connections arrive in the order in which it makes them.
struct Saturation {
    clients: [Running; 2],
    servers: [Iperf3; 2],
    memory: Memory,
    _forwards: [Running; 2],
}

impl Saturation {
    #[track_caller]
    fn start(world: &World, up: &laptop::Up<'_>, seconds: u32) -> Saturation {
        let servers = [Iperf3::start(), Iperf3::start()];
        let [(up_port, up_forward), (down_port, down_forward)] =
            servers.each_ref().map(|server| world.linked.forward(format!("127.0.0.1:{}", server.port)));
        let memory = Memory::of(world, up);
        let clients = [(up_port, "--get-server-output"), (down_port, "--reverse")].map(|(port, way)| {
            let mut client = command("iperf3", ["-J", "-c", "127.0.0.1", "-p", &port.to_string(), way]);
            // Small buffers in the kernel, which otherwise take some seconds of either way and hide whether it moves.
            client.args(["-P", &STREAMS.to_string(), "-w", "128K", "-t", &seconds.to_string()]);
            // What it counts at a time.
            client.args(["-l", "16K"]);
            Running::start(client)
        });
        Saturation { clients, servers, memory, _forwards: [up_forward, down_forward] }
    }

    /// Waits for the end; gives what arrived second by second, up and down.
    #[track_caller]
    fn ends(&mut self) -> [Vec<Second>; 2] {
        const MOST: Duration = Duration::from_secs(240);
        let ended = wait::within(MOST, || {
            let [up, down] = &mut self.clients;
            up.has_ended().zip(down.has_ended())
        });
        let said = self.clients.each_ref().map(Running::output);
        let (up, down) = ended.unwrap_or_else(|| panic!("iperf3 stands still:\n{said:?}"));
        [(0, up), (1, down)].map(|(which, status)| {
            let client = &self.clients[which];
            // What it said is complete when its end is seen and its readers are through.
            until("the end of its report", || client.lines().last().is_some_and(|line| line == "}").then_some(()));
            let said = client.output();
            let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
            assert!(status.success(), "{}", report["error"]);
            // What arrived; a sender counts what waits as well.
            let receiver = if which == 0 { &report["server_output_json"] } else { &report };
            let intervals = receiver["intervals"].as_array().unwrap_or_else(|| panic!("no intervals: {said}"));
            // What is left at the end is no second.
            let seconds = intervals.iter().filter(|i| i["sum"]["seconds"].as_f64().is_some_and(|time| time > 0.5));
            seconds.map(arrived).collect()
        })
    }
}

/// What an interval of a report of `iperf3` says about the streams that it received on.
fn arrived(interval: &Value) -> Second {
    let streams = interval["streams"].as_array().unwrap_or_else(|| panic!("no streams: {interval}"));
    let number = |stream: &Value| stream["socket"].as_u64().expect("a number");
    streams.iter().map(|stream| (number(stream), 8.0 * stream["bytes"].as_f64().expect("a number"))).collect()
}

/// What arrived on each stream in all of these seconds, in bits.
fn together(seconds: &[Second]) -> Vec<f64> {
    let mut all = Second::new();
    seconds.iter().flatten().for_each(|(stream, bits)| *all.entry(*stream).or_default() += bits);
    assert_eq!(all.len() as u64, STREAMS, "streams");
    all.into_values().collect()
}

/// The least and the most.
fn range(each: &[f64]) -> [f64; 2] {
    [each.iter().copied().fold(f64::INFINITY, f64::min), each.iter().copied().fold(0.0, f64::max)]
}

#[track_caller]
fn saturated_streams_never_stand_still(way: Way) {
    let world = over_slow_wires(way);
    let up = world.up();
    let mut saturation = Saturation::start(&world, &up, if is_long() { 60 } else { 8 });
    let arrived = saturation.ends();
    for (way, seconds) in ["up", "down"].into_iter().zip(arrived) {
        let speeds: Vec<f64> = seconds.iter().map(|second| second.values().sum::<f64>() / 1e6).collect();
        println!("{way}: {speeds:.0?} Mbit/s");
        assert!(speeds.len() >= 4, "{} seconds", speeds.len());
        assert!(speeds.iter().all(|speed| *speed > 0.0), "{way} stood still: {speeds:?}");
        let mut window = Vec::new();
        for (number, second) in seconds.iter().enumerate() {
            window.push(second.clone());
            let each = together(&window);
            if each.iter().sum::<f64>() >= PART * STREAMS as f64 {
                let still = each.iter().filter(|bits| **bits == 0.0).count();
                let when = format!("{} s before second {}", window.len(), number + 1);
                assert!(still == 0, "{way}: {still} streams stood still in the {when}: {each:.0?} bits");
                window.clear();
            }
        }
        let [least, most] = range(&together(&seconds));
        println!("{way}: the streams moved {:.1} to {:.1} Mbit each", least / 1e6, most / 1e6);
        assert!(most < least * UNFAIR, "{way}: one stream moved {least:.0} bits while another moved {most:.0}");
    }
    saturation.memory.stayed_within_bounds();
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
    let world = over_slow_wires(way);
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
    saturation.memory.stayed_within_bounds();
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

/// Waits until nothing passes any more: who may hold something is full.
#[track_caller]
fn stands_still(world: &World) {
    const LOOKS: usize = 20;
    let (mut before, mut still) = (0, 0);
    let stood = wait::within(RECOVERY, || {
        let moved = world.moved();
        still = if moved < before + STILL { still + 1 } else { 0 };
        before = moved;
        (still == LOOKS).then_some(())
    });
    assert!(stood.is_some(), "{before} bytes have passed, and more do");
}

/// Programs stop in the middle of as much as there can be, one after the other, until nothing moves: those who send and
/// receive on either end, who then read nothing, and those who carry it.
#[track_caller]
fn memory_stays_within_its_bounds_whoever_stops(world: World) {
    let way = world.way;
    let up = world.up();
    let mut saturation = Saturation::start(&world, &up, 600);
    let goes_on = || {
        let before = world.moved();
        let moved = wait::within(RECOVERY, || (world.moved() > before + GOES_ON).then_some(()));
        assert!(moved.is_some(), "it stands still:\n{}", up.program.output());
    };
    goes_on();
    let [laptop, stub, _] = saturation.memory.pids;
    let [clients, servers] =
        [saturation.clients.each_ref().map(Running::pid), saturation.servers.each_ref().map(Iperf3::pid)];
    for (who, pids) in [("clients", &clients[..]), ("servers", &servers), ("laptop", &[laptop]), ("stub", &[stub])] {
        let frozen: Vec<Frozen> = pids.iter().map(|pid| Frozen::new(*pid)).collect();
        stands_still(&world);
        println!("{way:?}: stopped: {who}; {:?} MB at most until here", megabytes(saturation.memory.most()));
        if pids.len() > 1 {
            // Only those streams are full.
            assert_eq!(world.linked.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
        }
        drop(frozen);
        goes_on();
    }
    saturation.memory.stayed_within_bounds();
    for client in &mut saturation.clients {
        assert!(client.has_ended().is_none(), "{}", client.output());
    }
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn memory_stays_within_its_bounds_whoever_stops_reading() {
    memory_stays_within_its_bounds_whoever_stops(over_slow_wires(Way::Relay));
}

#[test]
fn memory_stays_within_its_bounds_whoever_stops_reading_on_the_direct_way() {
    memory_stays_within_its_bounds_whoever_stops(over_slow_wires(Way::Direct));
}

#[test]
fn memory_stays_within_its_bounds_whoever_stops_reading_on_a_long_and_fast_way() {
    memory_stays_within_its_bounds_whoever_stops(over_a_long_and_fast_way(Way::Relay));
}

#[test]
fn downloads_that_nobody_reads_stay_where_they_are() {
    const READERS: usize = 4;
    // Together several times what the session may hold.
    const SIZE: u64 = 128 << 20;
    let nginx = Nginx::start();
    let file = std::fs::File::create(nginx.root.join("large")).expect("a file of ours");
    file.set_len(SIZE).expect("a file with nothing in it");
    let world = World::by(Way::Relay);
    let up = world.up();
    let (port, _forward) = world.linked.forward(nginx.addr);
    let memory = Memory::of(&world, &up);
    let url = format!("http://127.0.0.1:{port}/large");
    let download = || Running::start(curl(&["-o", "/dev/null", "-w", "%{size_download} bytes\n", &url]));
    let readers: Vec<Running> = (0..READERS).map(|_| download()).collect();
    until("the downloads to begin", || (world.moved() > GOES_ON).then_some(()));
    let frozen: Vec<Frozen> = readers.iter().map(|reader| Frozen::new(reader.pid())).collect();
    stands_still(&world);
    let sent = world.linked.far.counts().up;
    println!("{} MB were sent to {READERS} programs that do not read", sent / 1_000_000);
    assert!(sent < READERS as u64 * SIZE, "somebody took it all, and nobody reads it");
    // Who reads is served.
    assert_eq!(world.linked.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    let mut another = download();
    another.says(&format!("{SIZE} bytes"));
    drop(frozen);
    for mut reader in readers {
        reader.says_after(0, RECOVERY, &format!("{SIZE} bytes"));
    }
    memory.stayed_within_bounds();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

/// Memory that a program may take and keep without anything piling up in it: the allocator's habits.
const HABITS: u64 = 24 << 20;

/// Reconnects of each kind that pay for what is there once.
const FIRST_ONES: usize = 20;

/// What a program may have more of in the end than in the beginning, beside memory.
const SLACK: Footprint = Footprint {
    // Less than a kilobyte for each of thousands of reconnects, less than 64 KiB, a buffer's size, for each of two hundred.
    memory: 8 << 20,
    // Threads that wait a while for more blocking work.
    threads: 4,
    // A connection that is being made.
    files: 4,
};

/// A file in the workspace that is enough to make a way of use, and a forward to it.
struct Bulk {
    url: String,
    _nginx: Nginx,
    _forward: Running,
}

impl Bulk {
    #[track_caller]
    fn of(world: &World) -> Bulk {
        let nginx = Nginx::start();
        std::fs::write(nginx.root.join("bulk"), vec![b'x'; 2 * WORTH as usize]).expect("a file of ours");
        let (port, forward) = world.linked.forward(nginx.addr);
        Bulk { url: format!("http://127.0.0.1:{port}/bulk"), _nginx: nginx, _forward: forward }
    }

    #[track_caller]
    fn download(&self) {
        Running::start(curl(&["-o", "/dev/null", &self.url])).completes(PATIENCE);
    }
}

/// What is reset again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resets {
    /// What stands by behind a direct way: it is had again at once.
    Standby,
    /// What carries the session. A direct way that has just broken is left alone for a second each time.
    Carrier,
}

impl Resets {
    /// What happens in a story, one after the other, how often, and how much more memory a program may have after it.
    fn all(way: Way) -> Vec<(Resets, usize, u64)> {
        let times = |usual, long| if is_long() { long } else { usual };
        match way {
            Way::Relay | Way::Balanced => vec![(Resets::Carrier, times(200, 10_000), SLACK.memory)],
            // In this order: what the bulk leaves comes and goes, and would hide what the others leave.
            Way::Direct => {
                vec![(Resets::Standby, times(200, 9_000), SLACK.memory), (Resets::Carrier, times(10, 1_000), HABITS)]
            }
        }
    }
}

/// Resets wires of the session in turn, and waits each time for another connection and an answer.
#[track_caller]
fn reconnecting_leaves_nothing(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let up = world.up();
    let (port, forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let linked = &world.linked;
    let pids = [up.program.pid(), linked.stub.pid(), linked.coordinator.program.pid(), forward.pid()];
    let wires = world.wires();
    let bulk = world.direct.as_ref().map(|_| Bulk::of(&world));
    let mut reconnect = |what: Resets, number: usize| {
        let (link, comes_by) = match what {
            // Whichever breaks, it is the laptop that dials.
            Resets::Standby => ([&linked.near, &linked.far][number % 2], &linked.near),
            Resets::Carrier => {
                // A direct way that is of no use before it breaks is taken again only after longer and longer waits.
                bulk.iter().for_each(Bulk::download);
                (wires[number % wires.len()], wires[number % wires.len()])
            }
        };
        let before = comes_by.counts().accepted;
        link.reset();
        talk.echo_within(RECOVERY);
        until("another connection", || (comes_by.counts().accepted > before).then_some(()));
        world.settle();
    };
    for (what, times, memory) in Resets::all(way) {
        (0..times.min(FIRST_ONES)).for_each(|number| reconnect(what, number));
        let before = pids.map(footprint);
        (0..times).for_each(|number| reconnect(what, number));
        let mut after = before;
        let back = wait::within(PATIENCE, || {
            after = pids.map(footprint);
            let fits = |before: &Footprint, after: &Footprint| {
                after.memory <= before.memory + memory
                    && after.threads <= before.threads + SLACK.threads
                    && after.files <= before.files + SLACK.files
            };
            before.iter().zip(&after).all(|(before, after)| fits(before, after)).then_some(())
        });
        println!("{way:?}, {what:?}: laptop, stub, coordinator, `forward` before: {before:?}");
        println!("after {times} more reconnects: {after:?}");
        assert!(back.is_some(), "something has piled up: {before:?}, then {after:?}");
    }
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

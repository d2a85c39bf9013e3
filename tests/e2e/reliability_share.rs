//! Bulk starves nobody: while it fills a wire, what is typed in a terminal comes back, calls are answered, and no
//! heartbeat comes too late. How long that may take is counted in bytes of the bulk itself: a busy machine slows both.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::*;

/// Streams of bulk in each direction. One that had to wait for its turn among them would wait for a piece of each.
const STREAMS: u64 = 128;

/// A wire that bulk fills at once, and how long a byte takes on the whole way.
const BANDWIDTH: u64 = 100_000_000;
const DELAY: Duration = Duration::from_millis(10);

/// Bytes of bulk in one direction that say that it is under way.
const UNDER_WAY: u64 = 4 << 20;

/// Bytes of bulk that may pass while one line goes and comes back, on average. A round trip of the wire has 250 KB, and a
/// busy machine a few times that; a piece of each stream has 6 MB.
const BESIDE_A_LINE: u64 = 3 << 20;

/// The same while programs are started on either end, call, and are answered.
const BESIDE_A_CALL: u64 = 16 << 20;

/// Times that much may pass beside the slowest line or call.
const SLOWEST: u64 = 10;

/// Bytes that pass at least meanwhile: with fewer there would be nothing to wait behind.
const LEAST: u64 = 32 << 10;

/// An `iperf3` for each of some directions, which goes on until this is dropped.
struct Bulk<'a> {
    world: &'a World,
    directions: Vec<Direction>,
    clients: Vec<Running>,
    _behind: Vec<(Iperf3, Running)>,
}

impl Bulk<'_> {
    /// Returns when it is under way.
    #[track_caller]
    fn start<'a>(world: &'a World, directions: &[Direction]) -> Bulk<'a> {
        let (mut clients, mut behind) = (Vec::new(), Vec::new());
        let before = passed(world);
        for direction in directions {
            let server = Iperf3::start();
            let (port, forward) = world.linked.forward(format!("127.0.0.1:{}", server.port));
            let mut client = command("iperf3", ["-c", "127.0.0.1", "-p", &port.to_string(), "-t", "3600"]);
            client.args(["-P", &STREAMS.to_string()]);
            client.args((*direction == Direction::Down).then_some("--reverse"));
            clients.push(Running::start(client));
            behind.push((server, forward));
        }
        let bulk = Bulk { world, directions: directions.to_vec(), clients, _behind: behind };
        until("bulk to be under way", || bulk.since(before).iter().all(|bytes| *bytes > UNDER_WAY).then_some(()));
        bulk
    }

    /// Bytes that have passed in each of its directions since there were so many.
    fn since(&self, before: [u64; 2]) -> Vec<u64> {
        let now = passed(self.world);
        self.directions.iter().map(|&direction| now[direction as usize] - before[direction as usize]).collect()
    }

    /// Does `work` so many times; bulk went on meanwhile, `most` bytes of it at the most on average, and [`SLOWEST`] times
    /// that beside any.
    #[track_caller]
    fn beside(&mut self, what: &str, times: u64, most: u64, mut work: impl FnMut()) {
        let before = passed(self.world);
        let mut slowest = 0;
        for _ in 0..times {
            let began = passed(self.world);
            work();
            slowest = self.since(began).into_iter().fold(slowest, u64::max);
        }
        let each: Vec<u64> = self.since(before).iter().map(|bytes| bytes / times).collect();
        let (kib, ways) = (each.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>(), &self.directions);
        println!("{ways:?}: beside {what}, of {times}, passed {kib:?} KiB on average, {} at most", slowest >> 10);
        assert!(each.iter().all(|bytes| *bytes >= LEAST), "{ways:?} stood still beside {what}: {kib:?} KiB each");
        assert!(each.iter().all(|bytes| *bytes <= most), "{what} waited for bulk {ways:?}: {kib:?} KiB each");
        assert!(slowest <= most * SLOWEST, "one {what} waited for {slowest} bytes of bulk {ways:?}");
        for client in &mut self.clients {
            assert!(client.has_ended().is_none(), "{}", client.output());
        }
    }
}

/// Bytes that have arrived over the last wire before either end, up and down.
fn passed(world: &World) -> [u64; 2] {
    let counts = world.wires()[0].counts();
    [counts.up, counts.down]
}

/// Connections that may be tried for nothing, at all wires.
const MOST_TRIED: u64 = 2;

/// How often the laptop looks at the authorities, on a connection of its own.
const LOOK: Duration = Duration::from_secs(60);

#[track_caller]
fn bulk_starves_nobody(way: Way) {
    let (lines, calls) = if is_long() { (1000, 50) } else { (100, 5) };
    let sshd = Sshd::start();
    let world = World::by(way);
    world.stretch(BANDWIDTH, DELAY);
    let up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", sshd.port));
    let mut terminal = Dialogue::with(sshd.client(port, &["-tt", "there", "cat"]));
    let typed = |word: &str| word.to_owned();
    terminal.ask(PATIENCE, typed);
    let connections = || world.all_wires().iter().map(|link| link.counts().accepted).collect::<Vec<_>>();
    let (before, began) = (connections(), Instant::now());
    for directions in [&[Direction::Up][..], &[Direction::Down], &Direction::BOTH] {
        let mut bulk = Bulk::start(&world, directions);
        bulk.beside("a typed line", lines, BESIDE_A_LINE, || {
            terminal.ask(PATIENCE, typed);
        });
        bulk.beside("a call", calls, BESIDE_A_CALL, || {
            let list = world.linked.laptop.exec("box", &["nexus-stub", "tool", "list"]).ok();
            assert!(list.contains("no tools are declared"), "{list}");
        });
    }
    // What was typed, once as the terminal shows it and once as the program behind it says it again: all of it, in order.
    terminal.say("\x04");
    let ended = terminal.program.ends();
    let said = terminal.program.output();
    assert!(ended.success(), "{said}");
    let number = |line: &str| line.strip_prefix("word")?.strip_suffix("end")?.parse::<u64>().ok();
    let mut shown: Vec<u64> = said.lines().filter_map(number).collect();
    let typed = 1 + 3 * lines;
    assert_eq!(shown.len() as u64, 2 * typed, "{said}");
    let mut seen = BTreeSet::new();
    shown.retain(|number| seen.insert(*number));
    assert!(shown.into_iter().eq(1..=typed), "{said}");
    // It was only busy: no heartbeat waited so long that a connection was given up. A busy machine may have another one
    // tried for nothing; where heartbeats starve, they are tried again and again.
    let said = up.program.output();
    assert!(up.tunnels() == 1 && !said.contains("interrupted"), "{said}");
    let tried = connections().iter().sum::<u64>() - before.iter().sum::<u64>();
    let looks = began.elapsed().as_secs() / LOOK.as_secs() + 1;
    assert!(tried <= MOST_TRIED + looks, "{tried} connections more than {before:?}:\n{said}");
}

#[test]
fn bulk_starves_no_terminal_and_no_call() {
    bulk_starves_nobody(Way::Relay);
}

#[test]
fn bulk_starves_no_terminal_and_no_call_on_the_direct_way() {
    bulk_starves_nobody(Way::Direct);
}

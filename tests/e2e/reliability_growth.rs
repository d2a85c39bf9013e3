//! What a session may take more of, and how much: windows that grow with the path, in both directions, and streams, up to
//! their limit.

use std::time::Duration;

use nexus_proxy::session::mux::End;
use serde_json::Value;

use crate::support::laptop::port_in;
use crate::support::transfers::RECOVERY;
use crate::support::*;

/// A way on which a window has to grow.
const BANDWIDTH: u64 = 1_000_000_000;
const DELAY: Duration = Duration::from_millis(75);

/// Bit/s that one stream moves there at least. A window that stays as it begins, at 256 KiB, gives 14 Mbit/s at a round trip of
/// 150 ms, on any machine; one that is busy with six times what it can do has given 49.
const LEAST: f64 = 28e6;

/// Seconds of one transfer: many round trips.
const SECONDS: &str = "5";

/// One stream up, and then one down, over a long and fast way.
#[track_caller]
fn windows_grow(way: Way) {
    let world = World::by(way);
    let server = Iperf3::start();
    world.stretch(BANDWIDTH, DELAY);
    let up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", server.port));
    for direction in [&[][..], &["--reverse"]] {
        let mut client = command("iperf3", ["-J", "-c", "127.0.0.1", "-p", &port.to_string(), "-t", SECONDS]);
        client.args(direction);
        let report: Value = serde_json::from_str(&Run::of(client).ok()).expect("-J is JSON");
        let received = report["end"]["sum_received"]["bits_per_second"].as_f64();
        let received = received.unwrap_or_else(|| panic!("{report}"));
        println!("{way:?} {direction:?}: {:.0} Mbit/s", received / 1e6);
        assert!(received > LEAST, "{direction:?}: {received:.0} bit/s");
    }
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn windows_grow_in_both_directions() {
    windows_grow(Way::Relay);
}

#[test]
fn windows_grow_in_both_directions_on_the_direct_way() {
    windows_grow(Way::Direct);
}

/// Connections more than there may be.
const BEYOND: usize = 76;

/// Streams of the session that are none of the crowd's: calls, and what was asked a moment ago.
const OTHERS: usize = 8;

/// Holds so many connections to a Redis at once; asks each of them, and says how many answered, were reset, or did anything
/// else. Keeps those that answered. At `anew` it closes as many as it is told, and makes as many others.
const CROWD: &str = "\
import resource, socket, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
port, crowd = int(sys.argv[1]), []
def attempt(what):
    try:
        return what()
    except ConnectionError:
        return None
def connect():
    return socket.create_connection(('127.0.0.1', port), 120)
def said(one):
    return one if one and attempt(lambda: one.sendall(b'PING\\r\\n') or one) else None
def heard(one):
    answer = attempt(lambda: one.recv(64)) if one else None
    return {b'+PONG\\r\\n': 'answered', None: 'reset', b'': 'ended'}.get(answer, 'other')
for line in sys.stdin:
    count, word = line.split()
    del crowd[:max(0, -int(count))]
    crowd += [attempt(connect) for _ in range(abs(int(count)))]
    how = [heard(one) for one in [said(one) for one in crowd]]
    crowd = [one for one, how in zip(crowd, how) if how == 'answered']
    print(word, *(how.count(each) for each in ('answered', 'reset', 'ended', 'other')))
";

/// A crowd that is one forward's.
struct Crowd(Dialogue);

impl Crowd {
    #[track_caller]
    fn before(port: u16) -> Crowd {
        Crowd(Dialogue::with(command("python3", ["-u", "-c", CROWD, &port.to_string()])))
    }

    /// So many join it; with a minus, as many leave before. Gives how many answer then, and how many were reset: all others.
    #[track_caller]
    fn changes_by(&mut self, count: isize) -> [usize; 2] {
        let line = self.0.ask(RECOVERY, |word| format!("{count} {word}"));
        println!("{count:+}: {line}");
        let each: Vec<usize> = line.split(' ').skip(1).map(|word| word.parse().expect("a number")).collect();
        let [answered, reset, 0, 0] = each[..] else { panic!("some ended as if nothing was wrong: {line}") };
        [answered, reset]
    }
}

/// As many connections through one forward as there may be, and some more: those are reset, and the others live. Where some
/// leave, others have room. `when_full` is done while there is none.
#[track_caller]
fn a_crowd_is_admitted_up_to(limit: usize, flag: &str, when_full: impl FnOnce(&Laptop)) {
    let redis = Redis::start();
    let world = World::by(Way::Relay);
    let up = world.up();
    let laptop = &world.linked.laptop;
    let (line, _forward) = laptop.forward("box", &[flag, &format!("0:127.0.0.1:{}", redis.port)], "forward");
    let mut crowd = Crowd::before(port_in(&line));
    let [admitted, reset] = crowd.changes_by((limit + BEYOND) as isize);
    assert!((limit - OTHERS..=limit).contains(&admitted), "{admitted} of {limit}, and {reset} were reset");
    when_full(laptop);
    assert_eq!(crowd.changes_by(0), [admitted, 0], "those that were admitted live");
    // As many as one can be certain of.
    let others = (BEYOND / 2) as isize;
    assert_eq!(crowd.changes_by(-others), [admitted, 0], "where some left, others have room");
    drop(crowd);
    until("everybody to have left", || (laptop.workspace_status()["forwards"][0]["open"] == 0).then_some(()));
    assert_eq!(laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn connections_of_the_workspace_beyond_the_limit_are_refused_and_the_others_live() {
    a_crowd_is_admitted_up_to(End::Laptop.inbound_limit(), "-R", |laptop| {
        // What the laptop opens is counted by itself.
        assert_eq!(laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    });
}

#[test]
fn connections_of_the_laptop_beyond_the_limit_are_refused_and_the_others_live() {
    a_crowd_is_admitted_up_to(End::Workspace.inbound_limit(), "-L", |laptop| {
        // Not even this has room; it says so, and is not left to wait.
        let refused = laptop.exec("box", &["echo", "hi"]).err();
        assert!(refused.contains("hint: close some"), "{refused}");
    });
}

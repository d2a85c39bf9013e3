//! What is open through a UDP forward or a SOCKS port goes on when the network breaks, however long that lasts: the same flow,
//! the same association, the same connection.

use std::time::Duration;

use crate::reliability::lasts;
use crate::support::linked::Frozen;
use crate::support::transfers::RECOVERY;
use crate::support::*;

/// A client of SOCKS5's UDP ASSOCIATE (RFC 1928) that sends each line it is told to a port in the workspace, and prints what comes
/// back.
const ASSOCIATE: &str = r#"
import socket, struct, sys
proxy, target = int(sys.argv[1]), int(sys.argv[2])
tcp = socket.create_connection(("127.0.0.1", proxy), timeout=25)
tcp.sendall(b"\x05\x01\x00")
assert tcp.recv(2) == b"\x05\x00"
tcp.sendall(b"\x05\x03\x00\x01" + bytes(6))
reply = tcp.recv(10)
assert reply[:4] == b"\x05\x00\x00\x01", reply
relay = (socket.inet_ntoa(reply[4:8]), struct.unpack("!H", reply[8:])[0])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
head = b"\x00\x00\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack("!H", target)
for line in sys.stdin:
    udp.sendto(head + line.encode(), relay)
    print(udp.recv(65536)[len(head):].decode(), end="", flush=True)
"#;

/// `socat` between its own input and output and UDP `port` of the loopback: a line is a datagram, and its own port stays the same.
fn datagrams(port: u16) -> Dialogue {
    Dialogue::with(command("socat", ["-t", "1", "STDIO", &format!("UDP:127.0.0.1:{port}")]))
}

/// `nc` between its own input and output and a Redis on `port` of the workspace, through a SOCKS port.
fn through_socks(socks: u16, port: u16) -> Dialogue {
    Dialogue::with(command("nc", ["-X", "5", "-x", &format!("127.0.0.1:{socks}"), "localhost", &port.to_string()]))
}

#[track_caller]
fn datagrams_and_socks_go_on(way: Way) {
    let (redis, echo) = (Redis::start(), UdpEcho::start());
    let mut world = World::by(way);
    // What the world changes must not be borrowed meanwhile.
    let laptop = world.linked.laptop.twin();
    let up = world.up_of(&laptop);
    let target = format!("0:127.0.0.1:{}/udp", echo.port);
    let listens = |flag: &str, spec: &str| {
        let (line, forward) = laptop.forward("box", &[flag, spec], "forward");
        (laptop::port_in(&line), forward)
    };
    let (local, remote, socks) = (listens("-L", &target), listens("-R", &target), listens("-D", "0"));
    let associate = command("python3", ["-c", ASSOCIATE, &socks.0.to_string(), &echo.port.to_string()]);
    let mut connection = through_socks(socks.0, redis.port);
    let mut flows = [datagrams(local.0), datagrams(remote.0), Dialogue::with(associate)];
    let mut all_answer = |what: &str| {
        let began = std::time::Instant::now();
        connection.echo_within(RECOVERY);
        flows.iter_mut().for_each(|flow| drop(flow.ask(RECOVERY, str::to_owned)));
        println!("{way:?}: all have answered {:?} after {what}", began.elapsed());
    };
    all_answer("the beginning");
    world.all_wires().iter().for_each(|link| link.reset());
    all_answer("a reset of all wires");
    world.all_wires().iter().for_each(|link| link.black_hole());
    std::thread::sleep(lasts(16, 200));
    world.all_wires().iter().for_each(|link| link.heal());
    all_answer("a black hole on all wires");
    let asleep = Frozen::new(up.program.pid());
    world.laptops_wires().iter().for_each(|link| link.forget_present());
    std::thread::sleep(lasts(4, 200));
    drop(asleep);
    all_answer("sleep, and connections that were gone after it");
    world.linked.coordinator.kill();
    std::thread::sleep(Duration::from_secs(1));
    world.linked.coordinator.start_again();
    all_answer("a crash of the coordinator");
    let status = laptop.workspace_status();
    let begun: Vec<_> = ["-L", "-R", "-D"].iter().zip(status["forwards"].as_array().expect("a list")).collect();
    for ((flag, forward), expected) in begun.into_iter().zip([1, 1, 2]) {
        assert_eq!((&forward["open"], &forward["total"]), (&expected.into(), &expected.into()), "{flag}: {forward}");
    }
    connection.say("QUIT");
    connection.ends_well();
    flows.into_iter().for_each(Dialogue::ends_well);
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

on_ways! {
    datagrams_and_socks_go_on:
    fn what_is_open_by_datagrams_and_by_socks_goes_on() on Relay;
    fn what_is_open_by_datagrams_and_by_socks_goes_on_on_the_direct_way() on Direct;
    fn what_is_open_by_datagrams_and_by_socks_goes_on_behind_a_balancer() on Balanced;
}

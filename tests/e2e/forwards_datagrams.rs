//! UDP: through `-L …/udp` and `-R …/udp`, and by SOCKS5's UDP ASSOCIATE.

use std::net::UdpSocket;
use std::time::Duration;

use crate::support::program::free_port;
use crate::support::*;

/// A datagram that fits every path; one that needs several packets on an ordinary network.
const SIZES: [usize; 3] = [1, 1200, 9000];

#[test]
fn datagrams_keep_their_borders() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let echo = UdpEcho::start();
    for flag in ["-L", "-R"] {
        let (port, _forward) = laptop.forward_on_free_port(flag, &format!("0:127.0.0.1:{}/udp", echo.port));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for size in SIZES {
            let datagram: Vec<u8> = rand::random_iter().take(size).collect();
            socket.send(&datagram).unwrap();
            let mut answer = vec![0; 65536];
            let length = socket.recv(&mut answer).unwrap_or_else(|e| panic!("{flag}, {size} bytes: {e}"));
            assert!(answer[..length] == datagram, "{flag}: {length} of {size} bytes came back");
        }
    }
}

#[test]
fn answers_go_to_whoever_asked() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let echo = UdpEcho::start();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{}/udp", echo.port));
    let sockets: Vec<UdpSocket> = (0..20).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (n, socket) in sockets.iter().enumerate() {
        socket.send_to(format!("client {n}").as_bytes(), ("127.0.0.1", port)).unwrap();
    }
    for (n, socket) in sockets.iter().enumerate() {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 100];
        let length = socket.recv(&mut answer).unwrap_or_else(|e| panic!("client {n}: {e}"));
        assert_eq!(String::from_utf8_lossy(&answer[..length]), format!("client {n}"));
    }
    assert_eq!(laptop.workspace_status()["forwards"][0]["total"], 20);
}

#[test]
fn socat_and_iperf3_speak_udp() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let echo = UdpEcho::start();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{}/udp", echo.port));
    // Ends with as many bytes as were sent: a datagram has no end to wait for.
    let socat = command("socat", ["-t25", "-", &format!("UDP:127.0.0.1:{port},readbytes=6")]);
    assert_eq!(Run::with_input(socat, b"hello\n").ok(), "hello\n");

    // iperf3 agrees on the test by TCP, and sends by UDP to the same port.
    let server = Iperf3::start();
    let port = free_port();
    let tcp = format!("{port}:127.0.0.1:{}", server.port);
    let (_, mut forward) = laptop.forward("default", &["-L", &tcp, "-L", &format!("{tcp}/udp")], "forward");
    until("both forwards", || (forward.lines().len() == 2).then_some(()));
    for more in [&[][..], &["-R"]] {
        let report = Run::of(Iperf3::client(port, "200K", &[&["-u", "-l", "1000", "-b", "2M"], more].concat())).ok();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["error"].is_null(), "{more:?}: {report}");
        let sum = &report["end"]["sum"];
        // A datagram may be lost; most must arrive.
        assert!(sum["lost_percent"].as_f64().is_some_and(|lost| lost < 50.0), "{more:?}: {sum}");
        assert!(sum["packets"].as_u64().is_some_and(|n| n >= 200), "{more:?}: {sum}");
    }
    assert!(forward.has_ended().is_none());
}

#[test]
fn socks5_associates_udp() {
    // The client's half of RFC 1928, by hand: greeting, UDP ASSOCIATE, one datagram by address and one by name.
    const CLIENT: &str = r#"
import socket, struct, sys
proxy, target = int(sys.argv[1]), int(sys.argv[2])
tcp = socket.create_connection(("127.0.0.1", proxy), timeout=25)
tcp.sendall(b"\x05\x01\x00")
assert tcp.recv(2) == b"\x05\x00"
tcp.sendall(b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
reply = tcp.recv(10)
assert reply[:4] == b"\x05\x00\x00\x01", reply
relay = (socket.inet_ntoa(reply[4:8]), struct.unpack("!H", reply[8:])[0])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(25)
port = struct.pack("!H", target)
for address in (b"\x01" + socket.inet_aton("127.0.0.1"), b"\x03" + bytes([9]) + b"localhost"):
    udp.sendto(b"\x00\x00\x00" + address + port + b"datagram", relay)
    answer, _ = udp.recvfrom(65536)
    assert answer[:3] == b"\x00\x00\x00" and answer.endswith(port + b"datagram"), answer
print("both came back")
# A fragment is dropped, as the RFC allows; what follows it is served.
udp.sendto(b"\x00\x00\x01" + address + port + b"fragment", relay)
udp.sendto(b"\x00\x00\x00" + address + port + b"whole", relay)
answer, _ = udp.recvfrom(65536)
assert answer.endswith(b"whole"), answer
tcp.close()
print("done")
"#;
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let echo = UdpEcho::start();
    let (port, _forward) = laptop.forward_on_free_port("-D", "0");
    let client = command("python3", ["-c", CLIENT, &port.to_string(), &echo.port.to_string()]);
    assert_eq!(Run::of(client).ok(), "both came back\ndone\n");
    until("the association to end with its connection", || {
        (laptop.workspace_status()["forwards"][0]["open"] == 0).then_some(())
    });
}

#[test]
fn a_forward_outlives_a_server_that_is_not_there() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let target = free_port();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{target}/udp"));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket.send(b"to nobody").unwrap();
    until("the datagram to be counted", || (laptop.workspace_status()["forwards"][0]["sent"] == 9).then_some(()));
    let server = UdpSocket::bind(("127.0.0.1", target)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    until("a datagram at the server that came late", || {
        // The flow may have broken with the first datagram: the next one makes another.
        let _ = socket.send(b"to somebody");
        let mut bytes = [0; 100];
        server.recv(&mut bytes).is_ok_and(|n| &bytes[..n] == b"to somebody").then_some(())
    });
}

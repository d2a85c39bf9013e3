//! The simulated wire itself, with nothing of ours on it: when a story about a bad network fails, it is not for the network.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::*;

/// A server that waits to be asked: what is accepted is the test's.
struct Far {
    listener: TcpListener,
    link: Link,
}

impl Far {
    fn new() -> Far {
        Far::over(Wire::default())
    }

    fn over(wire: Wire) -> Far {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let link = Link::with(listener.local_addr().expect("it is bound").port(), wire);
        Far { listener, link }
    }

    /// A connection over the link: its near end and its far one.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let near = self.dial();
        (near, patient(self.listener.accept().expect("the link dials").0))
    }

    fn dial(&self) -> TcpStream {
        patient(TcpStream::connect(("127.0.0.1", self.link.port)).expect("the link listens"))
    }

    /// Whether somebody has dialled the far end.
    fn is_dialled(&self) -> bool {
        self.listener.set_nonblocking(true).expect("a socket of ours");
        let outcome = self.listener.accept();
        self.listener.set_nonblocking(false).expect("a socket of ours");
        outcome.is_ok()
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket of ours");
    stream.set_nodelay(true).expect("a socket of ours");
    stream
}

/// Sends `text` from one end to the other.
#[track_caller]
fn passes(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).expect("it takes them");
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).expect("they arrive");
    assert_eq!(String::from_utf8_lossy(&got), text);
}

/// Nothing is to be read from `stream`, now and for a moment.
#[track_caller]
fn is_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket of ours");
    let outcome = stream.read(&mut [0]);
    let kind = outcome.as_ref().map_err(std::io::Error::kind);
    assert!(matches!(kind, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{outcome:?}");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
}

/// What arrives until the end, and whether the end was in good order.
fn rest(stream: &mut TcpStream) -> (usize, bool) {
    let mut bytes = Vec::new();
    let outcome = stream.read_to_end(&mut bytes);
    (bytes.len(), outcome.is_ok())
}

#[test]
fn bytes_and_ends_pass_both_ways() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    passes(&mut near, &mut served, "hello");
    passes(&mut served, &mut near, "and back");
    // A half-close is one.
    near.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut served), (0, true));
    passes(&mut served, &mut near, "still");
    drop(served);
    assert_eq!(rest(&mut near), (0, true));
    until("the connection to be over", || (far.link.counts().open == 0).then_some(()));
    let counts = far.link.counts();
    assert_eq!((counts.accepted, counts.up, counts.down), (1, 5, 13));
}

#[test]
fn a_reset_is_passed_on() {
    let far = Far::new();
    let (mut near, served) = far.connect();
    socket2::SockRef::from(&served).set_linger(Some(Duration::ZERO)).unwrap();
    drop(served);
    assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // A target that is not there is one, too.
    let link = Link::to(program::free_port());
    let mut near = patient(TcpStream::connect(("127.0.0.1", link.port)).unwrap());
    assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn delay_adds_up() {
    const DELAY: Duration = Duration::from_millis(40);
    const ROUNDS: u32 = 5;
    let far = Far::over(Wire { delay: DELAY, ..Wire::default() });
    let (mut near, mut served) = far.connect();
    let began = Instant::now();
    for _ in 0..ROUNDS {
        passes(&mut near, &mut served, "ping");
        passes(&mut served, &mut near, "pong");
    }
    let took = began.elapsed();
    assert!(took >= DELAY * 2 * ROUNDS, "{took:?}");
    far.link.set_wire(Wire::default());
    passes(&mut near, &mut served, "at once");
}

/// The figures that iperf3 gives for a transfer of some seconds over the link, in bit/s.
#[track_caller]
fn iperf3(wire: Wire, seconds: u32, more: &[&str]) -> f64 {
    let server = Iperf3::start();
    let link = Link::with(server.port, wire);
    let mut client = command("iperf3", ["-J", "-c", "127.0.0.1", "-p", &link.port.to_string()]);
    client.args(["-t", &seconds.to_string()]).args(more);
    let report: serde_json::Value = serde_json::from_str(&Run::of(client).ok()).expect("-J is JSON");
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn bandwidth_is_what_was_asked_for() {
    let wire = Wire::new(200_000_000, Duration::from_millis(30));
    for more in [&[][..], &["-R"], &["-P", "4"]] {
        // A machine that is busy elsewhere has less for it at times.
        let enough = (0..3).any(|_| {
            let got = iperf3(wire, 3, more) / wire.bandwidth as f64;
            println!("iperf3 {more:?}: {got:.3} of the bandwidth");
            assert!(got < 1.05, "{more:?}: {got:.3} of the bandwidth");
            got > 0.85
        });
        assert!(enough, "{more:?}: less than 0.85 of the bandwidth, each time");
    }
}

#[test]
fn a_long_fast_wire_is_filled() {
    let wire = Wire::new(1_000_000_000, Duration::from_millis(75));
    let got = iperf3(wire, 5, &[]) / wire.bandwidth as f64;
    println!("iperf3: {got:.3} of 1 Gbit/s at a round trip of 150 ms");
    // More than any window of a fixed size in between would let through; the machine may be too slow for all of it.
    assert!((0.5..1.05).contains(&got), "{got:.3} of the bandwidth");
}

#[test]
fn a_reader_that_stops_stops_the_writer() {
    let far = Far::over(Wire::new(1_000_000_000, Duration::from_millis(10)));
    let (near, mut served) = far.connect();
    near.set_nonblocking(true).unwrap();
    let chunk = vec![7; 1 << 16];
    let (mut sent, mut stuck) = (0, 0);
    // What the wire holds, its queue, and the kernel's buffers at four sockets.
    const MOST: usize = 64 << 20;
    until("the writer to be stopped", || {
        let before = sent;
        while let Ok(n) = (&near).write(&chunk) {
            sent += n;
            assert!(sent < MOST, "{sent} bytes are under way");
        }
        stuck = if sent == before { stuck + 1 } else { 0 };
        (stuck == 10).then_some(())
    });
    // Somebody else is not held up.
    let (mut other, mut other_served) = far.connect();
    passes(&mut other, &mut other_served, "hello");
    near.set_nonblocking(false).unwrap();
    drop(near);
    assert_eq!(rest(&mut served), (sent, true));
}

#[test]
fn what_is_held_comes_later() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    far.link.hold();
    near.write_all(b"held").unwrap();
    let mut second = far.dial();
    is_silent(&mut served);
    assert!(!far.is_dialled());
    far.link.heal();
    near.write_all(b" back").unwrap();
    let mut got = [0; 9];
    served.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"held back");
    let mut second_served = patient(far.listener.accept().unwrap().0);
    passes(&mut second, &mut second_served, "late");
}

#[test]
fn a_black_hole_says_nothing() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    let (mut idle, mut idle_served) = far.connect();
    far.link.black_hole();
    near.write_all(b"lost").unwrap();
    let mut late = far.dial();
    late.write_all(b"sent again").unwrap();
    is_silent(&mut served);
    drop(near);
    is_silent(&mut served);
    is_silent(&mut late);
    assert!(!far.is_dialled());
    assert_eq!(far.link.counts().up, 0);
    far.link.heal();
    // What lost something stays silent; what lost nothing never noticed; what was on its way arrives.
    is_silent(&mut served);
    passes(&mut idle, &mut idle_served, "hello");
    let mut late_served = patient(far.listener.accept().unwrap().0);
    let mut got = [0; 10];
    late_served.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"sent again");
    let (mut near, mut served) = far.connect();
    passes(&mut near, &mut served, "new");
}

#[test]
fn a_half_open_connection_hears_and_is_not_heard() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    far.link.half_open(Direction::Up);
    near.write_all(b"lost").unwrap();
    is_silent(&mut served);
    passes(&mut served, &mut near, "hello");
    far.link.heal();
    near.write_all(b"lost, as it comes after what is lost").unwrap();
    is_silent(&mut served);
}

#[test]
fn a_reset_breaks_what_is_there_and_nothing_else() {
    let far = Far::new();
    let mut all: Vec<_> = (0..20).map(|_| far.connect()).collect();
    far.link.reset();
    assert_eq!(far.link.counts().open, 0);
    for (near, served) in &mut all {
        for end in [near, served] {
            assert_eq!(end.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
    let (mut near, mut served) = far.connect();
    passes(&mut near, &mut served, "new");
    assert_eq!(far.link.counts().accepted, 21);
}

#[test]
fn a_cut_is_exact() {
    let far = Far::new();
    for (direction, bytes) in
        [(Direction::Up, 1), (Direction::Up, 100_000), (Direction::Down, 65_536), (Direction::Down, 3)]
    {
        let (near, served) = far.connect();
        let (mut from, mut to) = if direction == Direction::Up { (near, served) } else { (served, near) };
        far.link.cut_after(direction, bytes);
        assert!(far.link.harm_is_due());
        let writer = std::thread::spawn(move || {
            let chunk = vec![7; 10_000];
            while from.write_all(&chunk).is_ok() {}
        });
        assert_eq!(rest(&mut to).0 as u64, bytes, "{direction:?}");
        writer.join().unwrap();
        assert!(!far.link.harm_is_due());
    }
}

/// Sends three pieces, of which a harm comes to the second; gives what arrives.
fn second_of_three(far: &Far, direction: Direction, harm: Harm, pieces: [&[u8]; 3]) -> Vec<u8> {
    let (near, served) = far.connect();
    let (mut from, mut to) = if direction == Direction::Up { (near, served) } else { (served, near) };
    let mut arrived = vec![0; pieces[0].len()];
    from.write_all(pieces[0]).expect("it takes them");
    to.read_exact(&mut arrived).expect("they arrive");
    far.link.harm_after(direction, 1, harm);
    from.write_all(pieces[1]).expect("it takes them");
    until("the harm", || (!far.link.harm_is_due()).then_some(()));
    // After a cut there is nobody to take it.
    let _ = from.write_all(pieces[2]);
    let _ = from.shutdown(std::net::Shutdown::Write);
    let _ = to.read_to_end(&mut arrived);
    arrived
}

#[test]
fn what_is_under_way_can_come_twice_or_in_part() {
    let far = Far::new();
    for direction in Direction::BOTH {
        let arrives = |harm| second_of_three(&far, direction, harm, [b"one ", b"and two", b" three"]);
        assert_eq!(arrives(Harm::Double), b"one and twoand two three");
        assert_eq!(arrives(Harm::Shorten), b"one and three");
        assert_eq!(arrives(Harm::Cut), b"one a");
    }
}

/// A frame as RFC 6455 lays it out: binary, whole, masked with zeroes when `masked`.
fn frame(payload: &[u8], masked: bool) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut frame = vec![0x82];
    match payload.len() {
        short @ 0..126 => frame.push(mask | short as u8),
        len @ 126..65536 => {
            frame.push(mask | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(mask | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend_from_slice(&[0; 4]);
    }
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn a_message_comes_twice_or_in_part_as_a_whole() {
    let mut far = Far::new();
    far.link = far.link.of_messages();
    let head = b"GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n".to_vec();
    for (len, masked) in [(10, false), (1000, true), (200_000, false), (125, true)] {
        let (whole, half) = (frame(&vec![7; len], masked), frame(&vec![7; len / 2], masked));
        let last = frame(b"last", masked);
        for (harm, second) in [(Harm::Double, [&whole[..], &whole].concat()), (Harm::Shorten, half)] {
            // The beginning and the message in one piece: the harm finds the message.
            let arrived = second_of_three(&far, Direction::Up, harm, [&head, &whole, &last]);
            assert_eq!(arrived, [&head[..], &second, &last].concat(), "{len} bytes, {harm:?}");
        }
    }
    // What is no WebSocket passes as it comes, whatever it looks like.
    let other = b"HTTP/1.1 401 Unauthorized\r\n\r\n\xff\xff\xff".to_vec();
    let (mut near, mut served) = far.connect();
    near.write_all(&other).unwrap();
    let mut arrived = vec![0; other.len()];
    served.read_exact(&mut arrived).unwrap();
    assert_eq!(arrived, other);
}

#[test]
fn a_later_connection_overtakes_those_that_are_held() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    far.link.hold_present();
    near.write_all(b"late").unwrap();
    let (mut second, mut second_served) = far.connect();
    passes(&mut second, &mut second_served, "first");
    passes(&mut second_served, &mut second, "and back");
    is_silent(&mut served);
    assert_eq!(far.link.counts().late, 0);
    far.link.heal();
    let mut got = [0; 4];
    served.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"late");
    passes(&mut served, &mut near, "hello");
    assert_eq!(far.link.counts().late, 4);
}

#[test]
fn a_forgotten_connection_is_silent_for_good() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    far.link.forget_present();
    near.write_all(b"lost").unwrap();
    let (mut second, mut second_served) = far.connect();
    passes(&mut second, &mut second_served, "hello");
    far.link.heal();
    served.write_all(b"lost, too").unwrap();
    drop(second_served);
    is_silent(&mut served);
    is_silent(&mut near);
}

#[test]
fn a_connection_is_forgotten_by_its_port_and_those_beside_it_pass() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    let (mut beside, mut beside_served) = far.connect();
    let port = near.local_addr().unwrap().port();
    assert!(kernel::ports_toward(std::process::id(), far.link.port).contains(&port));
    far.link.forget_those_from(&[port]);
    near.write_all(b"lost").unwrap();
    let (mut second, mut second_served) = far.connect();
    passes(&mut second, &mut second_served, "hello");
    passes(&mut beside_served, &mut beside, "hello");
    is_silent(&mut served);
    is_silent(&mut near);
}

#[test]
fn what_was_said_can_be_said_again() {
    let far = Far::new();
    far.link.record();
    let (mut near, mut served) = far.connect();
    passes(&mut near, &mut served, "who is there?");
    passes(&mut served, &mut near, "nobody");
    let recorded = far.link.recorded();
    assert_eq!(recorded.len(), 1);
    assert_eq!((&recorded[0].up[..], &recorded[0].down[..]), (&b"who is there?"[..], &b"nobody"[..]));
    far.link.answer_next(recorded[0].down.clone());
    let mut asks = far.dial();
    asks.write_all(b"who?").unwrap();
    let mut got = [0; 6];
    asks.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"nobody");
    assert!(!far.is_dialled());
    drop(asks);
    let (mut near, mut served) = far.connect();
    passes(&mut near, &mut served, "hello");
}

#[test]
fn a_port_can_refuse_and_come_back() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    for _ in 0..3 {
        far.link.refuse();
        let refused = TcpStream::connect(("127.0.0.1", far.link.port)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        passes(&mut near, &mut served, "still");
        far.link.heal();
        let (mut near, mut served) = far.connect();
        passes(&mut near, &mut served, "new");
    }
}

#[test]
fn a_dropped_link_leaves_nothing() {
    let far = Far::new();
    let (mut near, mut served) = far.connect();
    let port = far.link.port;
    drop(far);
    assert!(!program::listens(std::process::id(), port));
    for end in [&mut near, &mut served] {
        // In whichever way: the point is that it ends.
        rest(end);
    }
    let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

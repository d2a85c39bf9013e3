//! Tests of the SOCKS5 server, against a client written by hand.

use super::*;
use crate::service::forward::serve_connect;
use crate::service::testing::{echo_service, free_port, loopback, pipes, port_of};
use crate::service::udp_associate::serve_udp_associate;
use crate::session::way::Way;
use tokio_util::sync::CancellationToken;

async fn socks() -> (u16, Arc<ForwardStats>) {
    let (opener, mut streams) = pipes();
    tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Some(io) = streams.recv().await {
            tasks.spawn(async move {
                let (open, stream) = FramedStream::accept(io).await.unwrap();
                match open.request {
                    StreamRequest::Connect { target } => drop(serve_connect(stream, &target, Path::new("/")).await),
                    StreamRequest::UdpAssociate {} => drop(serve_udp_associate(stream, &Way::steady()).await),
                    other => panic!("{other:?}"),
                }
            });
        }
    });
    let forward = SocksForward::bind(opener, &loopback(0)).await.unwrap();
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    (port, stats)
}

fn named(host: &str, port: u16) -> Vec<u8> {
    let mut bytes = vec![3, host.len() as u8];
    bytes.extend_from_slice(host.as_bytes());
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes
}

/// Sends a command; returns the reply's code and port.
async fn command(proxy: u16, command: u8, address: &[u8]) -> (TcpStream, u8, u16) {
    let mut client = TcpStream::connect(("127.0.0.1", proxy)).await.unwrap();
    client.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    client.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    client.write_all(&[&[5, command, 0], address].concat()).await.unwrap();
    let mut reply = [0; 10];
    client.read_exact(&mut reply).await.unwrap();
    assert_eq!((reply[0], reply[2], reply[3]), (5, 0, 1));
    (client, reply[1], u16::from_be_bytes([reply[8], reply[9]]))
}

/// On a way that is interrupted there is no answer for as long as the session lives.
#[tokio::test]
async fn a_client_that_is_gone_before_it_has_an_answer_is_not_kept() {
    let (opener, mut streams) = pipes();
    let forward = SocksForward::bind(opener, &loopback(0)).await.unwrap();
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    for early in [&b""[..], b"early"] {
        for asks in [[5, 1, 0, 1, 127, 0, 0, 1, 0, 9], [5, 3, 0, 1, 0, 0, 0, 0, 0, 0]] {
            let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            client.write_all(&[&[5, 1, 0], &asks[..], early].concat()).await.unwrap();
            let _unanswered = streams.recv().await.unwrap();
            assert_eq!(stats.open(), 1);
            Socket::Tcp(client).reset();
            let ended = async {
                while stats.open() > 0 {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(ANSWER_TIMEOUT / 2, ended).await.unwrap();
        }
    }
}

/// As one that wants to hear what a service says first.
#[tokio::test]
async fn a_client_that_says_nothing_more_has_its_answer() {
    let (opener, mut streams) = pipes();
    let forward = SocksForward::bind(opener, &loopback(0)).await.unwrap();
    let port = port_of(forward.bound());
    tokio::spawn(forward.run(CancellationToken::new()));
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 9]).await.unwrap();
    client.shutdown().await.unwrap();
    let (_, mut stream) = FramedStream::accept(streams.recv().await.unwrap()).await.unwrap();
    sleep(LOOK * 2).await;
    stream.accepted(&Default::default()).await.unwrap();
    let mut answers = [0; 12];
    client.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers[..4], [5, 0, 5, 0]);
}

#[tokio::test]
async fn connects_by_name_and_by_address() {
    let (proxy, _) = socks().await;
    let port = port_of(&echo_service().await);
    let mut by_address = Vec::new();
    udp_address::encode(([127, 0, 0, 1], port).into(), &mut by_address);
    for address in [named("localhost", port), by_address] {
        let (mut client, code, _) = command(proxy, 1, &address).await;
        assert_eq!(code, 0);
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"hello");
    }
}

#[tokio::test]
async fn failures_have_their_codes() {
    let (proxy, stats) = socks().await;
    let closed = free_port().await;
    for (number, address, expected) in
        [(1, named("127.0.0.1", closed), 5), (1, named("no such host", 1), 4), (2, named("localhost", 1), 7)]
    {
        let (mut client, code, _) = command(proxy, number, &address).await;
        assert_eq!(code, expected);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
    assert!(stats.last_error().is_some());
}

#[tokio::test]
async fn what_is_not_socks5_is_closed_cleanly() {
    let (proxy, _) = socks().await;
    for (bytes, answer) in [
        (&b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"[..], &SOCKS4_REJECTED[..]),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05", b""),
    ] {
        let mut client = TcpStream::connect(("127.0.0.1", proxy)).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, answer);
    }
}

#[tokio::test]
async fn an_association_carries_datagrams_and_ends_with_its_connection() {
    let (proxy, stats) = socks().await;
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = service.local_addr().unwrap();
    let (control, code, relay) = command(proxy, 3, &[1, 0, 0, 0, 0, 0, 0]).await;
    assert_eq!(code, 0);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", relay)).await.unwrap();
    let mut by_address = Vec::new();
    udp_address::encode(target, &mut by_address);
    // A fragment, a datagram with a bad address, and a stranger's are dropped.
    client.send(&[&[0, 0, 1], &by_address[..], b"fragment"].concat()).await.unwrap();
    client.send(&[0, 0, 0, 9, 9]).await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    stranger.send_to(&[&WHOLE, &by_address[..], b"stranger"].concat(), ("127.0.0.1", relay)).await.unwrap();
    for address in [&by_address, &named("localhost", target.port()), &named("localhost", target.port())] {
        client.send(&[&WHOLE, &address[..], b"ping"].concat()).await.unwrap();
        let mut buf = [0; 100];
        let (n, from) = service.recv_from(&mut buf).await.unwrap();
        assert_eq!(&buf[..n], b"ping");
        service.send_to(b"pong", from).await.unwrap();
        let n = client.recv(&mut buf).await.unwrap();
        assert_eq!(buf[..n], [&WHOLE, &by_address[..], b"pong"].concat());
    }
    assert_eq!(stats.dropped(), 3);
    drop(control);
    while stats.open() > 0 {
        tokio::task::yield_now().await;
    }
}

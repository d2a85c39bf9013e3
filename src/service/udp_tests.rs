//! Tests of UDP flows and associations.

use super::*;
use crate::service::testing::{pipes, port_of};
use crate::session::way::tests::way;
use tokio::io::DuplexStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

fn udp(port: u16) -> Endpoint {
    Endpoint::Udp { host: "127.0.0.1".into(), port }
}

async fn workspace(mut streams: UnboundedReceiver<DuplexStream>) {
    let mut tasks = JoinSet::new();
    while let Some(io) = streams.recv().await {
        tasks.spawn(async move {
            let (open, stream) = FramedStream::accept(io).await.unwrap();
            let StreamRequest::Udp { target } = open.request else { panic!("{open:?}") };
            let _ = serve_udp(stream, &Way::steady(), &target).await;
        });
    }
}

/// A service that sends each datagram back.
async fn echo() -> Endpoint {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buf = vec![0; MAX_UDP];
        loop {
            let (n, from) = socket.recv_from(&mut buf).await.unwrap();
            socket.send_to(&buf[..n], from).await.unwrap();
        }
    });
    udp(port)
}

async fn client(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(("127.0.0.1", port)).await.unwrap();
    socket
}

async fn asks(client: &UdpSocket, bytes: &[u8]) {
    let mut buf = vec![0; MAX_UDP];
    client.send(bytes).await.unwrap();
    let n = client.recv(&mut buf).await.unwrap();
    assert_eq!(&buf[..n], bytes);
}

#[tokio::test]
async fn each_client_has_a_flow_of_its_own() {
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let forward = UdpForward::bind(opener, &udp(0), echo().await).await.unwrap();
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    let clients = futures::future::join_all((0..10).map(|_| client(port))).await;
    for round in 0..3u8 {
        for (i, client) in clients.iter().enumerate() {
            asks(client, &[i as u8, round]).await;
        }
    }
    asks(&clients[0], &vec![5; 60_000]).await;
    asks(&clients[0], &[]).await;
    assert_eq!((stats.total(), stats.open(), stats.dropped()), (10, 10, 0));
}

#[tokio::test]
async fn the_flow_that_is_idle_for_longest_makes_room() {
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let mut forward = UdpForward::bind(opener, &udp(0), echo().await).await.unwrap();
    forward.max_flows = 2;
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    let (a, b, c) = (client(port).await, client(port).await, client(port).await);
    for client in [&a, &b, &a, &c, &a] {
        asks(client, b"x").await;
    }
    // a, b and c began once each: what made room for c was b.
    assert_eq!(stats.total(), 3);
    asks(&b, b"x").await;
    assert_eq!(stats.total(), 4);
}

#[tokio::test]
async fn an_idle_flow_ends() {
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let mut forward = UdpForward::bind(opener, &udp(0), echo().await).await.unwrap();
    forward.idle = Duration::from_millis(50);
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    asks(&client(port).await, b"x").await;
    while stats.open() > 0 {
        tokio::task::yield_now().await;
    }
}

/// In real time.
#[tokio::test]
async fn nothing_is_idle_while_there_is_no_way() {
    const IDLE: Duration = Duration::from_millis(200);
    let (way, set) = way();
    let activity = Activity::default();
    set(false);
    let mut idle = Box::pin(activity.idle(IDLE, &way));
    for _ in 0..3 {
        assert!(tokio::time::timeout(IDLE * 3, &mut idle).await.is_err(), "nothing could come");
        set(true);
        assert!(futures::poll!(&mut idle).is_pending(), "it begins anew");
        set(false);
    }
    set(true);
    let back = Instant::now();
    idle.await;
    assert!(back.elapsed() >= IDLE, "it begins anew");
    let (idle, began) = (activity.idle(IDLE, &way), Instant::now());
    let touch = async {
        sleep(IDLE / 2).await;
        activity.touch();
    };
    tokio::join!(idle, touch);
    assert!(began.elapsed() >= IDLE / 2 * 3, "something came");
}

#[tokio::test]
async fn a_flow_stays_for_as_long_as_there_is_no_way() {
    let (mut opener, streams) = pipes();
    let (way, set) = way();
    opener.way = way;
    tokio::spawn(workspace(streams));
    let mut forward = UdpForward::bind(opener, &udp(0), echo().await).await.unwrap();
    forward.idle = Duration::from_millis(50);
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    set(false);
    asks(&client(port).await, b"x").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(stats.open(), 1);
    set(true);
    let ended = async {
        while stats.open() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
}

#[tokio::test]
async fn a_slow_flow_drops_and_holds_up_no_other() {
    let (opener, mut streams) = pipes();
    let forward = UdpForward::bind(opener, &udp(0), echo().await).await.unwrap();
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    let slow = client(port).await;
    slow.send(b"x").await.unwrap();
    // The other end of this stream is never read.
    let _unread = streams.recv().await.unwrap();
    while stats.dropped() == 0 {
        slow.send(&[0; 40_000]).await.unwrap();
        tokio::task::yield_now().await;
    }
    tokio::spawn(workspace(streams));
    asks(&client(port).await, b"x").await;
}

#[tokio::test]
async fn a_refused_flow_is_remembered_and_a_dead_target_ignored() {
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let target = Endpoint::Udp { host: "no such host".into(), port: 9 };
    let forward = UdpForward::bind(opener.clone(), &udp(0), target).await.unwrap();
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    client(port).await.send(b"x").await.unwrap();
    while stats.last_error().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(stats.last_error().unwrap().code, RefusalCode::NotFound);

    // Reports of closed ports do not end the flow: when the service comes, the same flow works.
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = service.local_addr().unwrap();
    drop(service);
    let forward = UdpForward::bind(opener, &udp(0), udp(address.port())).await.unwrap();
    let (port, stats) = (port_of(forward.bound()), forward.stats());
    tokio::spawn(forward.run(CancellationToken::new()));
    let client = client(port).await;
    client.send(b"lost").await.unwrap();
    while stats.bytes().sent == 0 {
        tokio::task::yield_now().await;
    }
    let service = UdpSocket::bind(address).await.unwrap();
    let mut buf = [0; 16];
    client.send(b"found").await.unwrap();
    while service.recv(&mut buf).await.unwrap() != 5 {}
    assert_eq!((stats.total(), stats.last_error()), (1, None));
}

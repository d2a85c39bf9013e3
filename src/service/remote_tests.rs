//! Tests of listeners in the workspace and their connections back.

use super::*;
use crate::service::testing::{ask, echo_service, exchange, loopback, pattern, pipes, port_of};
use std::io::ErrorKind;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// A workspace that listens for a laptop which sends what arrives to `target`.
async fn remote(bind: &Endpoint, target: Endpoint) -> (Endpoint, RemoteForward<DuplexStream>, JoinHandle<()>) {
    remote_until(bind, target, std::future::pending()).await
}

/// As [`remote`], in a session that drains at some time.
async fn remote_until(
    bind: &Endpoint,
    target: Endpoint,
    draining: impl Future<Output = ()> + Send + 'static,
) -> (Endpoint, RemoteForward<DuplexStream>, JoinHandle<()>) {
    let (to_workspace, mut asked) = pipes();
    let (to_laptop, accepted) = pipes();
    let workspace = tokio::spawn(async move {
        let (open, stream) = FramedStream::accept(asked.recv().await.unwrap()).await.unwrap();
        let StreamRequest::Listen { bind, listener } = open.request else { panic!("{open:?}") };
        let _ = serve_listen(stream, &bind, listener, to_laptop, Path::new("/"), draining).await;
    });
    tokio::spawn(laptop(accepted, target));
    let (bound, forward) = RemoteForward::open(&to_workspace, bind, 7).await.unwrap();
    (bound, forward, workspace)
}

async fn laptop(mut streams: UnboundedReceiver<DuplexStream>, target: Endpoint) {
    let mut tasks = JoinSet::new();
    while let Some(io) = streams.recv().await {
        let target = target.clone();
        tasks.spawn(async move {
            let (open, stream) = FramedStream::accept(io).await.unwrap();
            assert!(
                matches!(&open.request, StreamRequest::Accepted { listener: 7, peer } if peer.contains("127.0.0.1"))
            );
            let _ = serve_accepted(stream, &Way::steady(), &target, &Arc::default()).await;
        });
    }
}

#[tokio::test]
async fn connections_in_the_workspace_reach_the_laptop() {
    let (bound, _forward, _workspace) = remote(&loopback(0), echo_service().await).await;
    let bytes = pattern(500_000);
    for _ in 0..3 {
        assert_eq!(ask(port_of(&bound), &bytes).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_workspace_that_says_it_listens_elsewhere_is_not_repeated() {
    let (to_workspace, mut asked) = pipes();
    let elsewhere = Endpoint::Tcp { host: "\u{1b}[2J".into(), port: 9 };
    let workspace = async {
        let (_, mut stream) = FramedStream::accept(asked.recv().await.unwrap()).await.unwrap();
        stream.accepted(&Accepted { bound: Some(elsewhere), ..Default::default() }).await.unwrap();
        stream
    };
    let bind = loopback(0);
    let (opened, _stream) = tokio::join!(RemoteForward::open(&to_workspace, &bind, 7), workspace);
    assert_eq!(opened.unwrap().0, loopback(9));
}

#[tokio::test]
async fn the_port_lives_as_long_as_the_control_stream() {
    let (bound, forward, workspace) = remote(&loopback(0), echo_service().await).await;
    forward.close().await.unwrap();
    let refused = TcpStream::connect(("127.0.0.1", port_of(&bound))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    workspace.await.unwrap();

    let (bound, forward, workspace) = remote(&loopback(0), echo_service().await).await;
    drop(forward);
    workspace.await.unwrap();
    TcpListener::bind(("127.0.0.1", port_of(&bound))).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_refused_with_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (opener, mut asked) = pipes();
    let (to_laptop, _accepted) = pipes();
    let bind = loopback(taken.local_addr().unwrap().port());
    let workspace = async {
        let (_, stream) = FramedStream::accept(asked.recv().await.unwrap()).await.unwrap();
        serve_listen(stream, &bind, 1, to_laptop, Path::new("/"), std::future::pending()).await
    };
    let (refused, _) = tokio::join!(RemoteForward::open(&opener, &bind, 1), workspace);
    let refusal = refused.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::AddressInUse);
    assert!(refusal.message.contains("hint:"));
}

#[tokio::test]
async fn a_lost_listener_is_noticed() {
    let (_, mut forward, workspace) = remote(&loopback(0), echo_service().await).await;
    workspace.abort();
    assert_eq!(forward.lost().await.code, RefusalCode::Unavailable);
}

#[tokio::test]
async fn datagrams_in_the_workspace_reach_the_laptop() {
    let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp = |port| Endpoint::Udp { host: "127.0.0.1".into(), port };
    let (bound, _forward, _workspace) = remote(&udp(0), udp(target.local_addr().unwrap().port())).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", port_of(&bound))).await.unwrap();
    client.send(b"ping").await.unwrap();
    let mut buf = [0; 10];
    let (n, from) = target.recv_from(&mut buf).await.unwrap();
    target.send_to(&buf[..n], from).await.unwrap();
    assert_eq!(client.recv(&mut buf).await.unwrap(), 4);
}

#[tokio::test]
async fn a_session_that_drains_closes_the_port_and_what_is_open_goes_on() {
    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let draining = async { drop(drained.await) };
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = loopback(service.local_addr().unwrap().port());
    let (bound, mut forward, workspace) = remote_until(&loopback(0), target, draining).await;
    let mut client = TcpStream::connect(("127.0.0.1", port_of(&bound))).await.unwrap();
    let (mut served, _) = service.accept().await.unwrap();
    drain.send(()).unwrap();
    let lost = forward.lost().await;
    assert!(lost.message.contains("stopped listening"), "{lost}");
    let refused = TcpStream::connect(("127.0.0.1", port_of(&bound))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    exchange(&mut client, &mut served).await;
    drop((client, served));
    workspace.await.unwrap();
}

/// As where the answer could not come in the time of one.
#[tokio::test]
async fn what_is_open_goes_on_though_nobody_waits_to_hear_that_the_port_is_closed() {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = loopback(service.local_addr().unwrap().port());
    let (bound, mut forward, workspace) = remote(&loopback(0), target).await;
    let mut client = TcpStream::connect(("127.0.0.1", port_of(&bound))).await.unwrap();
    let (mut served, _) = service.accept().await.unwrap();
    forward.control.writer.end().await.unwrap();
    drop(forward);
    while TcpStream::connect(("127.0.0.1", port_of(&bound))).await.is_ok() {}
    exchange(&mut client, &mut served).await;
    drop((client, served));
    workspace.await.unwrap();
}

//! Tests of forwards on real sockets, both ends in one process.

use super::*;
use crate::service::testing::{ask, echo_service, exchange, free_port, loopback, pattern, pipes, port_of};
use crate::wire::FrameKind;
use std::io::ErrorKind;
use std::sync::atomic::Ordering::SeqCst;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// What the workspace does with the streams of these tests.
async fn workspace(mut streams: UnboundedReceiver<DuplexStream>) {
    let mut tasks = JoinSet::new();
    while let Some(io) = streams.recv().await {
        tasks.spawn(async move {
            let (open, stream) = FramedStream::accept(io).await.unwrap();
            let StreamRequest::Connect { target } = open.request else { panic!("{open:?}") };
            let _ = serve_connect(stream, &target, Path::new("/")).await;
        });
    }
}

async fn forward(target: Endpoint) -> (u16, Arc<ForwardStats>, CancellationToken) {
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let forward = LocalForward::bind(opener, &loopback(0), target).await.unwrap();
    let (port, stats, stop) = (port_of(forward.bound()), forward.stats(), CancellationToken::new());
    tokio::spawn(forward.run(stop.clone()));
    (port, stats, stop)
}

#[tokio::test]
async fn many_connections_reach_the_target_unchanged() {
    let (port, stats, _stop) = forward(echo_service().await).await;
    let bytes = pattern(1_000_000);
    let answers = futures::future::join_all((0..8).map(|_| ask(port, &bytes))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == bytes));
    assert_eq!(stats.total(), 8);
    assert_eq!(stats.bytes(), Counts { sent: 8_000_000, received: 8_000_000 });
    assert_eq!(stats.last_error(), None);
}

#[tokio::test]
async fn a_refused_target_resets_the_connection_and_is_remembered() {
    let closed = free_port().await;
    let (port, stats, _stop) = forward(loopback(closed)).await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    while stats.open() > 0 {
        tokio::task::yield_now().await;
    }
    let refusal = stats.last_error().unwrap();
    assert_eq!(refusal.code, RefusalCode::TargetRefused);
    assert!(refusal.message.contains(&format!("nothing listens on 127.0.0.1:{closed} in the workspace. hint:")));
}

#[tokio::test]
async fn unix_sockets_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target").to_str().unwrap().to_owned();
    let service = tokio::net::UnixListener::bind(&target).unwrap();
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let bind = Endpoint::Unix { path: dir.path().join("here").to_str().unwrap().into() };
    let forward = LocalForward::bind(opener, &bind, Endpoint::Unix { path: target }).await.unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(forward.run(stop.clone()));
    let mut client = UnixStream::connect(dir.path().join("here")).await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let (mut served, _) = service.accept().await.unwrap();
    let mut four = [0; 4];
    served.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    stop.cancel();
    running.await.unwrap();
    assert!(!dir.path().join("here").exists());
}

#[tokio::test]
async fn a_connection_waits_for_a_session() {
    let (opener, streams) = pipes();
    opener.unavailable.store(2, SeqCst);
    tokio::spawn(workspace(streams));
    let forward = LocalForward::bind(opener, &loopback(0), echo_service().await).await.unwrap();
    let port = port_of(forward.bound());
    tokio::spawn(forward.run(CancellationToken::new()));
    assert_eq!(ask(port, b"still here").await.unwrap(), b"still here");
}

#[tokio::test]
async fn patience_has_an_end() {
    let (opener, streams) = pipes();
    drop(streams);
    let open = Open::new(StreamRequest::Call {});
    let refusal = open_within(&opener, &open, Duration::from_millis(120)).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Unavailable);
}

#[tokio::test]
async fn payload_leaves_before_the_answer() {
    let (opener, mut streams) = pipes();
    let forward = LocalForward::bind(opener, &loopback(0), loopback(1)).await.unwrap();
    let port = port_of(forward.bound());
    tokio::spawn(forward.run(CancellationToken::new()));
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(b"early").await.unwrap();
    let (_, mut stream) = FramedStream::accept(streams.recv().await.unwrap()).await.unwrap();
    let frame = stream.reader.expect().await.unwrap();
    assert_eq!((frame.kind, &frame.payload[..]), (FrameKind::Data, &b"early"[..]));
}

#[tokio::test]
async fn stopping_closes_the_port_and_resets_what_is_open() {
    let (port, _, stop) = forward(echo_service().await).await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(b"x").await.unwrap();
    stop.cancel();
    assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(TcpStream::connect(("127.0.0.1", port)).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn closing_closes_the_port_and_what_is_open_goes_on() {
    let (opener, streams) = pipes();
    tokio::spawn(workspace(streams));
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = loopback(service.local_addr().unwrap().port());
    let forward = LocalForward::bind(opener, &loopback(0), target).await.unwrap();
    let port = port_of(forward.bound());
    let term = Term::default();
    let running = tokio::spawn(forward.run(term.clone()));
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut served, _) = service.accept().await.unwrap();
    term.close.cancel();
    term.closed.cancelled().await;
    assert_eq!(TcpStream::connect(("127.0.0.1", port)).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    exchange(&mut client, &mut served).await;
    drop((client, served));
    running.await.unwrap();
}

//! Tests of the data path: borders, half-close, cuts and idle memory.

use super::*;
use crate::service::testing::{PIPE, pattern, tcp_pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

type Relaying = JoinHandle<Result<Counts, StreamError>>;

/// A client's TCP connection that is relayed to the frames of a peer.
async fn client_and_peer() -> (TcpStream, FramedStream<DuplexStream>, Relaying) {
    let (client, local) = tcp_pair().await;
    let (here, there) = tokio::io::duplex(PIPE);
    (client, FramedStream::new(there), tokio::spawn(relay(local, FramedStream::new(here))))
}

async fn is_reset(mut client: TcpStream) {
    let error = client.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn much_goes_both_ways_unchanged() {
    let (client, local) = tcp_pair().await;
    let (server, remote) = tcp_pair().await;
    let (here, there) = tokio::io::duplex(PIPE);
    let near = tokio::spawn(relay(local, FramedStream::new(here)));
    let far = tokio::spawn(relay(remote, FramedStream::new(there)));
    let bytes = std::sync::Arc::new(pattern(20_000_001));
    let mut ends = tokio::task::JoinSet::new();
    for end in [client, server] {
        let (mut read, mut write) = end.into_split();
        let (sent, expected) = (bytes.clone(), bytes.clone());
        ends.spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        });
        ends.spawn(async move {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            assert!(all == *expected);
        });
    }
    while let Some(end) = ends.join_next().await {
        end.unwrap();
    }
    let expected = Counts { sent: bytes.len() as u64, received: bytes.len() as u64 };
    assert_eq!(near.await.unwrap().unwrap(), expected);
    assert_eq!(far.await.unwrap().unwrap(), expected);
}

#[tokio::test]
async fn an_end_of_the_client_leaves_the_other_direction_open() {
    let (mut client, mut peer, relaying) = client_and_peer().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(&peer.reader.expect().await.unwrap().payload[..], b"question");
    assert_eq!(peer.reader.expect().await.unwrap().kind, FrameKind::End);
    peer.writer.send_data(b"answer").await.unwrap();
    peer.writer.end().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(relaying.await.unwrap().unwrap(), Counts { sent: 8, received: 6 });
}

#[tokio::test]
async fn an_end_of_the_peer_leaves_the_other_direction_open() {
    let (mut client, mut peer, relaying) = client_and_peer().await;
    peer.writer.send_data(b"greeting").await.unwrap();
    peer.writer.end().await.unwrap();
    let mut greeting = Vec::new();
    client.read_to_end(&mut greeting).await.unwrap();
    assert_eq!(greeting, b"greeting");
    client.write_all(b"late").await.unwrap();
    assert_eq!(&peer.reader.expect().await.unwrap().payload[..], b"late");
    drop(client);
    assert_eq!(peer.reader.expect().await.unwrap().kind, FrameKind::End);
    drop(peer);
    assert_eq!(relaying.await.unwrap().unwrap(), Counts { sent: 4, received: 8 });
}

#[tokio::test]
async fn one_byte_at_a_time() {
    let (mut client, mut peer, relaying) = client_and_peer().await;
    for byte in 0..=255u8 {
        client.write_all(&[byte]).await.unwrap();
        assert_eq!(&peer.reader.expect().await.unwrap().payload[..], [byte]);
        peer.writer.send_data(&[byte]).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), byte);
    }
    client.shutdown().await.unwrap();
    peer.writer.end().await.unwrap();
    relaying.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cut_stream_resets_the_client() {
    let (client, mut peer, relaying) = client_and_peer().await;
    peer.writer.send_data(b"half of i").await.unwrap();
    drop(peer);
    is_reset(client).await;
    assert!(matches!(relaying.await.unwrap(), Err(StreamError::Truncated)));
}

#[tokio::test]
async fn a_peer_that_goes_after_its_end_but_before_ours_resets_the_client() {
    let (mut client, mut peer, relaying) = client_and_peer().await;
    peer.writer.end().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(peer);
    assert!(matches!(relaying.await.unwrap(), Err(StreamError::Truncated)));
    assert!(client.write_all(b"x").await.and(client.read_u8().await).is_err());
}

#[tokio::test]
async fn an_abort_resets_the_client_and_gives_the_reason() {
    let (client, mut peer, relaying) = client_and_peer().await;
    let reason = Refusal::new(RefusalCode::Cancelled, "no more");
    peer.writer.abort(&reason).await;
    is_reset(client).await;
    assert!(matches!(relaying.await.unwrap(), Err(StreamError::Refused(r)) if r == reason));
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_the_client() {
    let (mut client, mut peer, relaying) = client_and_peer().await;
    peer.writer.send_data(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    relaying.abort();
    is_reset(client).await;
}

#[tokio::test]
async fn a_reset_of_the_client_aborts_the_stream() {
    let (client, mut peer, relaying) = client_and_peer().await;
    Socket::from(client).reset();
    let frame = peer.reader.expect().await.unwrap();
    assert_eq!((frame.kind, frame.refusal().code), (FrameKind::Abort, RefusalCode::Cancelled));
    assert!(matches!(relaying.await.unwrap(), Err(StreamError::Refused(_))));
}

#[tokio::test]
async fn a_refusal_in_place_of_the_answer_resets_the_client() {
    let (client, local) = tcp_pair().await;
    let (here, there) = tokio::io::duplex(PIPE);
    let refusal = Refusal::new(RefusalCode::TargetRefused, "nothing there");
    FramedStream::new(there).refuse(&refusal).await;
    let result = relay_metered(local, FramedStream::new(here), Answer::Due, &Meter::default()).await;
    assert!(matches!(result, Err(StreamError::Refused(r)) if r == refusal));
    is_reset(client).await;
}

#[tokio::test]
async fn frames_out_of_place_end_the_relay() {
    for kind in [FrameKind::Accept, FrameKind::Datagram, FrameKind::Message] {
        let (client, mut peer, relaying) = client_and_peer().await;
        peer.writer.send(kind, b"{}").await.unwrap();
        assert!(matches!(relaying.await.unwrap(), Err(StreamError::OutOfPlace(k)) if k == kind));
        assert_eq!(peer.reader.expect().await.unwrap().kind, FrameKind::Abort);
        is_reset(client).await;
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_client_and_nobody_else() {
    let (mut stuck, _silent, relaying) = client_and_peer().await;
    let (mut client, mut peer, _other) = client_and_peer().await;
    let fill = async {
        let chunk = vec![0; 1 << 20];
        loop {
            stuck.write_all(&chunk).await.unwrap();
        }
    };
    // The writer never gets through: kernel buffers and one frame are all there is.
    let go_on = async {
        for _ in 0..1000 {
            client.write_all(b"x").await.unwrap();
            peer.reader.expect().await.unwrap();
        }
    };
    tokio::select! {
        () = fill => unreachable!(),
        () = go_on => {}
    }
    assert!(!relaying.is_finished());
}

#[tokio::test]
async fn the_client_is_tcp_or_a_unix_socket() {
    let (mut client, local) = UnixStream::pair().unwrap();
    let (here, there) = tokio::io::duplex(PIPE);
    let relaying = tokio::spawn(relay(local, FramedStream::new(here)));
    let mut peer = FramedStream::new(there);
    client.write_all(b"hello").await.unwrap();
    assert_eq!(&peer.reader.expect().await.unwrap().payload[..], b"hello");
    peer.writer.end().await.unwrap();
    client.shutdown().await.unwrap();
    relaying.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let (_client, local) = tcp_pair().await;
    let (here, _there) = tokio::io::duplex(PIPE);
    let relaying = relay(local, FramedStream::new(here));
    assert!(size_of_val(&relaying) <= 1024, "{} bytes", size_of_val(&relaying));
}

#[tokio::test]
async fn splice_keeps_order_and_half_close() {
    let (mut a, near) = tokio::io::duplex(1000);
    let (far, mut b) = tokio::io::duplex(PIPE);
    let splicing = tokio::spawn(splice(near, far));
    let bytes = pattern(3_000_000);
    let (_, all) = tokio::join!(
        async {
            a.write_all(&bytes).await.unwrap();
            a.shutdown().await.unwrap();
        },
        async {
            let mut all = Vec::new();
            b.read_to_end(&mut all).await.unwrap();
            b.write_all(b"answer").await.unwrap();
            b.shutdown().await.unwrap();
            all
        }
    );
    assert!(all == bytes);
    let mut answer = Vec::new();
    a.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(splicing.await.unwrap().unwrap(), Counts { sent: 3_000_000, received: 6 });
}

#[tokio::test]
async fn splice_drops_both_sides_when_one_fails() {
    let (mut a, near) = tokio::io::duplex(PIPE);
    let (far, b) = tokio::io::duplex(PIPE);
    let splicing = tokio::spawn(splice(near, far));
    drop(b);
    a.write_all(b"x").await.unwrap();
    assert!(splicing.await.unwrap().is_err());
    assert_eq!(a.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn splice_passes_on_what_was_said_before_the_other_side_stopped_reading() {
    // More than the local side takes at once, so that some of it waits when the fault comes.
    let said = pattern(300_000);
    let (mut client, near) = tokio::io::duplex(PIPE);
    let (far, mut there) = tokio::io::duplex(said.len());
    there.write_all(&said).await.unwrap();
    there.shutdown().await.unwrap();
    client.write_all(b"nobody takes this").await.unwrap();
    let splicing = tokio::spawn(splice(near, Deaf(far)));
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert!(heard == said, "{} of {}", heard.len(), said.len());
    assert_eq!(splicing.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn splice_does_not_wait_for_what_a_client_that_is_gone_has_sent() {
    let (mut client, near) = tokio::io::duplex(PIPE);
    // Takes nothing at all, and says something.
    let (far, mut there) = tokio::io::duplex(1);
    let splicing = tokio::spawn(splice(near, far));
    client.write_all(b"waits for room").await.unwrap();
    drop(client);
    there.write_all(b"x").await.unwrap();
    assert!(splicing.await.unwrap().is_err());
    assert!(there.write_all(b"y").await.is_err(), "the stream is dropped");
}

/// A stream whose other end has said something and stopped reading.
struct Deaf(DuplexStream);

impl AsyncRead for Deaf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_refusal_is_the_reason_also_where_content_met_a_reset() {
    let (mut client, local) = tcp_pair().await;
    client.write_all(b"content").await.unwrap();
    local.readable().await.unwrap();
    let (here, there) = tokio::io::duplex(PIPE);
    let refusal = Refusal::new(RefusalCode::NotDeclared, "no");
    FramedStream::new(there).refuse(&refusal).await;
    let stream = FramedStream::new(Deaf(here));
    let error = relay_metered(local, stream, Answer::Due, &Meter::default()).await.unwrap_err();
    assert!(matches!(&error, StreamError::Refused(told) if *told == refusal), "{error}");
    is_reset(client).await;
}

//! Tests of one end of a session against bytes: a peer that is played here, frame by frame, and keeps to nothing.

use super::header::{Flags, Header, Kind};
use super::peer::{Raw, in_time, next_frame};
use super::schedule::QUANTUM;
use super::window::{FIRST_WINDOW, POOL};
use super::*;
use crate::lifeline::paced::MOST_BULK;
use crate::wire::{FrameHeader, FrameKind, Refusal, RefusalCode};
use proptest::prelude::*;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::JoinSet;

#[tokio::test]
async fn golden_conversation() {
    let mut raw = Raw::new(End::Laptop, 1000);
    let mut stream = raw.opener.open().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut bytes = [0; 17];
    in_time(raw.io.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, *b"\0\0\0\x01\0\0\0\x01\0\0\0\x05hello");
    // The other end may send more than a first window.
    let mut bytes = [0; 12];
    in_time(raw.io.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, *b"\0\x01\0\0\0\0\0\x01\0\x04\0\0");
    in_time(raw.io.write_all(b"\0\0\0\x06\0\0\0\x01\0\0\0\x03bye")).await.unwrap();
    let mut answer = String::new();
    in_time(stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "bye");
    stream.shutdown().await.unwrap();
    let mut bytes = [0; 12];
    in_time(raw.io.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, *b"\0\0\0\x04\0\0\0\x01\0\0\0\0");
    drop(stream);
    // The next stream has the next number, and nothing was said in between.
    raw.opener.open().await.unwrap().shutdown().await.unwrap();
    assert_eq!(raw.frame().await.0, Header::data(3, Flags::SYN.with(Flags::FIN), 0));
    drop(raw.acceptor);
    assert_eq!(next_frame(&mut raw.io).await.0, Header::go_away(0));
    assert_eq!(in_time(raw.io.read(&mut bytes)).await.unwrap(), 0);
    in_time(raw.driver).await.unwrap().unwrap();
}

#[tokio::test]
async fn violations_end_the_session_with_a_sentence() {
    let data = |id, flags, length| Header::data(id, flags, length).encode().to_vec();
    let opened = |id| [data(id, Flags::SYN, 0)].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "version 71"),
        (vec![0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], "unknown type 9"),
        (vec![0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0], "unknown flags 0x8000"),
        (vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], "Data frame for stream 0"),
        (data(1, Flags::SYN, 0), "opened stream 1, which is not its to number"),
        ([opened(2), opened(2)].concat(), "opened stream 2 twice"),
        (data(2, Flags::SYN, 17 << 20), "frame of 17825792 bytes"),
        (data(2, Flags::SYN, FIRST_WINDOW + 1), "262145 bytes on a stream with room for 262144"),
        ([opened(2), data(2, Flags::FIN, 0), data(2, Flags::NONE, 1)].concat(), "data on stream 2 after its end"),
        // A stream that is over and forgotten cannot begin again.
        ([opened(2), data(2, Flags::RST, 0), opened(2)].concat(), "opened stream 2 twice"),
    ];
    for (bytes, text) in cases {
        let mut raw = Raw::new(End::Laptop, 100_000);
        raw.io.write_all(&bytes).await.unwrap();
        assert_eq!(raw.frame().await.0, Header::go_away(1), "{text}");
        let error = raw.outcome().await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn how_a_session_ends_is_told() {
    let cut = Header::data(2, Flags::SYN, 10).encode();
    let cases: [(&[u8], Option<&str>); 5] = [
        (&[], None),
        (&Header::go_away(0).encode(), None),
        (&Header::go_away(1).encode(), Some("because of a broken protocol")),
        (&cut, Some("in the middle of a frame")),
        (&cut[..5], Some("in the middle of a frame")),
    ];
    for (bytes, text) in cases {
        let mut raw = Raw::new(End::Laptop, 1000);
        let mut waiting = raw.opener.open().await.unwrap();
        waiting.write_all(b"x").await.unwrap();
        raw.io.write_all(bytes).await.unwrap();
        raw.io.shutdown().await.unwrap();
        let error = in_time(waiting.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        in_time(raw.opener.closed()).await;
        assert_eq!(raw.opener.open().await.unwrap_err().code, RefusalCode::Unavailable);
        let outcome = raw.outcome().await.map_err(|e| e.to_string());
        match text {
            None => outcome.unwrap(),
            Some(text) => assert!(outcome.as_ref().unwrap_err().contains(text), "{outcome:?}"),
        }
    }
}

#[tokio::test]
async fn what_asks_for_answers_is_read_although_none_can_leave() {
    let mut raw = Raw::new(End::Laptop, 4096);
    // Nobody reads the answers: pings, data for streams that never were, resets of them.
    for i in 0..20_000 {
        raw.send(Header { kind: Kind::Ping, flags: Flags::SYN, stream: 0, length: i }, &[]).await;
        raw.send(Header::data(2 * i + 2, Flags::NONE, 1), b"x").await;
        raw.send(Header::window_update(2 * i + 2, Flags::NONE, 1), &[]).await;
        raw.send(Header::data(2 * i + 2, Flags::RST, 1), b"x").await;
    }
    // A session in which only these were answered is still one: of the last ones, the answers come.
    let (mut pongs, mut resets) = (0, 0);
    loop {
        let (header, _) = raw.frame().await;
        match header.kind {
            Kind::Ping if header.length == 19_999 => break,
            Kind::Ping => pongs += 1,
            _ => resets += usize::from(header.flags == Flags::RST),
        }
    }
    assert!(pongs < 20_000 && resets <= 20_000, "{pongs} {resets}");
    raw.send(Header::data(40_004, Flags::SYN, 2), b"hi").await;
    let mut stream = in_time(raw.acceptor.accept()).await.unwrap();
    let mut hi = [0; 2];
    in_time(stream.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"hi");
}

#[tokio::test]
async fn a_window_is_widened_when_much_has_arrived_although_nothing_was_read() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    raw.send(Header::data(2, Flags::SYN, 60_000), &[1; 60_000]).await;
    let mut stream = in_time(raw.acceptor.accept()).await.unwrap();
    raw.send(Header::data(2, Flags::NONE, 10_000), &[1; 10_000]).await;
    assert_eq!(raw.frame().await.0, Header::window_update(2, Flags::ACK, POOL / 2));
    // What is read is announced in eighths.
    let mut read = vec![0; 70_000];
    in_time(stream.read_exact(&mut read)).await.unwrap();
    let width = FIRST_WINDOW + POOL / 2;
    let (mut sent, chunk) = (0, vec![1; 100_000]);
    while sent + 170_000 < width / 8 {
        raw.send(Header::data(2, Flags::NONE, 100_000), &chunk).await;
        in_time(stream.read_exact(&mut read)).await.unwrap();
        in_time(stream.read_exact(&mut read[..30_000])).await.unwrap();
        sent += 100_000;
    }
    raw.send(Header::data(2, Flags::NONE, 100_000), &chunk).await;
    in_time(stream.read_exact(&mut read)).await.unwrap();
    in_time(stream.read_exact(&mut read[..30_000])).await.unwrap();
    let (header, _) = raw.frame().await;
    assert!(header.kind == Kind::WindowUpdate && header.length >= width / 8, "{header:?}");
    // A stream that is gone gives its part back.
    drop(stream);
    assert_eq!(raw.frame().await.0, Header::reset(2));
    let hub = raw.opener.hub.clone();
    raw.send(Header { kind: Kind::Ping, flags: Flags::SYN, stream: 0, length: 1 }, &[]).await;
    assert_eq!(raw.frame().await.0, Header::pong(1));
    assert_eq!(hub.pool.left(), POOL);
}

#[tokio::test]
async fn a_stream_full_of_single_bytes_costs_about_its_window() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    raw.send(Header::data(2, Flags::SYN, 1), b"x").await;
    let stream = in_time(raw.acceptor.accept()).await.unwrap();
    assert!(stream.footprint() <= 1024, "{}", stream.footprint());
    let one = [&Header::data(2, Flags::NONE, 1).encode()[..], b"x"].concat();
    let many = one.repeat(1024);
    for _ in 0..255 {
        in_time(raw.io.write_all(&many)).await.unwrap();
    }
    raw.send(Header { kind: Kind::Ping, flags: Flags::SYN, stream: 0, length: 1 }, &[]).await;
    while raw.frame().await.0.kind != Kind::Ping {}
    let held = 255 * 1024;
    assert!(stream.footprint() < held + held / 8, "{}", stream.footprint());
}

#[tokio::test]
async fn an_idle_stream_is_small() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    let mut stream = raw.opener.open().await.unwrap();
    assert!(stream.footprint() <= 1024, "{}", stream.footprint());
    stream.write_all(&[1; 200_000]).await.unwrap();
    raw.send(Header::data(1, Flags::ACK, 50_000), &[1; 50_000]).await;
    in_time(stream.read_exact(&mut [0; 50_000])).await.unwrap();
    let mut arrived = 0;
    while arrived < 200_000 {
        arrived += raw.frame().await.1.len();
    }
    assert!(stream.footprint() <= 1024, "{}", stream.footprint());
}

#[tokio::test]
async fn streams_without_end_whose_refusals_nobody_reads_end_the_session() {
    let mut raw = Raw::new(End::Laptop, 4096);
    let limit = (End::Laptop.inbound_limit() + SLACK) as u32;
    for i in 0..limit {
        raw.send(Header::data(2 * i + 2, Flags::SYN, 1), b"x").await;
    }
    assert!(!raw.opener.is_closed());
    for i in limit..2 * limit {
        let bytes = [&Header::data(2 * i + 2, Flags::SYN, 1).encode()[..], b"x"].concat();
        if in_time(raw.io.write_all(&bytes)).await.is_err() {
            break;
        }
    }
    let error = raw.outcome().await.unwrap_err();
    assert!(error.to_string().contains("opened streams without end"), "{error}");
}

#[tokio::test]
async fn streams_that_are_reset_at_once_while_nothing_can_leave_end_the_session() {
    let mut raw = Raw::new(End::Laptop, 4096);
    // Their refusals, which nobody reads, fill the byte stream.
    let blocked = (End::Laptop.inbound_limit() + SLACK / 2) as u32;
    for i in 0..blocked {
        raw.send(Header::data(2 * i + 2, Flags::SYN, 0), &[]).await;
    }
    let most = (End::Laptop.inbound_limit() + End::Workspace.inbound_limit() + SLACK) as u32;
    for i in blocked..most + 1024 {
        assert!(raw.opener.streams() <= most as usize);
        let begun_and_reset = Header::data(2 * i + 2, Flags::SYN.with(Flags::RST), 0).encode();
        if in_time(raw.io.write_all(&begun_and_reset)).await.is_err() {
            break;
        }
    }
    let error = raw.outcome().await.unwrap_err();
    assert!(error.to_string().contains("opened streams without end"), "{error}");
}

#[tokio::test]
async fn as_many_streams_as_there_may_be_are_let_in_before_one_is_taken() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    let limit = End::Laptop.inbound_limit() as u32;
    for i in 0..limit {
        raw.send(Header::data(2 * i + 2, Flags::SYN, 0), &[]).await;
    }
    // Its answer says that all of them were read.
    raw.send(Header { kind: Kind::Ping, flags: Flags::SYN, stream: 0, length: 1 }, &[]).await;
    while raw.frame().await.0.kind != Kind::Ping {}
    for _ in 0..limit {
        in_time(raw.acceptor.accept()).await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_too_many_is_refused_with_a_frame() {
    let mut raw = Raw::new(End::Laptop, 1 << 20);
    let limit = End::Laptop.inbound_limit() as u32;
    let mut held = Vec::new();
    for i in 0..limit {
        raw.send(Header::data(2 * i + 2, Flags::SYN, 0), &[]).await;
        held.push(in_time(raw.acceptor.accept()).await.unwrap());
    }
    let id = 2 * limit + 2;
    raw.send(Header::data(id, Flags::SYN, 4), b"open").await;
    let (header, payload) = raw.frame().await;
    assert_eq!((header.stream, header.flags), (id, Flags::ACK.with(Flags::FIN)));
    let (frame, body) = payload.split_first_chunk().unwrap();
    assert_eq!(FrameHeader::decode(*frame).unwrap().kind, FrameKind::Refuse);
    assert_eq!(Refusal::from_bytes(body).code, RefusalCode::Busy);
    // What it sent is lost, and it learns that after the refusal.
    assert_eq!(raw.frame().await.0, Header::reset(id));
    // There is room again when one goes.
    held.pop();
    assert_eq!(raw.frame().await.0, Header::reset(2 * limit));
    raw.send(Header::data(id + 2, Flags::SYN, 0), &[]).await;
    in_time(raw.acceptor.accept()).await.unwrap();
}

#[tokio::test]
async fn what_was_written_leaves_before_the_session_ends() {
    let mut raw = Raw::new(End::Workspace, 4096);
    let mut stream = raw.opener.open().await.unwrap();
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    drop(raw.acceptor);
    let mut arrived = Vec::new();
    in_time(raw.io.read_to_end(&mut arrived)).await.unwrap();
    assert!(arrived.len() > 100_000 && arrived.ends_with(&Header::go_away(0).encode()));
    in_time(raw.driver).await.unwrap().unwrap();
}

/// A byte stream on which bulk waits until it is let go.
struct Gate {
    io: DuplexStream,
    gate: Arc<Mutex<(bool, Option<Waker>)>>,
}

impl Paced for Gate {
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut gate = self.gate.lock().unwrap();
        if gate.0 {
            return Poll::Ready(MOST_BULK);
        }
        gate.1 = Some(cx.waker().clone());
        Poll::Pending
    }

    fn sparse(&mut self) {}
}

impl AsyncRead for Gate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn bulk_waits_for_its_pace_and_a_little_does_not() {
    let gate = Arc::new(Mutex::new((false, None::<Waker>)));
    let (io, theirs) = tokio::io::duplex(1 << 20);
    let (opener, acceptor, driver) = multiplex(Gate { io: theirs, gate: gate.clone() }, End::Laptop);
    let mut raw = Raw { io, opener, acceptor, driver: tokio::spawn(driver) };
    let mut bulk = raw.opener.open().await.unwrap();
    bulk.write_all(&[1; 100_000]).await.unwrap();
    // What came before the pace, and then calls, one after the other.
    let (header, _) = raw.frame().await;
    assert_eq!(header, Header::data(1, Flags::SYN, QUANTUM));
    for i in 0..10 {
        let mut call = raw.opener.open().await.unwrap();
        call.write_all(b"call").await.unwrap();
        assert_eq!(raw.frame().await.0, Header::data(2 * i + 3, Flags::SYN, 4));
        call.write_all(b"more").await.unwrap();
        assert_eq!(raw.frame().await.0, Header::data(2 * i + 3, Flags::NONE, 4));
        drop(call);
        assert_eq!(raw.frame().await.0, Header::reset(2 * i + 3));
    }
    {
        let mut gate = gate.lock().unwrap();
        gate.0 = true;
        gate.1.take().unwrap().wake();
    }
    let mut rest = QUANTUM;
    while rest < 100_000 {
        let (header, _) = raw.frame().await;
        assert!(header.stream == 1 && header.length as usize <= MOST_BULK);
        rest += header.length;
    }
}

#[tokio::test]
async fn a_call_passes_bulk_that_is_merely_queued() {
    const PIPE: usize = 20_000;
    let mut raw = Raw::new(End::Laptop, PIPE);
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let mut stream = raw.opener.open().await.unwrap();
        writers.spawn(async move { while stream.write_all(&[1; 60_000]).await.is_ok() {} });
    }
    // All of them are bulk now.
    let mut seen = 0;
    while seen < 8 * FIRST_WINDOW / 4 {
        seen += raw.frame().await.0.length;
    }
    for _ in 0..10 {
        let mut call = raw.opener.open().await.unwrap();
        call.write_all(b"call").await.unwrap();
        let mut before = 0;
        let called = loop {
            let (header, payload) = raw.frame().await;
            if payload == b"call" {
                break header.stream;
            }
            before += payload.len();
        };
        // What the pipe had taken, the frame of which a part is in it, and what was to be said before.
        assert!(before <= PIPE + 2 * MOST_BULK, "{before}");
        for id in (1..=15).step_by(2) {
            raw.send(Header::window_update(id, Flags::NONE, 100_000), &[]).await;
        }
        drop(call);
        while raw.frame().await.0 != Header::reset(called) {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever arrives, in whatever pieces: the session goes on or ends with an error, and no stream waits for ever
    /// once it has ended.
    #[test]
    fn any_bytes_are_survived(
        frames in prop::collection::vec((0u8..5, 0u16..17, 0u32..9, 0u32..3000, 0usize..3000), 0..100),
        piece in 1usize..5000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut bytes = Vec::new();
            for (kind, flags, stream, length, payload) in frames {
                bytes.extend_from_slice(&[0, kind]);
                bytes.extend_from_slice(&flags.to_be_bytes());
                bytes.extend_from_slice(&stream.to_be_bytes());
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.resize(bytes.len() + if kind == 0 && payload % 10 > 0 { length as usize } else { 0 }, 0);
            }
            let Raw { mut io, opener, mut acceptor, driver } = Raw::new(End::Workspace, 1 << 20);
            let mut streams = JoinSet::new();
            streams.spawn(async move {
                let mut readers = JoinSet::new();
                while let Some(mut stream) = acceptor.accept().await {
                    readers.spawn(async move { stream.read_to_end(&mut Vec::new()).await.map(drop) });
                }
                while readers.join_next().await.is_some() {}
            });
            for piece in bytes.chunks(piece) {
                if io.write_all(piece).await.is_err() {
                    break;
                }
            }
            drop(io);
            in_time(opener.closed()).await;
            let _ = in_time(driver).await.unwrap();
            in_time(streams.join_next()).await;
        });
    }
}

//! Tests of the multiplexer as its users see it, end to end in memory.

use super::*;
use crate::session::framed::FramedStream;
use crate::session::mux::header::Header;
use crate::session::mux::peer::{in_time, next_frame};
use crate::wire::open::Accepted;
use crate::wire::{FrameKind, Open, Refusal, RefusalCode, StreamRequest};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::JoinSet;

fn pair(tasks: &mut JoinSet<io::Result<()>>) -> ((MuxOpener, MuxAcceptor), (MuxOpener, MuxAcceptor)) {
    let (a, b) = crate::transport::memory::pair();
    let (laptop, laptop_in, driver) = multiplex(a, End::Laptop);
    tasks.spawn(driver);
    let (workspace, workspace_in, driver) = multiplex(b, End::Workspace);
    tasks.spawn(driver);
    ((laptop, laptop_in), (workspace, workspace_in))
}

async fn echo(mut acceptor: MuxAcceptor) {
    let mut tasks = JoinSet::new();
    while let Some(stream) = acceptor.accept().await {
        tasks.spawn(async move {
            let Ok((_, mut stream)) = FramedStream::accept(stream).await else { return };
            stream.accepted(&Accepted::default()).await.unwrap();
            while let Ok(Some(frame)) = stream.reader.next().await {
                let end = frame.kind == FrameKind::End;
                stream.writer.send(frame.kind, &frame.payload).await.unwrap();
                if end {
                    break;
                }
            }
            stream.writer.close().await.unwrap();
        });
    }
}

async fn round_trip(opener: &MuxOpener) -> Result<(), Refusal> {
    let io = opener.open().await?;
    let into = crate::session::framed::StreamError::into_refusal;
    let mut stream = FramedStream::open(io, &Open::new(StreamRequest::Call {})).await.map_err(into)?;
    stream.answer().await.map_err(into)?;
    stream.writer.send_data(&[9; 300_000]).await.unwrap();
    stream.writer.end().await.unwrap();
    let mut total = 0;
    loop {
        let frame = stream.reader.expect().await.map_err(into)?;
        total += frame.payload.len();
        if frame.kind == FrameKind::End {
            break;
        }
    }
    assert_eq!(total, 300_000);
    Ok(())
}

#[tokio::test]
async fn streams_go_both_ways() {
    let mut tasks = JoinSet::new();
    let ((laptop, laptop_in), (workspace, workspace_in)) = pair(&mut tasks);
    let echoes = (tokio::spawn(echo(laptop_in)), tokio::spawn(echo(workspace_in)));
    let rounds = (0..20).map(|_| async {
        tokio::join!(async { round_trip(&laptop).await.unwrap() }, async { round_trip(&workspace).await.unwrap() });
    });
    futures::future::join_all(rounds).await;
    echoes.0.abort();
    echoes.1.abort();
}

#[tokio::test]
async fn the_end_of_one_side_is_seen_by_the_other() {
    let mut tasks = JoinSet::new();
    let ((laptop, _laptop_in), (workspace, workspace_in)) = pair(&mut tasks);
    drop(workspace_in);
    laptop.closed().await;
    workspace.closed().await;
    assert_eq!(laptop.open().await.unwrap_err().code, RefusalCode::Unavailable);
}

/// Accepts every stream, answers it, and keeps it.
async fn hold(mut acceptor: MuxAcceptor) {
    let mut held = Vec::new();
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            stream = acceptor.accept() => match stream {
                Some(stream) => drop(answering.spawn(async move {
                    let (_, mut stream) = FramedStream::accept(stream).await.unwrap();
                    stream.accepted(&Accepted::default()).await.unwrap();
                    stream
                })),
                None => return,
            },
            Some(stream) = answering.join_next() => held.push(stream.unwrap()),
        }
    }
}

/// Of a hundred thousand streams, those over the limit are refused one by one; the session lives, and others work.
/// Its memory is bounded: had refused streams stayed, the crate would have ended the session at its own limit,
/// which is a tenth of them.
#[tokio::test]
async fn a_flood_of_streams_is_refused_and_harms_no_other() {
    const FLOOD: usize = 100_000;
    const AT_ONCE: usize = 250;
    let mut tasks = JoinSet::new();
    let ((laptop, laptop_in), (workspace, workspace_in)) = pair(&mut tasks);
    let mut served = JoinSet::new();
    served.spawn(hold(laptop_in));
    served.spawn(echo(workspace_in));
    let flood = MuxOpener { permits: Arc::new(Semaphore::new(FLOOD)), ..workspace.clone() };
    let open = || async {
        let into = crate::session::framed::StreamError::into_refusal;
        let io = flood.open().await?;
        let mut stream = FramedStream::open(io, &Open::new(StreamRequest::Call {})).await.map_err(into)?;
        stream.answer().await.map_err(into).map(|_| stream)
    };
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..FLOOD / AT_ONCE {
        for opened in futures::future::join_all((0..AT_ONCE).map(|_| open())).await {
            match opened {
                Ok(stream) => held.push(stream),
                Err(refusal) => {
                    assert_eq!(refusal.code, RefusalCode::Busy, "{refusal}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((held.len(), refused), (End::Laptop.inbound_limit(), FLOOD - End::Laptop.inbound_limit()));
    round_trip(&laptop).await.unwrap();
    assert!(!workspace.is_closed() && tasks.try_join_next().is_none());
}

/// Two ends that both send all they can on 64 streams, on a pipe that holds next to nothing, and read besides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_saturated_ends_do_not_hold_each_other_up() {
    const STREAMS: usize = 64;
    const BYTES: usize = 1 << 20;
    let mut tasks = JoinSet::new();
    let (a, b) = tokio::io::duplex(4096);
    let (opener, _laptop_in, driver) = multiplex(a, End::Laptop);
    tasks.spawn(driver);
    let (_workspace, mut acceptor, driver) = multiplex(b, End::Workspace);
    tasks.spawn(driver);
    let mut ends = JoinSet::new();
    let both_ways = |stream: MuxStream, seed: u8| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let writing = async move {
            for i in 0..BYTES / 65536 {
                write.write_all(&[seed.wrapping_add(i as u8); 65536]).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        tokio::join!(writing, async { read.read_to_end(&mut got).await.unwrap() });
        assert_eq!(got.len(), BYTES);
        assert!(got.chunks(65536).enumerate().all(|(i, piece)| piece.iter().all(|b| *b == seed.wrapping_add(i as u8))));
    };
    for _ in 0..STREAMS {
        ends.spawn(both_ways(opener.open().await.unwrap(), 0));
    }
    for _ in 0..STREAMS {
        let stream = acceptor.accept().await.unwrap();
        ends.spawn(both_ways(stream, 0));
    }
    let all = async {
        while let Some(end) = ends.join_next().await {
            end.unwrap()
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(300), all).await.expect("nobody waits for ever");
}

#[tokio::test]
async fn a_reset_is_told_from_an_end() {
    let mut tasks = JoinSet::new();
    let ((laptop, _laptop_in), (_workspace, mut workspace_in)) = pair(&mut tasks);
    for ended in [false, true] {
        let mut stream = laptop.open().await.unwrap();
        stream.write_all(b"content").await.unwrap();
        let mut other = workspace_in.accept().await.unwrap();
        other.read_exact(&mut [0; 7]).await.unwrap();
        if ended {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        let read = other.read(&mut [0]).await.map_err(|e| e.kind());
        assert_eq!(read, if ended { Ok(0) } else { Err(io::ErrorKind::ConnectionReset) });
    }
}

#[tokio::test]
async fn a_writer_that_waits_for_room_hears_of_a_reset() {
    let mut tasks = JoinSet::new();
    let ((laptop, _laptop_in), (_workspace, mut workspace_in)) = pair(&mut tasks);
    let mut stream = laptop.open().await.unwrap();
    let writer = tokio::spawn(async move { while stream.write_all(&[0; 65536]).await.is_ok() {} });
    let other = workspace_in.accept().await.unwrap();
    tokio::task::yield_now().await;
    drop(other);
    tokio::time::timeout(std::time::Duration::from_secs(60), writer).await.expect("it ends").unwrap();
}

/// A byte stream that takes bulk once something was read from it, as one whose acknowledgements are behind what arrives.
struct Gated {
    io: DuplexStream,
    open: bool,
}

impl Paced for Gated {
    fn poll_paced(&mut self, _: &mut Context<'_>) -> Poll<usize> {
        // Nobody is woken but by what is read.
        if self.open { Poll::Ready(4096) } else { Poll::Pending }
    }

    fn sparse(&mut self) {}
}

impl AsyncRead for Gated {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.open |= buf.filled().len() > before;
        read
    }
}

impl AsyncWrite for Gated {
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
async fn what_was_finished_leaves_before_the_goodbye_although_room_for_it_must_be_read() {
    const BYTES: usize = 100_000;
    let (io, mut theirs) = tokio::io::duplex(1 << 20);
    let (opener, acceptor, driver) = multiplex(Gated { io, open: false }, End::Laptop);
    let mut stream = opener.open().await.unwrap();
    stream.write_all(&[7; BYTES]).await.unwrap();
    stream.shutdown().await.unwrap();
    // Ends the session before its driver has read anything.
    drop(acceptor);
    let other = async {
        let mut got = next_frame(&mut theirs).await.1.len();
        assert!(got < BYTES, "the rest is bulk");
        theirs.write_all(&Header::pong(1).encode()).await.unwrap();
        loop {
            let (header, payload) = next_frame(&mut theirs).await;
            got += payload.len();
            if header == Header::go_away(0) {
                return got;
            }
        }
    };
    let (ended, got) = in_time(async { tokio::join!(driver, other) }).await;
    ended.unwrap();
    assert_eq!(got, BYTES);
}

//! Tests against another implementation of the same wire format, in both roles. The only file that names its crate.

use super::header::HEADER;
use super::*;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;

/// How long anything here may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);

/// Streams at a time, and bytes of each: more than their windows.
const STREAMS: usize = 20;
const BYTES: usize = 700_000;

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// The other implementation, which echoes what is opened towards it.
struct Theirs {
    opens: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    _tasks: JoinSet<()>,
}

impl Theirs {
    fn new(io: DuplexStream, mode: yamux::Mode) -> Theirs {
        let mut connection = yamux::Connection::new(io.compat(), yamux::Config::default(), mode);
        let (opens, mut asked) = mpsc::channel::<oneshot::Sender<yamux::Stream>>(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut echoes = JoinSet::new();
            let mut waiting = None;
            let mut over = false;
            std::future::poll_fn(|cx| {
                loop {
                    if waiting.is_none() && !over {
                        match asked.poll_recv(cx) {
                            std::task::Poll::Ready(Some(reply)) => waiting = Some(reply),
                            std::task::Poll::Ready(None) => over = true,
                            std::task::Poll::Pending => {}
                        }
                    }
                    if over {
                        return connection.poll_close(cx).map(drop);
                    }
                    if waiting.is_some()
                        && let std::task::Poll::Ready(Ok(stream)) = connection.poll_new_outbound(cx)
                    {
                        waiting.take().map(|reply| reply.send(stream));
                        continue;
                    }
                    match connection.poll_next_inbound(cx) {
                        std::task::Poll::Ready(Some(Ok(stream))) => drop(echoes.spawn(echo(stream))),
                        std::task::Poll::Ready(_) => return std::task::Poll::Ready(()),
                        std::task::Poll::Pending => return std::task::Poll::Pending,
                    }
                }
            })
            .await;
        });
        Theirs { opens, _tasks: tasks }
    }

    async fn open(&self) -> yamux::Stream {
        let (reply, stream) = oneshot::channel();
        self.opens.send(reply).await.unwrap();
        in_time(stream).await.unwrap()
    }
}

async fn echo(stream: yamux::Stream) {
    let (read, mut write) = futures::AsyncReadExt::split(stream);
    let _ = futures::io::copy(read, &mut write).await;
    let _ = write.close().await;
}

fn both(ours: End) -> (MuxOpener, MuxAcceptor, Theirs, JoinSet<io::Result<()>>) {
    let (a, b) = tokio::io::duplex(100_000);
    let (opener, acceptor, driver) = multiplex(a, ours);
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    let mode = if ours == End::Laptop { yamux::Mode::Server } else { yamux::Mode::Client };
    (opener, acceptor, Theirs::new(b, mode), tasks)
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..BYTES).map(|i| (i.wrapping_mul(31) + seed) as u8).collect()
}

#[tokio::test]
async fn streams_of_ours_are_echoed_by_theirs() {
    for end in [End::Laptop, End::Workspace] {
        let (opener, _acceptor, _theirs, _tasks) = both(end);
        let rounds = (0..STREAMS).map(|seed| {
            let opener = opener.clone();
            async move {
                let (mut read, mut write) = tokio::io::split(opener.open().await.unwrap());
                let sent = pattern(seed);
                let (mut got, ()) = (Vec::new(), ());
                let writing = async {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                tokio::join!(writing, async { read.read_to_end(&mut got).await.unwrap() });
                assert!(got == sent, "stream {seed}");
            }
        });
        in_time(futures::future::join_all(rounds)).await;
    }
}

#[tokio::test]
async fn streams_of_theirs_are_echoed_by_ours() {
    for end in [End::Laptop, End::Workspace] {
        let (_opener, mut acceptor, theirs, mut tasks) = both(end);
        tasks.spawn(async move {
            let mut echoes = JoinSet::new();
            while let Some(stream) = acceptor.accept().await {
                echoes.spawn(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                });
            }
            Ok(())
        });
        let rounds = (0..STREAMS).map(|seed| {
            let theirs = &theirs;
            async move {
                let (mut read, mut write) = futures::AsyncReadExt::split(theirs.open().await);
                let sent = pattern(seed);
                let mut got = Vec::new();
                let writing = async {
                    write.write_all(&sent).await.unwrap();
                    write.close().await.unwrap();
                };
                tokio::join!(writing, async { read.read_to_end(&mut got).await.unwrap() });
                assert!(got == sent, "stream {seed}");
            }
        });
        in_time(futures::future::join_all(rounds)).await;
    }
}

#[tokio::test]
async fn half_close_goes_on_in_the_other_direction() {
    let (_opener, mut acceptor, theirs, _tasks) = both(End::Laptop);
    let mut stream = theirs.open().await;
    stream.write_all(b"all I say").await.unwrap();
    stream.close().await.unwrap();
    let mut ours = in_time(acceptor.accept()).await.unwrap();
    let mut heard = String::new();
    in_time(ours.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "all I say");
    for _ in 0..10 {
        ours.write_all(&[5; 100_000]).await.unwrap();
        in_time(futures::AsyncReadExt::read_exact(&mut stream, &mut [0; 100_000])).await.unwrap();
    }
    ours.shutdown().await.unwrap();
    drop(ours);
    assert_eq!(in_time(futures::AsyncReadExt::read(&mut stream, &mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_of_theirs_is_one_and_ours_cuts_theirs() {
    let (_opener, mut acceptor, theirs, _tasks) = both(End::Workspace);
    let mut stream = theirs.open().await;
    stream.write_all(b"begun").await.unwrap();
    let mut ours = in_time(acceptor.accept()).await.unwrap();
    in_time(ours.read_exact(&mut [0; 5])).await.unwrap();
    drop(stream);
    assert_eq!(in_time(ours.read(&mut [0])).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut stream = theirs.open().await;
    stream.write_all(b"begun").await.unwrap();
    drop(in_time(acceptor.accept()).await.unwrap());
    in_time(async { while stream.write_all(&[0; 1000]).await.is_ok() {} }).await;
}

#[tokio::test]
async fn either_end_can_end_the_session() {
    let (opener, _acceptor, theirs, mut tasks) = both(End::Laptop);
    let stream = opener.open().await.unwrap();
    drop(theirs.opens);
    in_time(opener.closed()).await;
    in_time(tasks.join_next()).await.unwrap().unwrap().unwrap();
    drop(stream);

    let (_opener, acceptor, mut theirs, mut tasks) = both(End::Laptop);
    drop(acceptor);
    in_time(tasks.join_next()).await.unwrap().unwrap().unwrap();
    in_time(theirs._tasks.join_next()).await.unwrap().unwrap();
}

/// Their window grows only when we answer their ping, which they send of their own accord.
#[tokio::test]
async fn their_ping_is_answered_and_their_window_grows() {
    let (io, watched) = tokio::io::duplex(100_000);
    let (ours, between) = tokio::io::duplex(100_000);
    let (opener, _acceptor, driver) = multiplex(ours, End::Laptop);
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    let _theirs = Theirs::new(io, yamux::Mode::Server);
    let (mut from_us, mut to_us) = tokio::io::split(between);
    let (mut from_them, mut to_them) = tokio::io::split(watched);
    tasks.spawn(async move { tokio::io::copy(&mut from_them, &mut to_us).await.map(drop) });
    // Frames on their way to them are looked at as they pass.
    let (seen, mut pongs) = mpsc::channel(1);
    tasks.spawn(async move {
        loop {
            let mut header = [0; HEADER];
            from_us.read_exact(&mut header).await?;
            to_them.write_all(&header).await?;
            let parsed = header::Header::decode(header).unwrap();
            match parsed.kind {
                header::Kind::Data => {
                    let mut payload = vec![0; parsed.length as usize];
                    from_us.read_exact(&mut payload).await?;
                    to_them.write_all(&payload).await?;
                }
                header::Kind::Ping => drop(seen.try_send(parsed.flags)),
                _ => {}
            }
        }
    });
    let (mut read, mut write) = tokio::io::split(opener.open().await.unwrap());
    let sent = vec![3; 8_000_000];
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    in_time(async { tokio::join!(writing, async { read.read_to_end(&mut got).await.unwrap() }) }).await;
    assert!(got == sent);
    assert_eq!(in_time(pongs.recv()).await, Some(header::Flags::ACK));
}

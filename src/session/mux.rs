//! The multiplexer: many streams on one byte stream, in yamux's wire format. The only file that names its crate.
//!
//! It keeps three of the crate's hazards from everyone above: more streams than the crate's limit would end the whole
//! session, so both sides hold permits below it and what is over is refused politely; a reset reads like a clean end,
//! so every stream carries frames with an explicit end; each frame is flushed by itself, so writes are gathered below.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::{AsyncRead as _, AsyncWrite as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::coalesce::Coalesce;
use super::opener::Opener;
use crate::transport::Io;
use crate::wire::limits::{FRAME_HEADER, MAX_DATA, MAX_STREAMS};
use crate::wire::{FrameHeader, FrameKind, Refusal, RefusalCode};

/// Streams above our own limits that the crate may hold while refused ones are still being cleared away.
const SLACK: usize = 1024;

/// Bytes of receive window that the streams of a session share beyond the 256 KiB that yamux gives to each:
/// three streams at 1 Gbit/s over 150 ms.
const SHARED_WINDOW: usize = 64 * 1024 * 1024;

/// New streams that may wait for the acceptor.
const ACCEPT_QUEUE: usize = 256;

/// Which end of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The laptop.
    Laptop,
    /// The workspace.
    Workspace,
}

impl End {
    /// Streams that the other end may have open here. A hostile workspace can make the laptop hold 256 KiB for each.
    pub const fn inbound_limit(self) -> usize {
        match self {
            End::Laptop => MAX_STREAMS / 8,
            End::Workspace => MAX_STREAMS,
        }
    }
}

/// One stream.
#[derive(Debug)]
pub struct MuxStream {
    inner: yamux::Stream,
    _permit: OwnedSemaphorePermit,
}

type Reply = oneshot::Sender<Result<yamux::Stream, Refusal>>;

/// Opens streams. Cheap to clone; the session ends when its driver does, not when openers are dropped.
#[derive(Debug, Clone)]
pub struct MuxOpener {
    opens: mpsc::Sender<Reply>,
    permits: Arc<Semaphore>,
    limit: usize,
}

/// Streams that the other end opened, and the session's life: dropping this ends the session.
#[derive(Debug)]
pub struct MuxAcceptor {
    accepted: mpsc::Receiver<MuxStream>,
    _end: DropGuard,
}

/// Runs the multiplexer on `io`. The driver is a task that the returned future is; the caller owns it.
pub fn multiplex<T: Io>(io: T, end: End) -> (MuxOpener, MuxAcceptor, impl Future<Output = io::Result<()>> + Send) {
    let mut config = yamux::Config::default();
    let streams = End::Laptop.inbound_limit() + End::Workspace.inbound_limit() + SLACK;
    // First without a bound: each setter checks itself against the other's present value.
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(streams);
    config.set_max_connection_receive_window(Some(streams * yamux::DEFAULT_CREDIT as usize + SHARED_WINDOW));
    config.set_split_send_size(FRAME_HEADER + MAX_DATA);
    let mode = if end == End::Laptop { yamux::Mode::Client } else { yamux::Mode::Server };
    let connection = yamux::Connection::new(Coalesce::new(io).compat(), config, mode);

    let (opens, open_requests) = mpsc::channel(ACCEPT_QUEUE);
    let (accepting, accepted) = mpsc::channel(ACCEPT_QUEUE);
    let cancel = CancellationToken::new();
    let other = if end == End::Laptop { End::Workspace } else { End::Laptop };
    let opener =
        MuxOpener { opens, permits: Arc::new(Semaphore::new(other.inbound_limit())), limit: other.inbound_limit() };
    let acceptor = MuxAcceptor { accepted, _end: cancel.clone().drop_guard() };
    let driver = Driver {
        connection,
        open_requests,
        opening: None,
        accepting,
        inbound: Arc::new(Semaphore::new(end.inbound_limit())),
    };
    (opener, acceptor, driver.run(cancel))
}

impl MuxAcceptor {
    /// The next stream that the other end opened; `None` when the session is over.
    pub async fn accept(&mut self) -> Option<MuxStream> {
        self.accepted.recv().await
    }
}

impl Opener for MuxOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        let gone = || Refusal::new(RefusalCode::Unavailable, "the session is over");
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{} streams are open in this session already", self.limit);
            Refusal::new(RefusalCode::Busy, format!("{text}. hint: close some connections and try again"))
        })?;
        let (reply, answer) = oneshot::channel();
        self.opens.send(reply).await.map_err(|_| gone())?;
        let inner = answer.await.map_err(|_| gone())??;
        Ok(MuxStream { inner, _permit: permit })
    }
}

impl MuxOpener {
    /// Whether both open streams on the same session.
    pub fn is_same(&self, other: &MuxOpener) -> bool {
        self.opens.same_channel(&other.opens)
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        self.opens.is_closed()
    }

    /// Returns when the session is over.
    pub async fn closed(&self) {
        self.opens.closed().await;
    }
}

struct Driver<T> {
    connection: yamux::Connection<Compat<Coalesce<T>>>,
    open_requests: mpsc::Receiver<Reply>,
    opening: Option<Reply>,
    accepting: mpsc::Sender<MuxStream>,
    inbound: Arc<Semaphore>,
}

impl<T: Io> Driver<T> {
    async fn run(mut self, cancel: CancellationToken) -> io::Result<()> {
        let outcome = tokio::select! {
            outcome = std::future::poll_fn(|cx| self.poll(cx)) => outcome,
            () = cancel.cancelled() => Ok(()),
        };
        self.open_requests.close();
        let close = std::future::poll_fn(|cx| self.connection.poll_close(cx));
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), close).await;
        outcome
    }

    /// Ready when the session is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.poll_opens(cx);
            match self.connection.poll_next_inbound(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Ok(stream))) => self.admit(stream),
                Poll::Ready(Some(Err(yamux::ConnectionError::Closed))) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(yamux::ConnectionError::Io(error)))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
    }

    fn poll_opens(&mut self, cx: &mut Context<'_>) {
        loop {
            if self.opening.is_none() {
                match self.open_requests.poll_recv(cx) {
                    Poll::Ready(Some(reply)) => self.opening = Some(reply),
                    Poll::Ready(None) | Poll::Pending => return,
                }
            }
            match self.connection.poll_new_outbound(cx) {
                Poll::Pending => return,
                Poll::Ready(opened) => {
                    let opened = opened.map_err(|e| Refusal::new(RefusalCode::Unavailable, e.to_string()));
                    if let Some(reply) = self.opening.take() {
                        let _ = reply.send(opened);
                    }
                }
            }
        }
    }

    /// Hands a new stream on, or refuses it when there are too many. Never waits.
    fn admit(&mut self, stream: yamux::Stream) {
        let refused = match self.inbound.clone().try_acquire_owned() {
            Err(_) => stream,
            Ok(permit) => match self.accepting.try_send(MuxStream { inner: stream, _permit: permit }) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(stream) | mpsc::error::TrySendError::Closed(stream)) => {
                    stream.inner
                }
            },
        };
        refuse(refused);
    }
}

/// Writes a refusal without waiting: a new stream's queue is empty, so one small frame and an end always fit.
fn refuse(mut stream: yamux::Stream) {
    let refusal = Refusal::new(RefusalCode::Busy, "too many streams at once. hint: close some and try again");
    let payload = refusal.to_bytes();
    let mut frame = FrameHeader::new(FrameKind::Refuse, payload.len()).encode().to_vec();
    frame.extend_from_slice(&payload);
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Pin::new(&mut stream).poll_write(&mut cx, &frame);
    let _ = Pin::new(&mut stream).poll_close(&mut cx);
}

impl AsyncRead for MuxStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf.initialize_unfilled());
        read.map_ok(|n| buf.advance(n))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::framed::FramedStream;
    use crate::wire::open::Accepted;
    use crate::wire::{Open, StreamRequest};
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
        let into = super::super::framed::StreamError::into_refusal;
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
            let into = super::super::framed::StreamError::into_refusal;
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
}

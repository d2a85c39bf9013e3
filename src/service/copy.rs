//! Moves bytes between a local socket and a stream: the data path of every forward.
//!
//! An idle connection holds no buffer: one is taken when the socket has something to say, and freed when it falls
//! silent. A direction that is over is passed on as such, and a transfer that was cut never looks complete: the
//! local socket is reset, also when this program dies. Refuses to spawn: both directions live in the caller's task.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::session::framed::{DataBuffer, Frame, FrameReader, FrameWriter, FramedStream, Io, StreamError};
use crate::wire::limits::MAX_DATA;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// How long telling the peer that we give up may take. Dropping the stream says the same without the reason.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that [`splice`] moves at a time, on the stack. What the other side does not take at once waits in a buffer.
const SPLICE_CHUNK: usize = 16 * 1024;

/// Chunks that [`splice`] moves in one direction before it lets other tasks run.
const SPLICE_TURNS: usize = 32;

/// Frames that are taken before other tasks run: empty ones cost the other end nothing.
const FRAME_TURNS: usize = 64;

/// Such turns in which the reason of a peer that stopped reading is looked for.
const REASON_TURNS: usize = 16;

/// Bytes that went each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// From the local socket (in [`splice`]: from the first stream) to the peer.
    pub sent: u64,
    /// From the peer to the local socket.
    pub received: u64,
}

/// [`Counts`] that others can look at while they grow.
#[derive(Debug, Default)]
pub struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
    got_through: AtomicU64,
}

impl Meter {
    /// Bytes so far.
    pub fn counts(&self) -> Counts {
        Counts { sent: self.sent.load(Relaxed), received: self.received.load(Relaxed) }
    }

    /// Connections or flows whose target was reached.
    pub fn got_through(&self) -> u64 {
        self.got_through.load(Relaxed)
    }

    pub(crate) fn add_got_through(&self) {
        self.got_through.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_sent(&self, n: usize) {
        self.sent.fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn add_received(&self, n: usize) {
        self.received.fetch_add(n as u64, Relaxed);
    }
}

/// A connected local socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket. It has no reset of its own: a cut transfer reads there as an early end.
    Unix(UnixStream),
}

impl From<TcpStream> for Socket {
    fn from(socket: TcpStream) -> Socket {
        Socket::Tcp(socket)
    }
}

impl From<UnixStream> for Socket {
    fn from(socket: UnixStream) -> Socket {
        Socket::Unix(socket)
    }
}

macro_rules! either {
    ($self:expr, $socket:ident => $result:expr) => {
        match $self {
            Socket::Tcp($socket) => $result,
            Socket::Unix($socket) => $result,
        }
    };
}

impl Socket {
    /// From here on, dropping the socket (or the end of this program) resets the connection.
    pub(crate) fn arm_reset(&self) {
        if let Socket::Tcp(tcp) = self {
            // Both fail only on a socket that is already gone, which the first read tells.
            let _ = tcp.set_nodelay(true);
            let _ = tcp.set_zero_linger();
        }
    }

    /// The transfer is complete: dropping the socket closes it in the ordinary way.
    fn disarm_reset(&self) {
        if let Socket::Tcp(tcp) = self {
            let _ = SockRef::from(tcp).set_linger(None);
        }
    }

    /// Resets the connection, so that its client does not take what it has for all there is.
    pub fn reset(self) {
        self.arm_reset();
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read_ready(cx))
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_write_ready(cx))
    }

    fn try_read_buf(&self, buf: &mut impl BufMut) -> io::Result<usize> {
        either!(self, socket => socket.try_read_buf(buf))
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, socket => socket.try_write(bytes))
    }

    fn shutdown_write(&self) -> io::Result<()> {
        either!(self, socket => SockRef::from(socket).shutdown(Shutdown::Write))
    }
}

/// Whether the acceptor's answer is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The stream is accepted.
    Given,
    /// The first frame of the peer is its answer; content may leave before it arrives.
    Due,
}

/// Relays between `local` and an accepted `stream` until both directions have ended. After its `End` the peer keeps
/// its side of the stream open until it has ours: a stream that stops before is a truncation.
pub async fn relay<L: Into<Socket>, S: Io>(local: L, stream: FramedStream<S>) -> Result<Counts, StreamError> {
    let meter = Meter::default();
    relay_metered(local, stream, Answer::Given, &meter).await?;
    Ok(meter.counts())
}

/// As [`relay`], counting as it goes, and before the answer if `answer` is [`Due`](Answer::Due). A refusal resets
/// the local socket and is the error.
pub async fn relay_metered<L: Into<Socket>, S: Io>(
    local: L,
    stream: FramedStream<S>,
    answer: Answer,
    meter: &Meter,
) -> Result<(), StreamError> {
    let local: Socket = local.into();
    local.arm_reset();
    let FramedStream { mut reader, mut writer } = stream;
    reader.limit(MAX_DATA);
    let midway = AtomicBool::new(false);
    if answer == Answer::Given {
        meter.add_got_through();
    }
    let fault = {
        let mut incoming = Incoming { reader, answer, unwritten: Bytes::new(), ended: false };
        let mut outgoing = pin!(outgoing(&local, &mut writer, &midway, meter));
        let mut sent_all = false;
        poll_fn(|cx| {
            if !sent_all && let Poll::Ready(result) = outgoing.as_mut().poll(cx) {
                if let Err(Fault::Stream(_)) = &result
                    && let Some(reason) = incoming.reason(cx, &local, meter)
                {
                    return Poll::Ready(Err(reason));
                }
                result?;
                sent_all = true;
            }
            incoming.poll(cx, &local, sent_all, meter)
        })
        .await
    };
    let (refusal, error) = match fault {
        Ok(()) => {
            local.disarm_reset();
            // The peer has our `End`; whether it is still there to see the close no longer matters.
            let _ = writer.close().await;
            return Ok(());
        }
        Err(Fault::Local(error)) => {
            let refusal = Refusal::new(RefusalCode::Cancelled, format!("the connection broke off: {error}"));
            (Some(refusal.clone()), StreamError::Refused(refusal))
        }
        Err(Fault::Stream(error @ (StreamError::Frame(_) | StreamError::OutOfPlace(_)))) => {
            (Some(Refusal::new(RefusalCode::Malformed, error.to_string())), error)
        }
        Err(Fault::Stream(error)) => (None, error),
    };
    drop(local);
    // In the middle of a frame there is no room for another one; the drop of the stream is a truncation to the peer.
    if let Some(refusal) = refusal.filter(|_| !midway.load(Relaxed)) {
        let _ = tokio::time::timeout(ABORT_TIMEOUT, writer.abort(&refusal)).await;
    }
    Err(error)
}

enum Fault {
    Local(io::Error),
    Stream(StreamError),
}

async fn outgoing<W: AsyncWrite + Unpin>(
    local: &Socket,
    writer: &mut FrameWriter<W>,
    midway: &AtomicBool,
    meter: &Meter,
) -> Result<(), Fault> {
    let mut buffer: Option<DataBuffer> = None;
    loop {
        let ready = poll_fn(|cx| {
            let ready = local.poll_read_ready(cx);
            if ready.is_pending() {
                buffer = None;
            }
            ready
        });
        ready.await.map_err(Fault::Local)?;
        let filling = buffer.get_or_insert_default();
        let n = match local.try_read_buf(&mut filling.space()) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(e) => return Err(Fault::Local(e)),
        };
        midway.store(true, Relaxed);
        let sent = match n {
            0 => writer.end().await,
            _ => writer.send_buffer(FrameKind::Data, filling).await,
        };
        sent.map_err(|e| Fault::Stream(e.into()))?;
        midway.store(false, Relaxed);
        if n == 0 {
            return Ok(());
        }
        meter.add_sent(n);
    }
}

struct Incoming<R> {
    reader: FrameReader<R>,
    answer: Answer,
    unwritten: Bytes,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Ready when the peer has ended and so have we. Until then it goes on reading, because a peer that gives up
    /// after its own `End` says so there.
    fn poll(&mut self, cx: &mut Context<'_>, local: &Socket, sent_all: bool, meter: &Meter) -> Poll<Result<(), Fault>> {
        for _ in 0..FRAME_TURNS {
            while !self.unwritten.is_empty() {
                ready!(local.poll_write_ready(cx)).map_err(Fault::Local)?;
                match local.try_write(&self.unwritten) {
                    Ok(n) => {
                        self.unwritten.advance(n);
                        meter.add_received(n);
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(e) => return Poll::Ready(Err(Fault::Local(e))),
                }
            }
            // Gives the memory back to the reader, which fills it anew.
            self.unwritten = Bytes::new();
            if self.ended && sent_all {
                return Poll::Ready(Ok(()));
            }
            let frame = ready!(self.reader.poll_next(cx)).and_then(|frame| frame.ok_or(StreamError::Truncated));
            frame.and_then(|frame| self.take(frame, local, meter)).map_err(Fault::Stream)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What the peer has said before it stopped reading, if that is why it did; behind as much as it may have sent until then.
    fn reason(&mut self, cx: &mut Context<'_>, local: &Socket, meter: &Meter) -> Option<Fault> {
        (0..REASON_TURNS).find_map(|_| match self.poll(cx, local, false, meter) {
            Poll::Ready(outcome) => outcome.err(),
            Poll::Pending => None,
        })
    }

    fn take(&mut self, frame: Frame, local: &Socket, meter: &Meter) -> Result<(), StreamError> {
        match (frame.kind, self.answer) {
            (FrameKind::Accept, Answer::Due) => {
                self.answer = Answer::Given;
                meter.add_got_through();
            }
            (FrameKind::Refuse, Answer::Due) | (FrameKind::Abort, _) => {
                return Err(StreamError::Refused(frame.refusal()));
            }
            (FrameKind::Data, Answer::Given) if !self.ended => self.unwritten = frame.payload,
            (FrameKind::End, Answer::Given) if !self.ended => {
                self.ended = true;
                // Fails only on a connection that is gone, and then there is nobody to tell.
                let _ = local.shutdown_write();
            }
            (kind, _) => return Err(StreamError::OutOfPlace(kind)),
        }
        Ok(())
    }
}

/// Copies raw bytes both ways until both directions have ended. An error of either side drops both. A `remote` that takes
/// nothing more may have said before how it ended: what has arrived of that is passed on first. A `local` that is gone
/// is not waited for. Whoever needs to tell an end from a cut has frames inside.
pub async fn splice<L: Io, R: Io>(mut local: L, mut remote: R) -> io::Result<Counts> {
    let (mut forth, mut back) = (Splice::default(), Splice::default());
    let mut unheard = None;
    poll_fn(|cx| {
        let sent_all = match forth.poll(cx, &mut local, &mut remote, Until::TheEnd) {
            Poll::Ready(Err(fault)) => {
                forth.over = true;
                unheard = Some(fault);
                true
            }
            sent => sent.is_ready(),
        };
        let until = if unheard.is_some() { Until::Silence } else { Until::TheEnd };
        let received_all = back.poll(cx, &mut remote, &mut local, until)?.is_ready();
        if sent_all && received_all { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
    })
    .await?;
    match unheard {
        Some(fault) => Err(fault),
        None => Ok(Counts { sent: forth.moved, received: back.moved }),
    }
}

/// How long one direction of [`splice`] goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Until its source has ended.
    TheEnd,
    /// Until it would wait for its source.
    Silence,
}

#[derive(Default)]
struct Splice {
    unwritten: Bytes,
    unflushed: bool,
    end_read: bool,
    over: bool,
    moved: u64,
}

impl Splice {
    fn poll<R: Io, W: Io>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        until: Until,
    ) -> Poll<io::Result<()>> {
        for _ in 0..SPLICE_TURNS {
            if self.over {
                return Poll::Ready(Ok(()));
            }
            while !self.unwritten.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.unwritten))?;
                self.wrote(n)?;
                self.unwritten.advance(n);
            }
            if self.end_read {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.over = true;
                continue;
            }
            let mut chunk = [const { MaybeUninit::uninit() }; SPLICE_CHUNK];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            if Pin::new(&mut *from).poll_read(cx, &mut chunk)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                if until == Until::Silence {
                    self.over = true;
                    continue;
                }
                return Poll::Pending;
            }
            let mut chunk = chunk.filled();
            self.end_read = chunk.is_empty();
            while !chunk.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, chunk)? {
                    Poll::Ready(n) => {
                        self.wrote(n)?;
                        chunk = &chunk[n..];
                    }
                    Poll::Pending => {
                        self.unwritten = Bytes::copy_from_slice(chunk);
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn wrote(&mut self, n: usize) -> io::Result<()> {
        if n == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        self.moved += n as u64;
        self.unflushed = true;
        Ok(())
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;

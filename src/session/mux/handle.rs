//! What others hold of a session: one stream, the opener, the acceptor.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::hub::{Hub, Stream};
use crate::wire::{FrameHeader, FrameKind, Refusal, RefusalCode};

/// One stream.
///
/// What is written leaves by itself; `flush` waits for nothing, and fails when the stream was cut. Shutting it down ends
/// this direction and lets the handle go: what was written still leaves, then the end. A handle that is dropped without that
/// resets the stream, after as much of what was written as the other end has room for. Reading gives everything that arrived
/// before a reset, and then an error of kind `ConnectionReset`.
#[derive(Debug)]
pub struct MuxStream {
    stream: Arc<Stream>,
}

impl MuxStream {
    pub(super) fn new(stream: Arc<Stream>) -> MuxStream {
        MuxStream { stream }
    }

    /// Bytes of memory that it takes.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        // The counts of the `Arc` before it.
        size_of::<MuxStream>() + 2 * size_of::<usize>() + size_of::<Stream>() + self.stream.lock().footprint()
    }

    /// Writes a refusal without waiting, since a new stream's queue is empty, and lets it go.
    pub(super) fn refuse(self, refusal: &Refusal) {
        let payload = refusal.to_bytes();
        let mut frame = FrameHeader::new(FrameKind::Refuse, payload.len()).encode().to_vec();
        frame.extend_from_slice(&payload);
        let mut state = self.stream.lock();
        // Fails only on a stream that is over, which needs no refusal.
        let _ = state.write(&frame).and_then(|_| state.finish());
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let mut state = self.stream.lock();
        state.abandon();
        self.stream.settle(&mut state);
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.stream.lock();
        let read = state.read(buf, &self.stream.hub().pool)?;
        if read.is_none() {
            keep(&mut state.reader, cx);
        }
        self.stream.settle(&mut state);
        read.map_or(Poll::Pending, |_| Poll::Ready(Ok(())))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.stream.lock();
        let written = state.write(buf)?;
        if written == 0 && !buf.is_empty() {
            keep(&mut state.writer, cx);
            return Poll::Pending;
        }
        self.stream.settle(&mut state);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written leaves by itself, unless it never will.
        Poll::Ready(self.stream.lock().uncut())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.stream.lock();
        state.finish()?;
        self.stream.settle(&mut state);
        Poll::Ready(Ok(()))
    }
}

fn keep(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(known) => known.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// Opens streams. Cheap to clone; the session ends when its driver does, not when openers are dropped.
#[derive(Debug, Clone)]
pub struct MuxOpener {
    pub(super) hub: Arc<Hub>,
    pub(super) over: CancellationToken,
    pub(super) permits: Arc<Semaphore>,
    pub(super) limit: usize,
}

impl MuxOpener {
    /// A new stream, or why there is none now (`Unavailable`: the session is over or drains; `Busy`: too many streams).
    pub async fn open(&self) -> Result<MuxStream, Refusal> {
        if self.is_closed() {
            return Err(Refusal::new(RefusalCode::Unavailable, "the session is over"));
        }
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{} streams are open in this session already", self.limit);
            Refusal::new(RefusalCode::Busy, format!("{text}. hint: close some connections and try again"))
        })?;
        Stream::outbound(self.hub.clone(), permit).map(MuxStream::new).ok_or_else(handed_over)
    }

    /// Whether both open streams on the same session.
    pub fn is_same(&self, other: &MuxOpener) -> bool {
        Arc::ptr_eq(&self.hub, &other.hub)
    }

    /// This end opens no more streams and wants none any more. Those that are open go on, as do those that the other end
    /// opened before it heard of this; then the session ends. It may be said more than once.
    pub fn drain(&self) {
        self.hub.drain();
    }

    /// Whether either end wants no more streams.
    pub fn is_draining(&self) -> bool {
        self.hub.is_draining()
    }

    /// Returns when either end wants no more streams.
    pub async fn draining(&self) {
        self.hub.draining.cancelled().await;
    }

    /// Returns when the other end has said that it opens no more streams: after [`drain`](Self::drain) it has heard of
    /// that, and whatever it does from then on, it does knowing it.
    pub async fn agreed(&self) {
        self.hub.agreed.cancelled().await;
    }

    /// Whether the session came to its end because nothing was open in it any more.
    pub fn has_drained(&self) -> bool {
        self.hub.has_drained()
    }

    /// Streams of which anything is left at this end, whoever opened them.
    pub fn streams(&self) -> usize {
        self.hub.open()
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Returns when the session is over.
    pub async fn closed(&self) {
        self.over.cancelled().await;
    }
}

pub(super) fn too_many() -> Refusal {
    Refusal::new(RefusalCode::Busy, "too many streams at once. hint: close some and try again")
}

pub(super) fn handed_over() -> Refusal {
    Refusal::new(RefusalCode::Unavailable, "this session is being handed over to the next. hint: try again")
}

/// Streams that the other end opened, and the session's life: dropping this ends the session.
#[derive(Debug)]
pub struct MuxAcceptor {
    pub(super) accepted: mpsc::Receiver<MuxStream>,
    pub(super) _end: DropGuard,
}

impl MuxAcceptor {
    /// The next stream that the other end opened; `None` when the session is over.
    pub async fn accept(&mut self) -> Option<MuxStream> {
        self.accepted.recv().await
    }
}

//! Gathers small writes into large ones, and decides when they leave.
//!
//! The multiplexer writes a frame's header and body apart and flushes after each. Beneath it every flush would cost
//! a TLS record, a WebSocket message and a system call. So a flush from above is only noted; the gathered bytes leave
//! when the buffer is full, or when the reader has nothing more to read, which is when the multiplexer is about to
//! wait. The multiplexer reads last before it waits, so nothing stays behind.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::Io;

/// Bytes gathered before they leave by themselves: four TLS records.
pub const GATHER: usize = 64 * 1024;

/// Reads that may succeed in a row before gathered bytes leave all the same.
const READS_BEFORE_FLUSH: u32 = 16;

/// A byte stream whose writes are gathered.
#[derive(Debug)]
pub struct Coalesce<T> {
    io: T,
    // Kept for the session's life: under load it is filled and emptied thousands of times a second.
    gathered: Vec<u8>,
    departed: usize,
    unflushed: bool,
    reads: u32,
}

impl<T: Io> Coalesce<T> {
    /// Gathers writes to `io`.
    pub fn new(io: T) -> Coalesce<T> {
        Coalesce { io, gathered: Vec::new(), departed: 0, unflushed: false, reads: 0 }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.departed < self.gathered.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.gathered[self.departed..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.departed += n;
            self.unflushed = true;
        }
        self.departed = 0;
        self.gathered.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_depart(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        self.reads = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: Io> AsyncRead for Coalesce<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf)?;
        self.reads += 1;
        if read.is_pending() || self.reads >= READS_BEFORE_FLUSH {
            let _ = self.poll_depart(cx)?;
        }
        read.map(Ok)
    }
}

impl<T: Io> AsyncWrite for Coalesce<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() + buf.len() > GATHER {
            ready!(self.poll_drain(cx))?;
        }
        let n = buf.len().min(GATHER);
        self.gathered.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_depart(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

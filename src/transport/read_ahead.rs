//! Reads from a connection in large pieces. rustls asks for 4 KiB at a time, which under load is a system call for each.
//!
//! The buffer exists only while there is something to read: an idle or parked connection holds none.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::Io;

/// Bytes read at a time.
pub const PIECE: usize = 64 * 1024;

/// A connection that is read in large pieces; writes pass through.
#[derive(Debug)]
pub struct ReadAhead<T> {
    io: T,
    ahead: BytesMut,
}

impl<T: Io> ReadAhead<T> {
    /// Reads ahead on `io`.
    pub fn new(io: T) -> ReadAhead<T> {
        ReadAhead { io, ahead: BytesMut::new() }
    }
}

impl<T: Io> AsyncRead for ReadAhead<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            if buf.remaining() >= PIECE {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            // Reclaims the whole buffer when all of it was read.
            this.ahead.reserve(PIECE);
            match poll_read_buf(Pin::new(&mut this.io), cx, &mut this.ahead) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.ahead = BytesMut::new();
                    return Poll::Pending;
                }
            }
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..n]);
        this.ahead.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<T: Io> AsyncWrite for ReadAhead<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn every_byte_in_order_and_no_buffer_when_idle() {
        let (mut a, b) = tokio::io::duplex(200_000);
        let mut reader = ReadAhead::new(b);
        let sent: Vec<u8> = (0..150_000u32).map(|i| (i % 251) as u8).collect();
        a.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let mut piece = [0; 4096];
            let n = reader.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..n]);
        }
        assert_eq!(got, sent);
        let mut byte = [0; 1];
        assert!(futures::poll!(std::pin::pin!(reader.read(&mut byte))).is_pending());
        assert_eq!(reader.ahead.capacity(), 0);
        drop(a);
        assert_eq!(reader.read(&mut byte).await.unwrap(), 0);
    }
}

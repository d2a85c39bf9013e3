//! Reads frames off the byte stream beneath. The content of large ones is read straight into buffers that their
//! streams keep.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio_util::io::poll_read_buf;

use super::header::{HEADER, Header};
use super::state::Arrived;
use super::table::{Next, Payload, Table};
use crate::transport::Io;

/// Bytes read at a time where headers are.
const AHEAD: usize = 16 * 1024;

/// Bytes of a payload from which on a buffer of its own is worth it.
const OWN_BUFFER: usize = 8 * 1024;

/// Bytes of such a buffer at most.
const MAX_BUFFER: usize = 64 * 1024;

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// That many bytes.
    Bytes(usize),
    /// The end of the session: 0 for that of the byte stream, or the reason that the other end gave.
    End(u32),
}

/// The reading half of a driver.
#[derive(Debug, Default)]
pub struct Inbound {
    ahead: BytesMut,
    current: Option<Payload>,
    own: BytesMut,
}

impl Inbound {
    /// Reads once, and hands on what that gave.
    pub fn poll<T: Io>(&mut self, cx: &mut Context<'_>, io: &mut T, table: &mut Table) -> Poll<io::Result<Got>> {
        let left = self.current.as_ref().map_or(0, |payload| payload.left as usize);
        if left >= OWN_BUFFER && self.ahead.is_empty() {
            return self.poll_own(cx, io, table, left);
        }
        self.ahead.reserve(AHEAD);
        let n = ready!(poll_read_buf(Pin::new(io), cx, &mut (&mut self.ahead).limit(AHEAD)))?;
        if n == 0 {
            return Poll::Ready(self.end());
        }
        Poll::Ready(match self.parse(table)? {
            Some(reason) => Ok(Got::End(reason)),
            None => Ok(Got::Bytes(n)),
        })
    }

    fn poll_own<T: Io>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        table: &mut Table,
        left: usize,
    ) -> Poll<io::Result<Got>> {
        // The rest of the buffer before goes first: the part that its stream keeps keeps all of it alive.
        if self.own.capacity() < OWN_BUFFER {
            self.own.reserve(left.min(MAX_BUFFER));
        }
        let n = ready!(poll_read_buf(Pin::new(io), cx, &mut (&mut self.own).limit(left)))?;
        if n == 0 {
            return Poll::Ready(self.end());
        }
        if let Some(payload) = self.current.take() {
            self.current = if n >= OWN_BUFFER {
                table.payload(payload, Arrived::Whole(self.own.split()))
            } else {
                let rest = table.payload(payload, Arrived::Copy(&self.own));
                self.own.clear();
                rest
            };
        }
        // What is left of the buffer would keep this stream's part of it alive.
        if self.current.is_none() {
            self.own = BytesMut::new();
        }
        Poll::Ready(Ok(Got::Bytes(n)))
    }

    fn end(&self) -> io::Result<Got> {
        if self.current.is_none() && self.ahead.is_empty() {
            return Ok(Got::End(0));
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended in the middle of a frame"))
    }

    /// The reason why the other end ended the session, if it did.
    fn parse(&mut self, table: &mut Table) -> io::Result<Option<u32>> {
        loop {
            if let Some(payload) = self.current.take() {
                let n = self.ahead.len().min(payload.left as usize);
                if n == 0 {
                    self.current = Some(payload);
                    return Ok(None);
                }
                self.current = table.payload(payload, Arrived::Copy(&self.ahead[..n]));
                self.ahead.advance(n);
                continue;
            }
            let Some(header) = self.ahead.first_chunk::<HEADER>() else { return Ok(None) };
            let next = Header::decode(*header).and_then(|header| table.header(header));
            self.ahead.advance(HEADER);
            match next.map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation))? {
                Next::Header => {}
                Next::Payload(payload) => self.current = Some(payload),
                Next::End(reason) => return Ok(Some(reason)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::mux::End;
    use crate::session::mux::header::Flags;
    use crate::session::mux::hub::Hub;
    use crate::session::mux::window::{FIRST_WINDOW, POOL};
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::{Semaphore, mpsc};

    #[tokio::test]
    async fn a_large_frame_in_small_pieces_fills_one_buffer_after_the_other() {
        let frame = FIRST_WINDOW;
        let (accepting, _accepted) = mpsc::channel(1);
        let mut table = Table::new(Hub::new(POOL), End::Laptop, accepting, Arc::new(Semaphore::new(1)));
        // As a record of TLS: this much is there at a time.
        let (mut io, mut theirs) = tokio::io::duplex(OWN_BUFFER);
        let mut inbound = Inbound::default();
        theirs.write_all(&Header::data(2, Flags::SYN, frame).encode()).await.unwrap();
        let (mut buffers, mut left) = (0, frame as usize);
        while left > 0 {
            let before = inbound.own.capacity();
            let got = std::future::poll_fn(|cx| inbound.poll(cx, &mut io, &mut table)).await.unwrap();
            assert!(matches!(got, Got::Bytes(_)), "{got:?}");
            buffers += usize::from(inbound.own.capacity() > before.saturating_sub(OWN_BUFFER));
            left = inbound.current.as_ref().map_or(0, |payload| payload.left as usize);
            if left > 0 {
                theirs.write_all(&[7; OWN_BUFFER]).await.unwrap();
            }
        }
        assert!(buffers <= frame as usize / MAX_BUFFER, "{buffers}");
    }
}

//! Writes frames to the byte stream beneath, each chosen at the last moment: while that takes no more, whatever becomes
//! urgent goes before bulk of which nothing has left.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};

use super::header::Header;
use super::hub::{Hub, Stream, Urgent};
use super::table::Table;
use crate::lifeline::paced::Paced;
use crate::transport::Io;

/// Bytes of headers and small payloads that are written together: one TLS record.
const GATHER: usize = 16 * 1024;

/// Bytes of a payload up to which a copy is cheaper than a write of its own.
const SMALL: usize = 2 * 1024;

/// Why nothing more was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    /// There is nothing to write.
    All,
    /// Only bulk is left, and as much of it is under way as the path holds.
    AllButBulk,
    /// The byte stream takes no more.
    Blocked,
    /// It would take more; others should run first.
    Enough,
}

/// The writing half of a driver.
#[derive(Debug, Default)]
pub struct Outbound {
    urgent: Batch,
    bulk: Batch,
    last: Option<Header>,
    written: bool,
}

impl Outbound {
    /// Writes as much as goes, up to about `budget` bytes.
    pub fn poll<T: Io + Paced>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut T,
        table: &mut Table,
        hub: &Hub,
        budget: usize,
    ) -> io::Result<Wrote> {
        let mut written = 0;
        while written < budget {
            let batch = if self.bulk.has_begun() {
                &mut self.bulk
            } else {
                if self.urgent.is_empty() {
                    self.urgent.fill_urgent(table, hub)?;
                    if self.urgent.is_sparse() {
                        io.sparse();
                    }
                }
                if !self.urgent.is_empty() {
                    &mut self.urgent
                } else {
                    if self.bulk.is_empty() {
                        if !hub.has_bulk() {
                            return Ok(Wrote::All);
                        }
                        let Poll::Ready(most) = io.poll_paced(cx) else { return Ok(Wrote::AllButBulk) };
                        self.bulk.fill_bulk(table, hub, most)?;
                        if self.bulk.is_empty() {
                            continue;
                        }
                    }
                    &mut self.bulk
                }
            };
            match batch.poll_write(cx, io)? {
                Poll::Pending => return Ok(Wrote::Blocked),
                Poll::Ready(n) => written += n,
            }
            self.written = true;
            if batch.is_empty() {
                batch.sent(table, hub);
            }
        }
        Ok(Wrote::Enough)
    }

    /// Leaves one last header for [`poll_said`](Self::poll_said).
    pub fn say(&mut self, header: Header) {
        self.last = Some(header);
    }

    /// Writes the last header, after the frames that were begun.
    pub fn poll_said<T: Io>(&mut self, cx: &mut Context<'_>, io: &mut T) -> Poll<io::Result<()>> {
        loop {
            if self.bulk.has_begun() {
                ready!(self.bulk.poll_write(cx, io)?);
            } else if !self.urgent.is_empty() {
                ready!(self.urgent.poll_write(cx, io)?);
            } else {
                match self.last.take() {
                    Some(header) => self.urgent.add(header, BytesMut::new()),
                    None => return Poll::Ready(Ok(())),
                }
            }
        }
    }

    /// Whether something was written since this was asked last.
    pub fn has_written(&mut self) -> bool {
        std::mem::take(&mut self.written)
    }
}

/// Frames that were chosen and have not left: small ones gathered, and at most one payload behind them.
#[derive(Debug, Default)]
struct Batch {
    head: Vec<u8>,
    written: usize,
    body: BytesMut,
    begun: bool,
    streams: Vec<Arc<Stream>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.written == self.head.len() && self.body.is_empty()
    }

    fn has_begun(&self) -> bool {
        self.begun && !self.is_empty()
    }

    /// Whether streams sent something in it, and none of them much.
    fn is_sparse(&self) -> bool {
        !self.streams.is_empty() && self.body.is_empty()
    }

    fn has_room(&self) -> bool {
        self.head.len() < GATHER && self.body.is_empty()
    }

    fn fill_urgent(&mut self, table: &mut Table, hub: &Hub) -> io::Result<()> {
        while self.has_room() {
            if let Some(header) = table.next_answer() {
                self.add(header, BytesMut::new());
                continue;
            }
            match hub.next_urgent() {
                None if hub.say() => self.add(Header::go_away(0), BytesMut::new()),
                None => break,
                Some(Urgent::Recent(stream)) => self.add_frame(stream, table, hub, None)?,
                Some(Urgent::Control(stream)) => {
                    let mut state = stream.lock();
                    if state.needs_control() && !state.is_over() {
                        table.number(&stream, &mut state)?;
                    }
                    if let Some(header) = state.next_control() {
                        self.add(header, BytesMut::new());
                    }
                    table.forget_if_over(&stream, &state);
                }
            }
        }
        Ok(())
    }

    fn fill_bulk(&mut self, table: &mut Table, hub: &Hub, most: usize) -> io::Result<()> {
        while self.has_room() {
            match hub.next_bulk() {
                Some(stream) => self.add_frame(stream, table, hub, Some(most as u32))?,
                None => break,
            }
        }
        Ok(())
    }

    /// One frame of at most that many bytes, or of what the stream may send before bulk.
    fn add_frame(&mut self, stream: Arc<Stream>, table: &mut Table, hub: &Hub, bulk: Option<u32>) -> io::Result<()> {
        let mut state = stream.lock();
        if state.can_send() {
            table.number(&stream, &mut state)?;
        }
        let most = bulk.unwrap_or_else(|| state.turn.allowance());
        let Some((header, payload)) = state.next_frame(most) else {
            hub.sent(&stream, &mut state);
            return Ok(());
        };
        let writer = if state.has_room() { state.writer.take() } else { None };
        stream.settle(&mut state);
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        self.add(header, payload);
        self.streams.push(stream);
        Ok(())
    }

    fn add(&mut self, header: Header, payload: BytesMut) {
        self.head.extend_from_slice(&header.encode());
        if payload.len() <= SMALL {
            self.head.extend_from_slice(&payload);
        } else {
            self.body = payload;
        }
    }

    fn poll_write<T: Io>(&mut self, cx: &mut Context<'_>, io: &mut T) -> io::Result<Poll<usize>> {
        let head = &self.head[self.written..];
        let written = match (head.is_empty(), self.body.is_empty()) {
            (false, true) => Pin::new(io).poll_write(cx, head),
            (true, _) => Pin::new(io).poll_write(cx, &self.body),
            (false, false) => Pin::new(io).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(&self.body)]),
        };
        let Poll::Ready(n) = written? else { return Ok(Poll::Pending) };
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.begun = true;
        let of_head = n.min(self.head.len() - self.written);
        self.written += of_head;
        self.body.advance(n - of_head);
        if self.is_empty() {
            self.head.clear();
            self.written = 0;
            self.begun = false;
            // Its buffer goes back to whoever allocates next.
            self.body = BytesMut::new();
        }
        Ok(Poll::Ready(n))
    }

    /// All of it has left: its streams go on.
    fn sent(&mut self, table: &mut Table, hub: &Hub) {
        for stream in self.streams.drain(..) {
            let mut state = stream.lock();
            hub.sent(&stream, &mut state);
            stream.settle(&mut state);
            table.forget_if_over(&stream, &state);
        }
    }
}

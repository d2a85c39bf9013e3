//! One stream: what is queued in either direction, how far each has ended, and which frame it sends next. Pure; the
//! wakers that it keeps are for others to wake.
//!
//! A stream ends in one of three ways: both ends said that they are complete (FIN); one of them reset it (RST); the session
//! ended. Only the first reads as an end. What arrived before a reset can still be read, and what was written still
//! leaves after the handle is gone: all of it before an end, and before a reset what the other end has room for.

use std::io;
use std::task::Waker;

use bytes::BytesMut;
use tokio::io::ReadBuf;

use super::chunks::Chunks;
use super::header::{Flags, Header};
use super::schedule::{Place, Turn};
use super::violation::Violation;
use super::window::{FIRST_WINDOW, Pool, Window};

/// Bytes that wait to be sent on one stream: one frame of bulk that leaves, and the next one.
pub const SEND_QUEUE: usize = 128 * 1024;

/// How far this end's direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    Open,
    Due,
    Sent,
}

/// How a stream was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The other end reset it.
    Theirs,
    /// This end did.
    Ours,
    /// The session ended.
    Session,
}

impl Cut {
    fn error(self) -> io::Error {
        match self {
            Cut::Theirs => io::Error::new(io::ErrorKind::ConnectionReset, "the other side reset the stream"),
            Cut::Ours => io::Error::new(io::ErrorKind::BrokenPipe, "the stream was reset"),
            Cut::Session => io::Error::new(io::ErrorKind::ConnectionAborted, "the session is over"),
        }
    }
}

/// The state of one stream.
#[derive(Debug)]
pub struct State {
    /// Its number; 0 until its first frame is chosen.
    pub id: u32,
    /// Its part of the schedule.
    pub turn: Turn,
    /// Whether it is in the schedule for what is not content.
    pub in_control: bool,
    /// Who waits for something to read.
    pub reader: Option<Waker>,
    /// Who waits for room to write.
    pub writer: Option<Waker>,
    /// SYN or ACK, until a frame carried it.
    greeting: Flags,
    /// SYN is due although there is nothing to send yet: somebody waits for the other end.
    announce: bool,
    queue: Chunks,
    backlogged: bool,
    credit: u32,
    fin: Fin,
    buffer: Chunks,
    window: Window,
    ended: bool,
    update: u32,
    cut: Option<Cut>,
    reset_due: bool,
    dropped: bool,
    discarded: bool,
    /// Whether it was not let in, and only its refusal has to leave.
    pub refused: bool,
}

impl State {
    /// A stream that this end opens.
    pub fn outbound() -> State {
        State::new(0, Flags::SYN)
    }

    /// A stream that the other end opened.
    pub fn inbound(id: u32) -> State {
        State::new(id, Flags::ACK)
    }

    fn new(id: u32, greeting: Flags) -> State {
        State {
            id,
            turn: Turn::default(),
            in_control: false,
            reader: None,
            writer: None,
            greeting,
            announce: false,
            queue: Chunks::default(),
            backlogged: false,
            credit: FIRST_WINDOW,
            fin: Fin::Open,
            buffer: Chunks::default(),
            window: Window::new(),
            ended: false,
            update: 0,
            cut: None,
            reset_due: false,
            dropped: false,
            discarded: false,
            refused: false,
        }
    }

    /// Lets the other end send more than a first window. It learns that with the first frame that leaves: by itself it is
    /// not worth one.
    pub fn widen_early(&mut self, pool: &Pool) {
        self.window.begin(pool);
    }

    // What its handle does.

    /// Fails when the stream was cut short.
    pub fn uncut(&self) -> io::Result<()> {
        self.cut.map_or(Ok(()), |cut| Err(cut.error()))
    }

    /// Queues what fits: 0 means that there is no room now.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.uncut()?;
        if self.fin != Fin::Open {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream was closed for writing"));
        }
        let n = bytes.len().min(SEND_QUEUE.saturating_sub(self.queue.len()));
        self.queue.push_copy(&bytes[..n]);
        Ok(n)
    }

    /// Nothing more will be written. What was leaves first.
    pub fn finish(&mut self) -> io::Result<()> {
        match self.cut {
            Some(cut) if self.fin == Fin::Open => Err(cut.error()),
            _ => {
                if self.fin == Fin::Open {
                    self.fin = Fin::Due;
                }
                Ok(())
            }
        }
    }

    /// Moves what there is into `buf`. `None`: nothing yet. Nothing moved: the end.
    pub fn read(&mut self, buf: &mut ReadBuf<'_>, pool: &Pool) -> io::Result<Option<usize>> {
        let n = self.buffer.read(buf);
        if n > 0 {
            if !self.ended && self.cut.is_none() {
                self.update += self.window.read(n as u32, self.buffer.len(), pool);
            }
            return Ok(Some(n));
        }
        match self.cut {
            _ if self.ended => Ok(Some(0)),
            Some(cut) => Err(cut.error()),
            None => {
                self.announce = self.greeting.has(Flags::SYN) && !self.can_send();
                Ok(None)
            }
        }
    }

    /// The handle is gone. Unless this end is complete, the stream is reset, after as much of what is queued as the
    /// other end has room for.
    pub fn abandon(&mut self) {
        self.dropped = true;
        self.update = 0;
        let unread = self.buffer.len();
        self.buffer.clear();
        self.discard(unread);
        if self.fin == Fin::Open && self.cut.is_none() {
            if self.id == 0 && self.queue.is_empty() {
                // An other end that never heard of the stream need not hear of its end.
                self.cut(Cut::Ours);
            } else {
                self.reset_due = true;
            }
        }
    }

    // What arrives.

    /// A data frame of `length` bytes begins.
    pub fn reserve(&mut self, length: u32) -> Result<(), Violation> {
        if self.ended && length > 0 {
            return Err(Violation::AfterEnd(self.id));
        }
        self.window.reserve(length)
    }

    /// A part of a data frame. A large one is taken out of `bytes`; of a small one a copy is kept.
    pub fn receive(&mut self, bytes: Arrived<'_>, pool: &Pool) {
        let n = bytes.len();
        if self.dropped || self.cut.is_some() {
            self.discard(n);
            return;
        }
        match bytes {
            Arrived::Copy(bytes) => self.buffer.push_copy(bytes),
            Arrived::Whole(bytes) => self.buffer.push(bytes),
        }
        self.update += self.window.arrived(n as u32, pool);
    }

    /// The other end's direction is complete.
    pub fn end(&mut self) {
        self.ended = true;
        self.update = 0;
    }

    /// The other end takes that many bytes more.
    pub fn widen(&mut self, delta: u32) {
        self.credit = self.credit.saturating_add(delta);
    }

    /// The stream is over before its time. What arrived can still be read.
    pub fn cut(&mut self, cut: Cut) {
        if self.cut.is_none() {
            self.cut = Some(cut);
        }
        self.reset_due = false;
        self.announce = false;
        self.queue.clear();
        self.update = 0;
    }

    // What leaves.

    /// Whether it has content, or the end of it, that may leave.
    pub fn can_send(&self) -> bool {
        let may = if self.queue.is_empty() { self.fin == Fin::Due } else { self.credit > 0 };
        may && self.cut.is_none()
    }

    /// Whether it has something to say that is not content, or wants to be forgotten.
    pub fn needs_control(&self) -> bool {
        self.may_reset() || self.update > 0 || self.announce || (self.id != 0 && self.dropped && self.is_over())
    }

    /// The next frame of content with at most `most` bytes, if it may leave.
    pub fn next_frame(&mut self, most: u32) -> Option<(Header, BytesMut)> {
        if !self.can_send() {
            return None;
        }
        let payload = self.queue.pop(most.max(1).min(self.credit) as usize);
        self.credit -= payload.len() as u32;
        let mut flags = self.greet();
        if self.queue.is_empty() && self.fin == Fin::Due {
            self.fin = Fin::Sent;
            flags = flags.with(Flags::FIN);
            // What the handle left unread is lost, and the other end must learn that.
            self.discard(0);
        }
        self.backlogged = !self.queue.is_empty();
        self.turn.chosen(payload.len() as u32);
        Some((Header::data(self.id, flags, payload.len() as u32), payload))
    }

    /// The next frame that is not content.
    pub fn next_control(&mut self) -> Option<Header> {
        self.in_control = false;
        if self.may_reset() {
            self.cut(Cut::Ours);
            return Some(Header::reset(self.id));
        }
        if self.update == 0 && !self.announce {
            return None;
        }
        let flags = self.greet();
        let update = std::mem::take(&mut self.update);
        Some(Header::window_update(self.id, flags, update))
    }

    /// Room to write, for who waits for it.
    pub fn has_room(&self) -> bool {
        self.queue.len() < SEND_QUEUE || self.cut.is_some()
    }

    /// Whether more was queued already when its last frame was chosen.
    pub fn is_backlogged(&self) -> bool {
        self.backlogged
    }

    /// Whether its number may be forgotten: nothing more will be sent, and nothing that arrives matters.
    pub fn is_over(&self) -> bool {
        let complete = self.fin == Fin::Sent && (self.ended || self.dropped);
        (complete || self.cut.is_some()) && !self.reset_due && self.turn.place != Place::Sending
    }

    /// A reset overtakes what others send, but not what its own stream has under way or may still send.
    fn may_reset(&self) -> bool {
        self.reset_due && self.turn.place != Place::Sending && !self.can_send()
    }

    /// Bytes that what waits takes, in either direction.
    #[cfg(test)]
    pub fn footprint(&self) -> usize {
        self.buffer.footprint() + self.queue.footprint()
    }

    /// Gives back what it had of the pool.
    pub fn release(&mut self, pool: &Pool) {
        self.buffer.clear();
        self.window.close(pool);
    }

    /// Bytes that nobody will read. Once this end is complete, the other end learns it by a reset.
    fn discard(&mut self, bytes: usize) {
        self.discarded |= bytes > 0;
        self.reset_due |= self.discarded && self.fin == Fin::Sent && !self.ended && self.cut.is_none();
    }

    fn greet(&mut self) -> Flags {
        self.announce = false;
        if !self.dropped && !self.ended && self.cut.is_none() {
            self.update += self.window.early();
        }
        std::mem::take(&mut self.greeting)
    }
}

/// Bytes of a data frame.
#[derive(Debug)]
pub enum Arrived<'a> {
    /// In a buffer that is used again.
    Copy(&'a [u8]),
    /// In a buffer of their own.
    Whole(BytesMut),
}

impl Arrived<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Arrived::Copy(bytes) => bytes.len(),
            Arrived::Whole(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

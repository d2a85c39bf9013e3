//! The streams of a session by their number, and what arrives for them. The driver's alone.
//!
//! Nothing here waits: what has to be answered is kept, in a form that a peer cannot make large, until the byte stream
//! beneath takes it. So reading never depends on writing, and two saturated ends cannot hold each other up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::handle::{MuxStream, handed_over, too_many};
use super::header::{Flags, Header, Kind};
use super::hub::{Hub, Stream, fail};
use super::ids::Ids;
use super::state::{Arrived, Cut, State};
use super::violation::Violation;
use super::{End, SLACK};

/// Pings that wait for their answer. Of more the oldest go unanswered.
const MAX_PONGS: usize = 16;

/// Streams of which anything is left at most: as many as both ends may have open, and those that wait for their refusal to
/// leave. More are held only by what waits to be sent, and the other end does not read.
const MAX_LEFT: usize = End::Laptop.inbound_limit() + End::Workspace.inbound_limit() + SLACK;

/// Resets that wait to be sent for streams that are gone: as many streams as there may have been.
const MAX_RESETS: usize = MAX_LEFT;

/// The data frame that is arriving.
#[derive(Debug)]
pub struct Payload {
    /// `None` when its stream is gone.
    stream: Option<Arc<Stream>>,
    /// Bytes that are still to come.
    pub left: u32,
    fin: bool,
}

/// What a header asks of the reader.
#[derive(Debug)]
pub enum Next {
    /// Another header.
    Header,
    /// A payload first.
    Payload(Payload),
    /// Nothing: the other end ended the session, for this reason.
    End(u32),
}

/// The streams of a session.
#[derive(Debug)]
pub struct Table {
    hub: Arc<Hub>,
    end: End,
    streams: HashMap<u32, Arc<Stream>>,
    /// The number of the next stream of ours, while there is one.
    next: Option<u32>,
    theirs: Ids,
    /// Streams that only wait for their refusal to leave.
    refused: usize,
    accepting: mpsc::Sender<MuxStream>,
    permits: Arc<Semaphore>,
    pongs: VecDeque<u32>,
    resets: VecDeque<u32>,
    resetting: HashSet<u32>,
}

impl Table {
    /// Without streams. Those that the other end opens go to `accepting`, as long as there are `permits`.
    pub fn new(hub: Arc<Hub>, end: End, accepting: mpsc::Sender<MuxStream>, permits: Arc<Semaphore>) -> Table {
        let next = if end == End::Laptop { 1 } else { 2 };
        Table {
            hub,
            end,
            streams: HashMap::new(),
            next: Some(next),
            theirs: Ids::default(),
            refused: 0,
            accepting,
            permits,
            pongs: VecDeque::new(),
            resets: VecDeque::new(),
            resetting: HashSet::new(),
        }
    }

    /// Takes a header that arrived.
    pub fn header(&mut self, header: Header) -> Result<Next, Violation> {
        match header.kind {
            Kind::GoAway if header.length == 0 => {
                self.hub.hear();
                return Ok(Next::Header);
            }
            Kind::GoAway => return Ok(Next::End(header.length)),
            Kind::Ping => {
                if header.flags.has(Flags::SYN) {
                    if self.pongs.len() == MAX_PONGS {
                        self.pongs.pop_front();
                    }
                    self.pongs.push_back(header.length);
                }
                return Ok(Next::Header);
            }
            Kind::Data | Kind::WindowUpdate => {}
        }
        let stream = match header.flags.has(Flags::SYN) {
            true => Some(self.begin(header.stream)?),
            false => self.streams.get(&header.stream).cloned(),
        };
        if header.flags.has(Flags::RST)
            && let Some(stream) = &stream
        {
            self.reset(stream);
        }
        if header.kind == Kind::WindowUpdate {
            if let Some(stream) = stream {
                let mut state = stream.lock();
                state.widen(header.length);
                if header.flags.has(Flags::FIN) {
                    self.fin(&stream, &mut state);
                }
                stream.settle(&mut state);
            }
            return Ok(Next::Header);
        }
        match &stream {
            Some(stream) => stream.lock().reserve(header.length)?,
            None if header.length > 0 && !header.flags.has(Flags::RST) => self.unknown(header.stream),
            None => {}
        }
        let payload = Payload { stream, left: header.length, fin: header.flags.has(Flags::FIN) };
        if payload.left > 0 {
            return Ok(Next::Payload(payload));
        }
        self.complete(payload);
        Ok(Next::Header)
    }

    /// Takes a part of the payload that is arriving; `None` when that was all of it.
    pub fn payload(&mut self, mut payload: Payload, bytes: Arrived<'_>) -> Option<Payload> {
        payload.left -= bytes.len() as u32;
        if let Some(stream) = &payload.stream {
            let mut state = stream.lock();
            state.receive(bytes, &self.hub.pool);
            stream.settle(&mut state);
            let reader = state.reader.take();
            drop(state);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
        if payload.left > 0 {
            return Some(payload);
        }
        self.complete(payload);
        None
    }

    fn complete(&mut self, payload: Payload) {
        if let Some(stream) = payload.stream.filter(|_| payload.fin) {
            let mut state = stream.lock();
            self.fin(&stream, &mut state);
        }
    }

    fn fin(&mut self, stream: &Arc<Stream>, state: &mut State) {
        state.end();
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        self.forget_if_over(stream, state);
    }

    fn reset(&mut self, stream: &Arc<Stream>) {
        let mut state = stream.lock();
        state.cut(Cut::Theirs);
        for waker in [state.reader.take(), state.writer.take()].into_iter().flatten() {
            waker.wake();
        }
        self.forget_if_over(stream, &state);
    }

    /// The other end opened a stream: hands it on, or refuses it when there are too many, or none are wanted.
    fn begin(&mut self, id: u32) -> Result<Arc<Stream>, Violation> {
        if (id % 2 == 1) == (self.end == End::Laptop) {
            return Err(Violation::Parity(id));
        }
        if !self.theirs.take((id - 1) / 2) {
            return Err(Violation::Reused(id));
        }
        // One that was reset is in the table no more, but may wait in the schedule.
        if self.hub.open() >= MAX_LEFT {
            return Err(Violation::Flood);
        }
        let wanted = !self.hub.refuses();
        let permit = if wanted { self.permits.clone().try_acquire_owned().ok() } else { None };
        let admitted = permit.is_some();
        let stream = Stream::inbound(self.hub.clone(), id, permit);
        self.streams.insert(id, stream.clone());
        let refused = match admitted {
            false => Some(MuxStream::new(stream.clone())),
            true => self.accepting.try_send(MuxStream::new(stream.clone())).err().map(|e| match e {
                mpsc::error::TrySendError::Full(stream) | mpsc::error::TrySendError::Closed(stream) => stream,
            }),
        };
        if let Some(refused) = refused {
            self.refused += 1;
            if self.refused > SLACK {
                return Err(Violation::Flood);
            }
            stream.lock().refused = true;
            refused.refuse(&if wanted { too_many() } else { handed_over() });
        }
        Ok(stream)
    }

    /// Data for a stream that is gone: its sender must learn that nobody reads it.
    fn unknown(&mut self, id: u32) {
        if self.resets.len() < MAX_RESETS && self.resetting.insert(id) {
            self.resets.push_back(id);
        }
    }

    /// The next answer that belongs to no stream.
    pub fn next_answer(&mut self) -> Option<Header> {
        if let Some(value) = self.pongs.pop_front() {
            return Some(Header::pong(value));
        }
        let id = self.resets.pop_front()?;
        self.resetting.remove(&id);
        Some(Header::reset(id))
    }

    /// Whether an answer waits that belongs to no stream.
    pub fn has_answers(&self) -> bool {
        !self.pongs.is_empty() || !self.resets.is_empty()
    }

    /// Gives a stream of ours its number before its first frame is chosen.
    pub fn number(&mut self, stream: &Arc<Stream>, state: &mut State) -> io::Result<()> {
        if state.id == 0 {
            let spent = || io::Error::other("the session has no more numbers for streams");
            state.id = self.next.ok_or_else(spent)?;
            self.next = state.id.checked_add(2);
            self.streams.insert(state.id, stream.clone());
        }
        Ok(())
    }

    /// Forgets a stream of which nothing more leaves and nothing that arrives matters.
    pub fn forget_if_over(&mut self, stream: &Arc<Stream>, state: &State) {
        if state.is_over()
            && let Some(gone) = self.streams.remove(&state.id)
        {
            debug_assert!(Arc::ptr_eq(&gone, stream));
            self.refused -= usize::from(state.refused);
        }
    }

    /// The session is over: so are its streams.
    pub fn end(&mut self) {
        for stream in self.hub.end().into_iter().chain(self.streams.drain().map(|(_, stream)| stream)) {
            fail(&mut stream.lock());
        }
    }
}

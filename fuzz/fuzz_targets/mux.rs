//! One end of a session against a peer in the fuzzer's hands: frames that are nearly right, bytes that are nothing, reads that
//! stop, and whoever uses the streams at this end doing anything at any time, draining the session among it.
//!
//! The peer keeps a ledger of its own. Held against it: a stream gives the bytes that were sent on it, in order; a peer
//! that keeps to the protocol is never accused, one whose header cannot be read always is; what leaves is in
//! the format, within the windows that the peer gave, and the bytes that were written. The driver is polled only when it was
//! woken, so a wake that is missing is seen as well.

#![no_main]

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::session::mux::{End, MuxAcceptor, MuxOpener, MuxStream, Violation, multiplex};
use nexus_proxy_fuzz::{Flag, Pipe, runtime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

const HEADER: usize = 12;
const WINDOW: u64 = 256 * 1024;
const MAX_PAYLOAD: u32 = 16 * 1024 * 1024;
const SYN: u16 = 1;
const FIN: u16 = 4;
const RST: u16 = 8;
const DATA: u8 = 0;
const UPDATE: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;

/// Operations of one run: with fewer streams than may be open or wait to be accepted, so that none is refused.
const STEPS: usize = 240;

/// Numbers of streams that the peer uses, besides those of raw bytes.
const NUMBERS: u32 = 24;

/// Streams that are used at this end: each has a byte for its tag.
const MAX_HANDLES: usize = 200;

/// Streams that the peer opens before some may be refused: half of those that may wait to be accepted.
const MAX_OPENED: usize = 128;

/// Polls after which a driver that keeps waking itself counts as one that never rests.
const POLLS: usize = 10_000;

/// More, on a clock that stands still, than any goodbye takes.
const PATIENCE: Duration = Duration::from_secs(3600);

fuzz_target!(|data: &[u8]| {
    let runtime = runtime();
    let _within = runtime.enter();
    let mut bytes = Unstructured::new(data);
    let end = if bytes.arbitrary().unwrap_or(false) { End::Laptop } else { End::Workspace };
    let mut session = Session::new(end);
    for _ in 0..STEPS {
        if bytes.is_empty() || session.step(&mut bytes).is_err() {
            break;
        }
    }
    session.finish(&runtime);
});

struct Session {
    end: End,
    pipe: Pipe,
    woken: Arc<Flag>,
    driver: Pin<Box<dyn Future<Output = io::Result<()>>>>,
    outcome: Option<io::Result<()>>,
    opener: MuxOpener,
    acceptor: Option<MuxAcceptor>,
    /// By tag.
    handles: Vec<Option<Handle>>,
    written: Vec<Written>,
    /// How many of them the peer opened.
    accepted: usize,
    /// How many this end opened, and how many of those the peer has heard of.
    opened: usize,
    begun: usize,
    sent: Ledger,
    /// The tag of the handle that a stream's content belongs to, and how much of it has left.
    left: HashMap<u32, (Option<usize>, u64)>,
    finished: HashSet<u32>,
    /// Whether this end was told to drain.
    drains: bool,
    /// How often it has said that it does: it opens no more streams, and it has none.
    said: u8,
}

/// What one who uses a stream holds. Its tag is the first byte that it writes.
struct Handle {
    stream: MuxStream,
    /// Its number, when the peer opened it.
    id: Option<u32>,
    read: usize,
}

#[derive(Default)]
struct Written {
    bytes: u64,
    shut: bool,
}

/// What the peer has sent, by its own count.
#[derive(Default)]
struct Ledger {
    unparsed: Vec<u8>,
    payload: Option<(u32, u32, bool)>,
    content: HashMap<u32, Vec<u8>>,
    ended: HashSet<u32>,
    reset: HashSet<u32>,
    opened: Vec<u32>,
    /// What it granted beyond the first window: at most, and of that what this end cannot but know of.
    granted: HashMap<u32, (u64, u64)>,
    /// The streams of this end that it has heard of.
    known: HashSet<u32>,
    taken: HashMap<u32, u64>,
    /// Those that it opened although it had said that it opens no more, to an end that wants no more: they are refused.
    refused: HashSet<u32>,
    /// How often it has said that it drains.
    said: u8,
    /// It has said that it is done, or why it goes.
    goodbye: bool,
    /// It has said why it goes: that ends the session, whatever this end still holds.
    gone: bool,
    /// It broke the protocol, or did what may count as that.
    suspect: bool,
    /// It sent a header that nobody can read.
    guilty: bool,
}

impl Session {
    fn new(end: End) -> Session {
        let pipe = Pipe::default();
        pipe.with(|ends| ends.room = 1 << 20);
        let (opener, acceptor, driver) = multiplex(pipe.clone(), end);
        Session {
            end,
            pipe,
            woken: Flag::raised(),
            driver: Box::pin(driver),
            outcome: None,
            opener,
            acceptor: Some(acceptor),
            handles: Vec::new(),
            written: Vec::new(),
            accepted: 0,
            opened: 0,
            begun: 0,
            sent: Ledger::default(),
            left: HashMap::new(),
            finished: HashSet::new(),
            drains: false,
            said: 0,
        }
    }

    fn step(&mut self, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        match bytes.int_in_range(0..=24)? {
            0..=7 => self.frame(bytes)?,
            8 => {
                let raw = bytes.arbitrary::<Vec<u8>>()?;
                self.send(&raw);
            }
            9..=10 => self.accept(),
            11..=13 => {
                let (at, most) = (bytes.arbitrary()?, bytes.arbitrary::<u16>()?);
                self.read(at, usize::from(most) * 8);
            }
            14..=16 => {
                let (at, len) = (bytes.arbitrary()?, bytes.arbitrary::<u16>()?);
                self.write(at, usize::from(len) * 4);
            }
            17 => self.shut(bytes.arbitrary()?),
            18 => {
                let at: usize = bytes.arbitrary::<u8>()?.into();
                if let Some(handle) = self.handles.get_mut(at) {
                    *handle = None;
                }
            }
            19 => self.open(),
            20 => {
                let room = usize::from(bytes.arbitrary::<u16>()?);
                self.pipe.with(|ends| ends.room = room);
            }
            21 => {
                let piece = bytes.arbitrary::<u8>()?.into();
                self.pipe.with(|ends| ends.piece = piece);
            }
            23 if bytes.ratio(1, 4)? => {
                self.drains = true;
                self.opener.drain();
            }
            24 if bytes.ratio(1, 4)? => self.send(&[0, GO_AWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            22 if bytes.ratio(1, 8)? => self.pipe.with(|ends| ends.ended = true),
            _ => {}
        }
        self.drive();
        Ok(())
    }

    /// A frame that is in the format, but for what the fuzzer makes of it.
    fn frame(&mut self, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
        let theirs = if self.end == End::Laptop { 2 } else { 1 };
        let mut stream = theirs + 2 * bytes.int_in_range(0..=NUMBERS)?;
        let choice: u8 = bytes.arbitrary()?;
        if choice & 0x0f == 0 {
            stream ^= 3;
        }
        let kind = if choice & 0x10 == 0 { DATA } else { UPDATE };
        let kind = if choice & 0xe0 == 0xe0 { bytes.int_in_range(0..=4)? } else { kind };
        let mut flags = 0;
        // A peer that opens its streams, most of the time.
        if kind <= UPDATE && !self.sent.opened.contains(&stream) && stream % 2 == theirs % 2 {
            flags |= SYN;
        }
        let extra: u8 = bytes.arbitrary()?;
        flags |= [0, 0, 0, 0, 0, 0, FIN, RST][usize::from(extra & 7)];
        if extra & 0xf8 == 0xf8 {
            flags ^= 1 << bytes.int_in_range(0..=15)?;
        }
        let length = match extra >> 3 & 3 {
            0 => u32::from(bytes.arbitrary::<u8>()?),
            1 => 0,
            2 => u32::from(bytes.arbitrary::<u16>()?),
            _ => bytes.int_in_range(0..=300_000)?,
        };
        let stream = if kind >= PING && choice & 8 == 0 { 0 } else { stream };
        let mut frame = vec![0, kind];
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&length.to_be_bytes());
        if kind == DATA {
            let at = self.sent.content.get(&stream).map_or(0, Vec::len);
            frame.extend((at..at + length as usize).map(|at| (at / 7) as u8 ^ stream as u8));
        }
        self.send(&frame);
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.pipe.with(|ends| ends.ended) {
            return;
        }
        self.sent.note(bytes, self.end, self.drains);
        self.pipe.with(|ends| ends.inward.extend_from_slice(bytes));
    }

    fn accept(&mut self) {
        let Some(acceptor) = self.acceptor.as_mut().filter(|_| self.handles.len() < MAX_HANDLES) else { return };
        let arrived = pin!(acceptor.accept()).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Some(stream)) = arrived {
            let id = self.sent.opened.get(self.accepted).copied();
            assert!(id.is_some(), "a stream that nobody opened");
            self.accepted += 1;
            self.handle(stream, id);
        }
    }

    fn handle(&mut self, stream: MuxStream, id: Option<u32>) {
        self.written.push(Written::default());
        self.handles.push(Some(Handle { stream, id, read: 0 }));
    }

    fn open(&mut self) {
        if self.handles.len() == MAX_HANDLES {
            return;
        }
        let opened = pin!(self.opener.open()).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Ok(stream)) = opened {
            assert!(!self.drains, "it opens a stream and drains");
            self.opened += 1;
            self.handle(stream, None);
        }
    }

    fn read(&mut self, at: u8, most: usize) {
        let Some(Some(handle)) = self.handles.get_mut(usize::from(at)) else { return };
        let mut space = vec![0; most];
        let mut buf = ReadBuf::new(&mut space);
        let outcome = Pin::new(&mut handle.stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
        let got = buf.filled();
        match outcome {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) | Poll::Pending => return assert!(got.is_empty()),
        }
        let Some(id) = handle.id.filter(|_| !self.sent.suspect) else { return };
        let content = self.sent.content.get(&id).map_or(&[][..], Vec::as_slice);
        assert_eq!(got, &content[handle.read..handle.read + got.len()], "stream {id} gives other bytes");
        handle.read += got.len();
        if got.is_empty() && most > 0 {
            assert!(self.sent.ended.contains(&id), "an end that the peer did not send");
            assert_eq!(handle.read, content.len(), "an end before all bytes");
        }
    }

    fn write(&mut self, at: u8, len: usize) {
        let tag = usize::from(at);
        let Some(Some(handle)) = self.handles.get_mut(tag) else { return };
        let written = &mut self.written[tag];
        let content: Vec<u8> = (written.bytes..written.bytes + len as u64).map(|at| byte(tag, at)).collect();
        let outcome = Pin::new(&mut handle.stream).poll_write(&mut Context::from_waker(Waker::noop()), &content);
        if let Poll::Ready(Ok(n)) = outcome {
            assert!(n <= len && !written.shut);
            written.bytes += n as u64;
        }
    }

    fn shut(&mut self, at: u8) {
        let Some(Some(handle)) = self.handles.get_mut(usize::from(at)) else { return };
        let outcome = Pin::new(&mut handle.stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        self.written[usize::from(at)].shut |= matches!(outcome, Poll::Ready(Ok(())));
    }

    /// Polls the driver for as long as it was woken, and looks at what left.
    fn drive(&mut self) {
        let waker = self.woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        let mut polls = 0;
        while self.outcome.is_none() && self.woken.take() {
            if let Poll::Ready(outcome) = self.driver.as_mut().poll(&mut cx) {
                self.judge(&outcome);
                self.outcome = Some(outcome);
            }
            polls += 1;
            assert!(polls < POLLS, "the driver never rests");
        }
        self.look();
    }

    fn judge(&self, outcome: &io::Result<()>) {
        let Err(error) = outcome else { return };
        let violation = error.get_ref().is_some_and(|inner| inner.is::<Violation>());
        assert!(!violation || self.sent.suspect, "a peer that keeps to the protocol is accused: {error}");
    }

    fn look(&mut self) {
        let outward = self.pipe.with(|ends| std::mem::take(&mut ends.outward));
        let mut rest = &outward[..];
        while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
            let n = if header[1] == DATA { length as usize } else { 0 };
            let Some((payload, after)) = after.split_at_checked(n) else { break };
            rest = after;
            self.left(header, payload);
        }
        // A frame that has not left as a whole is looked at when it has.
        let kept = rest.to_vec();
        self.pipe.with(|ends| ends.outward.extend_from_slice(&kept));
    }

    fn left(&mut self, header: &[u8; HEADER], payload: &[u8]) {
        let [version, kind, f0, f1, s0, s1, s2, s3, ..] = *header;
        let (flags, id) = (u16::from_be_bytes([f0, f1]), u32::from_be_bytes([s0, s1, s2, s3]));
        assert!(version == 0 && kind <= GO_AWAY && flags < 16, "{header:?}");
        assert_eq!(id == 0, kind >= PING, "{header:?}");
        if kind == GO_AWAY && header[8..] == [0; 4] {
            self.said += 1;
            assert!(self.said <= 2, "it says a third time that it drains");
        }
        if kind >= PING {
            return;
        }
        // Of a peer that opens streams against its own word the refusals come later.
        let is_late = self.said == 2 && !self.sent.suspect && !self.sent.refused.contains(&id);
        assert!(!is_late || payload.is_empty(), "it has no streams, and sends content on {id}");
        if flags & SYN != 0 {
            // One that was opened before it said that it opens no more may be used later.
            self.begun += 1;
            assert!(self.begun <= self.opened, "{id} was opened by nobody");
            assert_eq!(id % 2 == 1, self.end == End::Laptop, "a number of the other end's");
        }
        assert!(!self.finished.contains(&id) || payload.is_empty(), "content after the end of {id}");
        self.sent.known.insert(id);
        // What leaves there is the refusal, which nobody wrote here.
        if self.sent.refused.contains(&id) {
            return;
        }
        let (tag, sent) = self.left.entry(id).or_default();
        if let Some(first) = payload.first() {
            let tag = *tag.get_or_insert(usize::from(*first));
            let from = *sent;
            *sent += payload.len() as u64;
            if !self.sent.suspect {
                let granted = WINDOW + self.sent.granted.get(&id).map_or(0, |(most, _)| *most);
                assert!(*sent <= granted, "{sent} bytes in a window of {granted}");
                assert!(*sent <= self.written[tag].bytes, "more than was written");
                assert!(payload.iter().zip(from..).all(|(got, at)| *got == byte(tag, at)), "other bytes on {id}");
            }
        }
        if flags & FIN != 0 {
            assert!(self.finished.insert(id), "{id} ends twice");
            if let (Some(tag), false) = (tag, self.sent.suspect) {
                assert!(self.written[*tag].shut && *sent == self.written[*tag].bytes, "an end too early");
            }
        }
    }

    /// What is in nobody's way has left; then everybody lets go, and the driver ends.
    fn finish(mut self, runtime: &Runtime) {
        self.pipe.with(|ends| (ends.room, ends.piece) = (usize::MAX, 0));
        self.drive();
        if self.outcome.is_none() && !self.sent.suspect && !self.sent.goodbye {
            self.check_progress();
        }
        if !self.sent.guilty && !self.sent.gone {
            self.handles.clear();
            self.drive();
            self.acceptor = None;
        }
        if self.outcome.is_none() {
            let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, &mut self.driver).await });
            let outcome = ended.expect("a session goes on after its end");
            self.judge(&outcome);
            self.outcome = Some(outcome);
        }
        self.look();
        if self.sent.guilty {
            assert!(matches!(self.outcome, Some(Err(_))), "a header that nobody can read was accepted");
        }
    }

    /// Nothing stays behind that the peer's windows have room for.
    fn check_progress(&self) {
        for (tag, handle) in self.handles.iter().enumerate() {
            let written = self.written[tag].bytes;
            let Some(handle) = handle.as_ref().filter(|_| written > 0) else { continue };
            let stream = self.left.iter().find(|(_, (owner, _))| *owner == Some(tag));
            let id = handle.id.or(stream.map(|(id, _)| *id));
            if id.is_some_and(|id| self.sent.reset.contains(&id)) {
                continue;
            }
            let (_, granted) = id.and_then(|id| self.sent.granted.get(&id).copied()).unwrap_or_default();
            let left = stream.map_or(0, |(_, (_, left))| *left);
            assert!(left >= written.min(WINDOW + granted), "{left} of {written} bytes left, with {granted} granted");
        }
    }
}

/// What a handle writes: the first byte is its tag.
fn byte(tag: usize, at: u64) -> u8 {
    if at == 0 { tag as u8 } else { (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ tag as u8 }
}

impl Ledger {
    /// Takes what the peer sends, whole frames or parts of them.
    /// `drains`: this end wants no more streams.
    fn note(&mut self, bytes: &[u8], end: End, drains: bool) {
        if self.goodbye || self.guilty {
            // Who has said goodbye and goes on may be accused of anything.
            self.suspect |= !bytes.is_empty();
            return;
        }
        self.unparsed.extend_from_slice(bytes);
        let unparsed = std::mem::take(&mut self.unparsed);
        let mut rest = &unparsed[..];
        loop {
            if let Some((id, left, fin)) = self.payload.take() {
                let n = rest.len().min(left as usize);
                self.content.entry(id).or_default().extend_from_slice(&rest[..n]);
                rest = &rest[n..];
                if n < left as usize {
                    self.payload = Some((id, left - n as u32, fin));
                    break;
                }
                if fin {
                    self.ended.insert(id);
                }
            }
            let Some((header, after)) = rest.split_first_chunk::<HEADER>() else { break };
            rest = after;
            self.header(header, end, drains);
            if self.goodbye || self.guilty {
                self.suspect |= !rest.is_empty();
                return;
            }
        }
        self.unparsed = rest.to_vec();
    }

    fn header(&mut self, header: &[u8; HEADER], end: End, drains: bool) {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *header;
        let flags = u16::from_be_bytes([f0, f1]);
        let id = u32::from_be_bytes([s0, s1, s2, s3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let bad = version != 0 || kind > GO_AWAY || flags > 15 || (id == 0) != (kind >= PING);
        if bad || (kind == DATA && length > MAX_PAYLOAD) {
            (self.guilty, self.suspect) = (true, true);
            return;
        }
        if kind == GO_AWAY {
            self.said += u8::from(length == 0);
            self.gone = length != 0;
            self.goodbye = self.gone || self.said == 2;
            return;
        }
        if kind == PING {
            return;
        }
        let theirs = (id % 2 == 1) != (end == End::Laptop);
        if flags & SYN != 0 {
            if !theirs || self.opened.contains(&id) || self.refused.contains(&id) {
                (self.guilty, self.suspect) = (true, true);
                return;
            }
            // What is far below the highest counts as used; that is for the tests of the library.
            self.suspect |= id > 1000;
            if drains && self.said > 0 {
                self.refused.insert(id);
            } else {
                // Against its own word: whether it is taken depends on whether this end drains when it sees it.
                self.suspect |= self.said > 0;
                self.opened.push(id);
            }
            self.suspect |= self.opened.len() > MAX_OPENED;
        }
        if self.refused.contains(&id) {
            // Whatever it says on it later: nobody listens, and too much of it may count as breaking the protocol.
            self.suspect |= flags & SYN == 0;
            if kind == DATA {
                // That it will be refused does not widen its window.
                self.suspect |= u64::from(length) > WINDOW;
                self.payload = Some((id, length, false));
            }
            return;
        }
        self.suspect |= self.ended.contains(&id) || self.reset.contains(&id) || (theirs && !self.opened.contains(&id));
        if flags & RST != 0 {
            self.reset.insert(id);
        }
        if kind == UPDATE {
            let sure = theirs || self.known.contains(&id);
            let (most, least) = self.granted.entry(id).or_default();
            *most += u64::from(length);
            *least += if sure { u64::from(length) } else { 0 };
            if flags & FIN != 0 {
                self.ended.insert(id);
            }
            return;
        }
        let taken = self.taken.entry(id).or_default();
        *taken += u64::from(length);
        // Windows that this end widened are not in the books here.
        self.suspect |= *taken > WINDOW;
        self.payload = Some((id, length, flags & FIN != 0));
    }
}

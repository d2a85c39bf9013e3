//! Tests of a stream's state: two of them joined by a wire in memory, in every order of what can happen to them.

use super::*;
use crate::session::mux::header::Kind;
use crate::session::mux::window::POOL;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io::ErrorKind;

const BULK_FRAME: u32 = crate::lifeline::paced::MOST_BULK as u32;

/// One end of a stream, and the frames on their way to it.
struct Side {
    state: State,
    pool: Pool,
    frames: VecDeque<(Header, BytesMut)>,
    /// What its reader got, and how that ended.
    got: Vec<u8>,
    end: Option<Result<(), ErrorKind>>,
    gone: bool,
    /// What the driver knows of it: once it is forgotten, only resets come back.
    forgotten: bool,
}

impl Side {
    fn new(state: State) -> Side {
        let pool = Pool::new(POOL);
        Side { state, pool, frames: VecDeque::new(), got: Vec::new(), end: None, gone: false, forgotten: false }
    }

    fn read(&mut self, most: usize) {
        if self.gone || self.end.is_some() {
            return;
        }
        let mut space = vec![0; most];
        let mut buf = ReadBuf::new(&mut space);
        match self.state.read(&mut buf, &self.pool) {
            Ok(None) => {}
            Ok(Some(0)) => self.end = Some(Ok(())),
            Ok(Some(_)) => self.got.extend_from_slice(buf.filled()),
            Err(error) => self.end = Some(Err(error.kind())),
        }
    }

    fn abandon(&mut self) {
        if !self.gone {
            self.gone = true;
            self.state.abandon();
        }
    }

    /// Takes one frame that arrived; the reset that answers it, if its stream is gone.
    fn take(&mut self) -> Option<Header> {
        let (header, payload) = self.frames.pop_front()?;
        if self.forgotten {
            let lost = header.kind == Kind::Data && header.length > 0;
            return (lost && !header.flags.has(Flags::RST)).then(|| Header::reset(header.stream));
        }
        if header.flags.has(Flags::RST) {
            self.state.cut(Cut::Theirs);
        }
        match header.kind {
            Kind::WindowUpdate => self.state.widen(header.length),
            _ => {
                self.state.reserve(header.length).unwrap();
                self.state.receive(Arrived::Copy(&payload), &self.pool);
            }
        }
        if header.flags.has(Flags::FIN) {
            self.state.end();
        }
        None
    }

    /// One frame that leaves.
    fn send(&mut self, most: u32) -> Option<(Header, BytesMut)> {
        if self.forgotten {
            return None;
        }
        if (self.state.needs_control() && !self.state.is_over()) || self.state.can_send() {
            self.state.id = 7;
        }
        if let Some(header) = self.state.next_control() {
            return Some((header, BytesMut::new()));
        }
        let frame = self.state.next_frame(most);
        self.state.turn.place = Place::Idle;
        frame
    }
}

fn pair() -> [Side; 2] {
    [Side::new(State::outbound()), Side::new(State::inbound(7))]
}

/// Moves frames until nothing moves any more.
fn settle(sides: &mut [Side; 2]) {
    loop {
        let mut moved = false;
        for i in 0..2 {
            while let Some(frame) = sides[i].send(BULK_FRAME) {
                sides[1 - i].frames.push_back(frame);
                moved = true;
            }
            while !sides[i].frames.is_empty() {
                moved = true;
                if let Some(reset) = sides[i].take() {
                    sides[1 - i].frames.push_back((reset, BytesMut::new()));
                }
            }
            sides[i].forgotten |= sides[i].state.is_over();
        }
        if !moved {
            return;
        }
    }
}

fn drain(side: &mut Side) {
    while side.end.is_none() {
        let before = side.got.len();
        side.read(100_000);
        if side.got.len() == before && side.end.is_none() {
            return;
        }
    }
}

#[test]
fn a_conversation_ends_on_both_sides() {
    let mut sides = pair();
    sides[0].state.write(b"question").unwrap();
    sides[0].state.finish().unwrap();
    settle(&mut sides);
    drain(&mut sides[1]);
    assert_eq!((&sides[1].got[..], sides[1].end), (&b"question"[..], Some(Ok(()))));
    sides[1].state.write(b"answer").unwrap();
    sides[1].state.finish().unwrap();
    settle(&mut sides);
    drain(&mut sides[0]);
    assert_eq!((&sides[0].got[..], sides[0].end), (&b"answer"[..], Some(Ok(()))));
    assert!(sides.iter().all(|side| side.forgotten));
    // Nothing is said when the handles go.
    sides.iter_mut().for_each(Side::abandon);
    assert!(sides.iter_mut().all(|side| side.state.next_control().is_none() && side.state.next_frame(1).is_none()));
}

#[test]
fn the_first_frame_opens_and_the_first_answer_takes() {
    let mut opener = State::outbound();
    assert!(!opener.can_send() && !opener.needs_control());
    opener.write(&[1; 10]).unwrap();
    opener.id = 1;
    assert_eq!(opener.next_frame(4).unwrap().0, Header::data(1, Flags::SYN, 4));
    assert_eq!(opener.next_frame(4).unwrap().0, Header::data(1, Flags::NONE, 4));
    opener.finish().unwrap();
    assert_eq!(opener.next_frame(4).unwrap().0, Header::data(1, Flags::FIN, 2));
    let mut acceptor = State::inbound(1);
    acceptor.finish().unwrap();
    assert_eq!(acceptor.next_frame(4).unwrap().0, Header::data(1, Flags::ACK.with(Flags::FIN), 0));
}

#[test]
fn who_waits_on_a_stream_that_nobody_heard_of_announces_it() {
    let mut opener = State::outbound();
    assert!(opener.read(&mut ReadBuf::new(&mut [0; 1]), &Pool::new(0)).unwrap().is_none());
    assert!(opener.needs_control());
    opener.id = 1;
    assert_eq!(opener.next_control(), Some(Header::window_update(1, Flags::SYN, 0)));
    assert!(!opener.needs_control());
    // With something to send there is no need to.
    let mut opener = State::outbound();
    opener.write(b"x").unwrap();
    assert!(opener.read(&mut ReadBuf::new(&mut [0; 1]), &Pool::new(0)).unwrap().is_none());
    assert!(!opener.needs_control());
}

#[test]
fn a_stream_that_nobody_heard_of_goes_in_silence() {
    let mut opener = State::outbound();
    assert!(opener.read(&mut ReadBuf::new(&mut [0; 1]), &Pool::new(0)).unwrap().is_none());
    opener.abandon();
    assert!(!opener.can_send() && !opener.needs_control());
}

#[test]
fn what_was_written_before_a_reset_leaves_as_far_as_there_is_room() {
    for room in [1000, 100, 0] {
        let mut state = State::inbound(7);
        for left in [FIRST_WINDOW / 2, FIRST_WINDOW / 2 - room] {
            assert_eq!(state.write(&vec![0; left as usize]).unwrap(), left as usize);
            while state.can_send() {
                state.next_frame(BULK_FRAME).unwrap();
            }
        }
        state.turn.place = Place::Idle;
        assert_eq!(state.write(&[1; 1000]).unwrap(), 1000);
        state.abandon();
        if room > 0 {
            assert!(state.can_send() && !state.needs_control());
            assert_eq!(state.next_frame(BULK_FRAME).unwrap().0.length, room);
            assert!(!state.needs_control());
            state.turn.place = Place::Idle;
        }
        assert!(!state.can_send() && state.needs_control());
        assert_eq!(state.next_control(), Some(Header::reset(7)));
        assert!(state.is_over());
    }
}

#[test]
fn dropping_without_an_end_resets() {
    for theirs_ended in [false, true] {
        let mut sides = pair();
        sides[0].state.write(b"begun").unwrap();
        settle(&mut sides);
        if theirs_ended {
            sides[1].state.finish().unwrap();
            settle(&mut sides);
        }
        sides[0].abandon();
        settle(&mut sides);
        drain(&mut sides[1]);
        assert_eq!((&sides[1].got[..], sides[1].end), (&b"begun"[..], Some(Err(ErrorKind::ConnectionReset))));
        assert_eq!(sides[1].state.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(sides.iter().all(|side| side.forgotten));
    }
}

#[test]
fn what_was_written_before_the_end_arrives_although_the_rest_is_not_read() {
    for unread in [0, 10] {
        let mut sides = pair();
        sides[0].state.write(&vec![1; unread + 1]).unwrap();
        settle(&mut sides);
        sides[1].read(1);
        sides[1].state.write(&[2; 1000]).unwrap();
        sides[1].state.finish().unwrap();
        sides[1].abandon();
        settle(&mut sides);
        // The reset follows the end, at once where something was lost, else as soon as more arrives.
        assert_eq!(sides[0].state.write(b"more").is_err(), unread > 0);
        settle(&mut sides);
        assert_eq!(sides[0].state.write(b"more").unwrap_err().kind(), ErrorKind::ConnectionReset);
        drain(&mut sides[0]);
        assert_eq!((sides[0].got.len(), sides[0].end), (1000, Some(Ok(()))));
        assert!(sides.iter().all(|side| side.forgotten));
    }
}

#[test]
fn a_reset_does_not_overtake_what_its_stream_has_under_way() {
    let mut state = State::inbound(7);
    state.reserve(5).unwrap();
    state.receive(Arrived::Copy(b"asked"), &Pool::new(0));
    state.write(b"answer").unwrap();
    state.finish().unwrap();
    state.abandon();
    assert!(!state.needs_control());
    assert!(state.next_frame(100).is_some());
    assert!(!state.needs_control() && !state.is_over());
    state.turn.place = Place::Idle;
    assert_eq!(state.next_control(), Some(Header::reset(7)));
    assert!(state.is_over());
}

#[test]
fn bounds_and_borders() {
    let mut state = State::inbound(7);
    assert_eq!(state.write(&vec![0; 2 * SEND_QUEUE]).unwrap(), SEND_QUEUE);
    assert_eq!(state.write(&[0]).unwrap(), 0);
    assert!(!state.has_room());
    state.finish().unwrap();
    assert_eq!(state.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    state.finish().unwrap();
    state.end();
    state.reserve(0).unwrap();
    assert_eq!(state.reserve(1), Err(Violation::AfterEnd(7)));
    state.cut(Cut::Session);
    assert!(state.is_over() && !state.can_send() && state.has_room());
    // A session's end is none of a stream, but this one had its end before.
    assert_eq!(state.read(&mut ReadBuf::new(&mut [0; 1]), &Pool::new(0)).unwrap(), Some(0));
    let mut state = State::inbound(7);
    state.cut(Cut::Session);
    let error = state.read(&mut ReadBuf::new(&mut [0; 1]), &Pool::new(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    state.widen(u32::MAX);
    state.widen(u32::MAX);
}

#[test]
fn an_idle_stream_is_small() {
    assert!(size_of::<State>() <= 512, "{}", size_of::<State>());
}

proptest! {
    /// Any order of what the two ends can do: what is read is what was written, an end is read only where one was
    /// written and all before it was read, and nobody waits for ever.
    #[test]
    fn two_ends_agree(steps in prop::collection::vec((0usize..2, 0u8..12, 1usize..200_000), 1..120)) {
        let mut sides = pair();
        let mut written = [Vec::new(), Vec::new()];
        let mut finished = [false; 2];
        for (i, step, n) in steps {
            match step {
                0..3 if !sides[i].gone => {
                    let bytes: Vec<u8> = (0..n).map(|at| (written[i].len() + at) as u8).collect();
                    if let Ok(taken) = sides[i].state.write(&bytes) {
                        prop_assert!(!finished[i]);
                        written[i].extend_from_slice(&bytes[..taken]);
                    }
                }
                3..6 => sides[i].read(n),
                6..8 => {
                    if let Some(frame) = sides[i].send(n as u32) {
                        sides[1 - i].frames.push_back(frame);
                    }
                    sides[i].forgotten |= sides[i].state.is_over();
                }
                8..10 => {
                    if let Some(reset) = sides[i].take() {
                        sides[1 - i].frames.push_back((reset, BytesMut::new()));
                    }
                    sides[i].forgotten |= sides[i].state.is_over();
                }
                10 if !sides[i].gone => finished[i] |= sides[i].state.finish().is_ok(),
                11 if n < 40_000 => sides[i].abandon(),
                _ => {}
            }
        }
        for _ in 0..200 {
            settle(&mut sides);
            sides.iter_mut().for_each(|side| side.read(1_000_000));
        }
        settle(&mut sides);
        for i in 0..2 {
            let (reader, writer) = (&sides[i], &sides[1 - i]);
            let sent = &written[1 - i];
            prop_assert!(sent.starts_with(&reader.got));
            if reader.end == Some(Ok(())) {
                prop_assert!(finished[1 - i] && reader.got.len() == sent.len());
            }
            if !reader.gone && !writer.gone {
                prop_assert!(reader.got.len() == sent.len() && reader.end == finished[1 - i].then_some(Ok(())));
            }
            // Unless this end had been abandoned itself, what was finished arrives whole, also when its writer is gone.
            if !reader.gone && writer.gone && finished[1 - i] {
                prop_assert_eq!(reader.end, Some(Ok(())));
            }
            if !reader.gone && writer.gone && !finished[1 - i] && writer.state.id != 0 {
                prop_assert_eq!(reader.end, Some(Err(ErrorKind::ConnectionReset)));
            }
        }
    }
}

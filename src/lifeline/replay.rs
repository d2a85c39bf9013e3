//! What was sent and is not acknowledged: kept whole, in the messages it was sent in, to be sent again on another carrier.
//!
//! Writes are gathered into messages. A message never changes once it is made, so sending it again costs no copy; the
//! acknowledgement in it may then be old, which is harmless, because acknowledgements only grow.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Bytes, BytesMut};

use crate::wire::lifeline::{DATA_HEADER, data_header};

/// Bytes of payload in one message. Larger ones hold up what is behind them on a slow link; smaller ones cost more each.
pub const PAYLOAD: usize = 64 * 1024;

/// Bytes reserved at least: several small messages go into that.
const SMALL: usize = 1024;

/// The sent half of a lifeline. Positions are bytes since its beginning.
#[derive(Debug, Default)]
pub struct Replay {
    messages: VecDeque<Message>,
    /// Of `messages`, the first that this carrier has not taken.
    next: usize,
    /// Header and payload of the message in the making; empty, or with the header's room in front.
    gathered: BytesMut,
    acked: u64,
    sent: u64,
    highest: u64,
    end: u64,
}

#[derive(Debug)]
struct Message {
    offset: u64,
    bytes: Bytes,
}

impl Message {
    fn end(&self) -> u64 {
        self.offset + (self.bytes.len() - DATA_HEADER) as u64
    }
}

/// A position that this side does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideBuffer;

impl Replay {
    /// Bytes written and not acknowledged: what is kept.
    pub fn kept(&self) -> u64 {
        self.end - self.acked
    }

    /// Bytes that the present carrier took and that are not acknowledged.
    pub fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.acked)
    }

    /// Everything up to here was acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Bytes written in all.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether everything written has been handed to a carrier.
    pub fn all_sent(&self) -> bool {
        self.next == self.messages.len() && self.gathered.is_empty()
    }

    /// Bytes in the message in the making.
    pub fn gathered(&self) -> usize {
        self.gathered.len().saturating_sub(DATA_HEADER)
    }

    /// Takes bytes into the message in the making; gives how many. When that is none, it is full: [`seal`](Self::seal) it.
    pub fn gather(&mut self, bufs: &[IoSlice<'_>], room: usize) -> usize {
        let asked: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut room = room.min(PAYLOAD - self.gathered());
        if self.gathered.is_empty() && room > 0 {
            let wanted = DATA_HEADER + asked.min(room);
            // A message that grows piece by piece would be copied at every step; small ones share an allocation.
            if self.gathered.capacity() < wanted {
                self.gathered.reserve(wanted.max(SMALL));
            }
            self.gathered.resize(DATA_HEADER, 0);
        }
        let before = room;
        for buf in bufs {
            let n = buf.len().min(room);
            self.gathered.extend_from_slice(&buf[..n]);
            room -= n;
        }
        self.end += (before - room) as u64;
        before - room
    }

    /// Ends the message in the making, if there is one.
    pub fn seal(&mut self, ack: u64, ack_now: bool) {
        if self.gathered() == 0 {
            return;
        }
        let offset = self.end - self.gathered() as u64;
        self.gathered[..DATA_HEADER].copy_from_slice(&data_header(offset, ack, ack_now));
        self.messages.push_back(Message { offset, bytes: self.gathered.split().freeze() });
    }

    /// The next message for the carrier, with the position behind it.
    pub fn next_message(&mut self) -> Option<(Bytes, u64)> {
        let message = self.messages.get(self.next)?;
        self.next += 1;
        self.sent = message.end();
        self.highest = self.highest.max(self.sent);
        Some((message.bytes.clone(), self.sent))
    }

    /// The peer has everything up to `position`.
    pub fn acknowledge(&mut self, position: u64) -> Result<(), OutsideBuffer> {
        if position > self.highest {
            return Err(OutsideBuffer);
        }
        self.acked = self.acked.max(position);
        while self.messages.front().is_some_and(|message| message.end() <= self.acked) {
            self.messages.pop_front();
            self.next = self.next.saturating_sub(1);
        }
        Ok(())
    }

    /// Another carrier, and a peer that had everything up to `position` when it said so. It may have acknowledged more
    /// since, by another carrier.
    pub fn resume(&mut self, position: u64) -> Result<(), OutsideBuffer> {
        self.acknowledge(position)?;
        self.next = 0;
        self.sent = self.messages.front().map_or(self.acked, |message| message.offset.max(self.acked));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(replay: &mut Replay, bytes: &[u8]) {
        assert_eq!(replay.gather(&[IoSlice::new(bytes)], usize::MAX), bytes.len());
        replay.seal(0, false);
    }

    fn sent(replay: &mut Replay) -> Vec<u8> {
        std::iter::from_fn(|| replay.next_message()).flat_map(|(bytes, _)| bytes[DATA_HEADER..].to_vec()).collect()
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again() {
        let mut replay = Replay::default();
        for piece in ["ab", "cd", "ef"] {
            write(&mut replay, piece.as_bytes());
        }
        assert_eq!(sent(&mut replay), b"abcdef");
        assert_eq!((replay.kept(), replay.under_way()), (6, 6));
        replay.acknowledge(2).unwrap();
        assert_eq!((replay.kept(), replay.under_way()), (4, 4));
        // In the middle of a message: the whole message goes again, and the peer skips what it has.
        replay.resume(3).unwrap();
        assert_eq!(replay.under_way(), 0);
        assert_eq!(sent(&mut replay), b"cdef");
        replay.acknowledge(6).unwrap();
        assert_eq!(replay.kept(), 0);
        assert!(sent(&mut replay).is_empty());
    }

    #[test]
    fn positions_outside_the_buffer_are_told() {
        let mut replay = Replay::default();
        write(&mut replay, b"abcd");
        assert_eq!(replay.acknowledge(1), Err(OutsideBuffer), "never sent");
        sent(&mut replay);
        replay.acknowledge(4).unwrap();
        assert_eq!(replay.resume(5), Err(OutsideBuffer), "never written");
        replay.resume(3).unwrap();
        assert!(sent(&mut replay).is_empty(), "said before the acknowledgement");
    }

    #[test]
    fn messages_are_gathered_up_to_their_bound() {
        let mut replay = Replay::default();
        let bytes = vec![7; PAYLOAD + 10];
        assert_eq!(replay.gather(&[IoSlice::new(&bytes[..10]), IoSlice::new(&bytes)], usize::MAX), PAYLOAD);
        assert_eq!(replay.gather(&[IoSlice::new(&bytes)], usize::MAX), 0);
        replay.seal(0, true);
        assert_eq!(replay.gather(&[IoSlice::new(&bytes)], 5), 5);
        assert_eq!((replay.kept(), replay.gathered()), (PAYLOAD as u64 + 5, 5));
        let (first, position) = replay.next_message().unwrap();
        assert_eq!((first.len(), position), (DATA_HEADER + PAYLOAD, PAYLOAD as u64));
        assert!(replay.next_message().is_none() && !replay.all_sent());
    }
}

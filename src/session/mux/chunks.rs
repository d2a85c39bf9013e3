//! A queue of bytes in pieces, for either direction of a stream. Pure.
//!
//! Large pieces are taken over as they are; small ones are gathered in the last piece, so that a queue costs about
//! what it holds, however small the pieces it came in. An empty queue holds no buffer.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;

/// Bytes up to which small pieces are gathered in one buffer.
pub const GATHER: usize = 16 * 1024;

/// Bytes that the first small piece reserves at least.
const FIRST: usize = 64;

/// Places for pieces that an empty queue may keep.
const KEPT_PLACES: usize = 4;

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Chunks {
    chunks: VecDeque<BytesMut>,
    len: usize,
}

impl Chunks {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a copy.
    pub fn push_copy(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        if let Some(tail) = self.chunks.back_mut() {
            let fits = bytes.len().min(tail.capacity() - tail.len());
            tail.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            if bytes.is_empty() {
                return;
            }
            let grown = tail.len() + bytes.len();
            if grown <= GATHER {
                tail.reserve(grown.next_power_of_two() - tail.len());
                return tail.extend_from_slice(bytes);
            }
        }
        if !bytes.is_empty() {
            let mut chunk = BytesMut::with_capacity(bytes.len().max(FIRST));
            chunk.extend_from_slice(bytes);
            self.chunks.push_back(chunk);
        }
    }

    /// Appends a piece as it is. One that is small, or for the most part room, is for [`push_copy`](Self::push_copy).
    pub fn push(&mut self, chunk: BytesMut) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Takes a piece of at most `max` bytes off the front; an empty one when there is nothing.
    pub fn pop(&mut self, max: usize) -> BytesMut {
        let Some(front) = self.chunks.front_mut() else { return BytesMut::new() };
        let chunk = if front.len() > max { front.split_to(max) } else { self.chunks.pop_front().unwrap_or_default() };
        self.len -= chunk.len();
        self.shrink();
        chunk
    }

    /// Moves what fits into `buf`; says how much that was.
    pub fn read(&mut self, buf: &mut ReadBuf<'_>) -> usize {
        let before = buf.remaining();
        while let Some(front) = self.chunks.front_mut() {
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            if n < front.len() {
                front.advance(n);
                break;
            }
            self.chunks.pop_front();
        }
        let moved = before - buf.remaining();
        self.len -= moved;
        self.shrink();
        moved
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Chunks::default();
    }

    fn shrink(&mut self) {
        if self.chunks.is_empty() && self.chunks.capacity() > KEPT_PLACES {
            self.chunks = VecDeque::new();
        }
    }

    /// Bytes that it takes, as far as one can see.
    #[cfg(test)]
    pub fn footprint(&self) -> usize {
        self.chunks.iter().map(BytesMut::capacity).sum::<usize>() + self.chunks.capacity() * size_of::<BytesMut>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_one_by_one_cost_what_they_are() {
        let mut chunks = Chunks::default();
        let count = 256 * 1024;
        for i in 0..count {
            chunks.push_copy(&[i as u8]);
        }
        assert_eq!(chunks.len(), count);
        assert!(chunks.footprint() < count + count / 16, "{}", chunks.footprint());
        while !chunks.is_empty() {
            chunks.pop(1000);
        }
        assert!(chunks.footprint() <= KEPT_PLACES * size_of::<BytesMut>());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_at_the_cost_of_its_size(
            steps in prop::collection::vec((0u8..4, 1usize..40_000), 1..200),
        ) {
            let (mut chunks, mut model, mut next) = (Chunks::default(), VecDeque::<u8>::new(), 0u8);
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        let bytes: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                        next = next.wrapping_add(n as u8);
                        model.extend(&bytes);
                        if step == 0 { chunks.push_copy(&bytes) } else { chunks.push(BytesMut::from(&bytes[..])) }
                    }
                    2 => {
                        let piece = chunks.pop(n);
                        prop_assert!(piece.len() <= n && (piece.is_empty() == model.is_empty()));
                        prop_assert!(piece.iter().eq(model.drain(..piece.len()).collect::<Vec<_>>().iter()));
                    }
                    _ => {
                        let mut space = vec![0; n];
                        let mut buf = ReadBuf::new(&mut space);
                        let moved = chunks.read(&mut buf);
                        prop_assert_eq!(moved, n.min(model.len()));
                        prop_assert!(buf.filled().iter().eq(model.drain(..moved).collect::<Vec<_>>().iter()));
                    }
                }
                prop_assert_eq!(chunks.len(), model.len());
                // The last piece may be half room; the first may be half read.
                prop_assert!(chunks.footprint() <= 2 * chunks.len() + 4 * GATHER + 40_000, "{}", chunks.footprint());
            }
        }
    }
}

//! The frame: what every stream is made of. One byte of kind, three bytes of length (big endian), payload.

use super::limits;

/// The kind of a frame. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of a stream, from its opener: JSON, an [`Open`](super::Open).
    Open = 0x01,
    /// The answer that lets the stream begin: JSON, an [`Accepted`](super::open::Accepted).
    Accept = 0x02,
    /// The answer that ends it: JSON, a [`Refusal`](super::Refusal).
    Refuse = 0x03,
    /// Bytes of the stream's main content.
    Data = 0x10,
    /// The sender's main content is complete. Without it, an end of stream is a truncation.
    End = 0x11,
    /// The sender gives up: JSON, a [`Refusal`](super::Refusal). The receiver must not treat the content as complete.
    Abort = 0x12,
    /// Bytes of a process's standard error.
    Stderr = 0x13,
    /// One JSON-RPC 2.0 message.
    Message = 0x20,
    /// How a process ended: JSON, an [`Exit`](super::open::Exit).
    Exit = 0x21,
    /// A signal for a process: JSON, a [`Signal`](super::open::Signal).
    Signal = 0x22,
    /// One datagram, whole.
    Datagram = 0x30,
}

impl FrameKind {
    /// Every kind, for the parser and for the test that holds the specification to the code.
    pub const ALL: [FrameKind; 11] = [
        FrameKind::Open,
        FrameKind::Accept,
        FrameKind::Refuse,
        FrameKind::Data,
        FrameKind::End,
        FrameKind::Abort,
        FrameKind::Stderr,
        FrameKind::Message,
        FrameKind::Exit,
        FrameKind::Signal,
        FrameKind::Datagram,
    ];

    /// Largest payload of this kind, in bytes.
    pub const fn max_payload(self) -> usize {
        match self {
            FrameKind::Open => limits::MAX_OPEN,
            FrameKind::Accept | FrameKind::Refuse | FrameKind::Abort | FrameKind::Exit | FrameKind::Signal => {
                limits::MAX_ANSWER
            }
            FrameKind::Data | FrameKind::Stderr => limits::MAX_DATA,
            FrameKind::End => 0,
            FrameKind::Message => limits::MAX_MESSAGE,
            FrameKind::Datagram => limits::MAX_DATAGRAM,
        }
    }

    fn from_byte(byte: u8) -> Option<FrameKind> {
        FrameKind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Kind and length of a frame whose payload follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// Bytes of payload.
    pub len: usize,
}

/// A header that no conforming peer sends. The stream it arrived on is over; others go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind byte is none of [`FrameKind::ALL`].
    #[error("frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// The length is over the bound of its kind.
    #[error("{kind:?} frame of {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// Its kind.
        kind: FrameKind,
        /// The length it announced.
        len: usize,
        /// The bound of that kind.
        max: usize,
    },
}

impl FrameHeader {
    /// A header for `len` bytes of `kind`. The caller keeps to the bound of the kind.
    pub fn new(kind: FrameKind, len: usize) -> FrameHeader {
        debug_assert!(len <= kind.max_payload(), "{kind:?} of {len} bytes");
        FrameHeader { kind, len }
    }

    /// The four bytes on the wire.
    pub fn encode(self) -> [u8; limits::FRAME_HEADER] {
        let [_, a, b, c] = (self.len as u32).to_be_bytes();
        [self.kind as u8, a, b, c]
    }

    /// Reads four bytes; refuses unknown kinds and lengths over the bound of the kind.
    pub fn decode(bytes: [u8; limits::FRAME_HEADER]) -> Result<FrameHeader, FrameError> {
        let [kind, a, b, c] = bytes;
        let kind = FrameKind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let max = kind.max_payload();
        if len > max {
            return Err(FrameError::TooLarge { kind, len, max });
        }
        Ok(FrameHeader { kind, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let cases = [
            (FrameHeader::new(FrameKind::Open, 0x01_02_03 & 0xffff), [0x01, 0x00, 0x02, 0x03]),
            (FrameHeader::new(FrameKind::End, 0), [0x11, 0, 0, 0]),
            (FrameHeader::new(FrameKind::Data, 65_532), [0x10, 0x00, 0xff, 0xfc]),
            (FrameHeader::new(FrameKind::Message, 1_048_576), [0x20, 0x10, 0x00, 0x00]),
        ];
        for (header, bytes) in cases {
            assert_eq!(header.encode(), bytes);
            assert_eq!(FrameHeader::decode(bytes), Ok(header));
        }
    }

    #[test]
    fn refuses_what_is_over_its_bound() {
        for kind in FrameKind::ALL {
            let mut bytes = FrameHeader { kind, len: kind.max_payload() + 1 }.encode();
            assert!(matches!(FrameHeader::decode(bytes), Err(FrameError::TooLarge { .. })), "{kind:?}");
            bytes[0] = 0xee;
            assert_eq!(FrameHeader::decode(bytes), Err(FrameError::UnknownKind(0xee)));
        }
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics_and_round_trips(bytes: [u8; 4]) {
            if let Ok(header) = FrameHeader::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}

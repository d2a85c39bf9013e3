//! The header of a frame of yamux, version 0, as bytes and back: twelve bytes, big endian. Pure.
//!
//! Any twelve bytes are a header or a [`Violation`]; what a header means for a stream is not known here.

use super::violation::Violation;

/// Bytes of a header: version, type, two of flags, four of stream, four of length.
pub const HEADER: usize = 12;

/// Bytes of payload that one data frame may announce. More than any window holds in one piece.
pub const MAX_PAYLOAD: u32 = 16 * 1024 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a stream; the length says how many follow.
    Data = 0,
    /// The length is what the receiver takes beyond what it took so far.
    WindowUpdate = 1,
    /// The length is opaque, and comes back in the answer.
    Ping = 2,
    /// The session is over; the length is the reason.
    GoAway = 3,
}

/// What a frame does beside what its kind says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u16);

impl Flags {
    /// None.
    pub const NONE: Flags = Flags(0);
    /// Begins a stream; of a ping: asks.
    pub const SYN: Flags = Flags(1);
    /// Takes a stream; of a ping: answers.
    pub const ACK: Flags = Flags(2);
    /// The sender's direction is complete.
    pub const FIN: Flags = Flags(4);
    /// The stream is over at once, in both directions.
    pub const RST: Flags = Flags(8);
    const ALL: u16 = 15;

    /// Both.
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Whether `other` is among them.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// What it does besides.
    pub flags: Flags,
    /// Its stream; 0 for those of the whole session (`Ping`, `GoAway`).
    pub stream: u32,
    /// Bytes of payload for `Data`; for the others a value, and nothing follows.
    pub length: u32,
}

impl Header {
    /// A header for `length` bytes of a stream.
    pub const fn data(stream: u32, flags: Flags, length: u32) -> Header {
        Header { kind: Kind::Data, flags, stream, length }
    }

    /// Grants `delta` more bytes of a stream.
    pub const fn window_update(stream: u32, flags: Flags, delta: u32) -> Header {
        Header { kind: Kind::WindowUpdate, flags, stream, length: delta }
    }

    /// Ends a stream in both directions.
    pub const fn reset(stream: u32) -> Header {
        Header::window_update(stream, Flags::RST, 0)
    }

    /// The answer to a ping that carried `value`.
    pub const fn pong(value: u32) -> Header {
        Header { kind: Kind::Ping, flags: Flags::ACK, stream: 0, length: value }
    }

    /// Ends the session: 0 in the ordinary way, 1 because the other end broke the protocol, 2 because of an error here.
    pub const fn go_away(reason: u32) -> Header {
        Header { kind: Kind::GoAway, flags: Flags::NONE, stream: 0, length: reason }
    }

    /// The bytes on the wire.
    pub fn encode(self) -> [u8; HEADER] {
        let [f0, f1] = self.flags.0.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [0, self.kind as u8, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]
    }

    /// Reads twelve bytes. Refuses another version, unknown kinds and flags, a stream where there is none and none
    /// where there must be one, and data over [`MAX_PAYLOAD`].
    pub fn decode(bytes: [u8; HEADER]) -> Result<Header, Violation> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = bytes;
        if version != 0 {
            return Err(Violation::Version(version));
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::WindowUpdate,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            other => return Err(Violation::Kind(other)),
        };
        let flags = u16::from_be_bytes([f0, f1]);
        if flags & !Flags::ALL != 0 {
            return Err(Violation::Flags(flags));
        }
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        if (stream == 0) != matches!(kind, Kind::Ping | Kind::GoAway) {
            return Err(Violation::Place { kind, stream });
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if kind == Kind::Data && length > MAX_PAYLOAD {
            return Err(Violation::TooLong(length));
        }
        Ok(Header { kind, flags: Flags(flags), stream, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let cases = [
            (Header::data(1, Flags::SYN, 0x0102), [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 2]),
            (Header::data(0x0a0b_0c0d, Flags::FIN.with(Flags::ACK), 0), [0, 0, 0, 6, 10, 11, 12, 13, 0, 0, 0, 0]),
            (Header::data(2, Flags::NONE, MAX_PAYLOAD), [0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0]),
            (Header::window_update(3, Flags::NONE, 0x0004_0000), [0, 1, 0, 0, 0, 0, 0, 3, 0, 4, 0, 0]),
            (Header::reset(4), [0, 1, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0]),
            (Header::pong(0xdead_beef), [0, 2, 0, 2, 0, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef]),
            (Header::go_away(1), [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ];
        for (header, bytes) in cases {
            assert_eq!(header.encode(), bytes);
            assert_eq!(Header::decode(bytes), Ok(header));
        }
    }

    #[test]
    fn what_no_peer_may_send_is_named() {
        let cases = [
            ([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], Violation::Version(1)),
            ([0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], Violation::Kind(4)),
            ([0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0], Violation::Flags(16)),
            ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Violation::Place { kind: Kind::Data, stream: 0 }),
            ([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Violation::Place { kind: Kind::WindowUpdate, stream: 0 }),
            ([0, 2, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0], Violation::Place { kind: Kind::Ping, stream: 7 }),
            ([0, 3, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0], Violation::Place { kind: Kind::GoAway, stream: 7 }),
            ([0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1], Violation::TooLong(MAX_PAYLOAD + 1)),
        ];
        for (bytes, violation) in cases {
            assert_eq!(Header::decode(bytes), Err(violation), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_a_violation(
            bytes: [u8; HEADER],
            likely in (0u8..2, 0u8..5, 0u16..32, 0u32..4, any::<u32>()),
        ) {
            let (version, kind, flags, stream, length) = likely;
            let mut near = [0; HEADER];
            near[0] = version;
            near[1] = kind;
            near[2..4].copy_from_slice(&flags.to_be_bytes());
            near[4..8].copy_from_slice(&stream.to_be_bytes());
            near[8..].copy_from_slice(&length.to_be_bytes());
            for bytes in [bytes, near] {
                if let Ok(header) = Header::decode(bytes) {
                    prop_assert_eq!(header.encode(), bytes);
                }
            }
        }
    }
}

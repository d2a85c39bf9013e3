//! Messages of the lifeline: what the binary messages of a carrier are made of. One message, one of these.
//!
//! Parsing is total: any bytes are a message or an error. Nothing here knows what a position means.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits::MAX_ANSWER;
use super::refusal::Refusal;

/// Bytes of a lifeline's name.
pub const ID: usize = 16;

/// Bytes of the tag that proves an `Attach` or `Attached`.
pub const TAG: usize = 16;

/// Bytes in front of the payload of a `Data` message: kind, offset, acknowledgement.
pub const DATA_HEADER: usize = 1 + 8 + 8;

/// Names a lifeline. Random, chosen by the laptop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LifelineId(pub [u8; ID]);

/// Kinds of messages: the first byte. A number is never given a second meaning.
pub mod kind {
    /// The laptop begins, moves or prepares to move.
    pub const ATTACH: u8 = 0x01;
    /// The stub agrees.
    pub const ATTACHED: u8 = 0x02;
    /// Nothing follows.
    pub const END: u8 = 0x03;
    /// Bytes of the stream.
    pub const DATA: u8 = 0x10;
    /// Bytes of the stream, to be acknowledged at once.
    pub const DATA_ACK: u8 = 0x11;
    /// How far the stream has arrived, and when.
    pub const ACK: u8 = 0x12;
    /// Asks for an answer at once.
    pub const PING: u8 = 0x13;
    /// The answer.
    pub const PONG: u8 = 0x14;
}

/// What a laptop wants of a carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// A new lifeline.
    Begin,
    /// Go on here.
    Move,
    /// Be ready to go on here.
    Standby,
}

impl AttachMode {
    const ALL: [AttachMode; 3] = [AttachMode::Begin, AttachMode::Move, AttachMode::Standby];

    const fn number(self) -> u8 {
        match self {
            AttachMode::Begin => 0,
            AttachMode::Move => 1,
            AttachMode::Standby => 2,
        }
    }
}

/// The first message of a laptop on a carrier, and each later one that moves the lifeline there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// Which lifeline.
    pub id: LifelineId,
    /// Larger than in any attach of this lifeline before; 0 begins it.
    pub sequence: u64,
    /// What for.
    pub mode: AttachMode,
    /// How many bytes of the stub's stream the laptop has.
    pub received: u64,
    /// Proves that the sender is the laptop of this session. Zero in a `Begin`.
    pub tag: [u8; TAG],
}

/// The stub's answer on the same carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Of the attach that this answers.
    pub sequence: u64,
    /// How many bytes of the laptop's stream the stub has.
    pub received: u64,
    /// Proves that the sender is the stub of this session.
    pub tag: [u8; TAG],
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LifelineMessage {
    /// See [`Attach`].
    Attach(Attach),
    /// See [`Attached`].
    Attached(Attached),
    /// The stream ends at `offset`. Without a refusal it is complete.
    End {
        /// Bytes that the stream had in all.
        offset: u64,
        /// Why it ends before its time.
        refusal: Option<Refusal>,
    },
    /// A piece of the stream.
    Data {
        /// Its place in the stream.
        offset: u64,
        /// How much of the other direction has arrived.
        ack: u64,
        /// Whether to acknowledge at once.
        ack_now: bool,
        /// The piece; not empty.
        payload: Bytes,
    },
    /// How much of the other direction has arrived.
    Ack {
        /// Bytes.
        ack: u64,
        /// When the last of them arrived, in microseconds of a clock of the sender's own; 0 when it does not say.
        at: u64,
    },
    /// Asks for a `Pong` at once.
    Ping {
        /// Comes back in the answer.
        nonce: u64,
        /// As in `Ack`.
        ack: u64,
    },
    /// Answers a `Ping`.
    Pong {
        /// Of the ping.
        nonce: u64,
        /// As in `Ack`.
        ack: u64,
    },
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LifelineError {
    /// No such kind.
    #[error("a lifeline message of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// Too short or too long for its kind, or a field out of its range.
    #[error("a malformed lifeline message of kind {0:#04x}")]
    Malformed(u8),
}

impl Attach {
    /// The bytes that the tag is made over.
    pub fn signed(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(1 + ID + 8 + 1 + 8 + TAG);
        bytes.put_u8(kind::ATTACH);
        bytes.put_slice(&self.id.0);
        bytes.put_u64(self.sequence);
        bytes.put_u8(self.mode.number());
        bytes.put_u64(self.received);
        bytes.freeze()
    }
}

impl Attached {
    /// The bytes that the tag is made over.
    pub fn signed(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(1 + 8 + 8 + TAG);
        bytes.put_u8(kind::ATTACHED);
        bytes.put_u64(self.sequence);
        bytes.put_u64(self.received);
        bytes.freeze()
    }
}

/// The header of a `Data` message.
pub fn data_header(offset: u64, ack: u64, ack_now: bool) -> [u8; DATA_HEADER] {
    let mut header = [0; DATA_HEADER];
    header[0] = if ack_now { kind::DATA_ACK } else { kind::DATA };
    header[1..9].copy_from_slice(&offset.to_be_bytes());
    header[9..].copy_from_slice(&ack.to_be_bytes());
    header
}

impl LifelineMessage {
    /// The bytes of the message.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            LifelineMessage::Attach(attach) => {
                bytes.put_slice(&attach.signed());
                bytes.put_slice(&attach.tag);
            }
            LifelineMessage::Attached(attached) => {
                bytes.put_slice(&attached.signed());
                bytes.put_slice(&attached.tag);
            }
            LifelineMessage::End { offset, refusal } => {
                bytes.put_u8(kind::END);
                bytes.put_u64(*offset);
                if let Some(refusal) = refusal {
                    bytes.put_slice(&refusal.to_bytes());
                }
            }
            LifelineMessage::Data { offset, ack, ack_now, payload } => {
                bytes.put_slice(&data_header(*offset, *ack, *ack_now));
                bytes.put_slice(payload);
            }
            LifelineMessage::Ack { ack, at } => {
                bytes.put_u8(kind::ACK);
                bytes.put_u64(*ack);
                bytes.put_u64(*at);
            }
            LifelineMessage::Ping { nonce, ack } | LifelineMessage::Pong { nonce, ack } => {
                let ping = matches!(self, LifelineMessage::Ping { .. });
                bytes.put_u8(if ping { kind::PING } else { kind::PONG });
                bytes.put_u64(*nonce);
                bytes.put_u64(*ack);
            }
        }
        bytes.freeze()
    }

    /// Reads one message. The payload of a `Data` is not copied.
    pub fn parse(mut bytes: Bytes) -> Result<LifelineMessage, LifelineError> {
        let kind = bytes.try_get_u8().map_err(|_| LifelineError::Malformed(0))?;
        let malformed = LifelineError::Malformed(kind);
        let exactly = |bytes: &Bytes, len: usize| if bytes.len() == len { Ok(()) } else { Err(malformed) };
        match kind {
            kind::ATTACH => {
                exactly(&bytes, ID + 8 + 1 + 8 + TAG)?;
                let id = LifelineId(array(&mut bytes));
                let sequence = bytes.get_u64();
                let number = bytes.get_u8();
                let mode = AttachMode::ALL.into_iter().find(|mode| mode.number() == number).ok_or(malformed)?;
                let received = bytes.get_u64();
                Ok(LifelineMessage::Attach(Attach { id, sequence, mode, received, tag: array(&mut bytes) }))
            }
            kind::ATTACHED => {
                exactly(&bytes, 8 + 8 + TAG)?;
                let (sequence, received) = (bytes.get_u64(), bytes.get_u64());
                Ok(LifelineMessage::Attached(Attached { sequence, received, tag: array(&mut bytes) }))
            }
            kind::END => {
                let offset = bytes.try_get_u64().map_err(|_| malformed)?;
                if bytes.len() > MAX_ANSWER {
                    return Err(malformed);
                }
                let refusal = (!bytes.is_empty()).then(|| Refusal::from_bytes(&bytes));
                Ok(LifelineMessage::End { offset, refusal })
            }
            kind::DATA | kind::DATA_ACK => {
                let offset = bytes.try_get_u64().map_err(|_| malformed)?;
                let ack = bytes.try_get_u64().map_err(|_| malformed)?;
                if bytes.is_empty() {
                    return Err(malformed);
                }
                Ok(LifelineMessage::Data { offset, ack, ack_now: kind == kind::DATA_ACK, payload: bytes })
            }
            kind::ACK => {
                exactly(&bytes, 8 + 8)?;
                Ok(LifelineMessage::Ack { ack: bytes.get_u64(), at: bytes.get_u64() })
            }
            kind::PING | kind::PONG => {
                exactly(&bytes, 8 + 8)?;
                let (nonce, ack) = (bytes.get_u64(), bytes.get_u64());
                Ok(if kind == kind::PING {
                    LifelineMessage::Ping { nonce, ack }
                } else {
                    LifelineMessage::Pong { nonce, ack }
                })
            }
            unknown => Err(LifelineError::UnknownKind(unknown)),
        }
    }
}

/// The next `N` bytes; the caller has checked that they are there.
fn array<const N: usize>(bytes: &mut Bytes) -> [u8; N] {
    let mut array = [0; N];
    bytes.copy_to_slice(&mut array);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RefusalCode;
    use proptest::prelude::*;

    fn examples() -> Vec<(LifelineMessage, Vec<u8>)> {
        let id = LifelineId([0xaa; ID]);
        vec![
            (
                LifelineMessage::Attach(Attach {
                    id,
                    sequence: 2,
                    mode: AttachMode::Move,
                    received: 3,
                    tag: [0xbb; TAG],
                }),
                [&[1][..], &[0xaa; 16], &[0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 3], &[0xbb; 16]].concat(),
            ),
            (
                LifelineMessage::Attached(Attached { sequence: 2, received: 9, tag: [0xcc; TAG] }),
                [&[2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9][..], &[0xcc; 16]].concat(),
            ),
            (LifelineMessage::End { offset: 256, refusal: None }, vec![3, 0, 0, 0, 0, 0, 0, 1, 0]),
            (
                LifelineMessage::Data { offset: 5, ack: 6, ack_now: false, payload: Bytes::from_static(b"hi") },
                [&[0x10][..], &5u64.to_be_bytes(), &6u64.to_be_bytes(), b"hi"].concat(),
            ),
            (
                LifelineMessage::Data { offset: 5, ack: 6, ack_now: true, payload: Bytes::from_static(b"x") },
                [&[0x11][..], &5u64.to_be_bytes(), &6u64.to_be_bytes(), b"x"].concat(),
            ),
            (LifelineMessage::Ack { ack: 7, at: 8 }, [&[0x12][..], &7u64.to_be_bytes(), &8u64.to_be_bytes()].concat()),
            (
                LifelineMessage::Ping { nonce: 1, ack: 2 },
                [&[0x13][..], &1u64.to_be_bytes(), &2u64.to_be_bytes()].concat(),
            ),
            (
                LifelineMessage::Pong { nonce: 1, ack: 2 },
                [&[0x14][..], &1u64.to_be_bytes(), &2u64.to_be_bytes()].concat(),
            ),
        ]
    }

    #[test]
    fn golden_bytes() {
        for (message, bytes) in examples() {
            assert_eq!(message.encode(), bytes, "{message:?}");
            assert_eq!(LifelineMessage::parse(bytes.into()).unwrap(), message);
        }
        let refused = LifelineMessage::End { offset: 0, refusal: Some(Refusal::new(RefusalCode::NotFound, "gone")) };
        assert_eq!(LifelineMessage::parse(refused.encode()).unwrap(), refused);
    }

    #[test]
    fn what_is_cut_or_too_long_is_refused() {
        for (message, bytes) in examples() {
            let open_ended = matches!(message, LifelineMessage::Data { .. } | LifelineMessage::End { .. });
            let least = if open_ended { DATA_HEADER.min(bytes.len()) } else { bytes.len() };
            for cut in 0..least {
                assert!(LifelineMessage::parse(Bytes::copy_from_slice(&bytes[..cut])).is_err(), "{message:?} {cut}");
            }
            if !open_ended {
                let longer = [&bytes[..], &[0]].concat();
                assert!(LifelineMessage::parse(longer.into()).is_err(), "{message:?}");
            }
        }
        let long = [&[kind::END][..], &[0; 8], &[b'x'; MAX_ANSWER + 1]].concat();
        assert_eq!(LifelineMessage::parse(long.into()), Err(LifelineError::Malformed(kind::END)));
        assert_eq!(LifelineMessage::parse(Bytes::from_static(&[0x7f])), Err(LifelineError::UnknownKind(0x7f)));
        let mode = [&[kind::ATTACH][..], &[0; 16 + 8], &[9], &[0; 8 + 16]].concat();
        assert_eq!(LifelineMessage::parse(mode.into()), Err(LifelineError::Malformed(kind::ATTACH)));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            if let Ok(message) = LifelineMessage::parse(bytes.clone().into()) {
                // A refusal is normalised, everything else comes back as it was.
                if !matches!(message, LifelineMessage::End { refusal: Some(_), .. }) {
                    prop_assert_eq!(message.encode(), bytes);
                }
            }
        }
    }
}

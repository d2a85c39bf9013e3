//! Whole messages in a stream that begins as HTTP and goes on as a WebSocket, so that one of them can be delivered twice
//! or shortened. A stream that is anything else passes as it comes.

use bytes::{Buf, Bytes, BytesMut};

/// Longest HTTP head, and longest frame: more is not of ours, and passes as it comes.
const LONGEST: usize = 1 << 20;

/// A part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// As it was sent.
    pub bytes: Bytes,
    /// Whether it is a frame with content of the connection's user, from its first byte to its last.
    pub is_message: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Head,
    Frames,
    /// Neither, until the end.
    Other,
}

/// One direction of one connection.
#[derive(Debug, Default)]
pub struct Frames {
    stage: Stage,
    kept: BytesMut,
}

impl Frames {
    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
    }

    /// The next part that is there as a whole.
    pub fn next(&mut self) -> Option<Unit> {
        let whole = match self.stage {
            Stage::Head => self.kept.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4),
            Stage::Frames => Header::of(&self.kept).map(|header| header.len + header.payload),
            Stage::Other => Some(self.kept.len()),
        };
        if self.kept.len() > LONGEST || whole.is_some_and(|whole| whole > LONGEST) {
            self.stage = Stage::Other;
            return self.rest();
        }
        let whole = whole.filter(|whole| (1..=self.kept.len()).contains(whole))?;
        let bytes = self.kept.copy_to_bytes(whole);
        let is_message = self.stage == Stage::Frames && matches!(bytes[0] & 0x0f, 0..=2);
        if self.stage == Stage::Head {
            let upgrades = bytes.to_ascii_lowercase().windows(18).any(|text| text == b"upgrade: websocket");
            self.stage = if upgrades { Stage::Frames } else { Stage::Other };
        }
        Some(Unit { bytes, is_message })
    }

    /// What is there of a part that will never be whole.
    pub fn rest(&mut self) -> Option<Unit> {
        let bytes = self.kept.split().freeze();
        (!bytes.is_empty()).then_some(Unit { bytes, is_message: false })
    }
}

/// A frame without the last half of its content, as if it had never had more.
pub fn shortened(frame: &[u8]) -> Vec<u8> {
    let header = Header::of(frame).expect("a whole frame");
    let payload = header.payload / 2;
    let mut shorter = frame[..header.len + payload].to_vec();
    match shorter[1] & 0x7f {
        126 => shorter[2..4].copy_from_slice(&(payload as u16).to_be_bytes()),
        127 => shorter[2..10].copy_from_slice(&(payload as u64).to_be_bytes()),
        _ => shorter[1] = shorter[1] & 0x80 | payload as u8,
    }
    shorter
}

struct Header {
    /// Its own bytes, the mask's among them.
    len: usize,
    payload: usize,
}

impl Header {
    /// That of the frame at the beginning of `bytes`, once it is there.
    fn of(bytes: &[u8]) -> Option<Header> {
        let (mask, short) = (bytes.get(1)? & 0x80, bytes[1] & 0x7f);
        let (more, payload) = match short {
            126 => (2, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into()),
            127 => (8, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
            short => (0, short.into()),
        };
        let payload = usize::try_from(payload).unwrap_or(usize::MAX / 2).min(usize::MAX / 2);
        Some(Header { len: 2 + more + if mask == 0 { 0 } else { 4 }, payload })
    }
}

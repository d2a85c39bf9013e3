//! What a peer must not send. Each of these ends the session, with its sentence.

use super::header::Kind;

/// A rule of yamux that the other end broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Another version of yamux.
    #[error("the other side broke the multiplexer's protocol: version {0}")]
    Version(u8),
    /// A kind of frame that there is not.
    #[error("the other side broke the multiplexer's protocol: frame of unknown type {0}")]
    Kind(u8),
    /// Flags that there are not.
    #[error("the other side broke the multiplexer's protocol: unknown flags {0:#06x}")]
    Flags(u16),
    /// A frame of a stream without one, or a frame of the session with one.
    #[error("the other side broke the multiplexer's protocol: {kind:?} frame for stream {stream}")]
    Place {
        /// Of the frame.
        kind: Kind,
        /// Of the frame.
        stream: u32,
    },
    /// A data frame longer than any may be.
    #[error("the other side broke the multiplexer's protocol: frame of {0} bytes")]
    TooLong(u32),
    /// More data than the window had room for.
    #[error("the other side broke the multiplexer's protocol: {length} bytes on a stream with room for {window}")]
    OverWindow {
        /// Bytes that the frame announced.
        length: u32,
        /// Bytes that it might have had.
        window: u32,
    },
    /// Data after the end of its direction.
    #[error("the other side broke the multiplexer's protocol: data on stream {0} after its end")]
    AfterEnd(u32),
    /// A stream begun with a number that is this end's to give.
    #[error("the other side broke the multiplexer's protocol: it opened stream {0}, which is not its to number")]
    Parity(u32),
    /// A stream begun with a number that had been used.
    #[error("the other side broke the multiplexer's protocol: it opened stream {0} twice")]
    Reused(u32),
    /// Far more streams than it may have, without a look at the refusals.
    #[error("the other side opened streams without end and did not read their refusals")]
    Flood,
}

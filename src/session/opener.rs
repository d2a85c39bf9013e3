//! Who can open a stream to the other end. Services take this, not a session, so that a forward outlives the
//! session that it began in and a test can hand it a pipe.

use crate::session::framed::Io;
use crate::wire::Refusal;

/// Opens a byte stream to the other end of the session; the caller sends the open frame on it.
pub trait Opener: Clone + Send + Sync + 'static {
    /// The stream.
    type Io: Io;

    /// A new stream, or why there is none now (`Unavailable`: no session; `Busy`: too many streams).
    fn open(&self) -> impl Future<Output = Result<Self::Io, Refusal>> + Send;
}

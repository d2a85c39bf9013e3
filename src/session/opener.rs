//! Who can open a stream to the other end. Services take this, not a session, so that a forward outlives the
//! session that it began in and a test can hand it a pipe.

use super::framed::Io;
use super::mux::{MuxOpener, MuxStream};
use super::way::Way;
use crate::lifeline::LifelineHandle;
use crate::wire::Refusal;

/// Opens a byte stream to the other end of the session; the caller sends the open frame on it.
pub trait Opener: Clone + Send + Sync + 'static {
    /// The stream.
    type Io: Io;

    /// A new stream, or why there is none now (`Unavailable`: no session; `Busy`: too many streams).
    fn open(&self) -> impl Future<Output = Result<Self::Io, Refusal>> + Send;

    /// The way that its streams take.
    fn way(&self) -> Way;
}

/// Opens streams on one session.
#[derive(Debug, Clone)]
pub struct SessionOpener {
    /// Its streams.
    pub mux: MuxOpener,
    way: Way,
}

impl SessionOpener {
    /// On the session with this lifeline.
    pub fn new(mux: MuxOpener, lifeline: &LifelineHandle) -> SessionOpener {
        SessionOpener { mux, way: Way::of(lifeline) }
    }
}

impl Opener for SessionOpener {
    type Io = MuxStream;

    async fn open(&self) -> Result<MuxStream, Refusal> {
        self.mux.open().await
    }

    fn way(&self) -> Way {
        self.way.clone()
    }
}

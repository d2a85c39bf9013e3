//! The multiplexer: many streams on one byte stream, in the wire format of yamux (HashiCorp's specification, version 0).
//!
//! Small and urgent goes before bulk (`schedule`), windows follow what a stream turns out to carry (`window`), a reset is
//! told from an end (`state`), reading never waits for writing (`table`), and everything a peer can make us keep has a
//! bound. It has no clock: liveness is for what is beneath. What is above carries frames with an explicit end.

mod chunks;
mod drain;
mod driver;
mod handle;
mod header;
mod hub;
mod ids;
mod inbound;
mod outbound;
mod schedule;
mod state;
mod table;
mod violation;
mod window;

use std::io;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

pub use self::handle::{MuxAcceptor, MuxOpener, MuxStream};
pub use self::state::SEND_QUEUE;
pub use self::violation::Violation;
pub use self::window::{FIRST_WINDOW, POOL};
use crate::lifeline::paced::Paced;
use crate::transport::Io;
use crate::wire::limits::MAX_STREAMS;

/// Streams above the other end's limit that may wait for their refusal to leave. With more the other end does not read.
const SLACK: usize = 1024;

/// Which end of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The laptop: the client of yamux, whose streams have odd numbers.
    Laptop,
    /// The workspace.
    Workspace,
}

impl End {
    /// Streams that the other end may have open here. A hostile workspace can make the laptop hold 256 KiB for each.
    pub const fn inbound_limit(self) -> usize {
        match self {
            End::Laptop => MAX_STREAMS / 8,
            End::Workspace => MAX_STREAMS,
        }
    }
}

/// Runs the multiplexer on `io`. The driver is a task that the returned future is; the caller owns it.
pub fn multiplex<T: Io + Paced>(
    io: T,
    end: End,
) -> (MuxOpener, MuxAcceptor, impl Future<Output = io::Result<()>> + Send) {
    let hub = hub::Hub::new(window::POOL);
    let (over, cancel) = (CancellationToken::new(), CancellationToken::new());
    // Whoever may be there may wait for the acceptor: many that come at once arrive before it has its turn.
    let (accepting, accepted) = mpsc::channel(end.inbound_limit());
    let limit = if end == End::Laptop { End::Workspace.inbound_limit() } else { End::Laptop.inbound_limit() };
    let opener = MuxOpener { hub: hub.clone(), over: over.clone(), permits: Arc::new(Semaphore::new(limit)), limit };
    let acceptor = MuxAcceptor { accepted, _end: cancel.clone().drop_guard() };
    let inbound = Arc::new(Semaphore::new(end.inbound_limit()));
    let table = table::Table::new(hub.clone(), end, accepting, inbound);
    (opener, acceptor, driver::Driver::new(io, hub, table, over).run(cancel))
}

#[cfg(test)]
#[path = "mux_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "peer_tests.rs"]
mod peer;

#[cfg(test)]
#[path = "wire_tests.rs"]
mod wire_tests;

#[cfg(test)]
#[path = "interop_tests.rs"]
mod interop_tests;

#[cfg(test)]
#[path = "drain_tests.rs"]
mod drain_tests;

//! A peer that is played frame by frame, for tests of one end of a session.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use super::header::{Flags, HEADER, Header, Kind};
use super::window::EARLY;
use super::*;

/// How long anything in these tests may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives up when it takes too long.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// One end under test, and the byte stream that leads to it.
pub struct Raw {
    pub io: DuplexStream,
    pub opener: MuxOpener,
    pub acceptor: MuxAcceptor,
    pub driver: JoinHandle<io::Result<()>>,
}

impl Raw {
    /// An end with `pipe` bytes of room on its byte stream.
    pub fn new(end: End, pipe: usize) -> Raw {
        let (io, theirs) = tokio::io::duplex(pipe);
        let (opener, acceptor, driver) = multiplex(theirs, end);
        Raw { io, opener, acceptor, driver: tokio::spawn(driver) }
    }

    /// Says a frame to it.
    pub async fn send(&mut self, header: Header, payload: &[u8]) {
        let bytes = [&header.encode()[..], payload].concat();
        in_time(self.io.write_all(&bytes)).await.unwrap();
    }

    /// The next frame that it says, but for what widens a window early.
    pub async fn frame(&mut self) -> (Header, Vec<u8>) {
        next_frame(&mut self.io).await
    }

    /// How its driver ends.
    pub async fn outcome(self) -> io::Result<()> {
        in_time(self.driver).await.unwrap()
    }
}

/// The next frame on `io`, but for what widens a window early: that follows the first frame of each stream.
pub async fn next_frame(io: &mut DuplexStream) -> (Header, Vec<u8>) {
    loop {
        let mut header = [0; HEADER];
        in_time(io.read_exact(&mut header)).await.unwrap();
        let header = Header::decode(header).unwrap();
        let mut payload = vec![0; if header.kind == Kind::Data { header.length as usize } else { 0 }];
        in_time(io.read_exact(&mut payload)).await.unwrap();
        if header != Header::window_update(header.stream, Flags::NONE, EARLY) {
            return (header, payload);
        }
    }
}

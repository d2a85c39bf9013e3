//! How whoever writes learns that bulk should wait, while small things may still go.

use std::task::{Context, Poll};

/// Bytes of one piece of bulk, at most. It is what a stream that becomes active may have to wait for.
pub const MOST_BULK: usize = 64 * 1024;

/// A byte stream that knows how much of it is under way.
pub trait Paced {
    /// Ready when bulk may be written, with the bytes that one piece of it may have; pending, with the waker kept, while as
    /// much is under way as the path holds.
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<usize>;

    /// A stream that sends little now and then has sent something: bulk may have to keep shorter for a while.
    fn sparse(&mut self);
}

impl Paced for tokio::io::DuplexStream {
    fn poll_paced(&mut self, _: &mut Context<'_>) -> Poll<usize> {
        Poll::Ready(MOST_BULK)
    }

    fn sparse(&mut self) {}
}

impl<T: Paced> Paced for tokio_rustls::client::TlsStream<T> {
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.get_mut().0.poll_paced(cx)
    }

    fn sparse(&mut self) {
        self.get_mut().0.sparse();
    }
}

impl<T: Paced> Paced for tokio_rustls::server::TlsStream<T> {
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.get_mut().0.poll_paced(cx)
    }

    fn sparse(&mut self) {
        self.get_mut().0.sparse();
    }
}

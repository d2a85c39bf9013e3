//! How whoever writes learns that bulk should wait, while small things may still go.

use std::task::{Context, Poll};

/// A byte stream that knows how much of it is under way.
pub trait Paced {
    /// Ready when bulk may be written; pending, with the waker kept, while as much is under way as the path holds.
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Paced for tokio::io::DuplexStream {
    fn poll_paced(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl<T: Paced> Paced for tokio_rustls::client::TlsStream<T> {
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.poll_paced(cx)
    }
}

impl<T: Paced> Paced for tokio_rustls::server::TlsStream<T> {
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.poll_paced(cx)
    }
}

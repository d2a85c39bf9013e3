//! When bulk may be written: a byte stream that buffers more than its path holds makes everything behind wait.
//!
//! What is small and urgent does not ask; it is written whenever the stream takes bytes.

use std::task::{Context, Poll};

use tokio::io::DuplexStream;

use super::Lifeline;
use crate::transport::Io;

/// A byte stream that says when bulk may be written to it.
pub trait Paced {
    /// Ready when bulk may be written; Pending, with the waker kept, while as much is under way as the path holds.
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Paced for DuplexStream {
    fn poll_paced(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl<C: Io> Paced for Lifeline<C> {
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

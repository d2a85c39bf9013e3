//! What a call produces on its way to the caller: `Data` and `Stderr` frames through a short queue.
//!
//! The queue is what makes a producer safe to cancel (no frame is ever left half-written by it) and what holds it
//! back: a caller that does not read stops the producer after a few frames.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::session::framed::DataBuffer;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Frames in flight between a producer and the stream: one being written, one ready.
const QUEUE: usize = 2;

/// Where a call's output goes.
#[derive(Debug)]
pub struct Output {
    frames: mpsc::Sender<(FrameKind, DataBuffer)>,
    cancel: CancellationToken,
}

/// The other end of an [`Output`].
pub type Frames = mpsc::Receiver<(FrameKind, DataBuffer)>;

/// An output, and the frames that it produces. `cancel` tells producers that the caller is gone.
pub fn channel(cancel: CancellationToken) -> (Output, Frames) {
    let (frames, receiver) = mpsc::channel(QUEUE);
    (Output { frames, cancel }, receiver)
}

impl Output {
    /// Sends what `buffer` holds as one frame and leaves it empty. Waits while the caller does not read.
    pub async fn send(&self, kind: FrameKind, buffer: &mut DataBuffer) -> Result<(), Refusal> {
        self.frames.send((kind, std::mem::take(buffer))).await.map_err(|_| cancelled())
    }

    /// As [`send`](Self::send), for a blocking thread.
    pub fn blocking_send(&self, kind: FrameKind, buffer: &mut DataBuffer) -> Result<(), Refusal> {
        self.frames.blocking_send((kind, std::mem::take(buffer))).map_err(|_| cancelled())
    }

    /// Resolves when the caller has given up.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}

/// The refusal of a call that nobody waits for any more.
pub fn cancelled() -> Refusal {
    Refusal::new(RefusalCode::Cancelled, "the caller gave up")
}

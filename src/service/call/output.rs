//! What a call produces on its way to the caller: `Data` and `Stderr` frames through a short queue.
//!
//! The queue is what makes a producer safe to cancel (no frame is ever left half-written by it) and what holds it
//! back: a caller that does not read stops the producer after a few frames.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::session::framed::{DataBuffer, FrameWriter};
use crate::session::way::Way;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Frames in flight between a producer and the stream: one being written, one ready.
const QUEUE: usize = 2;

/// How long a caller may leave one frame unread. A network that is slow may well take minutes; a caller that never reads must not
/// hold its place for ever.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// How often the end of a limit is looked at that was put off.
const LOOK: Duration = Duration::from_secs(1);

/// Where a call's output goes.
#[derive(Debug)]
pub struct Output {
    frames: mpsc::Sender<(FrameKind, DataBuffer)>,
    cancel: CancellationToken,
    held: Arc<Mutex<Held>>,
}

/// The other end of an [`Output`].
#[derive(Debug)]
pub struct Frames {
    frames: mpsc::Receiver<(FrameKind, DataBuffer)>,
    held: Arc<Mutex<Held>>,
}

/// For how long what was produced could not leave, since the way was interrupted.
#[derive(Debug, Default)]
struct Held {
    before: Duration,
    since: Option<Instant>,
}

/// An output, and the frames that it produces. `cancel` tells producers that the caller is gone.
pub fn channel(cancel: CancellationToken) -> (Output, Frames) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let held = Arc::default();
    (Output { frames: sender, cancel, held: Arc::clone(&held) }, Frames { frames: receiver, held })
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

    /// Resolves when the producer has had `limit`. Time in which the network kept what it produced does not count.
    pub async fn expired(&self, limit: Duration) {
        let began = Instant::now();
        tokio::time::sleep(limit).await;
        loop {
            let left = (limit + self.held()).saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.max(LOOK)).await;
        }
    }

    fn held(&self) -> Duration {
        let held = lock(&self.held);
        held.before + held.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Frames {
    /// The next frame; `None` when no more are produced.
    pub async fn next(&mut self) -> Option<(FrameKind, DataBuffer)> {
        self.frames.recv().await
    }

    /// Writes all that is produced. An error when that fails, or when a frame is not taken within [`STALL_TIMEOUT`] of a way that
    /// is there.
    pub async fn write<W: AsyncWrite + Unpin>(mut self, writer: &mut FrameWriter<W>, way: &Way) -> Result<(), ()> {
        while let Some((kind, mut buffer)) = self.next().await {
            let sent = self.noting(way, writer.send_buffer(kind, &mut buffer));
            match way.timeout(STALL_TIMEOUT, sent).await {
                Ok(Ok(())) => {}
                _ => return Err(()),
            }
        }
        Ok(())
    }

    /// What `sending` comes to. The time of each interruption that it meets is one in which nothing could leave.
    async fn noting<F: Future>(&self, way: &Way, sending: F) -> F::Output {
        let mut sending = std::pin::pin!(sending);
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent,
                () = way.lost() => lock(&self.held).since = Some(Instant::now()),
            }
            let sent = tokio::select! {
                biased;
                sent = &mut sending => Some(sent),
                () = way.there() => None,
            };
            let mut held = lock(&self.held);
            let since = held.since.take();
            held.before += since.map_or(Duration::ZERO, |since| since.elapsed());
            if let Some(sent) = sent {
                return sent;
            }
        }
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The refusal of a call that nobody waits for any more.
pub fn cancelled() -> Refusal {
    Refusal::new(RefusalCode::Cancelled, "the caller gave up")
}

//! What others hold of a lifeline: they bring it carriers, and learn how it is. What they ask is done where the stream is
//! polled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::BoxCarrier;
use super::core::CarrierId;
use super::standing::{Ended, Route, Standing};
use crate::wire::lifeline::{Attach, AttachMode, LifelineId};

/// A carrier that the other side took.
#[derive(Debug, Clone, Copy)]
pub struct Attachment {
    pub(super) id: CarrierId,
    /// How long the other side took to answer, if it had to.
    pub round_trip: Option<Duration>,
}

/// What a handle asks.
pub(super) enum Command {
    Dialed { carrier: BoxCarrier, route: Route, mode: AttachMode, reply: oneshot::Sender<Result<Attachment, String>> },
    Arrived { carrier: BoxCarrier, route: Route, attach: Attach },
    GoOver(CarrierId),
    Probe,
    End(Ended),
}

/// Brings carriers, and tells how the lifeline is. Cheap to clone; does not keep the lifeline alive.
#[derive(Debug, Clone)]
pub struct LifelineHandle {
    pub(super) id: LifelineId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) drain: watch::Receiver<Option<Duration>>,
    pub(super) doubt: watch::Receiver<bool>,
    pub(super) moved: Arc<AtomicU64>,
}

impl LifelineHandle {
    /// Its name, as attaches say it.
    pub fn id(&self) -> LifelineId {
        self.id
    }

    /// Offers a carrier that was dialled; ready when the other side took it, with the reason when it did not.
    pub async fn attach(&self, carrier: BoxCarrier, route: Route, mode: AttachMode) -> Result<Attachment, String> {
        let over = || "the session is over".to_owned();
        let (reply, answer) = oneshot::channel();
        let command = Command::Dialed { carrier, route, mode, reply };
        self.commands.send(command).await.map_err(|_| over())?;
        answer.await.unwrap_or_else(|_| Err("the connection broke before the other side took it".into()))
    }

    /// Hands over a carrier on which this attach arrived.
    pub async fn arrived(&self, carrier: BoxCarrier, route: Route, attach: Attach) {
        let _ = self.commands.send(Command::Arrived { carrier, route, attach }).await;
    }

    /// Moves to a carrier that stands by.
    pub async fn go_over(&self, to: Attachment) {
        let _ = self.commands.send(Command::GoOver(to.id)).await;
    }

    /// Asks every carrier at once whether it lives: the machine slept, or the network changed.
    pub async fn probe(&self) {
        let _ = self.commands.send(Command::Probe).await;
    }

    /// Ends it, and tells the other side why.
    pub async fn end(&self, ended: Ended) {
        let _ = self.commands.send(Command::End(ended)).await;
    }

    /// How it is, as it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Bytes that are known to have arrived, either way, when its standing was told last.
    pub fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// When the coordinator said that it stops, how long to wait before coming back.
    pub fn drain(&self) -> watch::Receiver<Option<Duration>> {
        self.drain.clone()
    }

    /// Whether the carrier in use is being asked whether it lives, and [`probe`](Self::probe) was called not long ago.
    pub fn doubt(&self) -> watch::Receiver<bool> {
        self.doubt.clone()
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.commands.is_closed() || matches!(*self.standing.borrow(), Standing::Ended(_))
    }
}

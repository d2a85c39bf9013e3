//! The lifeline: one stream of bytes in each direction that outlives the carriers beneath it.
//!
//! `core` decides, `path` measures, `replay` keeps; this file moves messages between them and the carriers, inside
//! whatever task polls the stream: no task of its own, no queue between. A [`LifelineHandle`] brings new carriers
//! and tells how it is. It does not dial: that is for the roles.

#[cfg(test)]
mod carrier_tests;
pub mod core;
mod first;
mod handle;
pub mod key;
pub mod paced;
pub mod path;
pub mod replay;
#[cfg(test)]
mod simulation;
pub mod standing;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Sleep;

use self::core::{CarrierId, Core, Side};
pub use self::first::first_attach;
use self::handle::Command;
pub use self::handle::{Attachment, LifelineHandle};
use self::key::ResumeKey;
pub use self::paced::Paced;
use self::standing::broke;
pub use self::standing::{Ended, Route, Standing};
use crate::transport::carrier::{Arrival, Messages};
use crate::wire::Refusal;
use crate::wire::control::Control;
use crate::wire::lifeline::{Attach, AttachMode, LifelineId};

/// A carrier of any kind.
pub type BoxCarrier = Box<dyn Messages>;

/// What a handle may ask before the lifeline has looked.
const COMMANDS: usize = 16;

/// Messages that one poll takes from a carrier before others have their turn.
const TURN: usize = 16;

/// Carriers that are closed and have not said goodbye yet. One whose peer reads nothing would stay for as long as the
/// system tries to send.
const LEAVING: usize = 2;

/// A timer that nothing is due for.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// A byte stream on whatever carrier there is.
pub struct Lifeline {
    core: Core,
    carriers: Vec<Slot>,
    leaving: Vec<BoxCarrier>,
    commands: mpsc::Receiver<Command>,
    timer: Pin<Box<Sleep>>,
    armed: Instant,
    standing: watch::Sender<Standing>,
    drain: watch::Sender<Option<Duration>>,
    doubt: watch::Sender<bool>,
    published: Option<(Instant, Standing)>,
    moved: Arc<AtomicU64>,
    /// While whoever writes was told to wait for room: how much had been made by then.
    waits: Option<u64>,
}

struct Slot {
    id: CarrierId,
    carrier: BoxCarrier,
    unflushed: bool,
    reply: Option<oneshot::Sender<Result<Attachment, String>>>,
}

impl Lifeline {
    /// Begins on a carrier that the laptop dialled.
    pub fn dial(carrier: BoxCarrier, route: Route) -> (Lifeline, LifelineHandle) {
        let id = LifelineId(rand::random());
        let (mut lifeline, handle) = Lifeline::new(Side::Dialer, id);
        if let Some(id) = lifeline.core.dialed(route, AttachMode::Begin, Instant::now()) {
            lifeline.carriers.push(Slot { id, carrier, unflushed: false, reply: None });
        }
        (lifeline, handle)
    }

    /// Begins on a carrier on which this attach arrived; `None` when it does not begin a lifeline.
    pub fn accept(carrier: BoxCarrier, route: Route, attach: &Attach) -> Option<(Lifeline, LifelineHandle)> {
        let (mut lifeline, handle) = Lifeline::new(Side::Listener, attach.id);
        let id = lifeline.core.arrived(route, attach, Instant::now()).ok()?;
        lifeline.carriers.push(Slot { id, carrier, unflushed: false, reply: None });
        Some((lifeline, handle))
    }

    fn new(side: Side, id: LifelineId) -> (Lifeline, LifelineHandle) {
        let (commands, received) = mpsc::channel(COMMANDS);
        let (standing, drain) = (watch::Sender::new(Standing::Beginning), watch::Sender::new(None));
        let moved = Arc::<AtomicU64>::default();
        let doubt = watch::Sender::new(false);
        let (watched, told, doubted) = (standing.subscribe(), drain.subscribe(), doubt.subscribe());
        let handle =
            LifelineHandle { id, commands, standing: watched, drain: told, doubt: doubted, moved: moved.clone() };
        let lifeline = Lifeline {
            core: Core::new(side, id),
            carriers: Vec::new(),
            leaving: Vec::new(),
            commands: received,
            timer: Box::pin(tokio::time::sleep(FAR)),
            armed: Instant::now() + FAR,
            standing,
            drain,
            doubt,
            published: None,
            moved,
            waits: None,
        };
        (lifeline, handle)
    }

    /// From here on it can move to other carriers.
    pub fn set_key(&mut self, key: ResumeKey) {
        self.core.set_key(key);
    }

    /// Moves what can be moved, until every part of it would wait.
    fn progress(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            self.obey(command);
        }
        for index in (0..self.carriers.len()).rev() {
            if let Err(why) = self.poll_carrier(index, cx) {
                self.lost(index, why);
            }
        }
        self.settle(cx);
        self.poll_timer(cx);
        self.publish();
    }

    /// After something changed: carriers that served go, askers get their answers, what others now have to say leaves.
    fn settle(&mut self, cx: &mut Context<'_>) {
        while let Some(id) = self.core.retired() {
            if let Some(index) = self.carriers.iter().position(|slot| slot.id == id) {
                self.leaving.push(self.carriers.swap_remove(index).carrier);
            }
        }
        self.leaving.retain_mut(|carrier| carrier.poll_close(cx).is_pending());
        // The oldest have had their time.
        self.leaving.drain(..self.leaving.len().saturating_sub(LEAVING));
        // Whoever gets an answer below must not see how things stood before.
        if self.carriers.iter().any(|slot| slot.reply.is_some() && self.core.is_attached(slot.id)) {
            self.publish();
        }
        for slot in &mut self.carriers {
            if self.core.is_attached(slot.id)
                && let Some(reply) = slot.reply.take()
            {
                let _ = reply.send(Ok(Attachment { id: slot.id, round_trip: self.core.round_trip_of(slot.id) }));
            }
        }
        for index in (0..self.carriers.len()).rev() {
            if let Err(why) = self.poll_transmit(index, cx) {
                self.lost(index, why);
            }
        }
    }

    /// A carrier broke. Whoever brought it and was not answered yet is told why.
    fn lost(&mut self, index: usize, why: String) {
        let slot = self.carriers.swap_remove(index);
        self.core.lost(slot.id, &why, Instant::now());
        if let Some(reply) = slot.reply {
            let _ = reply.send(Err(why));
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Dialed { carrier, route, mode, reply } => match self.core.dialed(route, mode, now) {
                Some(id) => self.carriers.push(Slot { id, carrier, unflushed: false, reply: Some(reply) }),
                None => drop(reply.send(Err("the session is over".into()))),
            },
            Command::Arrived { carrier, route, attach } => match self.core.arrived(route, &attach, now) {
                Ok(id) => self.carriers.push(Slot { id, carrier, unflushed: false, reply: None }),
                Err(fault) => {
                    tracing::debug!(%fault, "a carrier was refused");
                    // Without a word: an attach that another one overtook is no reason to end the session.
                    self.leaving.push(carrier);
                }
            },
            Command::GoOver(id) => drop(self.core.go_over(id, now)),
            Command::Probe => self.core.probe(now),
            Command::End(ended) => {
                if let Ended::Refused(refusal) = &ended {
                    self.core.finish(Some(refusal.clone()));
                }
                self.core.end(ended);
            }
        }
    }

    fn poll_carrier(&mut self, index: usize, cx: &mut Context<'_>) -> Result<(), String> {
        for taken in 0.. {
            if self.core.incoming().is_some() {
                break;
            }
            if taken == TURN {
                // It did not say that it has no more, so it wakes nobody when more comes.
                cx.waker().wake_by_ref();
                break;
            }
            let slot = &mut self.carriers[index];
            match slot.carrier.poll_arrival(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(Arrival::Bytes(bytes)))) => {
                    let id = slot.id;
                    self.core.message(id, bytes, Instant::now()).map_err(|fault| fault.to_string())?;
                    if !self.core.has(id) {
                        return Ok(());
                    }
                }
                Poll::Ready(Ok(Some(Arrival::Control(control)))) => {
                    self.core.control(slot.id).map_err(|fault| fault.to_string())?;
                    self.heed(control);
                }
                Poll::Ready(Ok(None)) => return Err("the connection was closed".into()),
                Poll::Ready(Err(error)) => return Err(broke(&error)),
            }
        }
        self.poll_transmit(index, cx)
    }

    fn heed(&mut self, control: Control) {
        match control {
            Control::Drain { reconnect_after_ms } => {
                self.drain.send_replace(Some(Control::reconnect_after(reconnect_after_ms)));
            }
            Control::Refused(refusal) => {
                self.core.end(Ended::Refused(Refusal::from_bytes(&refusal.to_bytes())));
            }
            Control::Parked {}
            | Control::Join { .. }
            | Control::Waiting { .. }
            | Control::Revoked { .. }
            | Control::Authorities {}
            | Control::Unknown => {}
        }
    }

    fn poll_transmit(&mut self, index: usize, cx: &mut Context<'_>) -> Result<(), String> {
        let slot = &mut self.carriers[index];
        let broke = |error: io::Error| broke(&error);
        loop {
            if slot.carrier.poll_ready(cx).map_err(broke)?.is_pending() {
                return Ok(());
            }
            let Some(message) = self.core.transmit(slot.id, Instant::now()) else { break };
            slot.carrier.start_send(message).map_err(broke)?;
            slot.unflushed = true;
        }
        if slot.unflushed && slot.carrier.poll_flush(cx).map_err(broke)?.is_ready() {
            slot.unflushed = false;
        }
        Ok(())
    }

    /// Lets time pass, and tells whoever waits for room of what was made since: the part that reads or flushes may have seen
    /// it, and nothing would come after it.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        self.pass(cx);
        if self.waits.take_if(|before| *before != self.core.room_made()).is_some() {
            cx.waker().wake_by_ref();
        }
    }

    fn pass(&mut self, cx: &mut Context<'_>) {
        loop {
            let now = Instant::now();
            let due = self.core.deadline().unwrap_or(now + FAR);
            if due <= now {
                self.core.tick(now);
                self.settle(cx);
                // A deadline that its tick did not move would spin here.
                if self.core.deadline().is_some_and(|next| next <= due) {
                    cx.waker().wake_by_ref();
                    return;
                }
                continue;
            }
            if due < self.armed || self.armed <= now {
                self.armed = due;
                self.timer.as_mut().reset(due.into());
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }

    fn publish(&mut self) {
        const REFRESH: Duration = Duration::from_secs(1);
        let now = Instant::now();
        self.moved.store(self.core.moved(), Relaxed);
        let doubt = self.core.in_doubt();
        self.doubt.send_if_modified(|before| std::mem::replace(before, doubt) != doubt);
        let standing = self.core.standing();
        let old = self.published.as_ref().is_none_or(|(at, before)| {
            !before.is_like(&standing) || (now.saturating_duration_since(*at) >= REFRESH && *before != standing)
        });
        if old {
            self.standing.send_replace(standing.clone());
            self.published = Some((now, standing));
        }
    }

    fn over(&self) -> Option<io::Result<()>> {
        self.core.ended().map(|ended| match ended {
            Ended::Complete => Ok(()),
            ended => Err(io::Error::other(ended.clone())),
        })
    }
}

impl AsyncRead for Lifeline {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.core.incoming().is_none() {
            this.progress(cx);
        }
        if let Some(incoming) = this.core.incoming() {
            let n = incoming.len().min(buf.remaining());
            buf.put_slice(&incoming.split_to(n));
            return Poll::Ready(Ok(()));
        }
        this.over().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Lifeline {
    fn poll_gather(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.waits = None;
        for attempt in 0..2 {
            if self.core.ended().is_some() {
                return Poll::Ready(self.over().unwrap_or(Ok(())).and(Err(io::ErrorKind::BrokenPipe.into())));
            }
            match self.core.write(bufs) {
                0 if attempt == 0 => self.progress_and_wake(cx),
                0 => {}
                n => return Poll::Ready(Ok(n)),
            }
        }
        self.waits = Some(self.core.room_made());
        Poll::Pending
    }

    /// As `progress`, for callers that do not read: whoever reads is told that there is something.
    fn progress_and_wake(&mut self, cx: &mut Context<'_>) {
        let had = self.core.incoming().is_some();
        self.progress(cx);
        if !had && (self.core.incoming().is_some() || self.core.ended().is_some()) {
            cx.waker().wake_by_ref();
        }
    }
}

impl AsyncWrite for Lifeline {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_gather(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_gather(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready at once: what was written is the lifeline's, and leaves when a carrier takes it.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core.flush();
        self.progress_and_wake(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core.finish(None);
        self.progress_and_wake(cx);
        if !self.core.is_finished() || self.carriers.iter().any(|slot| slot.unflushed) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Paced for Lifeline {
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.waits = None;
        if let Some(bytes) = self.core.takes_bulk(Instant::now()) {
            return Poll::Ready(bytes);
        }
        self.core.flush();
        self.progress_and_wake(cx);
        if let Some(bytes) = self.core.takes_bulk(Instant::now()) {
            return Poll::Ready(bytes);
        }
        self.waits = Some(self.core.room_made());
        // What has just arrived may have made room, and then it is only for the pace to say when.
        self.poll_timer(cx);
        Poll::Pending
    }

    fn sparse(&mut self) {
        self.core.sparse(Instant::now());
    }
}

impl Drop for Lifeline {
    /// The other side would keep its end for a day: it is told, as far as that needs no waiting.
    fn drop(&mut self) {
        // The last words may be in a command.
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        if self.core.ended().is_none() {
            self.core.finish(None);
        }
        let mut cx = Context::from_waker(Waker::noop());
        // Twice: the last word leaves on the carrier in use, and then on those beside it.
        for index in (0..self.carriers.len()).chain(0..self.carriers.len()) {
            let _ = self.poll_transmit(index, &mut cx);
        }
        self.core.end(Ended::Local("the session was ended here".into()));
        self.standing.send_replace(self.core.standing());
    }
}

impl std::fmt::Debug for Lifeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifeline").field("core", &self.core).finish_non_exhaustive()
    }
}

//! What the handles of a session's streams share with its driver: the streams themselves, and who of them has something
//! to send.
//!
//! Each stream has a lock of its own, held for a copy and never across I/O; the schedule's lock is held for a push or a
//! pop. Who holds a stream's may take the schedule's, never the other way round.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::drain::Drain;
use super::schedule::{Place, Schedule};
use super::state::{Cut, State};
use super::window::Pool;

/// One stream, shared by its handle and the driver.
#[derive(Debug)]
pub struct Stream {
    state: Mutex<State>,
    hub: Arc<Hub>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// A stream that the other end opened.
    pub fn inbound(hub: Arc<Hub>, id: u32, permit: Option<OwnedSemaphorePermit>) -> Arc<Stream> {
        hub.ready().drain.opened();
        Stream::begun(State::inbound(id), hub, permit)
    }

    /// A stream that this end opens; `None` in a session that drains.
    pub fn outbound(hub: Arc<Hub>, permit: OwnedSemaphorePermit) -> Option<Arc<Stream>> {
        {
            let drain = &mut hub.ready().drain;
            if drain.is_draining() {
                return None;
            }
            drain.opened();
        }
        Some(Stream::begun(State::outbound(), hub, Some(permit)))
    }

    fn begun(mut state: State, hub: Arc<Hub>, permit: Option<OwnedSemaphorePermit>) -> Arc<Stream> {
        state.widen_early(&hub.pool);
        Arc::new(Stream { state: Mutex::new(state), hub, _permit: permit })
    }

    /// Its state, for as long as a copy takes.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its session.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Enters it into the schedule when what was done to `state` calls for that.
    pub fn settle(self: &Arc<Stream>, state: &mut State) {
        let control = !state.in_control && state.needs_control();
        let content = state.turn.place == Place::Idle && state.can_send();
        if !control && !content {
            return;
        }
        let mut ready = self.hub.ready();
        if ready.over {
            drop(ready);
            return fail(state);
        }
        if control {
            state.in_control = true;
            ready.schedule.control(self.clone());
        }
        if content {
            ready.schedule.enter(self.clone(), &mut state.turn);
        }
        let waker = ready.waker.take();
        drop(ready);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).release(&self.hub.pool);
        self.hub.change(Drain::closed);
    }
}

/// Tells who waits on a stream that its session is over.
pub fn fail(state: &mut State) {
    state.cut(Cut::Session);
    for waker in [state.reader.take(), state.writer.take()].into_iter().flatten() {
        waker.wake();
    }
}

/// What the streams of a session share.
#[derive(Debug)]
pub struct Hub {
    ready: Mutex<Ready>,
    /// Of which windows are widened.
    pub pool: Pool,
    /// Cancelled when either end wants no more streams.
    pub draining: CancellationToken,
    /// Cancelled when the other end has said that it opens no more.
    pub agreed: CancellationToken,
}

#[derive(Debug)]
struct Ready {
    schedule: Schedule<Arc<Stream>>,
    drain: Drain,
    /// The driver's, while it sleeps.
    waker: Option<Waker>,
    over: bool,
}

/// A stream that goes before bulk.
#[derive(Debug)]
pub enum Urgent {
    /// For what is not content.
    Control(Arc<Stream>),
    /// For content.
    Recent(Arc<Stream>),
}

impl Hub {
    /// A session without streams.
    pub fn new(pool: u32) -> Arc<Hub> {
        let ready = Ready { schedule: Schedule::new(), drain: Drain::default(), waker: None, over: false };
        let (draining, agreed) = (CancellationToken::new(), CancellationToken::new());
        Arc::new(Hub { ready: Mutex::new(ready), pool: Pool::new(pool), draining, agreed })
    }

    /// The next stream that goes before bulk.
    pub fn next_urgent(&self) -> Option<Urgent> {
        let schedule = &mut self.ready().schedule;
        let control = schedule.next_control().map(Urgent::Control);
        control.or_else(|| schedule.next_recent().map(Urgent::Recent))
    }

    /// The next stream of bulk.
    pub fn next_bulk(&self) -> Option<Arc<Stream>> {
        self.ready().schedule.next_bulk()
    }

    /// Whether bulk waits.
    pub fn has_bulk(&self) -> bool {
        self.ready().schedule.has_bulk()
    }

    /// A stream that has sent a frame goes on, if it can: one that had more all the time as bulk.
    pub fn sent(&self, stream: &Arc<Stream>, state: &mut State) {
        let backlogged = state.is_backlogged();
        state.turn.place = Place::Idle;
        if state.can_send() {
            let schedule = &mut self.ready().schedule;
            match backlogged {
                true => schedule.wait(stream.clone(), &mut state.turn),
                false => schedule.enter(stream.clone(), &mut state.turn),
            }
        }
    }

    /// The driver wakes when a stream enters the schedule; `false` when one that it can serve is in it already.
    pub fn sleep(&self, waker: &Waker, bulk: bool) -> bool {
        let mut ready = self.ready();
        let drain = &ready.drain;
        if ready.schedule.is_urgent() || (bulk && ready.schedule.has_bulk()) || drain.is_due() || drain.is_over() {
            return false;
        }
        match &mut ready.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }

    /// The driver is awake and will look for itself.
    pub fn awake(&self) {
        self.ready().waker = None;
    }

    /// The session is over: nothing enters the schedule any more. Who was in it is given back.
    pub fn end(&self) -> Vec<Arc<Stream>> {
        let mut ready = self.ready();
        ready.over = true;
        ready.schedule.drain().collect()
    }

    /// This end wants no more streams.
    pub fn drain(&self) {
        self.change(Drain::ask);
        self.draining.cancel();
    }

    /// The other end said `GoAway` with 0. Those who wait for that are told by [`tell`](Self::tell).
    pub fn hear(&self) {
        self.ready().drain.hear();
    }

    /// Tells who waits for the other end's word, once what came right after it is known: a goodbye is no hand-over.
    pub fn tell(&self) {
        if !self.agreed.is_cancelled() && self.ready().drain.has_heard() {
            self.draining.cancel();
            self.agreed.cancel();
        }
    }

    /// Whether either end wants no more streams: none is opened from then on.
    pub fn is_draining(&self) -> bool {
        self.ready().drain.is_draining()
    }

    /// Whether the other end has said `GoAway` with 0.
    pub fn has_heard(&self) -> bool {
        self.ready().drain.has_heard()
    }

    /// Whether streams that the other end opens are refused because the session drains.
    pub fn refuses(&self) -> bool {
        self.ready().drain.refuses()
    }

    /// Takes the `GoAway` that is due. The first one is asked for when nothing else is urgent, so that it comes after the
    /// first frames of the streams that were opened before.
    pub fn say(&self) -> bool {
        self.ready().drain.say()
    }

    /// Whether the other end knows that nothing more comes.
    pub fn is_done(&self) -> bool {
        self.ready().drain.is_done()
    }

    /// Whether the session has drained.
    pub fn has_drained(&self) -> bool {
        self.ready().drain.is_over()
    }

    /// Streams of which anything is left.
    pub fn open(&self) -> usize {
        self.ready().drain.open()
    }

    /// Something happened that may be all the driver waits for.
    fn change(&self, change: impl FnOnce(&mut Drain)) {
        let mut ready = self.ready();
        change(&mut ready.drain);
        let waker = if ready.drain.is_due() || ready.drain.is_over() { ready.waker.take() } else { None };
        drop(ready);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

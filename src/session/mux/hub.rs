//! What the handles of a session's streams share with its driver: the streams themselves, and who of them has something
//! to send.
//!
//! Each stream has a lock of its own, held for a copy and never across I/O; the schedule's lock is held for a push or a
//! pop. Who holds a stream's may take the schedule's, never the other way round.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::OwnedSemaphorePermit;

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
    /// A stream of a session.
    pub fn new(hub: Arc<Hub>, state: State, permit: Option<OwnedSemaphorePermit>) -> Arc<Stream> {
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
}

#[derive(Debug)]
struct Ready {
    schedule: Schedule<Arc<Stream>>,
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
        let ready = Ready { schedule: Schedule::new(), waker: None, over: false };
        Arc::new(Hub { ready: Mutex::new(ready), pool: Pool::new(pool) })
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
        if ready.schedule.is_urgent() || (bulk && ready.schedule.has_bulk()) {
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

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

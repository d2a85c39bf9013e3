//! What a stream's sender may still send: the receiving side of flow control. Pure, without clocks.
//!
//! A window begins with the 256 KiB of yamux. It is widened out of a [`Pool`] that the streams of a session share: a little
//! at once while the pool is nearly full, more when the stream turns out to carry more than a little, and again while it
//! is the window that holds its sender up.
//! What is granted is what may arrive and wait, so pool and first windows together bound a session's memory.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::violation::Violation;

/// Bytes that each end may send on a new stream: yamux says so.
pub const FIRST_WINDOW: u32 = 256 * 1024;

/// Bytes by which the windows of a session may be wider than their first ones, taken together: 1 Gbit/s over half a second.
pub const POOL: u32 = 64 * 1024 * 1024;

/// Bytes by which one window may be wider: 1 Gbit/s over a quarter of a second.
const MOST: u32 = 32 * 1024 * 1024;

/// Bytes by which a window is widened before anything arrived. On a long path what a sender may send at once is all that
/// arrives within the first round trip, and what tells how fast the path is.
pub const EARLY: u32 = 256 * 1024;

/// Bytes that the pool keeps for streams that turn out to carry much: with fewer, none is widened early.
const NOT_EARLY: u32 = POOL / 4 * 3;

/// Bytes that arrive on a stream before its window is widened: with fewer it is a call and never fills its first one.
const WIDEN_AFTER: u32 = 64 * 1024;

/// A window is announced anew when this part of it has been read: the larger the part, the wider it has to be for the
/// same speed.
const ANNOUNCE_PART: u32 = 8;

/// Bytes that are announced at least: fewer are not worth a frame.
const ANNOUNCE: u32 = 32 * 1024;

/// Bytes that the windows of a session may share.
#[derive(Debug)]
pub struct Pool(AtomicU32);

impl Pool {
    /// A pool of that many bytes.
    pub fn new(bytes: u32) -> Pool {
        Pool(AtomicU32::new(bytes))
    }

    /// Half of what is left, but no more than `most`, and nothing that is not worth a frame.
    fn take(&self, most: u32) -> u32 {
        let share = |left: u32| Some((left / 2).min(most)).filter(|share| *share >= ANNOUNCE);
        let taken = self.0.fetch_update(Relaxed, Relaxed, |left| share(left).map(|share| left - share));
        taken.ok().and_then(share).unwrap_or(0)
    }

    /// [`EARLY`], or nothing.
    fn take_early(&self) -> u32 {
        let share = |left: u32| left.checked_sub(EARLY).filter(|left| *left >= NOT_EARLY);
        if self.0.fetch_update(Relaxed, Relaxed, share).is_ok() { EARLY } else { 0 }
    }

    fn give_back(&self, bytes: u32) {
        self.0.fetch_add(bytes, Relaxed);
    }

    /// What is left.
    #[cfg(test)]
    pub fn left(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

/// The window of one stream.
#[derive(Debug)]
pub struct Window {
    /// What the sender may still send.
    open: u32,
    /// What came out of the pool.
    granted: u32,
    /// The part of it that was not announced yet.
    early: u32,
    /// What was read and not announced yet.
    read: u32,
    /// What arrived, up to `WIDEN_AFTER`.
    arrived: u32,
    /// The sender used it up since it was last announced.
    used_up: bool,
}

impl Window {
    /// The window of a new stream.
    pub fn new() -> Window {
        Window { open: FIRST_WINDOW, granted: 0, early: 0, read: 0, arrived: 0, used_up: false }
    }

    /// Widens it before anything arrived. The sender learns it when there is something to say to it.
    pub fn begin(&mut self, pool: &Pool) {
        self.early = pool.take_early();
        self.granted += self.early;
    }

    /// What [`begin`](Self::begin) left to announce to the sender, 0 for nothing.
    #[must_use]
    pub fn early(&mut self) -> u32 {
        self.open += self.early;
        std::mem::take(&mut self.early)
    }

    /// What may have arrived and not been read, at most.
    pub fn width(&self) -> u32 {
        FIRST_WINDOW + self.granted
    }

    /// A frame with that many bytes is about to arrive.
    pub fn reserve(&mut self, length: u32) -> Result<(), Violation> {
        let window = self.open;
        self.open = window.checked_sub(length).ok_or(Violation::OverWindow { length, window })?;
        self.used_up |= self.open == 0;
        Ok(())
    }

    /// Bytes that were reserved have arrived. What to announce to the sender, 0 for nothing.
    #[must_use]
    pub fn arrived(&mut self, bytes: u32, pool: &Pool) -> u32 {
        if self.arrived >= WIDEN_AFTER {
            return 0;
        }
        self.arrived = self.arrived.saturating_add(bytes);
        if self.arrived >= WIDEN_AFTER { self.widen(pool) } else { 0 }
    }

    /// Bytes were read, and `waiting` still wait. What to announce to the sender, 0 for nothing.
    #[must_use]
    pub fn read(&mut self, bytes: u32, waiting: usize, pool: &Pool) -> u32 {
        self.read += bytes;
        if self.read < (self.width() / ANNOUNCE_PART).max(ANNOUNCE) {
            return 0;
        }
        let read = std::mem::take(&mut self.read);
        self.open += read;
        // A reader that keeps up, and a sender that could send more: the window is what holds them up.
        let keeps_up = waiting <= (self.width() / ANNOUNCE_PART) as usize;
        let wider = if std::mem::take(&mut self.used_up) && keeps_up { self.widen(pool) } else { 0 };
        read + wider
    }

    /// Gives back what it had of the pool. The stream's bytes are gone.
    pub fn close(&mut self, pool: &Pool) {
        pool.give_back(std::mem::take(&mut self.granted));
    }

    fn widen(&mut self, pool: &Pool) -> u32 {
        let more = pool.take(MOST - self.granted);
        self.granted += more;
        self.open += more;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_keeps_its_first_window() {
        let (pool, mut window) = (Pool::new(POOL), Window::new());
        window.reserve(WIDEN_AFTER - 1).unwrap();
        assert_eq!(window.arrived(WIDEN_AFTER - 1, &pool), 0);
        assert_eq!((window.width(), pool.left()), (FIRST_WINDOW, POOL));
    }

    #[test]
    fn the_first_streams_begin_with_more_and_leave_most_of_the_pool() {
        let pool = Pool::new(POOL);
        let mut windows: Vec<Window> = (0..100).map(|_| Window::new()).collect();
        windows.iter_mut().for_each(|window| window.begin(&pool));
        assert_eq!((windows[0].width(), windows[99].width()), (FIRST_WINDOW + EARLY, FIRST_WINDOW));
        assert!(windows[0].reserve(FIRST_WINDOW + 1).is_err(), "the sender was not told");
        let announced: u32 = windows.iter_mut().map(Window::early).sum();
        assert_eq!((announced, pool.left()), (POOL / 4, NOT_EARLY));
        windows[0].reserve(FIRST_WINDOW + EARLY).unwrap();
        windows.iter_mut().for_each(|window| window.close(&pool));
        assert_eq!(pool.left(), POOL);
    }

    #[test]
    fn bulk_gets_half_of_the_pool_on_arrival_and_gives_it_back() {
        let pool = Pool::new(POOL);
        let mut windows: Vec<Window> = (0..3).map(|_| Window::new()).collect();
        let granted: Vec<u32> = windows
            .iter_mut()
            .map(|window| {
                window.reserve(WIDEN_AFTER).unwrap();
                window.arrived(WIDEN_AFTER, &pool)
            })
            .collect();
        assert_eq!(granted, [32 << 20, 16 << 20, 8 << 20]);
        windows.iter_mut().for_each(|window| window.close(&pool));
        assert_eq!(pool.left(), POOL);
    }

    #[test]
    fn a_window_that_holds_a_sender_up_grows_and_one_that_a_reader_holds_up_does_not() {
        let pool = Pool::new(POOL);
        let (mut others, mut window) = (Window::new(), Window::new());
        for window in [&mut others, &mut window] {
            window.reserve(WIDEN_AFTER).unwrap();
            assert!(window.arrived(WIDEN_AFTER, &pool) > 0);
        }
        assert_eq!(window.width(), FIRST_WINDOW + (16 << 20));
        others.close(&pool);
        // All of it arrives and an eighth is read: the reader is what is slow.
        let rest = window.width() - WIDEN_AFTER;
        window.reserve(rest).unwrap();
        let part = window.width() / ANNOUNCE_PART;
        let width = window.width();
        assert_eq!(window.read(part, (width - part) as usize, &pool), part);
        assert_eq!(window.width(), width);
        // It is used up again, and all is read.
        window.reserve(part).unwrap();
        assert!(window.read(width, 0, &pool) > width);
        assert_eq!(window.width(), FIRST_WINDOW + MOST);
    }

    #[test]
    fn more_than_the_window_is_a_violation() {
        let mut window = Window::new();
        window.reserve(FIRST_WINDOW - 1).unwrap();
        assert_eq!(window.reserve(2), Err(Violation::OverWindow { length: 2, window: 1 }));
        window.reserve(1).unwrap();
        assert_eq!(window.reserve(1), Err(Violation::OverWindow { length: 1, window: 0 }));
    }

    proptest! {
        /// Whatever is sent and read: what waits never exceeds the width, widths never exceed pool and first windows,
        /// and a sender whose bytes were all read can go on.
        #[test]
        fn windows_are_bounded_and_never_stall(steps in prop::collection::vec((0usize..4, 0u8..2, 0u32..40_000_000), 1..300)) {
            let pool = Pool::new(POOL);
            let begun = |_| -> (Window, u32, u32) {
                let mut window = Window::new();
                window.begin(&pool);
                (window, FIRST_WINDOW, 0)
            };
            let mut streams: Vec<(Window, u32, u32)> = (0..4).map(begun).collect();
            for (i, step, n) in steps {
                let (window, may, waiting) = &mut streams[i];
                let early = window.early();
                let announced = if step == 0 {
                    let n = n.min(*may);
                    window.reserve(n).unwrap();
                    *may -= n;
                    *waiting += n;
                    window.arrived(n, &pool)
                } else {
                    let n = n.min(*waiting);
                    *waiting -= n;
                    window.read(n, *waiting as usize, &pool)
                };
                *may += early + announced;
                prop_assert_eq!(*may, window.open);
                prop_assert!(*may + *waiting <= window.width());
                prop_assert!(*waiting > 0 || *may > 0);
                let widths: u32 = streams.iter().map(|(window, ..)| window.granted).sum();
                prop_assert_eq!(widths + pool.left(), POOL);
            }
        }
    }
}

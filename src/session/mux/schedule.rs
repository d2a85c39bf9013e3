//! Which stream sends next, in the manner of fq_codel: a stream that had nothing to send goes before those that always
//! have, up to a quantum; those take turns. Pure.
//!
//! A stream that sends a little now and then, such as a call or a terminal, never waits behind bulk. One that uses its
//! quantum up is bulk itself until bulk has had a turn, so nobody is starved.

use std::collections::VecDeque;

/// Bytes that a stream may send before the others each time it has been idle: a call with its answer, a screenful.
pub const QUANTUM: u32 = 16 * 1024;

/// Where a stream is in the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// It has nothing that could be sent.
    #[default]
    Idle,
    /// Among those that were idle a moment ago.
    Recent,
    /// Among those that take turns.
    Bulk,
    /// A frame of it is on its way to the byte stream beneath.
    Sending,
}

/// A stream's part of the schedule.
#[derive(Debug, Clone, Copy, Default)]
pub struct Turn {
    /// Where it is.
    pub place: Place,
    round: u32,
    spent: u32,
}

impl Turn {
    /// Bytes that a stream out of `Recent` may still send before the others.
    pub fn allowance(&self) -> u32 {
        QUANTUM.saturating_sub(self.spent)
    }

    /// A frame of it was chosen.
    pub fn chosen(&mut self, bytes: u32) {
        self.place = Place::Sending;
        self.spent = self.spent.saturating_add(bytes);
    }
}

/// The streams that have something to send. The caller keeps each in at most one of the two lists of content.
#[derive(Debug)]
pub struct Schedule<K> {
    control: VecDeque<K>,
    recent: VecDeque<K>,
    bulk: VecDeque<K>,
    round: u32,
}

impl<K> Schedule<K> {
    /// Nobody has anything to send.
    pub fn new() -> Schedule<K> {
        Schedule { control: VecDeque::new(), recent: VecDeque::new(), bulk: VecDeque::new(), round: 1 }
    }

    /// A stream has something to say that is not content.
    pub fn control(&mut self, key: K) {
        self.control.push_back(key);
    }

    /// An idle stream has content to send.
    pub fn enter(&mut self, key: K, turn: &mut Turn) {
        if turn.round != self.round {
            turn.round = self.round;
            turn.spent = 0;
        }
        if turn.spent < QUANTUM {
            turn.place = Place::Recent;
            self.recent.push_back(key);
        } else {
            self.wait(key, turn);
        }
    }

    /// A stream that has just sent has more.
    pub fn wait(&mut self, key: K, turn: &mut Turn) {
        turn.place = Place::Bulk;
        self.bulk.push_back(key);
    }

    /// The next of those with something to say that is not content.
    pub fn next_control(&mut self) -> Option<K> {
        self.control.pop_front()
    }

    /// The next of those that go before bulk.
    pub fn next_recent(&mut self) -> Option<K> {
        self.recent.pop_front()
    }

    /// The next of those that take turns.
    pub fn next_bulk(&mut self) -> Option<K> {
        let key = self.bulk.pop_front();
        if key.is_some() {
            self.round = self.round.wrapping_add(1);
        }
        key
    }

    /// Whether something goes before bulk.
    pub fn is_urgent(&self) -> bool {
        !self.control.is_empty() || !self.recent.is_empty()
    }

    /// Whether bulk waits.
    pub fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    /// Everybody who waits for a turn.
    pub fn drain(&mut self) -> impl Iterator<Item = K> {
        let lists = [&mut self.control, &mut self.recent, &mut self.bulk];
        lists.map(std::mem::take).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BULK_FRAME: u32 = 64 * 1024;

    /// Streams by number, each with what it has queued; what a driver does, without the bytes.
    struct Model {
        schedule: Schedule<usize>,
        streams: Vec<(Turn, u32)>,
    }

    impl Model {
        fn new(streams: usize) -> Model {
            Model { schedule: Schedule::new(), streams: vec![(Turn::default(), 0); streams] }
        }

        fn write(&mut self, key: usize, bytes: u32) {
            let (turn, queued) = &mut self.streams[key];
            *queued += bytes;
            if turn.place == Place::Idle && *queued > 0 {
                self.schedule.enter(key, turn);
            }
        }

        /// One frame: who sent how much.
        fn send(&mut self) -> Option<(usize, u32)> {
            let (key, most) = match self.schedule.next_recent() {
                Some(key) => (key, self.streams[key].0.allowance()),
                None => (self.schedule.next_bulk()?, BULK_FRAME),
            };
            let (turn, queued) = &mut self.streams[key];
            let sent = most.min(*queued);
            *queued -= sent;
            turn.chosen(sent);
            match queued {
                0 => turn.place = Place::Idle,
                _ => self.schedule.wait(key, turn),
            }
            Some((key, sent))
        }
    }

    #[test]
    fn a_little_goes_before_much() {
        let mut model = Model::new(3);
        model.write(0, 1_000_000);
        model.write(1, 1_000_000);
        assert_eq!(model.send(), Some((0, QUANTUM)));
        assert_eq!(model.send(), Some((1, QUANTUM)));
        assert_eq!(model.send(), Some((0, BULK_FRAME)));
        for _ in 0..100 {
            model.write(2, 100);
            assert_eq!(model.send(), Some((2, 100)), "at once, however often");
            assert_ne!(model.send().unwrap().0, 2);
            model.write(0, 100_000);
            model.write(1, 100_000);
        }
    }

    #[test]
    fn those_with_much_take_turns() {
        let mut model = Model::new(4);
        (0..4).for_each(|key| model.write(key, 10_000_000));
        (0..4).for_each(|key| assert_eq!(model.send(), Some((key, QUANTUM))));
        let order: Vec<usize> = (0..12).map(|_| model.send().unwrap().0).collect();
        assert_eq!(order, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn a_little_again_and_again_starves_nobody() {
        let mut model = Model::new(2);
        model.write(0, 10_000_000);
        model.send();
        let mut before_bulk = 0;
        loop {
            model.write(1, 1000);
            match model.send().unwrap() {
                (1, sent) => before_bulk += sent,
                _ => break,
            }
        }
        assert!((QUANTUM..=QUANTUM + 1000).contains(&before_bulk), "{before_bulk}");
    }

    proptest! {
        /// Everything is sent, once; who was idle sends before any bulk, unless it had its quantum in this round.
        #[test]
        fn everything_leaves_and_the_idle_go_first(writes in prop::collection::vec((0usize..5, 1u32..200_000, 0u8..4), 1..100)) {
            let mut model = Model::new(5);
            let (mut written, mut sent) = ([0u32; 5], [0u32; 5]);
            let mut this_round = [0u32; 5];
            for (key, bytes, sends) in writes {
                let idle = model.streams[key].0.place == Place::Idle;
                model.write(key, bytes);
                written[key] += bytes;
                if idle {
                    prop_assert!(model.streams[key].0.place == Place::Recent || this_round[key] >= QUANTUM);
                }
                for _ in 0..sends {
                    let urgent = model.schedule.is_urgent();
                    let round = model.schedule.round;
                    let Some((key, n)) = model.send() else { break };
                    prop_assert_eq!(urgent, model.schedule.round == round);
                    let most = if urgent { QUANTUM } else { BULK_FRAME };
                    prop_assert!(n <= most, "{}", n);
                    sent[key] += n;
                    if urgent { this_round[key] += n } else { this_round = [0; 5] }
                    prop_assert!(this_round[key] <= 2 * QUANTUM);
                }
            }
            while let Some((key, n)) = model.send() {
                prop_assert!(n > 0);
                sent[key] += n;
            }
            prop_assert_eq!(written, sent);
            prop_assert!(!model.schedule.is_urgent() && !model.schedule.has_bulk());
        }
    }
}

//! How a session drains: neither end opens a stream any more, and what is open goes on until it is done. Pure.
//!
//! An end says `GoAway` with 0 twice. The first time: it opens no more streams; whoever hears that says it too. The
//! second time: it has none open either. A session ends when both have said both, so a stream whose first frame crossed
//! the word is not lost.

/// How far a session is on its way to its end.
#[derive(Debug, Default)]
pub struct Drain {
    asked: bool,
    said: Words,
    heard: Words,
    /// Streams of which anything is left at this end: a handle, or a frame that has to leave.
    open: usize,
}

/// What an end has said.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Words {
    #[default]
    Nothing,
    Draining,
    Done,
}

impl Drain {
    /// A stream began.
    pub fn opened(&mut self) {
        self.open += 1;
    }

    /// Nothing is left of a stream.
    pub fn closed(&mut self) {
        self.open -= 1;
    }

    /// Streams of which anything is left.
    pub fn open(&self) -> usize {
        self.open
    }

    /// This end wants to open no more streams, and to take no more.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// The other end said its word.
    pub fn hear(&mut self) {
        self.heard = if self.heard == Words::Nothing { Words::Draining } else { Words::Done };
    }

    /// Whether either end wants no more streams.
    pub fn is_draining(&self) -> bool {
        self.asked || self.has_heard()
    }

    /// Whether the other end has said that it opens no more.
    pub fn has_heard(&self) -> bool {
        self.heard > Words::Nothing
    }

    /// Whether streams that the other end opens are refused: it knew that this end wants none.
    pub fn refuses(&self) -> bool {
        self.heard == Words::Done || (self.asked && self.has_heard())
    }

    /// Whether a word is due.
    pub fn is_due(&self) -> bool {
        match self.said {
            Words::Nothing => self.is_draining(),
            Words::Draining => self.has_heard() && self.open == 0,
            Words::Done => false,
        }
    }

    /// Takes the word that is due.
    pub fn say(&mut self) -> bool {
        let due = self.is_due();
        if due {
            self.said = if self.said == Words::Nothing { Words::Draining } else { Words::Done };
        }
        due
    }

    /// Whether this end has said all of it.
    pub fn is_done(&self) -> bool {
        self.said == Words::Done
    }

    /// Whether the session has nothing left to do.
    pub fn is_over(&self) -> bool {
        self.is_done() && self.heard == Words::Done && self.open == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// What is on its way from one end to the other.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Frame {
        Open,
        Word,
        Close,
    }

    #[derive(Debug, Default)]
    struct Side {
        drain: Drain,
        /// Streams of its own, opened and not yet told of, and those told of.
        fresh: usize,
        own: usize,
        out: VecDeque<Frame>,
    }

    impl Side {
        fn act(&mut self, action: u8) {
            match action {
                0 if !self.drain.is_draining() => {
                    self.drain.opened();
                    self.fresh += 1;
                }
                1 if self.fresh > 0 => {
                    self.fresh -= 1;
                    self.own += 1;
                    self.out.push_back(Frame::Open);
                }
                2 if self.own > 0 => {
                    self.own -= 1;
                    self.drain.closed();
                    self.out.push_back(Frame::Close);
                }
                3 => self.drain.ask(),
                4 if self.drain.say() => self.out.push_back(Frame::Word),
                _ => {}
            }
        }

        /// Whether a stream of the other end's was lost, because this end had ended.
        fn hear(&mut self, frame: Frame) -> bool {
            let lost = self.drain.is_over();
            match frame {
                Frame::Open => self.drain.opened(),
                Frame::Close => self.drain.closed(),
                Frame::Word => self.drain.hear(),
            }
            lost && frame == Frame::Open
        }
    }

    proptest! {
        /// Whatever happens in whatever order: no stream comes to an end that has ended, and once somebody wants it and
        /// all streams are done, both end.
        #[test]
        fn both_ends_end_and_no_stream_is_lost(actions in prop::collection::vec((0..2usize, 0..6u8), 0..300)) {
            let mut sides = [Side::default(), Side::default()];
            let step = |sides: &mut [Side; 2], at: usize, action: u8| -> bool {
                if action < 5 {
                    sides[at].act(action);
                    return false;
                }
                sides[1 - at].out.pop_front().is_some_and(|frame| sides[at].hear(frame))
            };
            for (at, action) in actions {
                prop_assert!(!step(&mut sides, at, action));
                let over = sides.iter().any(|side| side.drain.is_over());
                prop_assert!(!over || sides.iter().all(|side| side.fresh + side.own == 0));
            }
            sides[0].act(3);
            while !sides.iter().all(|side| side.drain.is_over() && side.out.is_empty()) {
                let before = format!("{sides:?}");
                for at in [0, 1] {
                    for action in [1, 2, 4, 5] {
                        prop_assert!(!step(&mut sides, at, action));
                    }
                }
                prop_assert!(before != format!("{sides:?}"), "it is stuck: {before}");
            }
        }
    }

    #[test]
    fn streams_that_crossed_the_word_are_taken_and_later_ones_refused() {
        let mut drain = Drain::default();
        drain.opened();
        drain.ask();
        assert!(drain.say() && !drain.say() && !drain.refuses());
        drain.hear();
        assert!(drain.refuses() && !drain.is_due());
        drain.closed();
        assert!(drain.say() && drain.is_done() && !drain.is_over());
        drain.hear();
        assert!(drain.is_over());
    }
}

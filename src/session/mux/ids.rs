//! Which numbers the other end has given to streams, so that none is given twice. Pure, and bounded.
//!
//! A stream is numbered when it is opened and announced when it first sends, so numbers arrive out of order. The last
//! [`REMEMBERED`] are told apart one by one; whatever is older counts as used.

use std::collections::VecDeque;

/// Numbers below the highest that are told apart: twice as many streams as may be open at a time.
pub const REMEMBERED: u32 = 16 * 1024;

/// Numbers in one word.
const WORD: u32 = u64::BITS;

/// Numbers that were used. Counts streams of one parity: the first is 0.
#[derive(Debug, Default)]
pub struct Ids {
    /// The first word's place; what is before it is too old.
    first: u32,
    words: VecDeque<u64>,
}

impl Ids {
    /// Takes a number; `false` when it was used before, or is too old to tell.
    #[must_use]
    pub fn take(&mut self, number: u32) -> bool {
        let word = number / WORD;
        let first = word.saturating_sub(REMEMBERED / WORD);
        if first > self.first {
            self.words.drain(..self.words.len().min((first - self.first) as usize));
            self.first = first;
        }
        let Some(at) = word.checked_sub(self.first) else { return false };
        let at = at as usize;
        if self.words.len() <= at {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (number % WORD);
        let fresh = self.words[at] & bit == 0;
        self.words[at] |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn each_once_in_any_order() {
        let mut ids = Ids::default();
        for number in [0, 2, 1, REMEMBERED, 3, u32::MAX / 2] {
            assert!(ids.take(number), "{number}");
            assert!(!ids.take(number), "{number}");
        }
        assert!(!ids.take(4), "too old");
    }

    proptest! {
        #[test]
        fn none_is_given_twice_and_recent_ones_once(steps in prop::collection::vec((0u32..5000, any::<bool>()), 1..500)) {
            let (mut ids, mut used, mut highest) = (Ids::default(), HashSet::new(), 0u32);
            for (step, forward) in steps {
                let number = if forward { highest + step } else { highest.saturating_sub(step) };
                highest = highest.max(number);
                prop_assert_eq!(ids.take(number), used.insert(number));
                prop_assert!(ids.words.len() as u32 <= REMEMBERED / WORD + 1);
            }
        }
    }
}

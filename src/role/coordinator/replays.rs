//! Assertions that were used: each counts once. They are remembered for as long as they would be accepted.
//!
//! Only what a known key has signed gets here, so strangers cannot fill it. One key has [`MAX_EACH`] places, and all
//! together [`MAX_ALL`]; without a place an assertion is refused, for nobody could tell whether it comes again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::identity::assertion::{NONCE, Proved};
use crate::wire::limits::{ASSERTION_LIFETIME, ASSERTION_SKEW};
use crate::wire::{Refusal, RefusalCode};

/// Assertions of one key at a time: three minutes' worth, at more than 45 a second. A laptop whose wire breaks again and again dials
/// for each of its workspaces.
const MAX_EACH: usize = 8192;

/// Assertions at a time; each costs about 200 bytes.
const MAX_ALL: usize = 128 * 1024;

/// From when an assertion is accepted at the earliest to when it is not any more at the latest.
const LIFE: Duration = Duration::from_secs(ASSERTION_LIFETIME.as_secs() + 2 * ASSERTION_SKEW.as_secs());

type Key = [u8; 32];
type Nonce = [u8; NONCE];

#[derive(Debug)]
pub(super) struct Replays {
    state: Mutex<State>,
    max_each: usize,
    max_all: usize,
}

#[derive(Debug)]
struct State {
    /// Nothing is remembered of before.
    began: SystemTime,
    /// Something that would have been accepted until then is forgotten. It never goes back, though the clock may.
    forgotten: SystemTime,
    by_end: BTreeSet<(SystemTime, Key, Nonce)>,
    by_key: HashMap<Key, HashSet<Nonce>>,
}

impl Replays {
    /// Remembers from `now` on; what was made before is refused, because it may have been used before.
    pub(super) fn new(now: SystemTime) -> Replays {
        Replays::with_bounds(now, MAX_EACH, MAX_ALL)
    }

    fn with_bounds(now: SystemTime, max_each: usize, max_all: usize) -> Replays {
        // Assertions carry whole seconds.
        let began = UNIX_EPOCH + Duration::from_secs(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let (by_end, by_key) = (BTreeSet::new(), HashMap::new());
        let state = State { began, forgotten: UNIX_EPOCH, by_end, by_key };
        Replays { state: Mutex::new(state), max_each, max_all }
    }

    /// Takes an assertion for used. A refusal may pass: the client's next attempt brings another assertion.
    pub(super) fn take(&self, proved: &Proved, now: SystemTime) -> Result<(), Refusal> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.forget(now);
        // A clock that was set back by more than an assertion lives must not lock everybody out until it has caught up.
        let from_before = proved.issued < state.began && now >= state.began;
        let forgotten = proved.until <= state.forgotten && state.forgotten <= now + LIFE;
        if from_before || forgotten {
            let text = "the assertion is from before the coordinator started. hint: try again; if that does not help, check the clocks of both sides";
            return Err(Refusal::new(RefusalCode::Unavailable, text));
        }
        let (key, nonce) = (*proved.certificate.pin.as_bytes(), proved.nonce);
        let used = state.by_key.get(&key);
        if used.is_some_and(|used| used.contains(&nonce)) {
            let text = "this assertion was used before. hint: each request needs one of its own; something between may repeat requests";
            return Err(Refusal::new(RefusalCode::Unavailable, text));
        }
        if used.map_or(0, HashSet::len) >= self.max_each || state.by_end.len() >= self.max_all {
            let text = "too many assertions within three minutes. hint: try again later";
            return Err(Refusal::new(RefusalCode::Busy, text));
        }
        state.by_end.insert((proved.until, key, nonce));
        state.by_key.entry(key).or_default().insert(nonce);
        Ok(())
    }
}

impl State {
    fn forget(&mut self, now: SystemTime) {
        while let Some((end, key, nonce)) = self.by_end.first().copied().filter(|(end, ..)| *end <= now) {
            self.by_end.pop_first();
            self.forgotten = self.forgotten.max(end);
            if let Some(used) = self.by_key.get_mut(&key) {
                used.remove(&nonce);
                if used.is_empty() {
                    self.by_key.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Authority, Credential, Identity, PeerCertificate, PrivateKey, Role};

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000 + second)
    }

    fn somebody() -> PeerCertificate {
        let authority = Authority::create("d".parse().unwrap(), at(0)).unwrap();
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new("d".parse().unwrap(), Role::Device("anna".parse().unwrap()));
        let chain = authority.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(60), at(0), &[]).unwrap();
        PeerCertificate::parse(&Credential::new(chain, key).unwrap().chain[0]).unwrap()
    }

    fn proved(certificate: &PeerCertificate, n: u8, issued: u64) -> Proved {
        Proved { certificate: certificate.clone(), nonce: [n; NONCE], issued: at(issued), until: at(issued + 120) }
    }

    #[test]
    fn each_counts_once_and_is_forgotten_when_its_time_is_over() {
        let replays = Replays::new(at(0));
        let (anna, bert) = (somebody(), somebody());
        replays.take(&proved(&anna, 1, 10), at(10)).unwrap();
        assert!(replays.take(&proved(&anna, 1, 10), at(11)).unwrap_err().message.contains("used before"));
        replays.take(&proved(&bert, 1, 10), at(11)).unwrap();
        replays.take(&proved(&anna, 2, 10), at(129)).unwrap();
        replays.take(&proved(&anna, 3, 130), at(130)).unwrap();
        let state = replays.state.lock().unwrap();
        assert_eq!((state.by_end.len(), state.by_key.len()), (1, 1));
    }

    #[test]
    fn a_restart_or_a_clock_that_goes_back_lets_no_old_one_in() {
        let anna = somebody();
        let replays = Replays::new(at(100) + Duration::from_millis(900));
        assert!(replays.take(&proved(&anna, 1, 99), at(101)).unwrap_err().message.contains("started"));
        replays.take(&proved(&anna, 1, 100), at(101)).unwrap();
        replays.take(&proved(&anna, 2, 300), at(300)).unwrap();
        assert!(replays.take(&proved(&anna, 1, 100), at(101)).is_err());
        replays.take(&proved(&anna, 3, 5), at(5)).unwrap();
    }

    #[test]
    fn one_key_does_not_take_the_room_of_another_and_all_is_bounded() {
        let replays = Replays::with_bounds(at(0), 2, 3);
        let (anna, bert) = (somebody(), somebody());
        let busy = |result: Result<(), Refusal>| assert_eq!(result.unwrap_err().code, RefusalCode::Busy);
        replays.take(&proved(&anna, 1, 1), at(1)).unwrap();
        replays.take(&proved(&anna, 2, 2), at(2)).unwrap();
        busy(replays.take(&proved(&anna, 3, 2), at(2)));
        replays.take(&proved(&bert, 1, 2), at(2)).unwrap();
        busy(replays.take(&proved(&bert, 2, 2), at(2)));
        // Time makes room again.
        replays.take(&proved(&bert, 2, 121), at(121)).unwrap();
    }
}

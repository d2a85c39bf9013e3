//! When a direct way that was taken and did not last is taken again. A way may carry what is small and lose what is not, or be
//! cut each time that some bytes have passed: whoever goes back at once stands still again and again.
//!
//! Decides; it dials nothing and waits for nothing.

use std::time::{Duration, Instant};

use crate::lifeline::{Route, Standing};
use crate::role::backoff::Backoff;

/// A direct way that lasts this long is a good one: longer than any silence that is waited out on it.
const STEADY: Duration = Duration::from_secs(30);

/// First wait after one that did not last.
const FIRST: Duration = Duration::from_secs(1);

/// Longest wait: what a way costs that is silent for seconds is nothing in that time. A network change ends it.
const LONGEST: Duration = Duration::from_secs(600);

/// Bytes that make a way of use that did not last, when it broke for all to see: nothing stood still, since another one
/// stood by.
pub const WORTH: u64 = 1 << 20;

/// The direct way while the session takes it.
#[derive(Debug, Clone)]
struct Taken {
    since: Instant,
    /// Which of the session's connections it is.
    number: u64,
    /// Bytes that had moved by then.
    moved: u64,
    /// Nothing was heard on it in time.
    silent: bool,
    /// Since when it is in trouble.
    ended: Option<Instant>,
    /// The network changed under it.
    excused: bool,
}

/// What became of the direct ways that were taken, and when the next may be. It outlives a session: a way on which sessions end is
/// taken less and less, too.
#[derive(Debug, Clone)]
pub struct Climb {
    taken: Option<Taken>,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Default for Climb {
    fn default() -> Climb {
        Climb { taken: None, backoff: Backoff::between(FIRST, LONGEST), not_before: None }
    }
}

impl Climb {
    /// The session stands so, and so many bytes have moved in it; `random` is in 0..1. Gives the wait that begins when a way
    /// is over that did not last.
    pub fn sees(&mut self, standing: &Standing, moved: u64, now: Instant, random: f64) -> Option<Duration> {
        match standing {
            Standing::Attached { route: Route::Direct, moves, .. } => {
                // The session found its way back to it without another one between.
                if let Some(before) = self.taken.take_if(|taken| taken.ended.is_some() && taken.number != *moves) {
                    self.is_over(&before, moved, now, random);
                }
                // One that was suspected and answers lasts.
                let begun = Taken { since: now, number: *moves, moved, silent: false, ended: None, excused: false };
                let taken = self.taken.get_or_insert(begun);
                (taken.silent, taken.ended) = (false, None);
                None
            }
            Standing::Suspect { .. } | Standing::Lost { .. } => {
                if let Some(taken) = &mut self.taken {
                    taken.silent |= matches!(standing, Standing::Suspect { .. });
                    taken.ended.get_or_insert(now);
                }
                None
            }
            Standing::Attached { route: Route::Relay, .. } => {
                let taken = self.taken.take()?;
                self.is_over(&taken, moved, now, random)
            }
            Standing::Beginning | Standing::Ended(_) => None,
        }
    }

    fn is_over(&mut self, taken: &Taken, moved: u64, now: Instant, random: f64) -> Option<Duration> {
        // Whatever came after it, until there was another way, is no time that it lasted.
        let ended = taken.ended.unwrap_or(now);
        if taken.excused || ended.saturating_duration_since(taken.since) >= STEADY {
            self.begin_anew();
            return None;
        }
        if !taken.silent && moved.saturating_sub(taken.moved) >= WORTH {
            self.backoff.reset();
        }
        let wait = self.backoff.next(random);
        self.not_before = Some(now + wait);
        Some(wait)
    }

    /// The session is over. Where it `broke` on the direct way, that changed what went through it, and how long it lasted and what it
    /// carried excuses nothing: it took a session.
    pub fn session_ended(&mut self, broke: bool, now: Instant, random: f64) {
        if self.taken.take().is_some_and(|taken| broke && !taken.excused) {
            self.not_before = Some(now + self.backoff.next(random));
        }
    }

    /// How long the direct way is left alone from here on.
    pub fn wait(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Ways in a row that did not last.
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// The network changed: what was learned of the ways of another one says nothing, and what the change breaks is not to blame.
    pub fn network_changed(&mut self) {
        self.begin_anew();
        if let Some(taken) = &mut self.taken {
            taken.excused = true;
        }
    }

    fn begin_anew(&mut self) {
        self.backoff.reset();
        self.not_before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that a test moves, and its clock.
    struct World {
        climb: Climb,
        now: Instant,
        moved: u64,
    }

    impl World {
        fn new() -> World {
            World { climb: Climb::default(), now: Instant::now(), moved: 0 }
        }

        fn sees(&mut self, standing: &Standing) -> Option<Duration> {
            self.climb.sees(standing, self.moved, self.now, 1.0)
        }

        /// A direct way that is taken, lasts and carries so much, and ends, after a silence or for all to see; gives the wait.
        fn way(&mut self, lasts: Duration, bytes: u64, silently: bool) -> Duration {
            self.sees(&attached(Route::Direct));
            self.now += lasts;
            self.moved += bytes;
            let (since, why) = (self.now, "it broke".to_owned());
            let standing = if silently { Standing::Suspect { since, why } } else { Standing::Lost { since, why } };
            assert_eq!(self.sees(&standing), None);
            let told = self.sees(&attached(Route::Relay)).unwrap_or_default();
            assert_eq!(self.climb.wait(self.now), told);
            told
        }
    }

    fn attached(route: Route) -> Standing {
        Standing::Attached { route, round_trip: None, standby: true, moves: 1 }
    }

    const SOON: Duration = Duration::from_secs(2);

    #[test]
    fn a_way_that_lasted_is_taken_again_at_once() {
        let mut world = World::new();
        assert_eq!(world.sees(&attached(Route::Relay)), None, "there was none");
        for silently in [false, true] {
            assert_eq!(world.way(STEADY, 0, silently), Duration::ZERO);
        }
    }

    #[test]
    fn ways_that_do_not_last_are_left_alone_for_longer_and_longer() {
        let mut world = World::new();
        let mut waits = Vec::new();
        // Much may be under way by the other one while this one carries nothing.
        for (number, bytes) in [0, 100 * WORTH].into_iter().cycle().take(30).enumerate() {
            waits.push(world.way(SOON, bytes, true));
            assert_eq!(world.climb.failures() as usize, number + 1);
            world.now += *waits.last().unwrap();
            assert_eq!(world.climb.wait(world.now), Duration::ZERO);
        }
        assert_eq!((waits[0], waits[29]), (FIRST, LONGEST));
        assert!(waits.windows(2).all(|w| w[0] < w[1] || w[1] == LONGEST), "{waits:?}");
        let (lost, time) = (SOON * 30, waits.iter().sum::<Duration>());
        assert!(lost * 20 < time, "{lost:?} of {time:?} were lost");
        assert_eq!(world.way(STEADY, 0, true), Duration::ZERO);
        assert_eq!(world.way(SOON, 0, true), FIRST);
    }

    #[test]
    fn a_way_that_was_of_use_and_broke_for_all_to_see_is_left_alone_for_a_moment() {
        let mut world = World::new();
        for _ in 0..10 {
            world.way(SOON, WORTH - 1, false);
        }
        assert!(world.way(SOON, WORTH - 1, false) > FIRST * 10);
        for _ in 0..10 {
            assert_eq!(world.way(SOON, WORTH, false), FIRST);
        }
    }

    #[test]
    fn a_network_change_ends_the_wait_and_takes_the_blame() {
        let mut world = World::new();
        for _ in 0..10 {
            world.way(SOON, 0, true);
        }
        world.climb.network_changed();
        assert_eq!((world.climb.wait(world.now), world.climb.failures()), (Duration::ZERO, 0));
        world.sees(&attached(Route::Direct));
        world.climb.network_changed();
        assert_eq!(world.way(SOON, 0, true), Duration::ZERO);
        assert_eq!(world.way(SOON, 0, true), FIRST);
    }

    #[test]
    fn a_way_that_ended_a_session_is_left_alone_in_the_next() {
        let mut world = World::new();
        for session in 1..5 {
            world.sees(&attached(Route::Direct));
            world.now += STEADY;
            world.moved += WORTH;
            world.climb.session_ended(true, world.now, 1.0);
            assert_eq!(world.climb.failures(), session);
            assert!(world.climb.wait(world.now) >= FIRST);
            assert_eq!(world.sees(&attached(Route::Relay)), None, "it is known already");
        }
        world.climb.session_ended(true, world.now, 1.0);
        assert_eq!(world.climb.failures(), 4, "it broke on the other way");
        world.climb.network_changed();
        world.sees(&attached(Route::Direct));
        world.climb.session_ended(false, world.now, 1.0);
        assert_eq!(world.climb.failures(), 0, "the workspace ended it");
    }

    #[test]
    fn the_time_without_any_way_is_none_that_it_lasted() {
        let mut world = World::new();
        world.sees(&attached(Route::Direct));
        world.now += SOON;
        assert_eq!(world.sees(&Standing::Lost { since: world.now, why: "it broke".into() }), None);
        world.now += STEADY;
        assert_eq!(world.sees(&attached(Route::Relay)), Some(FIRST));
    }

    #[test]
    fn a_way_that_is_taken_again_at_once_did_not_last() {
        let mut world = World::new();
        for moves in 0..3 {
            let direct = Standing::Attached { route: Route::Direct, round_trip: None, standby: false, moves };
            assert_eq!(world.sees(&direct), None, "it is in use");
            assert_eq!(world.climb.failures() as u64, moves);
            world.now += SOON;
            world.sees(&Standing::Lost { since: world.now, why: "it broke".into() });
        }
        assert!(world.sees(&attached(Route::Relay)).is_some_and(|wait| wait > FIRST));
    }

    #[test]
    fn a_way_that_was_suspected_and_answered_goes_on() {
        let mut world = World::new();
        world.sees(&attached(Route::Direct));
        world.now += STEADY - SOON;
        let suspect = Standing::Suspect { since: world.now, why: "nothing was heard".into() };
        assert_eq!(world.sees(&suspect), None);
        assert_eq!(world.way(SOON, 0, false), Duration::ZERO, "it is the same way");
    }
}

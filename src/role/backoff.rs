//! How long to wait before the next attempt: exponential, with jitter, endless.

use std::time::Duration;

/// First wait, unless told otherwise.
pub const FIRST: Duration = Duration::from_millis(200);

/// Each wait is that many times the one before: so a wait is never longer than half the time that it has been.
const GROWTH: f64 = 1.5;

/// Longest wait.
pub const LONGEST: Duration = Duration::from_secs(15);

/// Longest wait while only a name could not be looked up. Asking costs little, and name servers, as those inside a VPN, come
/// back without a word.
pub const LONGEST_FOR_A_NAME: Duration = Duration::from_secs(2);

/// Steps after which a wait grows no more, whatever its bound: 200 ms have become weeks.
const MOST_STEPS: u32 = 40;

/// Waits between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    failures: u32,
    first: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::up_to(LONGEST)
    }
}

impl Backoff {
    /// Waits that grow to another bound.
    pub fn up_to(longest: Duration) -> Backoff {
        Backoff::between(FIRST, longest)
    }

    /// Waits that begin with another one, too.
    pub fn between(first: Duration, longest: Duration) -> Backoff {
        Backoff { failures: 0, first, longest }
    }

    /// The next wait, between half and all of the exponential step; `random` is in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        self.next_up_to(self.longest, random)
    }

    /// As [`next`](Self::next), of a step that is no longer than `longest`.
    pub fn next_up_to(&mut self, longest: Duration, random: f64) -> Duration {
        let steps = self.failures.min(MOST_STEPS) as i32;
        let step = self.first.mul_f64(GROWTH.powi(steps)).min(self.longest).min(longest);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Attempts that failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It worked: start over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..100).map(|_| backoff.next(1.0)).collect();
        assert_eq!(waits[0], FIRST);
        assert_eq!(waits[1], FIRST.mul_f64(GROWTH));
        assert!(waits.windows(2).all(|w| w[0] <= w[1] && w[1] <= w[0] * 2));
        assert_eq!(backoff.next_up_to(LONGEST_FOR_A_NAME, 1.0), LONGEST_FOR_A_NAME);
        assert_eq!(waits[99], LONGEST);
        assert!(backoff.next(0.0) >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next(0.5) < FIRST);
    }
}

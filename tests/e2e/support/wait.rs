//! Waiting for a condition under a deadline, never for a time.

use std::time::{Duration, Instant};

/// How long anything may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the long proofs are asked for, as `scripts/test --long` does.
pub fn is_long() -> bool {
    std::env::var_os("NEXUS_LONG").is_some_and(|value| value == "1")
}

/// What is judged of some looks at the same: in the usual run the best, which tells what the programs can do, since the
/// others may tell what else the machine did; in the long one the median.
pub fn judged<const LOOKS: usize>(mut looks: [Duration; LOOKS]) -> Duration {
    looks.sort();
    looks[if is_long() { LOOKS / 2 } else { 0 }]
}

/// Polls `condition` until it gives a value; panics with `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, condition).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Polls `condition` until it gives a value or `time` is over.
pub fn within<T>(time: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

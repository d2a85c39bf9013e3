//! How a coordinator stops: nothing is taken any more and everybody is told when to come back, but what is relayed goes on
//! until the laptops have another way, or its time is over. When clients come back is chosen here, and is a pure choice.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::wire::control::Control;

/// Clients come back within this, so that they do not arrive all at once.
pub const SPREAD: Duration = Duration::from_secs(3);

/// The part of it that is the stubs': a laptop that comes before its stub waits for it.
pub const STUBS_FIRST: Duration = Duration::from_secs(1);

/// How long sessions may go on by default: longer than [`SPREAD`], a handshake over a slow network, and a second attempt.
pub const RELAYS: Duration = Duration::from_secs(10);

/// The two steps of a stop, and how long there is between them at the most.
#[derive(Debug, Clone)]
pub struct Drain {
    /// Nothing is taken any more, and clients are told.
    pub stop: CancellationToken,
    /// What is relayed ends, whoever is still there.
    pub part: CancellationToken,
    /// From the first to the second.
    pub relays: Duration,
}

impl Drain {
    /// A drain that `stop` begins.
    pub fn new(stop: CancellationToken, relays: Duration) -> Drain {
        Drain { stop, part: CancellationToken::new(), relays }
    }
}

/// Who is told when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// It parks its next connection.
    Stub,
    /// It asks for its workspace again.
    Laptop,
}

/// When a client is to come back, from now; `random` is in 0..1. Stubs within [`STUBS_FIRST`], laptops within what is
/// left of [`SPREAD`].
pub fn come_back(client: Client, random: f64) -> Duration {
    let (from, to) = match client {
        Client::Stub => (Duration::ZERO, STUBS_FIRST),
        Client::Laptop => (STUBS_FIRST, SPREAD),
    };
    from + (to - from).mul_f64(random.clamp(0.0, 1.0))
}

/// The message that says so, with a time of its own for each client.
pub fn say(client: Client) -> Control {
    let after = come_back(client, rand::random());
    Control::Drain { reconnect_after_ms: after.as_millis() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever it is and whatever the dice say: within the bounds, stubs before laptops, and two that drew apart are
        /// told as far apart as they drew.
        #[test]
        fn times_are_within_their_bounds_and_as_spread_as_the_dice(one in 0.0..1.0f64, two in 0.0..1.0f64) {
            let (stub, laptop) = (come_back(Client::Stub, one), come_back(Client::Laptop, two));
            prop_assert!(stub <= STUBS_FIRST && STUBS_FIRST <= laptop && laptop <= SPREAD);
            for (client, share) in [(Client::Stub, STUBS_FIRST), (Client::Laptop, SPREAD - STUBS_FIRST)] {
                let apart = come_back(client, one).abs_diff(come_back(client, two));
                prop_assert!(apart.abs_diff(share.mul_f64((one - two).abs())) < Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn what_is_no_share_of_one_stays_within_the_bounds() {
        for random in [-1.0, 2.0, f64::INFINITY] {
            assert!(come_back(Client::Stub, random) <= STUBS_FIRST);
            assert!((STUBS_FIRST..=SPREAD).contains(&come_back(Client::Laptop, random)));
        }
    }
}

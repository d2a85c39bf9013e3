//! How often one address may ask. The map of addresses is bounded: when it is full, whoever asks shares
//! one allowance, so that many addresses cost no memory and those already served are not forgotten.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

/// Requests of one address at once. An office behind one address renews all its workspaces together.
const BURST: NonZeroU32 = NonZeroU32::new(60).expect("not zero");

/// Requests of one address per second, after the burst.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(2).expect("not zero");

/// Addresses remembered; each costs less than 100 bytes.
const MAX_ADDRESSES: usize = 10_000;

/// Forgetting goes through the whole map, so it is not done for every request of a flood.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// The shared allowance, under an address that no peer has.
const SHARED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

#[derive(Debug)]
pub(super) struct RateLimit {
    limiter: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
    pruned: Mutex<Instant>,
    max: usize,
}

impl RateLimit {
    pub(super) fn new() -> RateLimit {
        RateLimit::with_max(MAX_ADDRESSES)
    }

    fn with_max(max: usize) -> RateLimit {
        let limiter = RateLimiter::hashmap(Quota::per_second(PER_SECOND).allow_burst(BURST));
        RateLimit { limiter, pruned: Mutex::new(Instant::now()), max }
    }

    /// Counts one request; how long to wait if it is one too many.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Duration> {
        self.prune();
        let key = if self.limiter.len() < self.max { network(address) } else { SHARED };
        self.limiter.check_key(&key).map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now()))
    }

    fn prune(&self) {
        if self.limiter.len() < self.max / 2 {
            return;
        }
        let mut pruned = self.pruned.lock().unwrap_or_else(PoisonError::into_inner);
        if pruned.elapsed() >= PRUNE_EVERY {
            self.limiter.retain_recent();
            *pruned = Instant::now();
        }
    }
}

/// What one party holds: an IPv4 address, or an IPv6 network of 64 bits.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_spend_for_another() {
        let rate = RateLimit::new();
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let allowed = (0..200).filter(|_| rate.check(a).is_ok()).count();
        assert!((60..70).contains(&allowed), "{allowed}");
        assert!(rate.check(a).unwrap_err() <= Duration::from_secs(1));
        assert!(rate.check(b).is_ok());
    }

    #[test]
    fn one_party_is_one_key() {
        let parse = |text: &str| network(text.parse().unwrap());
        assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:0:0:2"));
        assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
    }

    #[test]
    fn the_map_is_bounded() {
        let rate = RateLimit::with_max(100);
        let mut refused = 0;
        for n in 0..1000u32 {
            refused += usize::from(rate.check(IpAddr::from(n.to_be_bytes())).is_err());
        }
        assert!(rate.limiter.len() <= 101);
        assert!(refused > 800, "{refused}");
    }
}

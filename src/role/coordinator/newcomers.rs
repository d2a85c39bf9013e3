//! How many connections one address may have that are not upgraded: in a handshake, or asking for something. Strangers
//! can open those, so one of them must not take the room of all. Parked and joined connections are not counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rate::network;

/// Connections of one address. An office behind one address returns all at once after a restart.
pub(super) const MAX_NEWCOMERS: usize = 2048;

/// Counts by address; an address is forgotten with its last connection.
#[derive(Debug)]
pub(super) struct Newcomers {
    counts: Mutex<HashMap<IpAddr, usize>>,
    max: usize,
}

/// One connection, counted until dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    all: Arc<Newcomers>,
    network: IpAddr,
}

impl Newcomers {
    pub(super) fn new(max: usize) -> Arc<Newcomers> {
        Arc::new(Newcomers { counts: Mutex::default(), max })
    }

    /// Room for one more of this address; `None` when it has too many.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Newcomer> {
        let network = network(address);
        let mut counts = self.counts();
        let count = counts.entry(network).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Newcomer { all: self.clone(), network })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_the_room_of_another() {
        let newcomers = Newcomers::new(2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held = (newcomers.admit(a).unwrap(), newcomers.admit(a).unwrap());
        assert!(newcomers.admit(a).is_none());
        assert!(newcomers.admit(b).is_some());
        drop(held);
        assert!(newcomers.admit(a).is_some());
        assert!(newcomers.counts().is_empty());
    }
}

//! Notices what often costs a connection without a word: the machine slept, this program was stopped, the network changed.
//!
//! Looks once a second; one system call for each family of addresses. Sends nothing.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);

/// A look that comes later than this was held up: by sleep, or by a stop of the process.
const HELD_UP: Duration = Duration::from_secs(3);

/// Addresses of documentation (RFC 5737, RFC 3849): nobody is there, but there is a route to them or there is none.
const ANYWHERE: [&str; 2] = ["198.51.100.1:9", "[2001:db8::1]:9"];

/// What happened last, and how often something has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Counts.
    pub count: u64,
    /// In words.
    pub what: &'static str,
}

/// Looks for as long as it is polled. `toward` is where the connections go, when that is known as an address.
pub async fn notice(toward: Option<SocketAddr>, changes: watch::Sender<Change>) {
    let mut before = Look::now(toward);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Look::now(toward);
        if let Some(what) = before.changed(&now) {
            tracing::info!(what, "a change");
            changes.send_modify(|change| *change = Change { count: change.count + 1, what });
        }
        before = now;
    }
}

struct Look {
    monotonic: Instant,
    wall: SystemTime,
    sources: Vec<Option<IpAddr>>,
}

impl Look {
    fn now(toward: Option<SocketAddr>) -> Look {
        let anywhere = ANYWHERE.iter().filter_map(|address| address.parse().ok());
        let sources = toward.into_iter().chain(anywhere).map(source).collect();
        Look { monotonic: Instant::now(), wall: SystemTime::now(), sources }
    }

    /// A network that is gone is no change yet: there is nothing to try until one is there.
    fn changed(&self, now: &Look) -> Option<&'static str> {
        let monotonic = now.monotonic.saturating_duration_since(self.monotonic);
        // The monotonic clock stands still in a sleep of the machine; the other one does not.
        let wall = now.wall.duration_since(self.wall).unwrap_or_default();
        if monotonic > HELD_UP || wall > monotonic + HELD_UP {
            return Some("the machine or the program slept");
        }
        let came = now.sources.iter().zip(&self.sources).any(|(now, before)| now.is_some() && now != before);
        came.then_some("the network changed")
    }
}

/// The address that this machine would send from.
fn source(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // For a datagram socket this only asks the routing table.
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(after: Duration, slept: Duration, sources: &[Option<&str>]) -> Look {
        let begin = Instant::now();
        let sources = sources.iter().map(|s| s.map(|s| s.parse().unwrap())).collect();
        Look { monotonic: begin + after, wall: SystemTime::UNIX_EPOCH + after + slept, sources }
    }

    #[test]
    fn sleep_stops_and_new_addresses_are_changes() {
        let second = Duration::from_secs(1);
        let zero = Duration::ZERO;
        let at_home = look(zero, zero, &[Some("10.0.0.2"), None]);
        assert_eq!(at_home.changed(&look(second, zero, &[Some("10.0.0.2"), None])), None);
        assert_eq!(at_home.changed(&look(second, zero, &[None, None])), None, "nothing to try yet");
        assert!(at_home.changed(&look(second, zero, &[Some("10.0.0.3"), None])).is_some());
        assert!(at_home.changed(&look(second, zero, &[Some("10.0.0.2"), Some("2001:db8::2")])).is_some());
        assert!(at_home.changed(&look(second * 60, zero, &[Some("10.0.0.2"), None])).is_some(), "stopped");
        assert!(at_home.changed(&look(second, second * 3600, &[Some("10.0.0.2"), None])).is_some(), "slept");
    }

    #[test]
    fn loopback_is_reached_from_loopback() {
        assert_eq!(source("127.0.0.1:9".parse().unwrap()), Some([127, 0, 0, 1].into()));
    }
}

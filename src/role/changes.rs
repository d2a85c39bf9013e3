//! Notices what often costs a connection without a word, or brings back the way to one: the machine slept, this program
//! was stopped, the network changed, or its name servers did.
//!
//! Looks when the kernel says that something happened, and once a second: a system call or two for each address and each file,
//! and the table of routes. Sends nothing, and asks no name server.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::kernel::Kernel;
use super::routes::Routes;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);

/// Between what the kernel tells and the look: one change is many notices.
const SETTLE: Duration = Duration::from_millis(20);

/// A look that comes later than this was held up: by sleep, or by a stop of the process.
const HELD_UP: Duration = Duration::from_secs(3);

/// Addresses of documentation (RFC 5737, RFC 3849): nobody is there, but there is a route to them or there is none.
const ANYWHERE: [&str; 2] = ["198.51.100.1:9", "[2001:db8::1]:9"];

/// Files that say where names lead: the system's own, and where systemd keeps the name servers that it asks.
const NAMES: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/run/systemd/resolve/resolv.conf"];

/// Bytes of such a file that are looked at.
const MAX_NAMES: u64 = 64 * 1024;

/// Addresses of the next hop whose routes are looked at. One of each family says where the others lead as well.
const MAX_TOWARD: usize = 4;

/// The change that was noticed last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// When that was.
    pub at: Option<Instant>,
}

/// Looks for as long as it is polled. `toward` says where the connections go, as far as that is known.
pub async fn notice(toward: impl Fn() -> Vec<SocketAddr>, changes: watch::Sender<Change>) {
    let kernel = Kernel::heard();
    let mut before = Look::now(toward(), None);
    loop {
        let told = tokio::time::timeout(LOOK, kernel.tells()).await.is_ok();
        if told {
            tokio::time::sleep(SETTLE).await;
        }
        let now = Look::now(toward(), Some(&before));
        if let Some(what) = before.changed(&now) {
            tracing::info!(what, told, "a change");
            changes.send_replace(Change { at: Some(Instant::now()) });
        }
        before = now;
    }
}

struct Look {
    monotonic: Instant,
    wall: SystemTime,
    /// How what this machine sends to these would leave.
    leaves: Vec<(SocketAddr, Option<Leave>)>,
    names: Vec<Option<Names>>,
}

/// How something leaves this machine: from which address, and by which route. Two networks may give the same address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leave {
    source: IpAddr,
    route: Option<(String, IpAddr)>,
}

/// A file about names: what tells cheaply that it may have changed, and what tells whether it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Names {
    stamp: (u64, i64, i64),
    content: u64,
}

impl Look {
    fn now(toward: Vec<SocketAddr>, before: Option<&Look>) -> Look {
        let anywhere = ANYWHERE.iter().filter_map(|address| address.parse().ok());
        let targets = toward.into_iter().take(MAX_TOWARD).chain(anywhere);
        let routes = Routes::now();
        let leaves = targets.map(|target| (target, Leave::toward(target, &routes))).collect();
        let known = |at: usize| before.and_then(|before| before.names.get(at).copied().flatten());
        let names = NAMES.iter().enumerate().map(|(at, file)| Names::of(Path::new(file), known(at))).collect();
        Look { monotonic: Instant::now(), wall: SystemTime::now(), leaves, names }
    }

    /// A network that is gone is no change yet: there is nothing to try until one is there.
    fn changed(&self, now: &Look) -> Option<&'static str> {
        let monotonic = now.monotonic.saturating_duration_since(self.monotonic);
        // The monotonic clock stands still in a sleep of the machine; the other one does not.
        let wall = now.wall.duration_since(self.wall).unwrap_or_default();
        if monotonic > HELD_UP || wall > monotonic + HELD_UP {
            return Some("the machine or the program slept");
        }
        // A next hop that was not known before says nothing of the network.
        let before = |target| self.leaves.iter().find(|(known, _)| *known == target).map(|(_, leave)| leave);
        let came = |(target, leave): &(SocketAddr, Option<Leave>)| {
            leave.is_some() && before(*target).is_some_and(|before| before != leave)
        };
        if now.leaves.iter().any(came) {
            return Some("the network changed");
        }
        let content = |names: &Option<Names>| names.map(|names| names.content);
        let other = |(now, before): (&Option<Names>, &Option<Names>)| now.is_some() && content(now) != content(before);
        now.names.iter().zip(&self.names).any(other).then_some("where names are looked up changed")
    }
}

impl Names {
    fn of(file: &Path, before: Option<Names>) -> Option<Names> {
        let metadata = std::fs::metadata(file).ok()?;
        let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        if let Some(before) = before.filter(|before| before.stamp == stamp) {
            return Some(before);
        }
        let mut content = Vec::new();
        File::open(file).ok()?.take(MAX_NAMES).read_to_end(&mut content).ok()?;
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Some(Names { stamp, content: hasher.finish() })
    }
}

impl Leave {
    fn toward(target: SocketAddr, routes: &Routes) -> Option<Leave> {
        let source = source(target)?;
        // What stays on this machine takes no route.
        let route = routes.toward(target.ip()).filter(|_| source != target.ip());
        Some(Leave { source, route: route.map(|route| (route.interface.clone(), route.next)) })
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
        let target = |number: usize| SocketAddr::from(([192, 0, 2, number as u8], 9));
        let leave = |source: &str| Leave { source: source.parse().unwrap(), route: None };
        let leaves = sources.iter().enumerate().map(|(i, source)| (target(i), source.map(leave))).collect();
        Look { monotonic: begin + after, wall: SystemTime::UNIX_EPOCH + after + slept, leaves, names: vec![] }
    }

    #[test]
    fn another_network_with_the_same_address_is_a_change() {
        let by = |interface: &str, next: &str| {
            let mut look = look(Duration::ZERO, Duration::ZERO, &[Some("192.168.1.2")]);
            let route = Some((interface.to_owned(), next.parse().unwrap()));
            look.leaves[0].1.as_mut().unwrap().route = route;
            look
        };
        let at_home = by("wlan0", "192.168.1.1");
        assert_eq!(at_home.changed(&by("wlan0", "192.168.1.1")), None);
        assert!(at_home.changed(&by("eth0", "192.168.1.1")).is_some(), "another interface");
        assert!(at_home.changed(&by("wlan0", "192.168.1.254")).is_some(), "another router");
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
        let looked_up = look(second, zero, &[Some("10.0.0.2"), None, Some("10.0.0.2")]);
        assert_eq!(at_home.changed(&looked_up), None, "a name that was looked up");
        assert!(looked_up.changed(&look(second * 2, zero, &[Some("10.0.0.2"), None, Some("10.8.0.2")])).is_some());
    }

    #[test]
    fn name_servers_that_come_are_changes_and_a_file_that_is_only_touched_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let looks = |names| Look { names: vec![names], ..look(Duration::ZERO, Duration::ZERO, &[]) };
        let none = Names::of(&file, None);
        assert_eq!(none, None);
        let write = |text: &str, second: u64| {
            std::fs::write(&file, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            File::options().write(true).open(&file).unwrap().set_modified(at).unwrap();
        };
        write("nameserver 192.0.2.1", 1);
        let first = Names::of(&file, none);
        assert!(looks(none).changed(&looks(first)).is_some());
        assert_eq!(looks(first).changed(&looks(none)), None, "nothing to ask yet");
        assert_eq!(looks(first).changed(&looks(Names::of(&file, first))), None);
        write("nameserver 192.0.2.1", 2);
        let touched = Names::of(&file, first);
        assert_ne!(touched, first);
        assert_eq!(looks(first).changed(&looks(touched)), None);
        write("nameserver 192.0.2.2", 3);
        assert!(looks(touched).changed(&looks(Names::of(&file, touched))).is_some());
    }

    #[test]
    fn loopback_is_reached_from_loopback() {
        assert_eq!(source("127.0.0.1:9".parse().unwrap()), Some([127, 0, 0, 1].into()));
    }
}

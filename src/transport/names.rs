//! Looks up the addresses of coordinators and proxies, in the background and within bounds, and remembers what was
//! found: name servers are often away when the network is not, and after a change of the network it matters where the
//! connections went.
//!
//! Refuses to wait for a name server that is silent, and to have more than a few lookups that hang.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

/// How long a lookup is waited for: as long as the system waits for its first name server before it asks the second.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Lookups under way at a time. One that hangs holds a thread of the system for as long as that likes, half a minute
/// where two name servers are silent; the next one may be answered by other name servers.
pub const MAX_LOOKUPS: usize = 4;

/// Addresses of one name that are used; a name with more is a mistake or a trap.
const MAX_ADDRESSES: usize = 16;

/// Names whose addresses are remembered: a coordinator's and a proxy's, and one of each from before.
const MAX_KNOWN: usize = 4;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The system says so.
    #[error("{0}")]
    Failed(String),
    /// Nothing was said in time.
    #[error("no name server answered within {} s", LOOKUP_TIMEOUT.as_secs())]
    Silent,
}

type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Where names lead. Cheap to clone; clones share what they know, and the bound.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    lookup: Box<Lookup>,
    running: Arc<Semaphore>,
    known: Mutex<Vec<(String, Vec<IpAddr>)>>,
    /// Where connections went last.
    toward: Mutex<Vec<SocketAddr>>,
}

impl Default for Names {
    /// Names as the system resolves them.
    fn default() -> Names {
        Names::looked_up_by(|host, port| (host, port).to_socket_addrs().map(Iterator::collect))
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("known", &self.0.known).finish_non_exhaustive()
    }
}

impl Names {
    fn looked_up_by(lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Names {
        Names(Arc::new(Inner {
            lookup: Box::new(lookup),
            running: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            known: Mutex::default(),
            toward: Mutex::default(),
        }))
    }

    /// The addresses of `host`, at least one. Where it cannot be looked up, the ones that it had last; the reason, where it had
    /// none.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        self.resolve_within(host, port, LOOKUP_TIMEOUT).await
    }

    async fn resolve_within(&self, host: &str, port: u16, time: Duration) -> Result<Vec<SocketAddr>, LookupError> {
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(self.lead_to(vec![SocketAddr::new(ip, port)]));
        }
        let looked_up = tokio::time::timeout(time, self.clone().look_up(host.to_owned(), port)).await;
        let error = match looked_up.unwrap_or(Err(LookupError::Silent)) {
            Ok(addresses) => return Ok(self.lead_to(addresses)),
            Err(error) => error,
        };
        match self.known(host) {
            Some(known) => {
                tracing::debug!(host, %error, "a name cannot be looked up; its last addresses are used");
                Ok(self.lead_to(known.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()))
            }
            None => Err(error),
        }
    }

    /// A lookup that nobody waits for any more goes on, and what it finds is remembered.
    async fn look_up(self, host: String, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        let permit = self.0.running.clone().acquire_owned().await;
        let lookup = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let found = (self.0.lookup)(&host, port).map_err(|e| LookupError::Failed(e.to_string()))?;
            let mut addresses: Vec<SocketAddr> = Vec::new();
            // The system names an address once for each kind of socket.
            for address in found {
                if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return Err(LookupError::Failed("it has no address".into()));
            }
            self.remember(host, addresses.iter().map(SocketAddr::ip).collect());
            Ok(addresses)
        });
        lookup.await.unwrap_or_else(|error| Err(LookupError::Failed(error.to_string())))
    }

    /// Where the connections go that were dialled last.
    pub fn toward(&self) -> Vec<SocketAddr> {
        self.0.toward.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lead_to(&self, addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        self.0.toward.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&addresses);
        addresses
    }

    fn known(&self, host: &str) -> Option<Vec<IpAddr>> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(name, _)| name == host).map(|(_, addresses)| addresses.clone())
    }

    fn remember(&self, host: String, addresses: Vec<IpAddr>) {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(name, _)| *name != host);
        known.insert(0, (host, addresses));
        known.truncate(MAX_KNOWN);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn addresses_need_no_lookup_and_names_one() {
        let names = Names::looked_up_by(|_, port| {
            Ok([[10, 0, 0, 1], [10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| (ip, port).into()).to_vec())
        });
        assert_eq!(names.resolve("[::1]", 7).await.unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!(names.toward(), ["[::1]:7".parse().unwrap()]);
        let both = ["10.0.0.1:7".parse().unwrap(), "10.0.0.2:7".parse().unwrap()];
        assert_eq!(names.resolve("name.test", 7).await.unwrap(), both);
        assert_eq!(names.toward(), both);
    }

    #[tokio::test]
    async fn a_name_that_fails_leads_where_it_led_last() {
        let asked = AtomicUsize::new(0);
        let names = Names::looked_up_by(move |_, port| match asked.fetch_add(1, Ordering::Relaxed) {
            1 => Ok(vec![([10, 0, 0, 1], port).into()]),
            3 => Ok(vec![]),
            _ => Err(io::Error::other("no such name")),
        });
        assert_eq!(names.resolve("name.test", 7).await, Err(LookupError::Failed("no such name".into())));
        let first = names.resolve("name.test", 7).await.unwrap();
        assert_eq!(names.resolve("name.test", 8).await.unwrap(), ["10.0.0.1:8".parse().unwrap()], "remembered");
        assert_eq!(first, ["10.0.0.1:7".parse().unwrap()]);
        assert_eq!(names.resolve("other.test", 7).await, Err(LookupError::Failed("it has no address".into())));
    }

    #[tokio::test]
    async fn lookups_that_hang_are_few_and_are_not_waited_for() {
        let (release, hung) = mpsc::channel::<()>();
        let hung = Mutex::new(hung);
        let began = Arc::new(AtomicUsize::new(0));
        let names = Names::looked_up_by({
            let began = began.clone();
            move |_, port| {
                began.fetch_add(1, Ordering::SeqCst);
                let _ = hung.lock().unwrap_or_else(PoisonError::into_inner).recv();
                Ok(vec![([10, 0, 0, 1], port).into()])
            }
        });
        for _ in 0..MAX_LOOKUPS * 3 {
            assert_eq!(names.resolve_within("name.test", 7, SOON).await, Err(LookupError::Silent));
        }
        assert!(began.load(Ordering::SeqCst) <= MAX_LOOKUPS);
        drop(release);
        assert_eq!(names.resolve("name.test", 7).await.unwrap(), ["10.0.0.1:7".parse().unwrap()]);
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let names = Names::looked_up_by(|_, port| Ok(vec![([10, 0, 0, 1], port).into()]));
        for number in 0..MAX_KNOWN * 2 {
            names.resolve(&format!("{number}.test"), 7).await.unwrap();
        }
        assert_eq!(names.0.known.lock().unwrap().len(), MAX_KNOWN);
        let many = Names::looked_up_by(|_, _| Ok((0..200).map(|last| ([10, 0, 0, last], 7).into()).collect()));
        assert_eq!(many.resolve("many.test", 7).await.unwrap().len(), MAX_ADDRESSES);
    }
}

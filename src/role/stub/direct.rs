//! The stub's own port, for laptops that can reach it without the coordinator. Only sessions that exist move here: a
//! stranger gets no further than one small message, and there are few of them at a time.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sessions::{Place, Sessions};
use crate::lifeline::{Route, first_attach};
use crate::role::ACCEPT_PAUSE;
use crate::transport::direct;
use crate::wire::lifeline::AttachMode;
use crate::wire::limits::MAX_DIRECT;

/// Connections that may be in front of the door at a time; more wait in the kernel's queue.
const MAX_KNOCKING: usize = 64;

/// How long the first message may take.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

/// Where the direct way leads.
#[derive(Debug, Clone)]
pub struct DirectConfig {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// Addresses to name in place of those that this machine has: what a router or a container's host forwards here.
    pub advertise: Vec<SocketAddr>,
}

impl Default for DirectConfig {
    /// Every address of the machine, on a port that is free.
    fn default() -> DirectConfig {
        DirectConfig { listen: Some((Ipv6Addr::UNSPECIFIED, 0).into()), advertise: Vec::new() }
    }
}

/// The open port.
#[derive(Debug)]
pub struct DirectPort {
    listener: TcpListener,
    advertise: Vec<SocketAddr>,
}

impl DirectPort {
    /// Opens it. On a machine without IPv6 the default becomes every IPv4 address. Where any port will do, the one that
    /// laptops know from an earlier stub is the best.
    pub async fn open(config: DirectConfig, known: Option<SocketAddr>) -> std::io::Result<Option<DirectPort>> {
        let Some(listen) = config.listen else { return Ok(None) };
        if let Some(known) = known.filter(|known| listen.port() == 0 && listen.ip() == known.ip())
            && let Ok(listener) = TcpListener::bind(known).await
        {
            return Ok(Some(DirectPort { listener, advertise: config.advertise }));
        }
        let listener = match TcpListener::bind(listen).await {
            Err(_) if listen.ip() == Ipv6Addr::UNSPECIFIED => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, listen.port())).await?
            }
            bound => bound?,
        };
        Ok(Some(DirectPort { listener, advertise: config.advertise }))
    }

    /// What laptops may try.
    pub fn addresses(&self) -> Addresses {
        let bound = self.listener.local_addr().ok();
        Addresses { bound, advertise: self.advertise.clone() }
    }

    /// Lets laptops in until `taking` is cancelled. Carriers of an earlier stub's sessions are tasks of `passing`.
    pub async fn run(self, sessions: Arc<Sessions>, passing: TaskTracker, taking: CancellationToken) {
        let knocking = Arc::new(Semaphore::new(MAX_KNOCKING));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let accept = async {
                let permit = knocking.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>((self.listener.accept().await?, permit))
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                () = taking.cancelled() => return,
            };
            match accepted {
                Ok(((tcp, peer), permit)) => {
                    let (sessions, passing) = (sessions.clone(), passing.clone());
                    tasks.spawn(async move {
                        match admit(tcp, &sessions).await {
                            Ok(Some(rest)) => drop(passing.spawn(rest)),
                            Ok(None) => {}
                            Err(why) => tracing::debug!(%peer, why, "a direct connection was not taken"),
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a direct connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Gives what is left to do, when the session is an earlier stub's.
async fn admit(tcp: TcpStream, sessions: &Sessions) -> Result<Option<impl Future<Output = ()> + use<>>, String> {
    let mut carrier = direct::accept(tcp).await.map_err(|e| e.to_string())?;
    let attach = tokio::time::timeout(FIRST_MESSAGE, first_attach(&mut carrier)).await;
    let attach = attach.ok().flatten().ok_or("no attach")?;
    // A session begins where the coordinator has seen both ends.
    if attach.mode == AttachMode::Begin {
        return Err("a session cannot begin here".into());
    }
    match sessions.find(&attach, Route::Direct).await.map_err(|refusal| refusal.to_string())? {
        Place::Here(lifeline) => {
            lifeline.arrived(Box::new(carrier), Route::Direct, attach).await;
            Ok(None)
        }
        Place::Earlier(passage) => Ok(Some(sessions.pass(carrier, passage))),
    }
}

/// Where a laptop may find the port. Asked anew each time: interfaces come and go.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    bound: Option<SocketAddr>,
    advertise: Vec<SocketAddr>,
}

impl Addresses {
    /// Where the port listens, if it does.
    pub fn bound(&self) -> Option<SocketAddr> {
        self.bound
    }

    /// At most [`MAX_DIRECT`] of them.
    pub fn now(&self) -> Vec<SocketAddr> {
        let mut all = self.advertise.clone();
        if let Some(bound) = self.bound.filter(|_| self.advertise.is_empty()) {
            if bound.ip().is_unspecified() {
                let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
                    let storage = interface.address?;
                    let v4 = storage.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), bound.port())));
                    v4.or_else(|| storage.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), bound.port()))))
                });
                all.extend(interfaces.filter(|address| bound.is_ipv6() || address.is_ipv4()));
            } else {
                all.push(bound);
            }
        }
        all.retain(|address| direct::may_dial(*address, address.ip().is_loopback()));
        all.dedup();
        all.truncate(MAX_DIRECT);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_its_addresses() {
        let advertise = vec!["192.0.2.7:9000".parse().unwrap()];
        let config = DirectConfig { advertise: advertise.clone(), ..DirectConfig::default() };
        let port = DirectPort::open(config, None).await.unwrap().unwrap();
        assert_eq!(port.addresses().now(), advertise);
        let port = DirectPort::open(DirectConfig::default(), None).await.unwrap().unwrap();
        let addresses = port.addresses().now();
        assert!(addresses.iter().any(|a| a.ip().is_loopback()) && addresses.len() <= MAX_DIRECT, "{addresses:?}");
        assert!(DirectPort::open(DirectConfig { listen: None, advertise: Vec::new() }, None).await.unwrap().is_none());
    }
}

//! The port of a forward that listens on the laptop. One that cannot be had is tried again and again, and lets its place in
//! the status say why meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{FIRST_RETRY, Listening, TunnelOpener};
use crate::service::forward::LocalForward;
use crate::service::socks::SocksForward;
use crate::service::stats::ForwardStats;
use crate::service::term::Term;
use crate::service::udp::UdpForward;
use crate::wire::{Endpoint, Refusal};

/// How often a port that is in use is tried again, after some tries in quick succession: nothing tells when it is let go.
const RETRY: Duration = Duration::from_secs(1);

/// The same of a Unix socket at last. Only connecting tells whether anybody listens there, and whoever does sees that each time.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What is to listen on the laptop.
#[derive(Debug)]
pub(super) struct Here {
    pub opener: TunnelOpener,
    /// Where.
    pub bind: Endpoint,
    /// Where it leads; nothing for SOCKS.
    pub target: Option<Endpoint>,
    /// Where it is counted.
    pub stats: Arc<ForwardStats>,
}

/// One that is bound.
#[derive(Debug)]
pub(super) enum Port {
    Streams(LocalForward<TunnelOpener>),
    Datagrams(UdpForward<TunnelOpener>),
    Socks(SocksForward<TunnelOpener>),
}

impl Here {
    /// Binds it once.
    pub async fn bind(&self) -> Result<Port, Refusal> {
        let (opener, stats) = (self.opener.clone(), self.stats.clone());
        Ok(match (&self.target, &self.bind) {
            (None, bind) => Port::Socks(SocksForward::bind(opener, bind).await?.counted_in(stats)),
            (Some(target), bind @ Endpoint::Udp { .. }) => {
                Port::Datagrams(UdpForward::bind(opener, bind, target.clone()).await?.counted_in(stats))
            }
            (Some(target), bind) => {
                Port::Streams(LocalForward::bind(opener, bind, target.clone()).await?.counted_in(stats))
            }
        })
    }

    /// Serves it for its term, from when it is `bound` on, now or later; `report` says so.
    pub async fn keep(self, bound: Result<Port, Refusal>, report: watch::Sender<Listening>, term: Term) {
        let had = async {
            let mut bound = bound;
            let longest = if matches!(self.bind, Endpoint::Unix { .. }) { LONGEST_RETRY } else { RETRY };
            let mut wait = FIRST_RETRY;
            loop {
                match bound {
                    Ok(port) => break port,
                    Err(_) => tokio::time::sleep(wait).await,
                }
                wait = (wait * 2).min(longest);
                bound = self.bind().await;
                report.send_replace(match &bound {
                    Ok(port) => Listening::At(port.bound().clone()),
                    Err(refusal) => Listening::Refused(self.bind.clone(), refusal.clone()),
                });
            }
        };
        match term.end.run_until_cancelled(term.close.run_until_cancelled(had)).await.flatten() {
            Some(port) => port.run(term).await,
            None => term.closed.cancel(),
        }
    }
}

impl Port {
    /// Where it listens, with the port that was picked.
    pub fn bound(&self) -> &Endpoint {
        match self {
            Port::Streams(forward) => forward.bound(),
            Port::Datagrams(forward) => forward.bound(),
            Port::Socks(forward) => forward.bound(),
        }
    }

    async fn run(self, term: Term) {
        match self {
            Port::Streams(forward) => forward.run(term).await,
            Port::Datagrams(forward) => forward.run(term).await,
            Port::Socks(forward) => forward.run(term).await,
        }
    }
}

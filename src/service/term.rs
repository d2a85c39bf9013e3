//! How long a forward lasts: its port, and the connections that came of it, which may outlive the port.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The term of a forward. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Term {
    /// Ends the forward: its port, and its connections.
    pub end: CancellationToken,
    /// Closes its port. Connections that are open go on.
    pub close: CancellationToken,
    /// Cancelled when its port is closed.
    pub closed: CancellationToken,
}

impl Term {
    /// A term that lasts until its end.
    pub fn until(end: CancellationToken) -> Term {
        Term { end, ..Term::default() }
    }

    /// Runs `accept` with a port and the set of its connections, until the port is to be closed; then those connections,
    /// until the last is over. None of it beyond the end.
    pub async fn serve<P>(&self, port: P, accept: impl AsyncFnOnce(&P, &mut JoinSet<()>)) {
        let work = async {
            let mut connections = JoinSet::new();
            self.close.run_until_cancelled(accept(&port, &mut connections)).await;
            drop(port);
            self.closed.cancel();
            while connections.join_next().await.is_some() {}
        };
        self.end.run_until_cancelled(work).await;
        self.closed.cancel();
    }
}

impl From<CancellationToken> for Term {
    fn from(end: CancellationToken) -> Term {
        Term::until(end)
    }
}

//! The three roles: the laptop, the workspace, the coordinator. None imports another; `cli` composes them.

pub mod backoff;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod balancer;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod changes;
#[cfg(feature = "coordinator")]
pub mod coordinator;
pub mod files;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod kernel;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod local;
#[cfg(feature = "proxy")]
pub mod proxy;
pub mod renewal;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod right;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod routes;
#[cfg(feature = "stub")]
pub mod stub;

/// How long a port or a socket pauses when it cannot accept: out of descriptors, mostly, which does not end at once.
pub const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Where the log says that the way to the other end goes and comes back: once for each time, at every verbosity.
#[cfg(any(feature = "proxy", feature = "stub"))]
pub(crate) const WAY: &str = "nexus_proxy::way";

//! The three roles: the laptop, the workspace, the coordinator. None imports another; `cli` composes them.

pub mod backoff;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod balancer;
#[cfg(any(feature = "proxy", feature = "stub"))]
pub mod changes;
#[cfg(feature = "coordinator")]
pub mod coordinator;
pub mod files;
#[cfg(feature = "proxy")]
pub mod proxy;
pub mod renewal;
#[cfg(feature = "stub")]
pub mod stub;

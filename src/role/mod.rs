//! Roles: the laptop, the workspace, the coordinator. None imports another; what they share lies below.

#[cfg(feature = "proxy")]
pub mod proxy;

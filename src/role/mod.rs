//! The three roles. None imports another; `cli` composes them.

#[cfg(feature = "coordinator")]
pub mod coordinator;

//! One JSON-RPC call on one stream: the workspace asks, the laptop answers.

pub mod client;
#[cfg(feature = "proxy")]
pub mod output;
#[cfg(feature = "proxy")]
pub mod server;

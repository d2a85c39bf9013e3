//! Carriers: connections that bring bytes from one program to the next. WebSocket over TLS to the coordinator,
//! through a corporate proxy where there is one; a pipe in memory for tests.
//!
//! A carrier knows nothing of sessions: it moves bytes, and control messages beside them, until it breaks.

pub mod address;
pub mod carrier;
pub mod client;
pub mod connect;
pub mod dial;
pub mod direct;
pub mod http;
pub mod memory;
pub mod names;
pub mod outer;
pub mod pass;
pub mod read_ahead;
pub mod relay;

use tokio::io::{AsyncRead, AsyncWrite};

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

//! nexus-proxy: a coding agent works in a remote workspace; its owner's secrets, tools and localhost stay on the laptop.
//!
//! The layers, from the bottom; imports point down only, and `tests/architecture.rs` holds them to it:
//!
//! | layer | duty |
//! |---|---|
//! | [`wire`] | messages, identifiers, limits, versions; no I/O, no clock |
//! | [`identity`] | certificate authority, leaf certificates, names, pins |
//! | [`transport`] | carriers: WebSocket over TLS, in memory; dialling, corporate proxies |
//! | [`lifeline`] | a byte stream that outlives its carriers |
//! | [`session`] | mutual TLS and the multiplexer on a lifeline; streams of frames |
//! | [`service`] | one kind of stream each: forwards, processes, calls |
//! | [`role`] | the laptop, the workspace, the coordinator; none imports another |
//! | [`cli`] | arguments, progress, hints, signals; composes the roles |
//!
//! Reading order: `wire::frame`, `wire::open`, `session::framed`, then the service you are after.

pub mod cli;
pub mod identity;
pub mod lifeline;
pub mod role;
pub mod service;
pub mod session;
pub mod transport;
pub mod wire;

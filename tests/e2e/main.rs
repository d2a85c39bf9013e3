//! End to end: real processes on real sockets, told in the language of the user.
//!
//! One binary, because linking is slow. A story is a module here; what it needs from other people's programs is in
//! [`support`]. A program that is not installed fails the test with a hint; nothing is skipped.

#![cfg(all(feature = "proxy", feature = "stub", feature = "coordinator"))]

mod blind;
mod fixtures;
mod hostile;
mod hostile_peers;
mod hosts;
mod identity;
mod proxies;
#[allow(dead_code, reason = "a vocabulary: a story takes from it the words it needs")]
mod support;

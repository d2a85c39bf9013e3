//! End to end: real processes on real sockets, told in the language of the user.
//!
//! One binary, because linking is slow. A story is a module here; what it needs from other people's programs is in
//! [`support`]. A program that is not installed fails the test with a hint; nothing is skipped.

#![cfg(all(feature = "proxy", feature = "stub", feature = "coordinator"))]

mod balancer;
mod blind;
mod clones;
mod direct;
mod first_minutes;
mod fixtures;
mod forwards;
mod forwards_datagrams;
mod forwards_faults;
mod forwards_unix;
mod hand_over;
mod hostile;
mod hostile_peers;
mod hosts;
mod identity;
mod lifecycle;
mod link;
mod membership;
mod names;
mod proxies;
mod reach;
mod reach_network;
mod reliability;
mod reliability_datagrams;
mod reliability_drain;
mod reliability_growth;
mod reliability_late;
mod reliability_load;
mod reliability_programs;
mod reliability_share;
mod reliability_sleep;
mod rotation;
mod stub_take_over;
#[allow(dead_code, reason = "a vocabulary: a story takes from it the words it needs")]
mod support;
mod unread;
mod window;
mod window_files;
mod window_secrets;
mod window_tools;

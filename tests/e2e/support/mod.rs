//! Fixtures: programs that others wrote, hosts, and the laptop. Each starts on a free port in a folder of its own, is ready
//! when its constructor returns, and is gone when it is dropped.
//!
//! A constructor panics with what the program said when it does not come up: a fixture that half works would make
//! every failure above it a riddle.

pub mod balancer;
pub mod capture;
pub mod coordinator;
pub mod faults;
pub mod files;
pub mod git;
pub mod http;
pub mod iperf3;
pub mod kernel;
pub mod laptop;
pub mod link;
pub mod linked;
pub mod place;
pub mod postgres;
pub mod program;
pub mod redis;
pub mod squid;
pub mod ssh;
pub mod told;
pub mod transfers;
pub mod udp;
pub mod wait;
pub mod world;

pub use balancer::Balancer;
pub use capture::Capture;
pub use coordinator::{Coordinator, Machine};
pub use files::{files_below, find_below};
pub use git::GitDaemon;
pub use http::{HttpServer, Nginx, curl};
pub use iperf3::Iperf3;
pub use laptop::Laptop;
pub use link::{Direction, Harm, Link, Wire};
pub use linked::{Dialogue, Linked};
pub use place::{Hosts, Names, Place};
pub use postgres::Postgres;
pub use program::{Run, Running, command, find};
pub use redis::Redis;
pub use squid::Squid;
pub use ssh::Sshd;
pub use udp::UdpEcho;
pub use wait::{PATIENCE, is_long, until};
pub(crate) use world::on_ways;
pub use world::{Way, World};

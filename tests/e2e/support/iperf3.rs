//! iperf3: how much, and whether it arrived.

use std::process::Command;

use super::place::Place;
use super::program::{Running, command};

/// An iperf3 server. It serves one client at a time.
#[derive(Debug)]
pub struct Iperf3 {
    /// The port on 127.0.0.1, TCP and UDP.
    pub port: u16,
    program: Running,
}

impl Iperf3 {
    /// On this host.
    #[track_caller]
    pub fn start() -> Iperf3 {
        Iperf3::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> Iperf3 {
        let (port, program) = Running::on_free_port(|port| {
            // In JSON, so that its report can be part of a client's.
            place.run(command("iperf3", ["-s", "-J", "-B", "127.0.0.1", "-p", &port.to_string()]))
        });
        Iperf3 { port, program }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// An iperf3 client with JSON output that sends `bytes` (such as `10M`) to `port` of the loopback.
    #[track_caller]
    pub fn client(port: u16, bytes: &str, more: &[&str]) -> Command {
        let mut client = command("iperf3", ["-J", "-c", "127.0.0.1", "-p", &port.to_string(), "-n", bytes]);
        client.args(more);
        client
    }
}

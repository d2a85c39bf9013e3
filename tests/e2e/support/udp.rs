//! Something that speaks UDP.

use super::program::{Running, command};

/// A server on 127.0.0.1 that answers every datagram with the same bytes, and says which it got.
#[derive(Debug)]
pub struct UdpEcho {
    /// The port on 127.0.0.1.
    pub port: u16,
    _program: Running,
}

impl UdpEcho {
    /// On this host.
    #[track_caller]
    pub fn start() -> UdpEcho {
        let script = "import socket\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            s.bind(('127.0.0.1', 0))\n\
            print('port', s.getsockname()[1])\n\
            while True:\n    data, peer = s.recvfrom(65536)\n    s.sendto(data, peer)\n";
        let mut program = Running::start(command("python3", ["-u", "-c", script]));
        let line = program.says("port ");
        let port = line.trim_start_matches("port ").parse().expect("the script prints a number");
        UdpEcho { port, _program: program }
    }
}

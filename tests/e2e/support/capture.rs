//! What went over the wires of a host, byte by byte.

use std::net::Ipv4Addr;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::place::Place;
use super::program::{Running, command};

/// A tcpdump on all interfaces of a host.
#[derive(Debug)]
pub struct Capture {
    program: Running,
    folder: TempDir,
}

impl Capture {
    /// Begins at `place`; what happens after this is in it.
    #[track_caller]
    pub fn start_at(place: &Place) -> Capture {
        let folder = TempDir::new().expect("a temporary folder");
        let mut tcpdump = command("tcpdump", ["-i", "any", "-s", "0", "-U", "-B", "65536", "--immediate-mode", "-n"]);
        tcpdump.args(["-Z", "root", "-w"]).arg(folder.path().join("packets")).arg("tcp");
        let mut program = Running::start(place.run(tcpdump));
        program.says("listening on");
        Capture { program, folder }
    }

    /// Ends it, and gives every packet as it was. A capture that lost some proves nothing, and fails the test.
    #[track_caller]
    pub fn packets(mut self) -> Vec<u8> {
        self.program.stop(Signal::SIGINT);
        let summary = self.program.says("dropped by kernel");
        assert!(summary.starts_with("0 packets"), "{summary}");
        std::fs::read(self.folder.path().join("packets")).expect("the capture")
    }
}

/// Whether `text` is anywhere in `bytes`.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Established TCP connections of `port`, in the network namespace of process `pid`, that come from `peer`.
pub fn connections(pid: u32, port: u16, peer: Ipv4Addr) -> usize {
    const ESTABLISHED: &str = "01";
    // The kernel prints an address as the number it is in memory.
    let peer = format!("{:08X}:", u32::from_le_bytes(peer.octets()));
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3
            && fields[1].ends_with(&format!(":{port:04X}"))
            && fields[2].starts_with(&peer)
            && fields[3] == ESTABLISHED
    };
    table.lines().skip(1).filter(is_one).count()
}

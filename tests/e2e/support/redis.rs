//! A Redis server that keeps nothing.

use std::process::Command;

use tempfile::TempDir;

use super::place::Place;
use super::program::{Running, command};

/// A Redis server.
#[derive(Debug)]
pub struct Redis {
    /// The port on 127.0.0.1.
    pub port: u16,
    _program: Running,
    _folder: TempDir,
}

impl Redis {
    /// On this host.
    #[track_caller]
    pub fn start() -> Redis {
        Redis::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> Redis {
        let folder = TempDir::new().expect("a temporary folder");
        let (port, program) = Running::on_free_port(|port| {
            let mut redis = command("redis-server", ["--bind", "127.0.0.1", "--port", &port.to_string()]);
            redis.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]).current_dir(folder.path());
            place.run(redis)
        });
        Redis { port, _program: program, _folder: folder }
    }

    /// A `redis-cli` that gives a command to a server on `port` of the loopback.
    #[track_caller]
    pub fn client(port: u16, words: &[&str]) -> Command {
        let mut client = command("redis-cli", ["-e", "-h", "127.0.0.1", "-p", &port.to_string()]);
        client.args(words);
        client
    }
}

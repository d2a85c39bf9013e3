//! A PostgreSQL cluster of one's own.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::place::Place;
use super::program::{Run, Running, as_user, command, give};
use super::until;

/// The user PostgreSQL runs as when the tests are root, which it refuses to be.
const USER: &str = "postgres";

/// A PostgreSQL server with one database (`postgres`), one role (`postgres`), and its password.
#[derive(Debug)]
pub struct Postgres {
    /// The port on 127.0.0.1.
    pub port: u16,
    place: Place,
    program: Running,
    _folder: TempDir,
}

impl Postgres {
    /// The password of the role `postgres`.
    pub const PASSWORD: &'static str = "correct horse";

    /// On this host.
    #[track_caller]
    pub fn start() -> Postgres {
        Postgres::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> Postgres {
        let folder = TempDir::new().expect("a temporary folder");
        give(folder.path(), USER);
        let (data, password) = (folder.path().join("data"), folder.path().join("password"));
        std::fs::write(&password, Postgres::PASSWORD).expect("a file of ours");
        give(&password, USER);
        let mut initdb = binary("initdb");
        initdb.args(["--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]);
        initdb.arg("--pwfile").arg(&password).arg("--pgdata").arg(&data).current_dir(folder.path());
        Run::of(as_user(USER, &initdb)).ok();
        let (port, program) = Running::on_free_port(|port| {
            let mut server = binary("postgres");
            server.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
            server.arg("-k").arg(folder.path()).args(["-c", "fsync=off", "-c", "shared_buffers=16MB"]);
            place.run(as_user(USER, server.current_dir(folder.path())))
        });
        let postgres = Postgres { port, place: place.clone(), program, _folder: folder };
        until("PostgreSQL to take connections", || postgres.psql(port, "select 1").status.success().then_some(()));
        postgres
    }

    /// `psql` at the server's own place, on `port` of its loopback: the server's, or that of a forward.
    #[track_caller]
    pub fn psql(&self, port: u16, sql: &str) -> Run {
        Run::of(self.place.run(Postgres::client(port, sql)))
    }

    /// A `psql` that takes its commands line by line from standard input, on one connection; it ends when one fails.
    #[track_caller]
    pub fn session(port: u16) -> Command {
        let mut psql = Postgres::bare(port);
        psql.env("PSQL_HISTORY", "/dev/null");
        psql
    }

    /// A `psql` that asks `sql` of a server on `port` of the loopback, and prints bare values.
    #[track_caller]
    pub fn client(port: u16, sql: &str) -> Command {
        let mut psql = Postgres::bare(port);
        psql.args(["-c", sql]);
        psql
    }

    #[track_caller]
    fn bare(port: u16) -> Command {
        let mut psql = command("psql", ["-X", "-A", "-t", "-q", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"]);
        psql.args(["-v", "ON_ERROR_STOP=1", "-p", &port.to_string()]);
        psql.env("PGPASSWORD", Postgres::PASSWORD).env("PGCONNECT_TIMEOUT", "10");
        psql
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, clients or not; its own children go with it.
        self.program.stop(Signal::SIGQUIT);
    }
}

/// A program of the newest PostgreSQL installed; Debian keeps them out of `PATH`.
#[track_caller]
fn binary(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest: Option<PathBuf> = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.is_file())
        .max_by_key(|path| path.iter().filter_map(|part| part.to_str()?.parse::<u32>().ok()).next_back());
    newest.map_or_else(|| command(name, [""; 0]), Command::new)
}

//! A corporate proxy.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use super::place::Place;
use super::program::{Running, command, give, is_root};

/// The user squid runs as when the tests are root.
const USER: &str = "proxy";

/// A squid that tunnels (`CONNECT`) to any port, with or without Basic authentication.
#[derive(Debug)]
pub struct Squid {
    /// Where it listens.
    pub addr: SocketAddr,
    auth: bool,
    _program: Running,
    folder: TempDir,
}

impl Squid {
    /// Who may pass when it asks for a name and a password.
    pub const LOGIN: (&'static str, &'static str) = ("anna", "open-sesame");

    /// On this host, open to all.
    #[track_caller]
    pub fn start() -> Squid {
        Squid::start_at(&Place::Here, false)
    }

    /// On this host, for [`LOGIN`](Self::LOGIN) only.
    #[track_caller]
    pub fn with_basic_auth() -> Squid {
        Squid::start_at(&Place::Here, true)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place, auth: bool) -> Squid {
        let folder = TempDir::new().expect("a temporary folder");
        give(folder.path(), USER);
        let conf = folder.path().join("squid.conf");
        let passwords = folder.path().join("passwords");
        fs::write(&passwords, format!("{}:{}\n", Squid::LOGIN.0, hashed(Squid::LOGIN.1))).expect("a file of ours");
        give(&passwords, USER);
        let (port, program) = Running::on_free_port(|port| {
            let addr = SocketAddr::new(place.bind(), port);
            fs::write(&conf, squid_conf(folder.path(), addr, auth)).expect("a file of ours");
            let mut squid = command("squid", ["-N", "-f"]);
            squid.arg(&conf);
            place.run(squid)
        });
        Squid { addr: SocketAddr::new(place.bind(), port), auth, _program: program, folder }
    }

    /// As a person writes it into `HTTPS_PROXY`, seen from `host`; with name and password when they are asked for.
    pub fn url(&self, host: impl std::fmt::Display) -> String {
        let (name, password) = Squid::LOGIN;
        let login = if self.auth { format!("{name}:{password}@") } else { String::new() };
        format!("http://{login}{host}:{}", self.addr.port())
    }

    /// Its access log so far: proof of what went through it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }
}

/// A password as `basic_ncsa_auth` wants it.
fn hashed(password: &str) -> String {
    super::Run::of(command("openssl", ["passwd", "-apr1", password])).ok().trim().to_owned()
}

fn squid_conf(folder: &Path, addr: SocketAddr, auth: bool) -> String {
    let folder = folder.display();
    let user = if is_root() { format!("cache_effective_user {USER}\n") } else { String::new() };
    let who = if auth {
        format!(
            "auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/passwords\nauth_param basic children 1\n\
             auth_param basic realm office\nacl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all\n"
        )
    } else {
        "http_access allow all\n".to_owned()
    };
    format!(
        "{user}http_port {addr}\nvisible_hostname squid.test\npid_filename none\ncache deny all\ncache_mem 1 MB\n\
         access_log stdio:{folder}/access.log\ncache_log {folder}/cache.log\ncoredump_dir {folder}\n\
         shutdown_lifetime 0 seconds\nnetdb_filename none\nlogfile_rotate 0\nbuffered_logs off\n{who}"
    )
}

//! Web servers for static files: nginx, and Python's own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tempfile::TempDir;

use super::place::Place;
use super::program::{Run, Running, command, is_root};

/// `curl` as a person without any configuration would have it: quiet but for errors, and no proxy but what `words` name.
#[track_caller]
pub fn curl(words: &[&str]) -> Command {
    let mut curl = command("curl", ["-q", "-sS", "--fail", "--max-time", "25"]);
    curl.args(words);
    for variable in ["HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
        curl.env_remove(variable);
    }
    curl
}

/// nginx with a folder of static files, which takes uploads too (`PUT`).
#[derive(Debug)]
pub struct Nginx {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The Unix socket on which it serves the same.
    pub socket: PathBuf,
    /// What it serves.
    pub root: PathBuf,
    asked: AtomicUsize,
    _program: Running,
    _folder: TempDir,
}

impl Nginx {
    /// On this host.
    #[track_caller]
    pub fn start() -> Nginx {
        Nginx::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> Nginx {
        let folder = TempDir::new().expect("a temporary folder");
        let root = folder.path().join("www");
        fs::create_dir(&root).expect("a folder of ours");
        let conf = folder.path().join("nginx.conf");
        let (port, program) = Running::on_free_port(|port| {
            fs::write(&conf, nginx_conf(folder.path(), SocketAddr::new(place.bind(), port))).expect("a file of ours");
            let mut nginx = command("nginx", ["-e", "stderr", "-g", "daemon off;"]);
            nginx.arg("-p").arg(folder.path()).arg("-c").arg(&conf);
            place.run(nginx)
        });
        let socket = folder.path().join("http.sock");
        let (addr, asked) = (SocketAddr::new(place.bind(), port), AtomicUsize::new(0));
        Nginx { addr, socket, root, asked, _program: program, _folder: folder }
    }

    /// The URL of a file below [`root`](Self::root).
    pub fn url(&self, file: &str) -> String {
        format!("http://127.0.0.1:{}/{file}", self.addr.port())
    }

    /// Connections that it has taken so far, but for those that ask this.
    #[track_caller]
    pub fn accepted(&self) -> usize {
        let asked = self.asked.fetch_add(1, Relaxed) + 1;
        let said = Run::of(curl(&["--unix-socket", &self.socket.to_string_lossy(), "http://nginx/connections"])).ok();
        let accepted = said.lines().nth(2).and_then(|counts| counts.split_whitespace().next()?.parse::<usize>().ok());
        accepted.unwrap_or_else(|| panic!("nginx counts its connections: {said}")) - asked
    }
}

fn nginx_conf(folder: &Path, addr: SocketAddr) -> String {
    let user = if is_root() { "user root;" } else { "" };
    let folder = folder.display();
    format!(
        "{user} worker_processes 1; pid {folder}/pid; error_log stderr;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; default_type text/plain;
           client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
           uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
           client_max_body_size 0; send_timeout 1h; client_body_timeout 1h;
           server {{
             listen {addr}; listen unix:{folder}/http.sock; root {folder}/www; dav_methods PUT;
             location = /connections {{ stub_status; }}
           }}
         }}"
    )
}

/// `python3 -m http.server`: a small server such as a person starts in a workspace.
#[derive(Debug)]
pub struct HttpServer {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it serves.
    pub root: PathBuf,
    _program: Running,
    _folder: TempDir,
}

impl HttpServer {
    /// On this host.
    #[track_caller]
    pub fn start() -> HttpServer {
        HttpServer::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> HttpServer {
        let folder = TempDir::new().expect("a temporary folder");
        let (port, program) = Running::on_free_port(|port| {
            let mut python = command("python3", ["-u", "-m", "http.server", "--bind", &place.bind().to_string()]);
            python.arg(port.to_string()).current_dir(folder.path());
            place.run(python)
        });
        let addr = SocketAddr::new(place.bind(), port);
        HttpServer { addr, root: folder.path().to_owned(), _program: program, _folder: folder }
    }

    /// The URL of a file below [`root`](Self::root).
    pub fn url(&self, file: &str) -> String {
        format!("http://127.0.0.1:{}/{file}", self.addr.port())
    }
}

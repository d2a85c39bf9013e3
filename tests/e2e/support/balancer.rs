//! nginx as a load balancer that ends TLS, configured by `examples/nginx.conf`.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use nix::sys::signal::Signal;

use super::program::{Running, command, is_root};

/// How an operator configures it.
pub const EXAMPLE: &str = include_str!("../../../examples/nginx.conf");

/// nginx before a coordinator on this host, with a certificate for `localhost` by an authority of its own.
#[derive(Debug)]
pub struct Balancer {
    /// Where it listens.
    pub port: u16,
    /// The authority's certificate, in PEM.
    pub ca: PathBuf,
    /// The process.
    pub program: Running,
    folder: TempDir,
}

impl Balancer {
    /// Before what listens, or will, on `upstream` without TLS.
    #[track_caller]
    pub fn before(upstream: u16) -> Balancer {
        Balancer::with(upstream, "")
    }

    /// The same, with more directives for what it passes on.
    #[track_caller]
    pub fn with(upstream: u16, directives: &str) -> Balancer {
        let folder = TempDir::new().expect("a temporary folder");
        let place = |name: &str| folder.path().join(name);
        let (ca, chain, key) = certificates();
        for (name, text) in [("ca.pem", &ca), ("leaf.pem", &chain), ("leaf.key", &key)] {
            fs::write(place(name), text).expect("a file of ours");
        }
        let (port, program) = Running::on_free_port(|port| {
            let mut server = EXAMPLE.to_owned();
            for (example, ours) in [
                ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
                ("nexus.example.com;\n\n", "localhost;\n\n".to_owned()),
                ("/etc/nginx/tls/nexus.example.com.pem", place("leaf.pem").display().to_string()),
                ("/etc/nginx/tls/nexus.example.com.key", place("leaf.key").display().to_string()),
                ("http://127.0.0.1:8080;", format!("http://127.0.0.1:{upstream}; {directives}")),
            ] {
                assert_eq!(server.matches(example).count(), 1, "`{example}` in examples/nginx.conf");
                server = server.replace(example, &ours);
            }
            let (user, folder) = (if is_root() { "user root;" } else { "" }, folder.path().display());
            // As `info` it says whom it gives up.
            let whole = format!(
                "{user} worker_processes 1; pid {folder}/pid; error_log stderr info; events {{ worker_connections 4096; }}
                 http {{
                   access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                   fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                   {server}
                 }}"
            );
            fs::write(place("nginx.conf"), whole).expect("a file of ours");
            let mut nginx = command("nginx", ["-e", "stderr", "-g", "daemon off;"]);
            nginx.arg("-p").arg(place("")).arg("-c").arg(place("nginx.conf"));
            nginx
        });
        Balancer { port, ca: place("ca.pem"), program, folder }
    }

    /// Its operator writes `to` where its configuration has `from`, and reloads it. Connections that are there stay as they are.
    #[track_caller]
    pub fn edit(&self, from: &str, to: &str) {
        let place = self.folder.path().join("nginx.conf");
        let text = fs::read_to_string(&place).expect("a file of ours");
        assert_eq!(text.matches(from).count(), 1, "`{from}` in the configuration");
        fs::write(&place, text.replace(from, to)).expect("a file of ours");
        self.program.signal(Signal::SIGHUP);
    }
}

/// An authority, a certificate by it for `localhost`, and its key; in PEM.
fn certificates() -> (String, String, String) {
    let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let mut ca = CertificateParams::new(Vec::new()).expect("no names");
    ca.distinguished_name.push(rcgen::DnType::CommonName, "a company's own authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
    let issuer = Issuer::from_params(&ca, &ca_key);
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "a load balancer");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    (ca_pem, leaf.pem(), key.serialize_pem())
}

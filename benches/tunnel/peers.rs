//! Ways to the same server: no tunnel, ours, `ssh -L`, and whichever of bore, rathole and wstunnel is on `PATH`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::rig::{Process, Tunnel, family, free_port};

/// Where Debian puts programs, beside what `PATH` names.
const FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A way to the server.
#[derive(Debug)]
pub struct Route {
    /// What it is called in the output.
    pub name: &'static str,
    /// The port that clients connect to.
    pub port: u16,
    /// The processes at the clients' end.
    pub near: Vec<u32>,
    /// The processes at the server's end.
    pub far: Vec<u32>,
    _processes: Vec<Process>,
    _folder: Option<TempDir>,
}

impl Route {
    /// Straight to the server.
    pub fn none(target: u16) -> Route {
        Route { name: "no tunnel", port: target, near: vec![], far: vec![], _processes: vec![], _folder: None }
    }

    /// Through `tunnel`, which goes on belonging to the caller.
    pub fn ours(name: &'static str, tunnel: &mut Tunnel<'_>, target: u16) -> Result<Route> {
        let port = tunnel.forward(target)?;
        let (near, far) = (vec![tunnel.up_pid()], vec![tunnel.stub_pid()]);
        Ok(Route { name, port, near, far, _processes: vec![], _folder: None })
    }
}

/// A peer: its name in the output, and how it is started in front of a server.
pub type Peer = (&'static str, fn(u16) -> Result<Option<Route>>);

/// `ssh -L` alone, for sections where the others would only take time.
pub const SSH: Peer = ("ssh -L", ssh);

/// All. Each gives `None` when its programs are not installed.
pub const ALL: [Peer; 4] =
    [SSH, ("bore, no encryption", bore), ("rathole, no encryption", rathole), ("wstunnel, wss", wstunnel)];

/// The path of a program, when it is installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

fn ssh(target: u16) -> Result<Option<Route>> {
    let (Some(sshd), Some(ssh), Some(keygen)) = (find("sshd"), find("ssh"), find("ssh-keygen")) else {
        return Ok(None);
    };
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    for key in ["host", "user"] {
        let made = Command::new(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(key)).status()?;
        ensure!(made.success(), "ssh-keygen: {made}");
    }
    fs::copy(at("user.pub"), at("authorized"))?;
    if nix::unistd::geteuid().is_root() {
        // Where a started service would have made it; sshd of root refuses to live without.
        fs::create_dir_all("/run/sshd")?;
    }
    let conf = format!(
        "ListenAddress 127.0.0.1\nHostKey {0}/host\nPidFile none\nAuthorizedKeysFile {0}/authorized\nStrictModes no\n\
         UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nAllowTcpForwarding yes\n",
        folder.path().display()
    );
    fs::write(at("sshd_config"), conf)?;
    let (server_port, port) = (free_port()?, free_port()?);
    let mut server = Command::new(sshd);
    server.args(["-D", "-e", "-p", &server_port.to_string(), "-f"]).arg(at("sshd_config"));
    let server = Process::listening(server, server_port)?;
    let mut client = Command::new(ssh);
    client.args(["-F", "none", "-N", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]);
    client.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-p", &server_port.to_string()]);
    client.arg("-i").arg(at("user")).arg("-L").arg(format!("127.0.0.1:{port}:127.0.0.1:{target}")).arg("127.0.0.1");
    client.env_remove("SSH_AUTH_SOCK");
    let client = Process::listening(client, port)?;
    Ok(Some(route(SSH.0, port, client, server, Some(folder))))
}

fn bore(target: u16) -> Result<Option<Route>> {
    let Some(program) = find("bore") else { return Ok(None) };
    // Its control port cannot be chosen.
    const CONTROL: u16 = 7835;
    let mut server = Command::new(&program);
    server.args(["server", "--bind-addr", "127.0.0.1", "--bind-tunnels", "127.0.0.1"]);
    let server = Process::listening(server, CONTROL)?;
    let port = free_port()?;
    let mut client = Command::new(&program);
    client.args(["local", &target.to_string(), "--to", "127.0.0.1", "--port", &port.to_string()]);
    let client = Process::listening(client, port)?;
    Ok(Some(route("bore, no encryption", port, server, client, None)))
}

fn rathole(target: u16) -> Result<Option<Route>> {
    let Some(program) = find("rathole") else { return Ok(None) };
    let folder = TempDir::new()?;
    let (control, port) = (free_port()?, free_port()?);
    let service = "services.bench]\ntoken = \"bench\"\n";
    let conf = folder.path().join("server.toml");
    let text =
        format!("[server]\nbind_addr = \"127.0.0.1:{control}\"\n[server.{service}bind_addr = \"127.0.0.1:{port}\"\n");
    fs::write(&conf, text)?;
    let mut server = Command::new(&program);
    server.arg("--server").arg(&conf);
    let server = Process::listening(server, control)?;
    let conf = folder.path().join("client.toml");
    let text = format!(
        "[client]\nremote_addr = \"127.0.0.1:{control}\"\n[client.{service}local_addr = \"127.0.0.1:{target}\"\n"
    );
    fs::write(&conf, text)?;
    let mut client = Command::new(&program);
    client.arg("--client").arg(&conf);
    let client = Process::listening(client, port)?;
    Ok(Some(route("rathole, no encryption", port, server, client, Some(folder))))
}

fn wstunnel(target: u16) -> Result<Option<Route>> {
    let Some(program) = find("wstunnel") else { return Ok(None) };
    let (control, port) = (free_port()?, free_port()?);
    let mut server = Command::new(&program);
    server.args(["server", &format!("wss://127.0.0.1:{control}")]);
    let server = Process::listening(server, control)?;
    let mut client = Command::new(&program);
    client.args(["client", "-L", &format!("tcp://127.0.0.1:{port}:127.0.0.1:{target}")]);
    client.arg(format!("wss://127.0.0.1:{control}"));
    let client = Process::listening(client, port)?;
    Ok(Some(route("wstunnel, wss", port, client, server, None)))
}

fn route(name: &'static str, port: u16, near: Process, far: Process, folder: Option<TempDir>) -> Route {
    let (near_pids, far_pids) = (family(near.pid()), family(far.pid()));
    Route { name, port, near: near_pids, far: far_pids, _processes: vec![near, far], _folder: folder }
}

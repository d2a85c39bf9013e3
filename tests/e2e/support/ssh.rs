//! An SSH server with its own host key, that lets one key in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::place::Place;
use super::program::{Run, Running, command, find, is_root};

/// An SSH server for the user that runs the tests. It waits for as long as it takes, and so do its clients.
#[derive(Debug)]
pub struct Sshd {
    /// The port on 127.0.0.1.
    pub port: u16,
    key: PathBuf,
    _program: Running,
    _folder: TempDir,
}

impl Sshd {
    /// On this host.
    #[track_caller]
    pub fn start() -> Sshd {
        Sshd::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> Sshd {
        let folder = TempDir::new().expect("a temporary folder");
        let (host_key, key) = (folder.path().join("host"), folder.path().join("user"));
        for path in [&host_key, &key] {
            Run::of({
                let mut keygen = command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f"]);
                keygen.arg(path);
                keygen
            })
            .ok();
        }
        fs::copy(key.with_extension("pub"), folder.path().join("authorized")).expect("a file of ours");
        if is_root() {
            // Where a started service would have made it; sshd of root refuses to live without.
            fs::create_dir_all("/run/sshd").expect("root may make it");
        }
        let conf = folder.path().join("sshd_config");
        fs::write(&conf, sshd_config(folder.path(), &host_key)).expect("a file of ours");
        let (port, program) = Running::on_free_port(|port| {
            let mut sshd = Command::new(find("sshd"));
            sshd.args(["-D", "-e", "-p", &port.to_string(), "-f"]).arg(&conf);
            place.run(sshd)
        });
        Sshd { port, key, _program: program, _folder: folder }
    }

    /// An `ssh` to `port` of the loopback: the server's, or that of a forward. `words` are options, then host and command;
    /// the host is called `there`.
    #[track_caller]
    pub fn client(&self, port: u16, words: &[&str]) -> Command {
        self.command("ssh", port, words)
    }

    /// An `scp` in the same manner: one of the two names in `words` begins with `there:`.
    #[track_caller]
    pub fn copy(&self, port: u16, words: &[&str]) -> Command {
        self.command("scp", port, words)
    }

    #[track_caller]
    fn command(&self, program: &str, port: u16, words: &[&str]) -> Command {
        let mut command = command(program, ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "HostName=127.0.0.1"]);
        command.args(["-o", "IdentitiesOnly=yes", "-o", &format!("Port={port}"), "-i"]);
        command.arg(&self.key).args(words).env_remove("SSH_AUTH_SOCK");
        command
    }
}

fn sshd_config(folder: &Path, host_key: &Path) -> String {
    let folder = folder.display();
    format!(
        "LoginGraceTime 0\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\n\
         UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
         AllowTcpForwarding yes\nSubsystem sftp internal-sftp\n",
        host_key.display()
    )
}

//! Git over its own protocol, which wants both directions of a connection to end one after the other.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::place::Place;
use super::program::{Run, Running, command};

/// A git daemon with one repository, `project.git`, of one commit; pushes are taken.
#[derive(Debug)]
pub struct GitDaemon {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The bare repository.
    pub repository: PathBuf,
    _program: Running,
    _folder: TempDir,
}

impl GitDaemon {
    /// The content of `README` in the repository.
    pub const README: &'static str = "A project.\n";

    /// On this host.
    #[track_caller]
    pub fn start() -> GitDaemon {
        GitDaemon::start_at(&Place::Here)
    }

    /// At `place`.
    #[track_caller]
    pub fn start_at(place: &Place) -> GitDaemon {
        let folder = TempDir::new().expect("a temporary folder");
        let (work, repository) = (folder.path().join("work"), folder.path().join("project.git"));
        Run::of(git(&["init", "-q", "-b", "main", &work.to_string_lossy()])).ok();
        std::fs::write(work.join("README"), GitDaemon::README).expect("a file of ours");
        let in_work = |words: &[&str]| {
            let mut git = git(words);
            git.current_dir(&work);
            Run::of(git).ok()
        };
        in_work(&["add", "README"]);
        in_work(&["commit", "-q", "-m", "First"]);
        in_work(&["clone", "-q", "--bare", ".", &repository.to_string_lossy()]);
        let (port, program) = Running::on_free_port(|port| {
            let mut daemon =
                git(&["daemon", "--listen=127.0.0.1", "--export-all", "--enable=receive-pack", "--reuseaddr"]);
            daemon.arg(format!("--port={port}")).arg(format!("--base-path={}", folder.path().display()));
            place.run(daemon)
        });
        GitDaemon { port, repository, _program: program, _folder: folder }
    }

    /// The URL of the repository at `port` of the loopback: the daemon's, or that of a forward.
    pub fn url(port: u16) -> String {
        format!("git://127.0.0.1:{port}/project.git")
    }
}

/// `git` as a person without any configuration would have it.
#[track_caller]
pub fn git(words: &[&str]) -> Command {
    let mut git = command("git", words);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "A Person").env(format!("GIT_{role}_EMAIL"), "person@example.invalid");
    }
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(variable);
    }
    git
}

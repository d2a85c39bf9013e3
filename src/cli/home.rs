//! Where a program keeps things: configuration, state, sockets. `NEXUS_HOME` puts all of a laptop's in one place.

use std::path::PathBuf;

/// Everything of one user on a laptop.
#[cfg(feature = "proxy")]
#[derive(Debug, Clone)]
pub struct Home {
    /// The declared tools, tokens, files.
    pub config: PathBuf,
    /// Keys, pins, the embedded coordinator.
    pub data: PathBuf,
    /// Sockets of what runs now.
    pub run: PathBuf,
}

#[cfg(feature = "proxy")]
impl Home {
    /// `$NEXUS_HOME` when it is set; else `~/.nexus/config.yaml`, the user's data directory, and `$XDG_RUNTIME_DIR`.
    pub fn find() -> std::io::Result<Home> {
        if let Some(home) = std::env::var_os("NEXUS_HOME").filter(|home| !home.is_empty()) {
            let home = std::path::absolute(home)?;
            return Ok(Home { config: home.join("config.yaml"), data: home.join("data"), run: home.join("run") });
        }
        let user = etcetera::home_dir().map_err(std::io::Error::other)?;
        let data = data_dir("nexus-proxy")?;
        let run = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let run = run.map_or_else(|| data.join("run"), |dir| PathBuf::from(dir).join("nexus-proxy"));
        Ok(Home { config: user.join(".nexus/config.yaml"), data, run })
    }

    /// Who in a workspace asked for what, and what it got: JSON lines.
    pub fn audit(&self) -> PathBuf {
        self.data.join("audit.log")
    }
}

/// A directory below the user's data directory.
#[cfg(any(feature = "proxy", feature = "coordinator"))]
pub fn data_dir(name: &str) -> std::io::Result<PathBuf> {
    use etcetera::BaseStrategy;
    let strategy = etcetera::choose_base_strategy().map_err(std::io::Error::other)?;
    Ok(strategy.data_dir().join(name))
}

/// Where a stub keeps its state: `/var/lib/nexus-stub` for root, else below the home directory.
#[cfg(feature = "stub")]
pub fn stub_state() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/nexus-stub".into();
    }
    // Never below a directory where others may write: whoever made it first would have the key.
    let account = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir);
    let home = std::env::var_os("HOME").map(PathBuf::from).or_else(account);
    home.unwrap_or_else(|| "/".into()).join(".local/state/nexus-stub")
}

//! Files that a role keeps: private (0600 in a 0700 directory), replaced whole or not at all.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Bytes of a file that a role keeps. Keys, certificates, a few names.
const MAX_FILE: u64 = 1024 * 1024;

/// Bytes of a log. Each call of a workspace adds a line, and a workspace may call without end.
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// How often a log's size is looked at.
const LOG_CHECK: Duration = Duration::from_secs(5);

/// How long whoever has a lock is waited for: what is done under one takes milliseconds, unless its process was stopped meanwhile.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a lock is tried meanwhile: nothing tells when it is free without holding a thread.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// A lock of a file that is had. Ends with its process, however that ends.
#[derive(Debug)]
pub struct Lock(File);

/// Which lock is wanted: [`File::try_lock`], or [`File::try_lock_shared`].
pub type Take = fn(&File) -> Result<(), TryLockError>;

impl Lock {
    /// Waits for nobody: `None` while somebody else has it.
    pub fn take(file: File, take: Take) -> io::Result<Option<Lock>> {
        match take(&file) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for up to `patience`, without holding a thread; `None` when somebody else had it all that time.
    pub async fn wait(file: File, take: Take, patience: Duration) -> io::Result<Option<Lock>> {
        let deadline = Instant::now() + patience;
        loop {
            match take(&file) {
                Ok(()) => return Ok(Some(Lock(file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(None),
                Err(TryLockError::WouldBlock) => sleep(LOCK_POLL).await,
            }
        }
    }

    /// The file that is locked.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A program that is being started has the file open too, for a moment: closing it here would not free it.
        let _ = self.0.unlock();
    }
}

/// Makes a directory for private files, and its parents. One that is there must be this user's (or root's), and not
/// writable by others: whoever made it, say below a shared `XDG_RUNTIME_DIR`, could put a socket or a key in place of
/// ours. Root is trusted to know whose directory it is given: a volume of a container is often its user's.
pub fn private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| named(path, e))?;
    let metadata = std::fs::metadata(path).map_err(|e| named(path, e))?;
    let own = nix::unistd::geteuid().as_raw();
    if (own != 0 && metadata.uid() != own && metadata.uid() != 0) || metadata.mode() & 0o022 != 0 {
        let text = "others may write to it. hint: make it yours alone (chown, chmod 700), or choose another directory";
        return Err(named(path, io::Error::new(io::ErrorKind::PermissionDenied, text)));
    }
    Ok(())
}

/// Opens a private log to append to. One over its bound begins anew, and the old one is kept beside it.
pub fn log(path: &Path) -> io::Result<std::fs::File> {
    begin_anew(path, MAX_LOG).map_err(|e| named(path, e))?;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|e| named(path, e))
}

/// Keeps a log that is appended to within its bound, give or take what comes between two looks.
pub async fn bound_log(path: &Path) {
    loop {
        tokio::time::sleep(LOG_CHECK).await;
        if let Err(error) = begin_anew(path, MAX_LOG) {
            tracing::warn!(%error, "the log could not begin anew");
        }
    }
}

/// Whoever appends has the file open: so the old content is copied aside, and the file itself emptied.
fn begin_anew(path: &Path, max: u64) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > max) {
        std::fs::copy(path, path.with_extension("log.old"))?;
        std::fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    }
    Ok(())
}

/// Writes a private file whole: a crash leaves the old one or the new one.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = (|| {
        let _ = std::fs::remove_file(&temporary);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(|e| named(path, e))
}

/// Reads a private file as text; `None` when it does not exist. Refused when others can read or write it.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(path, error)),
    };
    let metadata = file.metadata().map_err(|e| named(path, e))?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        let text = format!("others can read it (mode {:o}). hint: chmod 600 {}", mode & 0o777, path.display());
        return Err(named(path, io::Error::new(io::ErrorKind::PermissionDenied, text)));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text).map_err(|e| named(path, e))?;
    Ok(Some(text))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/key");
        private_dir(path.parent().unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_log_begins_anew_under_whoever_appends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.log");
        let mut file = log(&path).unwrap();
        file.write_all(b"old").unwrap();
        begin_anew(&path, 3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        begin_anew(&path, 2).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let aside = dir.path().join("w.log.old");
        assert_eq!(std::fs::read(&aside).unwrap(), b"old");
        assert_eq!(std::fs::metadata(&aside).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        private_dir(dir.path()).unwrap();
        for mode in [0o777, 0o1777, 0o720] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(private_dir(dir.path()).unwrap_err().to_string().contains("hint:"));
        }
    }
}

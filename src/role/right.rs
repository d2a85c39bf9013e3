//! The right to have a Unix socket, which one process has at a time: a lock on a file beside it. It ends with its process,
//! however that ends.
//!
//! Binds nothing, and removes no file: what is at the socket's path is its owner's matter.

use std::fs::{File, Metadata};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::Lock;
use super::local;

/// How often the right is tried to be had while its owner is about to end: nothing tells it across processes.
const POLL: Duration = Duration::from_millis(10);

/// The right to have a socket, or whatever else its file stands for.
#[derive(Debug)]
pub struct Right {
    lock: Lock,
}

/// Why it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NotHad {
    /// Somebody has it, and listens.
    #[error("another process listens there")]
    Served,
    /// Somebody has it and does not listen, and did not give it up in time.
    #[error("another process has the right to it, and does not listen")]
    Held,
    /// It cannot be told.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Right {
    /// Has the right to the socket at `path`. Somebody who has it and does not listen there is about to end, or only looks whether it is had: he
    /// is waited for, for `patience` at the most.
    pub async fn have(path: &Path, patience: Duration) -> Result<Right, NotHad> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(right) = Right::take(&file_of(path))? {
                return Ok(right);
            }
            if !local::is_deserted(path).await {
                return Err(NotHad::Served);
            }
            if Instant::now() >= deadline {
                return Err(NotHad::Held);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Has the right that the lock on `file` is; `None` while somebody else has it, or looks.
    pub fn take(file: &Path) -> io::Result<Option<Right>> {
        loop {
            match Lock::take(open(file)?, File::try_lock)? {
                Some(lock) if is_at(lock.file(), file) => return Ok(Some(Right { lock })),
                // Whoever had it has removed it meanwhile; the next one locks another file.
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Writes into its file, in place of what one that was killed has left.
    pub fn say(&self, content: &[u8]) -> io::Result<()> {
        let mut file = self.lock.file();
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(content)
    }

    /// Whether somebody has the right to the socket at `path`. Those who look share the lock for a moment, and so none is taken for
    /// its owner by another.
    pub fn is_had(path: &Path) -> bool {
        let Ok(lock) = File::open(file_of(path)) else { return false };
        !matches!(Lock::take(lock, File::try_lock_shared), Ok(Some(_)))
    }
}

/// The file whose lock is the right to have the socket at `path`.
pub fn file_of(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// Which file it is: its device and number.
pub fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn open(file: &Path) -> io::Result<File> {
    let opened = File::options().write(true).create(true).truncate(false).mode(0o600).open(file);
    opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))
}

/// Whether `file` is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let of = |metadata: io::Result<Metadata>| metadata.ok().as_ref().map(identity);
    of(file.metadata()).is_some_and(|this| of(std::fs::metadata(path)) == Some(this))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_file_that_was_removed_has_no_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.sock");
        let first = Right::have(&path, Duration::ZERO).await.unwrap();
        assert!(Right::is_had(&path));
        assert!(matches!(Right::have(&path, Duration::ZERO).await, Err(NotHad::Held)));
        let waiting = open(&file_of(&path)).unwrap();
        assert!(waiting.try_lock().is_err());
        std::fs::remove_file(file_of(&path)).unwrap();
        drop(first);
        waiting.try_lock().unwrap();
        assert!(!is_at(&waiting, &file_of(&path)), "that one is no right to anything");
        let _second = Right::have(&path, Duration::ZERO).await.unwrap();
        let _listens = local::bind(&path).unwrap();
        assert!(matches!(Right::have(&path, Duration::ZERO).await, Err(NotHad::Served)));
    }

    #[tokio::test]
    async fn who_only_looks_is_waited_for_and_is_not_taken_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.sock");
        assert!(!Right::is_had(&path), "there is no file");
        drop(Right::have(&path, Duration::ZERO).await.unwrap());
        let looks = File::open(file_of(&path)).unwrap();
        looks.try_lock_shared().unwrap();
        assert!(!Right::is_had(&path));
        let mut waits = std::pin::pin!(Right::have(&path, Duration::from_secs(60)));
        assert!(futures::poll!(&mut waits).is_pending());
        looks.unlock().unwrap();
        waits.await.unwrap();
        assert!(!Right::is_had(&path), "it ends with its owner");
    }
}

//! Files that a role keeps: private (0600 in a 0700 directory), replaced whole or not at all.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a file that a role keeps. Keys, certificates, a few names.
const MAX_FILE: u64 = 1024 * 1024;

/// Bytes of a log that is appended to by another run.
const MAX_LOG: u64 = 16 * 1024 * 1024;

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

/// Opens a private log to append to. One over [`MAX_LOG`] begins anew, and the old one is kept beside it.
pub fn log(path: &Path) -> io::Result<std::fs::File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_LOG) {
        std::fs::rename(path, path.with_extension("log.old")).map_err(|e| named(path, e))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|e| named(path, e))
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
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        private_dir(dir.path()).unwrap();
        for mode in [0o777, 0o1777, 0o720] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(private_dir(dir.path()).unwrap_err().to_string().contains("hint:"));
        }
    }
}

//! Reading a whole small file that the laptop's owner has named: bounded, and never stuck on a FIFO or a device.
//!
//! Symbolic links are followed, because the owner chose the path. Paths that a workspace chooses go through
//! [`file`](super::file), which follows none.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum PlainFileError {
    /// There is none.
    #[error("it does not exist")]
    Missing,
    /// It is a directory, a device, a FIFO or a socket.
    #[error("it is not a regular file")]
    NotRegular,
    /// It is over the bound.
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
    /// The system would not let it be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads a regular file of at most `max` bytes. Blocks.
pub fn read(path: &Path, max: usize) -> Result<Vec<u8>, PlainFileError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => PlainFileError::Missing,
        rustix::io::Errno::NXIO => PlainFileError::NotRegular,
        e => PlainFileError::Io(e.into()),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(PlainFileError::NotRegular);
    }
    let mut bytes = Vec::new();
    File::from(fd).take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(PlainFileError::TooLarge(max));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_a_small_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(PlainFileError::TooLarge(4))));
        assert!(matches!(read(dir.path(), 4), Err(PlainFileError::NotRegular)));
        assert!(matches!(read(Path::new("/dev/zero"), 4), Err(PlainFileError::NotRegular)));
        assert!(matches!(read(&dir.path().join("none"), 4), Err(PlainFileError::Missing)));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&fifo, 4), Err(PlainFileError::NotRegular)));
    }
}

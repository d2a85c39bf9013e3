//! The address under which clients reach this coordinator, as `serve` was told it: kept in the data directory, for the
//! commands beside it that print what a person types elsewhere.

use std::io;
use std::path::Path;

use super::files;
use crate::transport::address::CoordinatorUrl;

const FILE: &str = "public-url";

/// Keeps it, or forgets what was kept when `serve` was told none.
pub fn keep(data: &Path, url: Option<&CoordinatorUrl>) -> io::Result<()> {
    let path = data.join(FILE);
    match url {
        Some(url) => files::write(&path, &format!("{url}\n")),
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// What was kept, when it is an address.
pub fn read(data: &Path) -> io::Result<Option<CoordinatorUrl>> {
    Ok(files::read(&data.join(FILE))?.and_then(|text| text.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let url: CoordinatorUrl = "https+balancer://h".parse().unwrap();
        keep(dir.path(), Some(&url)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(url));
        keep(dir.path(), None).unwrap();
        keep(dir.path(), None).unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
    }
}

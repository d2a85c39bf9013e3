//! The authorities of a load balancer, where they are not those that the system trusts: kept beside the keys, because
//! every later connection needs them too.

use std::io;
use std::path::Path;

use super::files;
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::ClientError;
use crate::transport::outer::OuterTls;

/// The file, in PEM.
const FILE: &str = "balancer-ca.pem";

/// Keeps `authorities`, in PEM, in `dir`; without any, forgets those that were kept before.
pub fn keep(dir: &Path, authorities: Option<&str>) -> io::Result<()> {
    let path = dir.join(FILE);
    match authorities {
        Some(pem) => {
            files::private_dir(dir)?;
            files::write(&path, pem.as_bytes())
        }
        None => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Who ends the outer TLS of the coordinator at `url`, with the authorities kept in `dir`.
pub fn outer(dir: &Path, url: &CoordinatorUrl) -> Result<OuterTls, ClientError> {
    if !url.is_behind_balancer() {
        return Ok(OuterTls::Coordinator);
    }
    let kept = files::read(&dir.join(FILE));
    let kept =
        kept.map_err(|e| ClientError::Identity(format!("{e}. hint: pair (--new-key) or enrol again with --ca-file")))?;
    OuterTls::new(url, kept.as_deref())
}

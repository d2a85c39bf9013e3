//! Where the authority lives: `ca.pem` and `ca.key` in the data directory. Made once; never replaced, because
//! every device and workspace would have to be paired and enrolled again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use data_encoding::BASE32_NOPAD;

use crate::identity::{Authority, Credential, Identity, IdentityError, PrivateKey, Role};
use crate::wire::name::TrustDomain;

use super::files;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const LOCK: &str = "ca.lock";

/// Random bytes in the name of a trust domain: eight characters of base32.
const DOMAIN_BYTES: usize = 5;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The files cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there and not usable.
    #[error("{path}: {source}. hint: {}", source.hint())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The certificate is there and its key is not.
    #[error(
        "{path} is missing, and without it no certificate can be issued. hint: restore it from a backup; or move ca.pem away for a new authority, and pair and enrol everything again"
    )]
    KeyMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Certificates cannot be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The authority of this data directory; made if there is none. Two processes that start at once get the same.
/// Blocks for the time of a few file operations.
pub fn load_or_create(dir: &Path, now: SystemTime) -> Result<Authority, AuthorityError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| AuthorityError::Io { path, source }
    };
    files::prepare_data_dir(dir).map_err(at(dir))?;
    let (certificate_path, key_path, lock_path) = (dir.join(CERTIFICATE), dir.join(KEY), dir.join(LOCK));
    // Released when it is closed, also by a crash.
    let lock = files::open_private(&lock_path).map_err(at(&lock_path))?;
    lock.lock().map_err(at(&lock_path))?;
    let certificate = files::read(&certificate_path).map_err(at(&certificate_path))?;
    let key = files::read(&key_path).map_err(at(&key_path))?;
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| AuthorityError::Unusable { path, source }
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Authority::load(&certificate, &key).map_err(unusable(&certificate_path)),
        (Some(_), None) => Err(AuthorityError::KeyMissing { path: key_path }),
        (None, key) => {
            // A key alone is left by a crash between the two writes; nobody has trusted it yet.
            let key = match key {
                Some(key) => PrivateKey::from_pem(&key).map_err(unusable(&key_path))?,
                None => PrivateKey::generate()?,
            };
            let authority = Authority::create_with(new_domain()?, key, now)?;
            files::write(&key_path, &authority.key_pem()).map_err(at(&key_path))?;
            files::write(&certificate_path, &authority.trust().to_pem()).map_err(at(&certificate_path))?;
            Ok(authority)
        }
    }
}

/// The coordinator's own credential, with a new key that exists in memory only. `extra_sans` are the DNS names
/// and addresses under which it is reached, for clients that look at those.
pub fn server_credential(
    authority: &Authority,
    lifetime: Duration,
    now: SystemTime,
    extra_sans: &[String],
) -> Result<Credential, IdentityError> {
    let key = PrivateKey::generate()?;
    let identity = Identity::new(authority.domain().clone(), Role::Coordinator);
    let chain = authority.issue(&key.csr_der()?, &identity, lifetime, now, extra_sans)?;
    Credential::new(chain, key)
}

fn new_domain() -> Result<TrustDomain, IdentityError> {
    let mut random = [0; DOMAIN_BYTES];
    rand::fill(&mut random);
    let name = format!("nexus-{}", BASE32_NOPAD.encode(&random).to_ascii_lowercase());
    name.parse().map_err(|e| IdentityError::Internal(format!("trust domain: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let now = SystemTime::now();
        let first = load_or_create(&path, now).unwrap();
        let again = load_or_create(&path, now).unwrap();
        assert_eq!(first.trust(), again.trust());
        assert!(first.domain().as_str().starts_with("nexus-"));
        assert_eq!(first.domain().as_str().len(), 14);
        assert_eq!(fs::metadata(path.join(KEY)).unwrap().mode() & 0o777, 0o600);
        let credential = server_credential(&first, Duration::from_secs(60), now, &["localhost".into()]).unwrap();
        assert_eq!(credential.identity().role, Role::Coordinator);
    }

    #[test]
    fn all_who_start_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let pins: Vec<_> = std::thread::scope(|scope| {
            let start = || load_or_create(&path, SystemTime::now()).unwrap().trust().ca_pin();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(pins.iter().all(|pin| *pin == pins[0]));
    }

    #[test]
    fn half_of_it_is_finished_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let first = load_or_create(dir.path(), now).unwrap();
        fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
        assert_eq!(load_or_create(dir.path(), now).unwrap().trust().ca_pin(), first.trust().ca_pin());
        fs::write(dir.path().join(KEY), PrivateKey::generate().unwrap().to_pem().as_bytes()).unwrap();
        assert!(matches!(load_or_create(dir.path(), now), Err(AuthorityError::Unusable { .. })));
        fs::remove_file(dir.path().join(KEY)).unwrap();
        let error = load_or_create(dir.path(), now).unwrap_err();
        assert!(error.to_string().contains("hint:"), "{error}");
    }
}

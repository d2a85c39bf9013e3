//! Where authorities live. The one that signs: `ca.pem` and `ca.key` in the data directory. The one after it, from its
//! publication until it signs: `next.key`. The database says which is which, and has all certificates; what it says counts,
//! and the files follow. Without a word of the database, the first is made.
//!
//! No authority is replaced here: `rotation` does that, in steps.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use data_encoding::BASE32_NOPAD;

use crate::identity::{Authority, Bundle, Credential, Identity, IdentityError, KeyPin, PrivateKey, Role, Trust};
use crate::role::files::{LOCK_TIMEOUT, Lock};
use crate::wire::name::TrustDomain;

use super::authority_store::AuthorityRecord;
use super::files;
use super::rules::unix;
use super::store::{Store, StoreError};

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const LOCK: &str = "ca.lock";
const NEXT_KEY: &str = "next.key";

/// How often keys are looked for: between two looks another process may have put one in its place.
const LOOKS: usize = 2;

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
        "{path} is missing, and without it no certificate can be issued. hint: restore it from a backup; or move the data directory away for a new coordinator, and pair (--new-key) and enrol everything again"
    )]
    KeyMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Another process is making it.
    #[error(
        "another process is making the authority of this data directory, or reading it, and has {path}; it was waited for {} s. hint: \
         try again; `fuser -v {path}` shows one that was stopped at it, such as another nexus-coordinator, and `kill -CONT PID` lets \
         that go on",
        LOCK_TIMEOUT.as_secs(),
        path = path.display()
    )]
    Held {
        /// The file whose lock it has.
        path: PathBuf,
    },
    /// Certificates cannot be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The authorities in force.
#[derive(Debug)]
pub struct Authorities {
    signing: Authority,
    trust: Trust,
    bundle: String,
}

impl Authorities {
    /// `signing` signs; `in_force` are that one and the others, newest first.
    fn new(signing: Authority, in_force: Vec<Trust>) -> Result<Authorities, IdentityError> {
        let others = in_force.iter().filter(|trust| trust.ca_pin() != signing.trust().ca_pin()).cloned().collect();
        let bundle = Bundle::new(signing.trust().clone(), others, signing.crossed().to_vec())?.to_pem();
        Ok(Authorities { signing, trust: Trust::of_all(in_force)?, bundle })
    }

    /// The one that signs.
    pub fn signing(&self) -> &Authority {
        &self.signing
    }

    /// All that are in force, newest first.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What members are told: those in force, and certificates with which one vouches for the next. PEM.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The certificate, in PEM, of the authority whose pin begins so, if it is in force.
    pub fn with_prefix(&self, prefix: &[u8; 16]) -> Option<String> {
        let anchor = self.trust.anchors().iter().find(|anchor| anchor.pin.prefix() == *prefix)?;
        Trust::from_der(anchor.ca.clone()).ok().map(|trust| trust.to_pem())
    }
}

impl From<Authority> for Authorities {
    /// One alone.
    fn from(authority: Authority) -> Authorities {
        let trust = authority.trust().clone();
        Authorities { bundle: trust.to_pem(), trust, signing: authority }
    }
}

/// The authorities of the data directory that `store` is in; the first is made if there is none.
pub async fn load(store: &Store, now: SystemTime) -> Result<Authorities, AuthorityError> {
    let records = store.authorities().await?;
    if !records.is_empty() {
        return from_records(store.dir(), &records);
    }
    let first = load_or_create(store.dir(), now).await?;
    let mut change = store.begin().await?;
    if change.authorities().await?.is_empty() {
        let record = AuthorityRecord {
            pin: first.trust().ca_pin(),
            certificate: first.trust().to_pem(),
            crossed: None,
            published: unix(now),
            signs: Some(unix(now)),
            retired: None,
        };
        change.put_authority(&record).await?;
        change.commit().await?;
    }
    Ok(first.into())
}

/// The records of those in force, newest first.
pub(super) fn in_force(records: &[AuthorityRecord]) -> impl Iterator<Item = &AuthorityRecord> {
    records.iter().rev().filter(|record| record.retired.is_none())
}

/// The record of the one that signs.
pub(super) fn signing(records: &[AuthorityRecord]) -> Option<&AuthorityRecord> {
    in_force(records).find(|record| record.signs.is_some())
}

pub(super) fn from_records(dir: &Path, records: &[AuthorityRecord]) -> Result<Authorities, AuthorityError> {
    let missing = || AuthorityError::KeyMissing { path: dir.join(KEY) };
    let record = signing(records).ok_or_else(missing)?;
    let key = key(dir, record.pin)?.ok_or_else(missing)?;
    let mut crossed = Vec::new();
    // Those that vouch for the one that is published, then for the one that signs, and so on back.
    for text in records.iter().rev().filter_map(|record| record.crossed.as_deref()) {
        crossed.extend(Bundle::vouchers_from_pem(text)?);
    }
    let trust = in_force(records).map(|record| Trust::from_pem(&record.certificate));
    let signing = Authority::load(&record.certificate, &key.to_pem())?.with_crossed(crossed);
    Ok(Authorities::new(signing, trust.collect::<Result<_, _>>()?)?)
}

/// The key with this pin, wherever it is.
pub(super) fn key(dir: &Path, pin: KeyPin) -> Result<Option<PrivateKey>, AuthorityError> {
    for _ in 0..LOOKS {
        for path in [dir.join(KEY), dir.join(NEXT_KEY)] {
            let text = files::read(&path).map_err(|source| AuthorityError::Io { path: path.clone(), source })?;
            let Some(text) = text else { continue };
            let key = PrivateKey::from_pem(&text).map_err(|source| AuthorityError::Unusable { path, source })?;
            if key.pin() == pin {
                return Ok(Some(key));
            }
        }
    }
    Ok(None)
}

/// Keeps the key of the authority that will sign next. The caller holds a change of the database.
pub(super) fn keep_next(dir: &Path, next: &Authority) -> Result<(), AuthorityError> {
    let path = dir.join(NEXT_KEY);
    files::write(&path, &next.key_pem()).map_err(|source| AuthorityError::Io { path, source })
}

/// Brings the files to what the database says: after a switch the former key is replaced, for it is of no use any more.
/// The caller holds a change of the database.
pub(super) fn tidy(dir: &Path, records: &[AuthorityRecord]) -> Result<(), AuthorityError> {
    let Some(record) = signing(records) else { return Ok(()) };
    let next = dir.join(NEXT_KEY);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| AuthorityError::Io { path, source }
    };
    let Some(text) = files::read(&next).map_err(at(&next))? else { return Ok(()) };
    let key = PrivateKey::from_pem(&text).map_err(|source| AuthorityError::Unusable { path: next.clone(), source })?;
    if key.pin() == record.pin {
        files::write(&dir.join(KEY), &text).map_err(at(&dir.join(KEY)))?;
        files::write(&dir.join(CERTIFICATE), &record.certificate).map_err(at(&dir.join(CERTIFICATE)))?;
        std::fs::remove_file(&next).map_err(at(&next))?;
    }
    Ok(())
}

/// The authority in the files of this data directory; made if there is none. Two processes that start at once get the same.
/// Whoever makes it is waited for, for five seconds at the most, without holding a thread; then it is a few file operations.
pub async fn load_or_create(dir: &Path, now: SystemTime) -> Result<Authority, AuthorityError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| AuthorityError::Io { path, source }
    };
    files::prepare_data_dir(dir).map_err(at(dir))?;
    let (certificate_path, key_path, lock_path) = (dir.join(CERTIFICATE), dir.join(KEY), dir.join(LOCK));
    let lock = files::open_private(&lock_path).map_err(at(&lock_path))?;
    let lock = Lock::wait(lock, File::try_lock, LOCK_TIMEOUT).await.map_err(at(&lock_path))?;
    let _lock = lock.ok_or_else(|| AuthorityError::Held { path: lock_path })?;
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

    #[tokio::test]
    async fn made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let now = SystemTime::now();
        let first = load_or_create(&path, now).await.unwrap();
        let again = load_or_create(&path, now).await.unwrap();
        assert_eq!(first.trust(), again.trust());
        assert!(first.domain().as_str().starts_with("nexus-"));
        assert_eq!(first.domain().as_str().len(), 14);
        assert_eq!(fs::metadata(path.join(KEY)).unwrap().mode() & 0o777, 0o600);
        let credential = server_credential(&first, Duration::from_secs(60), now, &["localhost".into()]).unwrap();
        assert_eq!(credential.identity().role, Role::Coordinator);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_who_start_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let start = || {
            let path = path.clone();
            tokio::spawn(async move { load_or_create(&path, SystemTime::now()).await.unwrap().trust().ca_pin() })
        };
        let started: Vec<_> = (0..8).map(|_| start()).collect();
        let pins: Vec<_> = futures::future::try_join_all(started).await.unwrap();
        assert!(pins.iter().all(|pin| *pin == pins[0]));
    }

    /// Such as a command beside the coordinator that was stopped between the lock and its release. There is one thread: who held
    /// it would let nobody tell the time.
    #[tokio::test]
    async fn who_holds_the_lock_and_does_not_let_go_is_named_and_stops_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let other = files::open_private(&dir.path().join(LOCK)).unwrap();
        other.lock().unwrap();
        let mut loads = std::pin::pin!(load_or_create(dir.path(), SystemTime::now()));
        assert!(futures::poll!(&mut loads).is_pending());
        let error = loads.await.unwrap_err();
        assert!(matches!(&error, AuthorityError::Held { path } if path.ends_with(LOCK)), "{error}");
        assert!(error.to_string().contains("for 5 s. hint:"), "{error}");
        other.unlock().unwrap();
        load_or_create(dir.path(), SystemTime::now()).await.unwrap();
    }

    #[tokio::test]
    async fn half_of_it_is_finished_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let first = load_or_create(dir.path(), now).await.unwrap();
        fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
        assert_eq!(load_or_create(dir.path(), now).await.unwrap().trust().ca_pin(), first.trust().ca_pin());
        fs::write(dir.path().join(KEY), PrivateKey::generate().unwrap().to_pem().as_bytes()).unwrap();
        assert!(matches!(load_or_create(dir.path(), now).await, Err(AuthorityError::Unusable { .. })));
        fs::remove_file(dir.path().join(KEY)).unwrap();
        let error = load_or_create(dir.path(), now).await.unwrap_err();
        assert!(error.to_string().contains("hint:"), "{error}");
    }
}

//! The laptop's keychain: the system's own, or where there is none an encrypted file of ours.
//!
//! The system's calls block and may never return, so each runs on a thread of its own under a time limit; while one
//! is stuck, the file serves. The file is refused to nobody but those who cannot read it: 0600, and encrypted with a
//! key from a passphrase or, without one, from a key file beside it, which protects backups rather than the account.

mod file;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use data_encoding::BASE64;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use zeroize::Zeroizing;

use crate::service::secret::Secret;
pub use file::PASSPHRASE;
use file::{Change, FileStore};

/// How long the system's keychain may take to answer; a locked one may wait for a person who is not there.
pub const NATIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Environment variable: the value `file` leaves the system's keychain alone.
pub const KEYCHAIN: &str = "NEXUS_KEYCHAIN";

/// Why the keychain gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum KeychainError {
    /// The encrypted file was made with a passphrase that is not here, or with another one, or was changed.
    #[error("the encrypted keychain file does not open. hint: set {PASSPHRASE} to the passphrase it was made with")]
    Locked,
    /// The encrypted file is not one of ours, or of a newer version.
    #[error("the encrypted keychain file is damaged or of a newer version. hint: move it away and store again")]
    Damaged,
    /// A secret over the bound.
    #[error("the keychain file holds at most {0} bytes")]
    TooLarge(usize),
    /// The system failed.
    #[error("the keychain file cannot be used: {0}")]
    Io(#[from] std::io::Error),
}

/// The keychain.
#[derive(Debug, Clone)]
pub struct Keychain {
    native: bool,
    stuck: Arc<AtomicBool>,
    file: FileStore,
}

impl Keychain {
    /// The system's keychain, with the encrypted file in `dir` behind it.
    pub fn new(dir: &Path) -> Keychain {
        let native = std::env::var_os(KEYCHAIN).is_none_or(|v| v != "file");
        Keychain { native, ..Keychain::file_only(dir) }
    }

    /// The encrypted file in `dir` alone.
    pub fn file_only(dir: &Path) -> Keychain {
        Keychain { native: false, stuck: Arc::default(), file: FileStore::new(dir, None) }
    }

    /// The encrypted file in `dir` alone, with a passphrase of the caller's instead of the environment's.
    pub fn file_with_passphrase(dir: &Path, passphrase: Secret) -> Keychain {
        Keychain { native: false, stuck: Arc::default(), file: FileStore::new(dir, Some(passphrase)) }
    }

    /// Stores a secret, replacing what was there.
    pub async fn set(&self, service: &str, account: &str, secret: &Secret) -> Result<(), KeychainError> {
        let value = Zeroizing::new(BASE64.encode(secret.expose().as_bytes()));
        if self.native(service, account, move |entry| entry.set_password(&value)).await.is_some() {
            // An older copy in the file would come back when the system's keychain does not answer.
            if let Err(error) = self.change(service, account, None).await {
                tracing::warn!(%error, "an older copy of a secret may be left in the encrypted keychain file");
            }
            return Ok(());
        }
        self.change(service, account, Some(secret.clone())).await.map(drop)
    }

    /// The secret, if there is one.
    pub async fn get(&self, service: &str, account: &str) -> Result<Option<Secret>, KeychainError> {
        let native = self.native(service, account, |entry| entry.get_password().map(Zeroizing::new)).await;
        if let Some(secret) = native.and_then(|text| Secret::from_output(BASE64.decode(text.as_bytes()).ok()?)) {
            return Ok(Some(secret));
        }
        let (file, name) = (self.file.clone(), name(service, account));
        blocking(move || file.get(&name)).await
    }

    /// Removes the secret; whether there was one.
    pub async fn delete(&self, service: &str, account: &str) -> Result<bool, KeychainError> {
        let native = self.native(service, account, |entry| entry.delete_credential()).await.is_some();
        Ok(self.change(service, account, None).await? || native)
    }

    async fn change(&self, service: &str, account: &str, to: Change) -> Result<bool, KeychainError> {
        let (file, name) = (self.file.clone(), name(service, account));
        blocking(move || file.change(&name, to)).await
    }

    /// What the system's keychain gave; `None` if it has no such entry, is not there, or does not answer in time.
    async fn native<T: Send + 'static>(
        &self,
        service: &str,
        account: &str,
        work: impl FnOnce(&keyring::Entry) -> keyring::Result<T> + Send + 'static,
    ) -> Option<T> {
        if !self.native || self.stuck.load(Ordering::Acquire) {
            return None;
        }
        let (service, account) = (service.to_owned(), account.to_owned());
        let stuck = Arc::clone(&self.stuck);
        let (answer, mut answered) = oneshot::channel();
        let thread = std::thread::Builder::new().name("keychain".into()).spawn(move || {
            let outcome = keyring::Entry::new(&service, &account).and_then(|entry| work(&entry));
            let _ = answer.send(outcome);
            fence(Ordering::SeqCst);
            stuck.store(false, Ordering::Release);
        });
        thread.ok()?;
        let outcome = match tokio::time::timeout(NATIVE_TIMEOUT, &mut answered).await {
            Ok(outcome) => outcome.ok()?,
            Err(_) => match give_up(&self.stuck, &mut answered) {
                Ok(outcome) => outcome,
                Err(TryRecvError::Closed) => return None,
                Err(TryRecvError::Empty) => {
                    tracing::warn!("the system's keychain does not answer; the encrypted file serves meanwhile");
                    return None;
                }
            },
        };
        outcome
            .inspect_err(
                |error| tracing::debug!(%error, "the system's keychain gave nothing; the encrypted file is asked"),
            )
            .ok()
    }
}

/// Holds the system's keychain for stuck until its thread says that it is not, unless that has answered or ended.
fn give_up<T>(stuck: &AtomicBool, answered: &mut oneshot::Receiver<T>) -> Result<T, TryRecvError> {
    stuck.store(true, Ordering::Release);
    // In this order, as the thread has the reverse: one that has not answered by here takes that back when it has.
    fence(Ordering::SeqCst);
    let answer = answered.try_recv();
    if !matches!(answer, Err(TryRecvError::Empty)) {
        stuck.store(false, Ordering::Release);
    }
    answer
}

fn name(service: &str, account: &str) -> String {
    format!("{service}\0{account}")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeychainError> + Send + 'static,
) -> Result<T, KeychainError> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[test]
    fn an_answer_that_came_when_the_time_was_up_leaves_nothing_stuck() {
        let stuck = AtomicBool::new(false);
        let (answer, mut answered) = oneshot::channel();
        assert_eq!(give_up(&stuck, &mut answered), Err(TryRecvError::Empty));
        assert!(stuck.load(Ordering::Acquire), "its thread has not answered");
        // As that thread does, when the one that waits has seen the timer and nothing else yet.
        answer.send(7).unwrap();
        stuck.store(false, Ordering::Release);
        assert_eq!(give_up(&stuck, &mut answered), Ok(7));
        assert!(!stuck.load(Ordering::Acquire));
        let (answer, mut answered) = oneshot::channel::<()>();
        drop(answer);
        assert_eq!(give_up(&stuck, &mut answered), Err(TryRecvError::Closed));
        assert!(!stuck.load(Ordering::Acquire), "a thread that is gone takes nothing back");
    }

    #[tokio::test]
    async fn set_get_delete() {
        let dir = tempfile::tempdir().unwrap();
        let keychain = Keychain::file_only(&dir.path().join("new"));
        assert_eq!(keychain.get("s", "a").await.unwrap(), None);
        assert!(!keychain.delete("s", "a").await.unwrap());
        keychain.set("s", "a", &secret("one\nline")).await.unwrap();
        keychain.set("s", "b", &secret("two")).await.unwrap();
        keychain.set("s", "a", &secret("three")).await.unwrap();
        assert_eq!(keychain.get("s", "a").await.unwrap(), Some(secret("three")));
        assert!(keychain.delete("s", "a").await.unwrap());
        assert_eq!(keychain.get("s", "a").await.unwrap(), None);
        assert_eq!(keychain.get("s", "b").await.unwrap(), Some(secret("two")));
    }

    #[tokio::test]
    async fn the_file_is_private_and_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let keychain = Keychain::file_only(dir.path());
        keychain.set("service-name", "a", &secret("hunter2")).await.unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            assert!(!text.contains("hunter2") && !text.contains("service-name"));
        }
    }

    #[tokio::test]
    async fn the_passphrase_is_needed_and_changes_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let right = Keychain::file_with_passphrase(dir.path(), secret("right"));
        right.set("s", "a", &secret("x")).await.unwrap();
        assert_eq!(right.get("s", "a").await.unwrap(), Some(secret("x")));
        let wrong = Keychain::file_with_passphrase(dir.path(), secret("wrong"));
        assert!(matches!(wrong.get("s", "a").await, Err(KeychainError::Locked)));
        assert!(matches!(wrong.set("s", "a", &secret("y")).await, Err(KeychainError::Locked)));
        let path = dir.path().join("keychain.enc");
        let good = std::fs::read(&path).unwrap();
        for at in [5, 10, 30, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(right.get("s", "a").await.is_err(), "byte {at}");
        }
        for bad in [&b""[..], b"NXKC", b"something else entirely, long enough to have a whole header in it"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(right.get("s", "a").await, Err(KeychainError::Damaged)));
        }
    }

    #[tokio::test]
    async fn writers_at_the_same_time_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let keychains: Vec<_> = (0..8).map(|_| Keychain::file_only(dir.path())).collect();
        let x = secret("x");
        let writes = keychains.iter().enumerate().map(|(i, k)| {
            let account = i.to_string();
            let x = &x;
            async move { k.set("s", &account, x).await.unwrap() }
        });
        futures::future::join_all(writes).await;
        for i in 0..8 {
            assert_eq!(keychains[0].get("s", &i.to_string()).await.unwrap(), Some(secret("x")));
        }
    }
}

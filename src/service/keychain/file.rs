//! The encrypted file: every secret in one sealed box, replaced whole.
//!
//! Layout: `NXKC`, version (1), key kind (0 key file, 1 passphrase), salt (16), nonce (24), then
//! XChaCha20-Poly1305 over a JSON mapping of names to base64, with everything before as associated data.
//! Refuses whatever does not authenticate.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use data_encoding::BASE64;
use zeroize::{Zeroize, Zeroizing};

use super::KeychainError;
use crate::service::plain_file::{self, PlainFileError};
use crate::service::secret::Secret;

/// Environment variable: the passphrase of the encrypted file.
pub const PASSPHRASE: &str = "NEXUS_KEYCHAIN_PASSPHRASE";

/// Bytes of the file: thousands of tokens.
const MAX_FILE: usize = 4 * 1024 * 1024;

/// Start of the file, with its version.
const MAGIC: &[u8; 5] = b"NXKC\x01";
const SALT: usize = 16;
const NONCE: usize = 24;
const HEADER: usize = MAGIC.len() + 1 + SALT + NONCE;
const BY_KEY_FILE: u8 = 0;
const BY_PASSPHRASE: u8 = 1;

/// Argon2id: KiB of memory and passes, OWASP's recommendation. Part of version 1.
const ARGON2_KIB: u32 = 19 * 1024;
const ARGON2_PASSES: u32 = 2;

type Key = Zeroizing<[u8; 32]>;

/// Secrets by name; zeroized when dropped.
#[derive(Default)]
struct Entries(BTreeMap<String, String>);

impl Drop for Entries {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

/// A new secret, or none to remove it.
pub(super) type Change = Option<Secret>;

/// Where the file lies, and what opens it.
#[derive(Debug, Clone)]
pub(super) struct FileStore {
    dir: PathBuf,
    passphrase: Option<Secret>,
}

impl FileStore {
    pub(super) fn new(dir: &Path, passphrase: Option<Secret>) -> FileStore {
        let passphrase = passphrase.or_else(|| Secret::from_output(std::env::var(PASSPHRASE).ok()?.into_bytes()));
        FileStore { dir: dir.to_owned(), passphrase }
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Secret>, KeychainError> {
        let entries = self.load()?;
        let Some(text) = entries.0.get(name) else { return Ok(None) };
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| KeychainError::Damaged)?;
        Secret::from_output(bytes).map(Some).ok_or(KeychainError::Damaged)
    }

    /// Whether there was one before.
    pub(super) fn change(&self, name: &str, to: Change) -> Result<bool, KeychainError> {
        if to.is_none() && !self.path().exists() {
            return Ok(false);
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let lock = private().write(true).create(true).truncate(false).open(self.dir.join("keychain.lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(std::io::Error::from)?;
        let mut entries = self.load()?;
        let before = match &to {
            Some(secret) => entries.0.insert(name.to_owned(), BASE64.encode(secret.expose().as_bytes())),
            None => entries.0.remove(name),
        };
        let was = before.map(Zeroizing::new).is_some();
        if was || to.is_some() {
            self.store(&entries)?;
        }
        Ok(was)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("keychain.enc")
    }

    fn load(&self) -> Result<Entries, KeychainError> {
        let bytes = match plain_file::read(&self.path(), MAX_FILE) {
            Ok(bytes) => bytes,
            Err(PlainFileError::Missing) => return Ok(Entries::default()),
            Err(PlainFileError::Io(error)) => return Err(error.into()),
            Err(PlainFileError::NotRegular | PlainFileError::TooLarge(_)) => return Err(KeychainError::Damaged),
        };
        let (header, sealed) = bytes.split_at_checked(HEADER).ok_or(KeychainError::Damaged)?;
        let rest = header.strip_prefix(MAGIC).ok_or(KeychainError::Damaged)?;
        let (kind, salt, nonce) = (rest[0], &rest[1..1 + SALT], &rest[1 + SALT..]);
        let key = match kind {
            BY_KEY_FILE => self.key_file(false)?,
            BY_PASSPHRASE => derive(self.passphrase.as_ref().ok_or(KeychainError::Locked)?, salt)?,
            _ => return Err(KeychainError::Damaged),
        };
        let nonce = XNonce::try_from(nonce).map_err(|_| KeychainError::Damaged)?;
        let plain = XChaCha20Poly1305::new(&(*key).into())
            .decrypt(&nonce, Payload { msg: sealed, aad: header })
            .map_err(|_| KeychainError::Locked)?;
        let plain = Zeroizing::new(plain);
        serde_json::from_slice(&plain).map(Entries).map_err(|_| KeychainError::Damaged)
    }

    fn store(&self, entries: &Entries) -> Result<(), KeychainError> {
        let plain = Zeroizing::new(serde_json::to_vec(&entries.0).map_err(std::io::Error::from)?);
        if plain.len() + HEADER + 64 > MAX_FILE {
            return Err(KeychainError::TooLarge(MAX_FILE));
        }
        let salt: [u8; SALT] = rand::random();
        let nonce: [u8; NONCE] = rand::random();
        let (kind, key) = match &self.passphrase {
            Some(passphrase) => (BY_PASSPHRASE, derive(passphrase, &salt)?),
            None => (BY_KEY_FILE, self.key_file(true)?),
        };
        let mut file = [&MAGIC[..], &[kind], &salt, &nonce].concat();
        let sealed = XChaCha20Poly1305::new(&(*key).into())
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &file })
            .map_err(|_| KeychainError::Damaged)?;
        file.extend_from_slice(&sealed);
        self.replace(&self.path(), &file)
    }

    /// The machine's own key; made when `create` and there is none.
    fn key_file(&self, create: bool) -> Result<Key, KeychainError> {
        let path = self.dir.join("keychain.key");
        match plain_file::read(&path, 32) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                let key: [u8; 32] = bytes[..].try_into().map_err(|_| KeychainError::Damaged)?;
                Ok(Zeroizing::new(key))
            }
            Err(PlainFileError::Missing) if create => {
                let key: Key = Zeroizing::new(rand::random());
                self.replace(&path, &key[..])?;
                Ok(key)
            }
            Err(PlainFileError::Missing) => Err(KeychainError::Locked),
            Err(PlainFileError::Io(error)) => Err(error.into()),
            Err(PlainFileError::NotRegular | PlainFileError::TooLarge(_)) => Err(KeychainError::Damaged),
        }
    }

    /// Writes beside and renames over, so that a reader sees the old or the new. Only under the lock.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), KeychainError> {
        let beside = path.with_extension("new");
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = private().write(true).create_new(true).open(&beside)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(())
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn derive(passphrase: &Secret, salt: &[u8]) -> Result<Key, KeychainError> {
    let mut key = Zeroizing::new([0; 32]);
    let params = Params::new(ARGON2_KIB, ARGON2_PASSES, 1, Some(32)).map_err(|_| KeychainError::Damaged)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.expose().as_bytes(), salt, &mut key[..])
        .map_err(|_| KeychainError::Damaged)?;
    Ok(key)
}

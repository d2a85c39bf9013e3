//! What a laptop keeps of a coordinator: its address and authorities, this device's key and certificate, and the pinned
//! keys of the workspaces it has met there.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::code::{Code, CodeKind};
use crate::identity::{Credential, IdentityError, KeyPin, PrivateKey, Trust};
use crate::role::{balancer, files};
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::{ClientError, Fresh, first_contact};
use crate::transport::outer::OuterTls;
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::onboarding::{CodeText, PAIR_PATH, PairAnswer, PairRequest};

/// Why there is no usable profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A file.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// Its content.
    #[error("{path} is damaged: {why}. hint: pair again with a new code (nexus-coordinator invite)")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// Never paired.
    #[error(
        "this device is not paired with {0}. hint: get a code there with `nexus-coordinator invite` and run \
         nexus-proxy pair {0} CODE"
    )]
    NotPaired(CoordinatorUrl),
    /// The coordinator.
    #[error("{0}")]
    Coordinator(#[from] ClientError),
    /// A code that is not one, or for something else.
    #[error("{0}")]
    Code(String),
}

/// The file with the address, the name and the pins.
const PROFILE: &str = "profile.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    url: CoordinatorUrl,
    device: DeviceName,
    workspaces: BTreeMap<WorkspaceName, KeyPin>,
}

/// A profile, in its directory.
#[derive(Debug)]
pub struct Profile {
    dir: PathBuf,
    kept: Kept,
    /// Whom to trust.
    pub trust: Trust,
    /// This device's key and certificate.
    pub credential: Credential,
}

/// The directory of the profile for `url` below `root`.
pub fn directory(root: &Path, url: &CoordinatorUrl) -> PathBuf {
    root.join(url.authority().replace([':', '[', ']', '/'], "_"))
}

impl Profile {
    /// Reads what pairing left in `dir`.
    pub fn load(dir: &Path, url: &CoordinatorUrl) -> Result<Profile, ProfileError> {
        let (Some(kept), Some(ca), Some(chain), Some(key)) = (
            files::read(&dir.join(PROFILE))?,
            files::read(&dir.join("ca.pem"))?,
            files::read(&dir.join("chain.pem"))?,
            files::read(&dir.join("key.pem"))?,
        ) else {
            return Err(ProfileError::NotPaired(url.clone()));
        };
        let damaged = |file: &str, why: String| ProfileError::Damaged { path: dir.join(file), why };
        let kept = serde_json::from_str(&kept).map_err(|e| damaged(PROFILE, e.to_string()))?;
        let trust = Trust::kept_from_pem(&ca).map_err(|e| damaged("ca.pem", e.to_string()))?;
        let key = PrivateKey::from_pem(&key).map_err(|e| damaged("key.pem", e.to_string()))?;
        let credential = Credential::from_pem(&chain, key).map_err(|e| damaged("chain.pem", e.to_string()))?;
        Ok(Profile { dir: dir.to_owned(), kept, trust, credential })
    }

    /// Makes a key here, has it certified with a one-time code, and keeps the result in `dir`.
    pub async fn pair(
        dir: &Path,
        url: &CoordinatorUrl,
        code: &str,
        device: DeviceName,
    ) -> Result<Profile, ProfileError> {
        let parsed: Code = code.parse().map_err(|e| ProfileError::Code(format!("{e}")))?;
        if parsed.kind() != CodeKind::Pair {
            let text = "this is an enrolment code for a stub. hint: nexus-coordinator invite makes one for a laptop";
            return Err(ProfileError::Code(text.into()));
        }
        files::private_dir(dir)?;
        let outer = balancer::outer(dir, url)?;
        let key = PrivateKey::generate().map_err(ClientError::from)?;
        let csr = key.csr_pem().map_err(ClientError::from)?;
        let request = PairRequest { code: CodeText::new(code), device: device.clone(), csr };
        let (answer, trust): (PairAnswer, Trust) = first_contact(url, &outer, &parsed, PAIR_PATH, &request).await?;
        let credential = Credential::from_pem(&answer.chain, key).map_err(ClientError::from)?;
        // Pairing again with the same coordinator is no reason to meet its workspaces for the first time again.
        let before = Profile::load(dir, url).ok().filter(|before| before.trust.shares(&trust));
        let workspaces = before.map(|before| before.kept.workspaces).unwrap_or_default();
        let kept = Kept { url: url.clone(), device, workspaces };
        let profile = Profile { dir: dir.to_owned(), kept, trust, credential };
        files::write(&dir.join("key.pem"), profile.credential.key.to_pem().as_bytes())?;
        files::write(&dir.join("ca.pem"), profile.trust.to_pem().as_bytes())?;
        files::write(&dir.join("chain.pem"), profile.credential.to_pem().as_bytes())?;
        // Last: its presence says that the rest is whole.
        profile.save()?;
        Ok(profile)
    }

    /// Where the coordinator is, as it was said when this device was paired: at `given`, behind a load balancer or not.
    pub fn url(&self, given: CoordinatorUrl) -> CoordinatorUrl {
        given.or_behind_balancer(self.kept.url.is_behind_balancer())
    }

    /// Who ends the outer TLS there.
    pub fn outer(&self, url: &CoordinatorUrl) -> Result<OuterTls, ClientError> {
        balancer::outer(&self.dir, url)
    }

    /// This device's name.
    pub fn device(&self) -> &DeviceName {
        &self.kept.device
    }

    /// The key of a workspace, if it was met before.
    pub fn pin(&self, workspace: &WorkspaceName) -> Option<KeyPin> {
        self.kept.workspaces.get(workspace).copied()
    }

    /// Pins the key of a workspace at first contact. Refused when another process has pinned another key meanwhile.
    pub fn set_pin(&mut self, workspace: &WorkspaceName, pin: KeyPin) -> Result<(), ProfileError> {
        let kept = self.change(|workspaces| *workspaces.entry(workspace.clone()).or_insert(pin))?;
        if kept != pin {
            return Err(ClientError::from(IdentityError::WrongPin { expected: kept, found: pin }).into());
        }
        Ok(())
    }

    /// Forgets the key of a workspace that was made anew.
    pub fn forget(&mut self, workspace: &WorkspaceName) -> Result<bool, ProfileError> {
        self.change(|workspaces| workspaces.remove(workspace).is_some())
    }

    /// Changes the pins. Each workspace that is up has a process with a copy of its own: what the others have written
    /// is read again, under a lock, so that no pin is lost.
    fn change<R>(&mut self, change: impl FnOnce(&mut BTreeMap<WorkspaceName, KeyPin>) -> R) -> Result<R, ProfileError> {
        let mut options = std::fs::OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(self.dir.join("profile.lock"))?;
        lock.lock()?;
        let path = self.dir.join(PROFILE);
        if let Some(text) = files::read(&path)? {
            let kept: Kept =
                serde_json::from_str(&text).map_err(|e| ProfileError::Damaged { path, why: e.to_string() })?;
            self.kept.workspaces = kept.workspaces;
        }
        let outcome = change(&mut self.kept.workspaces);
        self.save()?;
        Ok(outcome)
    }

    /// Keeps what came of a renewal: the authorities first, because a certificate without its authority is of no use.
    pub fn save_fresh(&mut self, fresh: &Fresh) -> Result<(), ProfileError> {
        files::write(&self.dir.join("ca.pem"), fresh.trust.to_pem().as_bytes())?;
        files::write(&self.dir.join("chain.pem"), fresh.credential.to_pem().as_bytes())?;
        (self.trust, self.credential) = (Trust::clone(&fresh.trust), Credential::clone(&fresh.credential));
        Ok(())
    }

    fn save(&self) -> Result<(), ProfileError> {
        let kept = serde_json::to_vec_pretty(&self.kept).map_err(std::io::Error::other)?;
        Ok(files::write(&self.dir.join(PROFILE), &kept)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::identity::{Authority, Identity, Role};

    fn profile(dir: &Path) -> Profile {
        let now = SystemTime::now();
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let device: DeviceName = "laptop".parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new(authority.domain().clone(), Role::Device(device.clone()));
        let chain = authority.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(60), now, &[]).unwrap();
        let url = "https://127.0.0.1:1".parse().unwrap();
        let kept = Kept { url, device, workspaces: BTreeMap::new() };
        let credential = Credential::new(chain, key).unwrap();
        Profile { dir: dir.to_owned(), kept, trust: authority.trust().clone(), credential }
    }

    #[test]
    fn two_processes_lose_no_pin_and_overwrite_none() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (profile(dir.path()), profile(dir.path()));
        let (a, b): (WorkspaceName, WorkspaceName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let pin = |n| KeyPin::from_bytes([n; 32]);
        one.set_pin(&a, pin(1)).unwrap();
        other.set_pin(&b, pin(2)).unwrap();
        let text = files::read(&dir.path().join(PROFILE)).unwrap().unwrap();
        let kept: Kept = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.workspaces, BTreeMap::from([(a.clone(), pin(1)), (b.clone(), pin(2))]));
        assert!(one.set_pin(&b, pin(3)).unwrap_err().to_string().contains("pinned"));
        assert_eq!(one.pin(&b), Some(pin(2)));
        assert!(other.forget(&a).unwrap() && !one.forget(&a).unwrap());
    }
}

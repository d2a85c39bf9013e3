//! What a stub keeps: its key and certificate, its coordinator, and the keys of the devices it serves.
//!
//! The list of devices is given at enrolment and changed afterwards only over a session of a device on it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::code::{Code, CodeKind};
use crate::identity::{Credential, IdentityError, KeyPin, PrivateKey, Trust};
use crate::role::{balancer, files};
use crate::transport::address::CoordinatorUrl;
use crate::transport::client::{ClientError, Fresh, first_contact};
use crate::transport::outer::OuterTls;
use crate::wire::limits::MAX_DEVICES;
use crate::wire::name::WorkspaceName;
use crate::wire::onboarding::{CodeText, ENROLL_PATH, EnrollAnswer, EnrollRequest};

/// Why there is no usable state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// Its content.
    #[error(
        "{path} is damaged: {why}. hint: enrol again with a new code (nexus-coordinator workspace add NAME --reissue)"
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// It never enrolled.
    #[error(
        "this workspace is not enrolled. hint: get a code with `nexus-coordinator workspace add NAME` and run \
         nexus-stub run --coordinator URL --enroll CODE"
    )]
    NotEnrolled,
    /// The coordinator.
    #[error("{0}")]
    Coordinator(#[from] ClientError),
    /// A code that is not one, or for something else.
    #[error("{0}")]
    Code(String),
    /// Another process has it.
    #[error("this stub has handed the workspace over. hint: try again; its successor answers")]
    HandedOver,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    workspace: WorkspaceName,
    devices: HashSet<KeyPin>,
    trust_first_device: bool,
    #[serde(default)]
    behind_balancer: bool,
}

/// The state, in its directory.
#[derive(Debug)]
pub struct StubState {
    dir: PathBuf,
    kept: Kept,
    handed_over: bool,
    /// Whom to trust.
    pub trust: Trust,
    /// Key and certificate.
    pub credential: Credential,
}

impl StubState {
    /// Reads what enrolment left in `dir`.
    pub fn load(dir: &Path) -> Result<StubState, StateError> {
        let (Some(kept), Some(ca), Some(chain), Some(key)) = (
            files::read(&dir.join("stub.json"))?,
            files::read(&dir.join("ca.pem"))?,
            files::read(&dir.join("chain.pem"))?,
            files::read(&dir.join("key.pem"))?,
        ) else {
            return Err(StateError::NotEnrolled);
        };
        let damaged = |file: &str, why: String| StateError::Damaged { path: dir.join(file), why };
        let kept = serde_json::from_str(&kept).map_err(|e| damaged("stub.json", e.to_string()))?;
        let trust = Trust::kept_from_pem(&ca).map_err(|e| damaged("ca.pem", e.to_string()))?;
        let key = PrivateKey::from_pem(&key).map_err(|e| damaged("key.pem", e.to_string()))?;
        let credential = Credential::from_pem(&chain, key).map_err(|e| damaged("chain.pem", e.to_string()))?;
        Ok(StubState { dir: dir.to_owned(), kept, handed_over: false, trust, credential })
    }

    /// Makes a key here, has it certified with a one-time code, and keeps the result in `dir`.
    pub async fn enroll(dir: &Path, url: &CoordinatorUrl, code: &str) -> Result<StubState, StateError> {
        let parsed: Code = code.parse().map_err(|e| StateError::Code(format!("{e}")))?;
        if parsed.kind() != CodeKind::Enrol {
            let text =
                "this is a pairing code for a laptop. hint: nexus-coordinator workspace add NAME makes one for a stub";
            return Err(StateError::Code(text.into()));
        }
        files::private_dir(dir)?;
        let outer = balancer::outer(dir, url)?;
        let key = PrivateKey::generate().map_err(ClientError::from)?;
        let csr = key.csr_pem().map_err(ClientError::from)?;
        let request = EnrollRequest { code: CodeText::new(code), csr };
        let (answer, trust): (EnrollAnswer, Trust) = first_contact(url, &outer, &parsed, ENROLL_PATH, &request).await?;
        let credential = Credential::from_pem(&answer.chain, key).map_err(ClientError::from)?;
        let pins = answer.device_pins.iter().take(MAX_DEVICES).map(|pin| pin.parse());
        let devices = pins.collect::<Result<_, IdentityError>>().map_err(ClientError::from)?;
        let kept = Kept {
            workspace: answer.workspace,
            devices,
            trust_first_device: answer.trust_first_device,
            behind_balancer: url.is_behind_balancer(),
        };
        let state = StubState { dir: dir.to_owned(), kept, handed_over: false, trust, credential };
        files::write(&dir.join("key.pem"), state.credential.key.to_pem().as_bytes())?;
        files::write(&dir.join("ca.pem"), state.trust.to_pem().as_bytes())?;
        files::write(&dir.join("chain.pem"), state.credential.to_pem().as_bytes())?;
        // Last: its presence says that the rest is whole.
        save(dir, &state.kept)?;
        Ok(state)
    }

    /// The files belong to a successor from here on: nothing is written any more, and no device is let in by what may
    /// have changed there.
    pub fn hand_over(&mut self) {
        self.handed_over = true;
    }

    fn own(&self) -> Result<(), StateError> {
        if self.handed_over { Err(StateError::HandedOver) } else { Ok(()) }
    }

    /// The directory that it is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the coordinator is: at `given`, and behind a load balancer if it was when this workspace enrolled.
    pub fn url(&self, given: CoordinatorUrl) -> CoordinatorUrl {
        given.or_behind_balancer(self.kept.behind_balancer)
    }

    /// Who ends the outer TLS there.
    pub fn outer(&self, url: &CoordinatorUrl) -> Result<OuterTls, ClientError> {
        balancer::outer(&self.dir, url)
    }

    /// The workspace's name.
    pub fn workspace(&self) -> &WorkspaceName {
        &self.kept.workspace
    }

    /// The keys of the devices it serves.
    pub fn devices(&self) -> &HashSet<KeyPin> {
        &self.kept.devices
    }

    /// Whether a device with this key is served. A workspace that was made before any device existed takes the first.
    pub fn admits(&self, pin: &KeyPin) -> bool {
        self.kept.devices.contains(pin) || self.takes_first()
    }

    /// Whether the next device becomes the first on the list.
    pub fn takes_first(&self) -> bool {
        self.kept.trust_first_device && self.kept.devices.is_empty()
    }

    /// Whether the device that has proved this key is served, after writing it down if it is the first. Two may have
    /// passed [`admits`](Self::admits) at the same time; one of them is the first.
    pub fn admit(&mut self, pin: KeyPin) -> Result<bool, StateError> {
        self.own()?;
        if self.takes_first() {
            self.add_device(pin)?;
        }
        Ok(self.kept.devices.contains(&pin))
    }

    /// Puts a device on the list.
    pub fn add_device(&mut self, pin: KeyPin) -> Result<(), StateError> {
        self.own()?;
        if !self.kept.devices.contains(&pin) && self.kept.devices.len() >= MAX_DEVICES {
            let text = format!("{MAX_DEVICES} devices are on the list. hint: remove one first");
            return Err(StateError::File(std::io::Error::other(text)));
        }
        self.change(|kept| {
            kept.devices.insert(pin);
            kept.trust_first_device = false;
        })
    }

    /// Takes a device off the list; tells whether it was there.
    pub fn remove_device(&mut self, pin: &KeyPin) -> Result<bool, StateError> {
        self.own()?;
        let there = self.kept.devices.contains(pin);
        self.change(|kept| {
            kept.devices.remove(pin);
        })?;
        Ok(there)
    }

    /// What could not be written down has not changed here either: whoever tries again finds it as it was.
    fn change(&mut self, change: impl FnOnce(&mut Kept)) -> Result<(), StateError> {
        let mut kept = self.kept.clone();
        change(&mut kept);
        save(&self.dir, &kept)?;
        self.kept = kept;
        Ok(())
    }

    /// Keeps what came of a renewal: the authorities first, because a certificate without its authority is of no use.
    pub fn save_fresh(&mut self, fresh: &Fresh) -> Result<(), StateError> {
        self.own()?;
        files::write(&self.dir.join("ca.pem"), fresh.trust.to_pem().as_bytes())?;
        files::write(&self.dir.join("chain.pem"), fresh.credential.to_pem().as_bytes())?;
        (self.trust, self.credential) = (Trust::clone(&fresh.trust), Credential::clone(&fresh.credential));
        Ok(())
    }
}

fn save(dir: &Path, kept: &Kept) -> Result<(), StateError> {
    let kept = serde_json::to_vec_pretty(kept).map_err(std::io::Error::other)?;
    Ok(files::write(&dir.join("stub.json"), &kept)?)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::identity::{Authority, Identity, Role};

    /// Of a workspace that no device has come to yet.
    pub(crate) fn state(dir: &Path) -> StubState {
        let now = SystemTime::now();
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let workspace: WorkspaceName = "w".parse().unwrap();
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new(authority.domain().clone(), Role::Workspace(workspace.clone()));
        let chain = authority.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(60), now, &[]).unwrap();
        let kept = Kept { workspace, devices: HashSet::new(), trust_first_device: true, behind_balancer: false };
        let credential = Credential::new(chain, key).unwrap();
        let trust = authority.trust().clone();
        StubState { dir: dir.to_owned(), kept, handed_over: false, trust, credential }
    }

    #[test]
    fn of_two_first_devices_one_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(dir.path());
        let (first, second) = (KeyPin::from_bytes([1; 32]), KeyPin::from_bytes([2; 32]));
        assert!(state.admits(&first) && state.admits(&second));
        assert!(state.admit(first).unwrap());
        assert!(!state.admit(second).unwrap());
        assert!(state.admit(first).unwrap());
    }

    #[test]
    fn what_could_not_be_written_has_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(dir.path());
        let (first, second) = (KeyPin::from_bytes([1; 32]), KeyPin::from_bytes([2; 32]));
        std::fs::remove_dir(dir.path()).unwrap();
        state.admit(first).unwrap_err();
        assert!(state.takes_first(), "who was not written down has not come first");
        std::fs::create_dir(dir.path()).unwrap();
        assert!(state.admit(first).unwrap());
        std::fs::remove_dir_all(dir.path()).unwrap();
        state.add_device(second).unwrap_err();
        assert!(!state.admits(&second));
        state.remove_device(&first).unwrap_err();
        assert!(state.admits(&first));
        std::fs::create_dir(dir.path()).unwrap();
        assert!(state.remove_device(&first).unwrap(), "the second try finds it");
    }

    #[test]
    fn what_was_handed_over_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(dir.path());
        let (first, second) = (KeyPin::from_bytes([1; 32]), KeyPin::from_bytes([2; 32]));
        assert!(state.admit(first).unwrap());
        let written = std::fs::read(dir.path().join("stub.json")).unwrap();
        state.hand_over();
        assert!(matches!(state.admit(first), Err(StateError::HandedOver)));
        assert!(matches!(state.add_device(second), Err(StateError::HandedOver)));
        assert!(matches!(state.remove_device(&first), Err(StateError::HandedOver)));
        let (trust, credential) = (state.trust.clone().into(), state.credential.clone().into());
        assert!(matches!(state.save_fresh(&Fresh { trust, credential }), Err(StateError::HandedOver)));
        assert_eq!(std::fs::read(dir.path().join("stub.json")).unwrap(), written);
        assert!(!dir.path().join("chain.pem").exists());
    }
}

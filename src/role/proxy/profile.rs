//! What a laptop keeps of a coordinator: its address and authorities, this device's key and certificate, and the pinned
//! keys of the workspaces it has met there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::code::{Code, CodeKind};
use crate::identity::{Credential, IdentityError, KeyPin, PrivateKey, Trust};
use crate::role::files::{LOCK_TIMEOUT, Lock, Take};
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
    /// Another process is at it.
    #[error(
        "another process is writing the profile, or reading it, and has {path}; it was waited for {} s. hint: try again; `fuser -v \
         {path}` shows one that was stopped at it, and `kill -CONT PID` lets that go on",
        waited.as_secs(),
        path = path.display()
    )]
    Held {
        /// The file whose lock it has.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The coordinator.
    #[error("{0}")]
    Coordinator(#[from] ClientError),
    /// A code that is not one, or for something else.
    #[error("{0}")]
    Code(String),
}

impl ProfileError {
    /// Whether trying again without changing anything may help.
    pub fn is_passing(&self) -> bool {
        match self {
            ProfileError::Held { .. } => true,
            ProfileError::Coordinator(error) => error.is_passing(),
            ProfileError::File(_)
            | ProfileError::Damaged { .. }
            | ProfileError::NotPaired(_)
            | ProfileError::Code(_) => false,
        }
    }
}

/// The file with the address, the name and the pins.
const PROFILE: &str = "profile.json";

/// The file whose lock whoever writes has alone, and those who read together: what belongs together is several files.
const LOCK: &str = "profile.lock";

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

/// The right to change a profile. For as long as it is held, nobody else does.
#[derive(Debug)]
pub struct Writing {
    _lock: Lock,
}

impl Writing {
    /// Waits for whoever has it, and for those who read, up to [`LOCK_TIMEOUT`].
    async fn begin(dir: &Path) -> Result<Writing, ProfileError> {
        let path = dir.join(LOCK);
        let lock = locked(Writing::file(&path)?, File::try_lock, &path).await?;
        Ok(Writing { _lock: lock })
    }

    /// As [`begin`](Self::begin), and waits for nobody.
    fn try_begin(dir: &Path) -> Result<Writing, ProfileError> {
        let path = dir.join(LOCK);
        match Lock::take(Writing::file(&path)?, File::try_lock)? {
            Some(lock) => Ok(Writing { _lock: lock }),
            None => Err(ProfileError::Held { path, waited: Duration::ZERO }),
        }
    }

    fn file(path: &Path) -> Result<File, ProfileError> {
        Ok(File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?)
    }
}

/// The lock of `file`, which is at `path`, as soon as it is free, for up to [`LOCK_TIMEOUT`].
async fn locked(file: File, take: Take, path: &Path) -> Result<Lock, ProfileError> {
    let lock = Lock::wait(file, take, LOCK_TIMEOUT).await?;
    lock.ok_or_else(|| ProfileError::Held { path: path.to_owned(), waited: LOCK_TIMEOUT })
}

/// The directory of the profile for `url` below `root`.
pub fn directory(root: &Path, url: &CoordinatorUrl) -> PathBuf {
    root.join(url.authority().replace([':', '[', ']', '/'], "_"))
}

/// A coordinator at which a workspace of this name was met, by the profiles below `root`. What cannot be read says nothing.
pub fn met_at(root: &Path, workspace: &WorkspaceName) -> Option<CoordinatorUrl> {
    std::fs::read_dir(root).into_iter().flatten().flatten().find_map(|dir| {
        let kept: Kept = serde_json::from_str(&files::read(&dir.path().join(PROFILE)).ok()??).ok()?;
        kept.workspaces.contains_key(workspace).then_some(kept.url)
    })
}

impl Profile {
    /// Reads what pairing left in `dir`. Waits for whoever is writing it, for five seconds at the most.
    pub async fn load(dir: &Path, url: &CoordinatorUrl) -> Result<Profile, ProfileError> {
        let path = dir.join(LOCK);
        // Where there is none, nothing was ever written.
        let _lock = match File::open(&path) {
            Ok(file) => Some(locked(file, File::try_lock_shared, &path).await?),
            Err(_) => None,
        };
        Profile::read(dir, url)
    }

    /// As [`load`](Self::load), for who has the lock.
    fn read(dir: &Path, url: &CoordinatorUrl) -> Result<Profile, ProfileError> {
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
        // A code is good for one use: what would keep its answer from being written is found before.
        drop(Writing::begin(dir).await?);
        let outer = balancer::outer(dir, url)?;
        let key = PrivateKey::generate().map_err(ClientError::from)?;
        let csr = key.csr_pem().map_err(ClientError::from)?;
        let request = PairRequest { code: CodeText::new(code), device: device.clone(), csr };
        let (answer, trust): (PairAnswer, Trust) = first_contact(url, &outer, &parsed, PAIR_PATH, &request).await?;
        let credential = Credential::from_pem(&answer.chain, key).map_err(ClientError::from)?;
        let kept = Kept { url: url.clone(), device, workspaces: BTreeMap::new() };
        let mut profile = Profile { dir: dir.to_owned(), kept, trust, credential };
        profile.begin().await?;
        Ok(profile)
    }

    /// Puts all of a new profile in its directory.
    async fn begin(&mut self) -> Result<(), ProfileError> {
        let _writing = Writing::begin(&self.dir).await?;
        // Pairing again with the same coordinator is no reason to meet its workspaces for the first time again.
        self.kept.workspaces = match Profile::read(&self.dir, &self.kept.url) {
            Ok(before) if before.trust.shares(&self.trust) => before.kept.workspaces,
            Ok(_) | Err(ProfileError::NotPaired(_) | ProfileError::Damaged { .. }) => BTreeMap::new(),
            // What is there may be whole, and cannot be read just now.
            Err(error) => return Err(error),
        };
        files::write(&self.dir.join("key.pem"), self.credential.key.to_pem().as_bytes())?;
        files::write(&self.dir.join("ca.pem"), self.trust.to_pem().as_bytes())?;
        files::write(&self.dir.join("chain.pem"), self.credential.to_pem().as_bytes())?;
        // Last: its presence says that the rest is whole.
        self.save(&self.kept)
    }

    /// The right to change it, apart from what is in memory: whoever shares that waits without holding it.
    pub fn writing(&self) -> impl Future<Output = Result<Writing, ProfileError>> + use<> {
        let dir = self.dir.clone();
        async move { Writing::begin(&dir).await }
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
    pub fn set_pin(&mut self, writing: &Writing, workspace: &WorkspaceName, pin: KeyPin) -> Result<(), ProfileError> {
        let kept = self.change(writing, |workspaces| *workspaces.entry(workspace.clone()).or_insert(pin))?;
        if kept != pin {
            return Err(ClientError::from(IdentityError::WrongPin { expected: kept, found: pin }).into());
        }
        Ok(())
    }

    /// Forgets the key of a workspace that was made anew.
    pub fn forget(&mut self, writing: &Writing, workspace: &WorkspaceName) -> Result<bool, ProfileError> {
        self.change(writing, |workspaces| workspaces.remove(workspace).is_some())
    }

    /// Changes the pins. Each workspace that is up has a process with a copy of its own: what the others have written
    /// is read again, under the lock, so that no pin is lost.
    fn change<R>(
        &mut self,
        _: &Writing,
        change: impl FnOnce(&mut BTreeMap<WorkspaceName, KeyPin>) -> R,
    ) -> Result<R, ProfileError> {
        let path = self.dir.join(PROFILE);
        let mut kept = match files::read(&path)? {
            Some(text) => {
                serde_json::from_str(&text).map_err(|e| ProfileError::Damaged { path, why: e.to_string() })?
            }
            None => self.kept.clone(),
        };
        let outcome = change(&mut kept.workspaces);
        self.save(&kept)?;
        self.kept.workspaces = kept.workspaces;
        Ok(outcome)
    }

    /// Keeps what came of a renewal: the authorities first, because a certificate without its authority is of no use.
    /// Writes nothing when the device was paired anew meanwhile: what is there is of another key. Waits for nobody: whoever
    /// renews tries again.
    pub fn save_fresh(&mut self, fresh: &Fresh) -> Result<(), ProfileError> {
        let _writing = Writing::try_begin(&self.dir)?;
        let key = files::read(&self.dir.join("key.pem"))?;
        if key.is_some_and(|key| key == fresh.credential.key.to_pem().as_str()) {
            files::write(&self.dir.join("ca.pem"), fresh.trust.to_pem().as_bytes())?;
            files::write(&self.dir.join("chain.pem"), fresh.credential.to_pem().as_bytes())?;
        } else {
            tracing::warn!("this device was paired anew: the certificate of its former key is not kept");
        }
        (self.trust, self.credential) = (Trust::clone(&fresh.trust), Credential::clone(&fresh.credential));
        Ok(())
    }

    fn save(&self, kept: &Kept) -> Result<(), ProfileError> {
        let kept = serde_json::to_vec_pretty(kept).map_err(std::io::Error::other)?;
        Ok(files::write(&self.dir.join(PROFILE), &kept)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::{Authority, Identity, Role};

    fn authority() -> Authority {
        Authority::create("d".parse().unwrap(), SystemTime::now()).unwrap()
    }

    fn credential(authority: &Authority, key: PrivateKey) -> Credential {
        let identity = Identity::new(authority.domain().clone(), Role::Device("laptop".parse().unwrap()));
        let (csr, life) = (key.csr_der().unwrap(), Duration::from_secs(60));
        let chain = authority.issue(&csr, &identity, life, SystemTime::now(), &[]).unwrap();
        Credential::new(chain, key).unwrap()
    }

    /// As the answer to a code makes it, by `authority`.
    fn paired(dir: &Path, authority: &Authority, device: &str) -> Profile {
        let kept = Kept { url: url(), device: device.parse().unwrap(), workspaces: BTreeMap::new() };
        let credential = credential(authority, PrivateKey::generate().unwrap());
        Profile { dir: dir.to_owned(), kept, trust: authority.trust().clone(), credential }
    }

    pub fn profile(dir: &Path) -> Profile {
        paired(dir, &authority(), "laptop")
    }

    fn url() -> CoordinatorUrl {
        "https://127.0.0.1:1".parse().unwrap()
    }

    #[tokio::test]
    async fn two_processes_lose_no_pin_and_overwrite_none() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (profile(dir.path()), profile(dir.path()));
        let (a, b): (WorkspaceName, WorkspaceName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let pin = |n| KeyPin::from_bytes([n; 32]);
        let writing = one.writing().await.unwrap();
        one.set_pin(&writing, &a, pin(1)).unwrap();
        other.set_pin(&writing, &b, pin(2)).unwrap();
        let text = files::read(&dir.path().join(PROFILE)).unwrap().unwrap();
        let kept: Kept = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.workspaces, BTreeMap::from([(a.clone(), pin(1)), (b.clone(), pin(2))]));
        assert!(one.set_pin(&writing, &b, pin(3)).unwrap_err().to_string().contains("pinned"));
        assert_eq!(one.pin(&b), Some(pin(2)));
        assert!(other.forget(&writing, &a).unwrap() && !one.forget(&writing, &a).unwrap());
    }

    #[tokio::test]
    async fn a_program_that_runs_leaves_what_was_paired_anew_alone() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority();
        let (a, b): (WorkspaceName, WorkspaceName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let pin = |n| KeyPin::from_bytes([n; 32]);
        let mut runs = paired(dir.path(), &authority, "laptop");
        runs.begin().await.unwrap();
        let writing = runs.writing().await.unwrap();
        runs.set_pin(&writing, &a, pin(1)).unwrap();
        drop(writing);
        let renew = |runs: &mut Profile| {
            let credential = credential(&authority, runs.credential.key.clone()).into();
            runs.save_fresh(&Fresh { trust: runs.trust.clone().into(), credential }).unwrap();
        };
        renew(&mut runs);
        assert_eq!(Profile::load(dir.path(), &url()).await.unwrap().credential.chain, runs.credential.chain);
        let mut anew = paired(dir.path(), &authority, "renamed");
        anew.begin().await.unwrap();
        assert_eq!(anew.pin(&a), Some(pin(1)), "the workspaces that it has met are kept");
        renew(&mut runs);
        let writing = runs.writing().await.unwrap();
        runs.set_pin(&writing, &b, pin(2)).unwrap();
        drop(writing);
        let there = Profile::load(dir.path(), &url()).await.expect("it is whole");
        assert_eq!(there.credential.chain, anew.credential.chain);
        assert_eq!((there.device(), there.pin(&b)), (anew.device(), Some(pin(2))));
    }

    #[tokio::test]
    async fn a_profile_that_is_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        profile(dir.path()).begin().await.unwrap();
        // As it is while another laptop's key is put in its place.
        let next = profile(dir.path());
        let writing = next.writing().await.unwrap();
        files::write(&dir.path().join("key.pem"), next.credential.key.to_pem().as_bytes()).unwrap();
        let url = url();
        let mut loads = std::pin::pin!(Profile::load(dir.path(), &url));
        assert!(futures::poll!(&mut loads).is_pending(), "half of it was read");
        files::write(&dir.path().join("ca.pem"), next.trust.to_pem().as_bytes()).unwrap();
        files::write(&dir.path().join("chain.pem"), next.credential.to_pem().as_bytes()).unwrap();
        drop(writing);
        loads.await.expect("it is whole");
    }

    /// Such as one that was stopped between the lock and its release.
    #[tokio::test]
    async fn who_holds_the_lock_and_does_not_let_go_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = profile(dir.path());
        kept.begin().await.unwrap();
        let (device, url) = ("laptop".parse().unwrap(), url());
        let code = Code::generate(CodeKind::Pair, kept.trust.ca_pin()).reveal();
        let fresh = Fresh { trust: kept.trust.clone().into(), credential: kept.credential.clone().into() };
        let writing = kept.writing().await.unwrap();
        let refused = tokio::join!(
            async { Profile::load(dir.path(), &url).await.map(drop) },
            async { Profile::pair(dir.path(), &url, &code, device).await.map(drop) },
            async { kept.writing().await.map(drop) },
        );
        for error in [refused.0, refused.1, refused.2].map(Result::unwrap_err) {
            assert!(matches!(error, ProfileError::Held { waited: LOCK_TIMEOUT, .. }), "{error}");
            assert!(error.is_passing() && error.to_string().contains("for 5 s. hint:"), "{error}");
        }
        let error = kept.save_fresh(&fresh).unwrap_err();
        assert!(matches!(error, ProfileError::Held { waited: Duration::ZERO, .. }), "nothing waits for it: {error}");
        drop(writing);
        kept.save_fresh(&fresh).unwrap();
        Profile::load(dir.path(), &url).await.unwrap();
    }

    #[tokio::test]
    async fn a_pin_that_could_not_be_written_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut profile = profile(dir.path());
        let name: WorkspaceName = "a".parse().unwrap();
        profile.begin().await.unwrap();
        let writing = profile.writing().await.unwrap();
        std::fs::remove_dir_all(dir.path()).unwrap();
        profile.set_pin(&writing, &name, KeyPin::from_bytes([1; 32])).unwrap_err();
        assert_eq!(profile.pin(&name), None);
    }
}

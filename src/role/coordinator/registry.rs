//! The decisions: who is admitted, under which name, with which key, until when. Facts are in the store,
//! signatures come from the authority. Refuses in sentences that say what to do, and tells strangers nothing
//! about names before they have shown a code.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::identity::certificate::chain_pem;
use crate::identity::{Code, CodeKind, Identity, KeyPin, PeerCertificate, Role};
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::onboarding::{EnrollAnswer, EnrollRequest, PairAnswer, PairRequest, RenewAnswer, RenewRequest};
use crate::wire::{Refusal, RefusalCode};

use super::authority::{self, Authorities, AuthorityError};
use super::rules::{
    check_device, check_workspace_key, device_in_force, internal, no_device, no_workspace, read_csr, refuse, same_key,
    unix, unknown, use_code, workspace_in_force,
};
use super::store::{Change, DeviceRecord, Store, WorkspaceRecord};

/// How long a pairing code lives: a person carries it from one screen to another.
pub const PAIR_TTL: Duration = Duration::from_secs(10 * 60);

/// How long an enrolment code lives: a machine may have to be made first.
pub const ENROLL_TTL: Duration = Duration::from_secs(60 * 60);

/// The longest life of a code, whatever was asked for.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a certificate lives. Revocation works at once; this bounds what a forgotten copy is worth.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How long a code that ended is remembered, so that its bearer hears `expired` and not `unknown`.
const REMEMBER_CODES: Duration = Duration::from_secs(7 * 24 * 3600);

/// How finely it is noted when a device was last seen, in seconds.
const LAST_SEEN_STEP: i64 = 60;

/// How a workspace is added.
#[derive(Debug, Clone)]
pub struct AddWorkspace {
    /// If no device is known, let the workspace admit the first one that comes.
    pub trust_first_device: bool,
    /// The workspace exists: make another code for it. Its present key stays good until the code is used.
    pub reissue: bool,
    /// How long the code lives.
    pub ttl: Duration,
}

impl Default for AddWorkspace {
    fn default() -> AddWorkspace {
        AddWorkspace { trust_first_device: false, reissue: false, ttl: ENROLL_TTL }
    }
}

/// Somebody who belongs to this coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// A device.
    Device(DeviceRecord),
    /// A workspace.
    Workspace(WorkspaceRecord),
}

/// Decides on the facts of one store, with its authorities. Clones share both.
#[derive(Debug, Clone)]
pub struct Registry {
    store: Store,
    authorities: Arc<ArcSwap<Authorities>>,
    leaf_lifetime: Duration,
}

impl Registry {
    /// Certificates live for [`LEAF_LIFETIME`].
    pub fn new(store: Store, authorities: Authorities) -> Registry {
        Registry { store, authorities: Arc::new(ArcSwap::from_pointee(authorities)), leaf_lifetime: LEAF_LIFETIME }
    }

    /// Certificates live for `leaf_lifetime`.
    pub fn with_leaf_lifetime(self, leaf_lifetime: Duration) -> Registry {
        Registry { leaf_lifetime, ..self }
    }

    /// How long certificates live.
    pub fn leaf_lifetime(&self) -> Duration {
        self.leaf_lifetime
    }

    /// The authorities in force.
    pub fn authorities(&self) -> Arc<Authorities> {
        self.authorities.load_full()
    }

    /// Reads again which authorities are in force: another process may have rotated them.
    pub async fn reload(&self, now: SystemTime) -> Result<(), AuthorityError> {
        self.authorities.store(Arc::new(authority::load(&self.store, now).await?));
        Ok(())
    }

    /// The store, to close it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A code that pairs one laptop.
    pub async fn invite(&self, ttl: Duration, now: SystemTime) -> Result<Code, Refusal> {
        let mut change = self.store.begin().await.map_err(internal)?;
        let code = self.new_code(&mut change, CodeKind::Pair, None, ttl, now).await?;
        change.commit().await.map_err(internal)?;
        tracing::info!(target: "audit", event = "invited", ttl_s = ttl.as_secs());
        Ok(code)
    }

    /// Makes the bearer of a code a device. A refusal leaves the code unused.
    pub async fn pair(&self, request: &PairRequest, now: SystemTime) -> Result<PairAnswer, Refusal> {
        let code = self.read_code(request.code.expose(), CodeKind::Pair)?;
        let (csr, pin) = read_csr(&request.csr)?;
        let name = &request.device;
        let mut change = self.store.begin().await.map_err(internal)?;
        use_code(&mut change, &code, now).await?;
        check_device(&mut change, name, pin).await?;
        change.put_device(name, pin, unix(now)).await.map_err(internal)?;
        let authorities = self.authorities();
        let chain = self.issue(&mut change, &authorities, (&csr, pin), Role::Device(name.clone()), now).await?;
        // The answer tells it, and it does without the certificate if it does not believe that.
        change.put_trusts(pin, authorities.trust().ca_pin()).await.map_err(internal)?;
        change.commit().await.map_err(internal)?;
        tracing::info!(target: "audit", event = "paired", device = %name, %pin);
        Ok(PairAnswer {
            device: name.clone(),
            domain: authorities.trust().domain.clone(),
            chain,
            ca: authority_of(&authorities, &code)?,
            authorities: authorities.bundle().to_owned(),
        })
    }

    /// A code that enrols one machine as the workspace `name`.
    pub async fn add_workspace(
        &self,
        name: &WorkspaceName,
        options: &AddWorkspace,
        now: SystemTime,
    ) -> Result<Code, Refusal> {
        let mut change = self.store.begin().await.map_err(internal)?;
        let existing = change.workspace(name).await.map_err(internal)?.filter(|record| record.revoked.is_none());
        let device_pins = change.device_pins().await.map_err(internal)?;
        if device_pins.is_empty() && !options.trust_first_device {
            return Err(no_device(name));
        }
        match (existing, options.reissue) {
            (Some(_), false) => {
                return refuse(
                    RefusalCode::Denied,
                    format!(
                        "the workspace `{name}` exists. hint: choose another name, or ask for a new code for it with --reissue"
                    ),
                );
            }
            (None, true) => return refuse(RefusalCode::NotFound, no_workspace(name)),
            (Some(_), true) => {
                change.set_trust_first_device(name, options.trust_first_device).await.map_err(internal)?;
            }
            (None, false) => {
                let record = WorkspaceRecord {
                    name: name.clone(),
                    pin: None,
                    created: unix(now),
                    revoked: None,
                    trust_first_device: options.trust_first_device,
                    device_pins,
                };
                change.put_workspace(&record).await.map_err(internal)?;
            }
        }
        change.drop_codes(name).await.map_err(internal)?;
        let code = self.new_code(&mut change, CodeKind::Enrol, Some(name), options.ttl, now).await?;
        change.commit().await.map_err(internal)?;
        let (reissue, trust_first) = (options.reissue, options.trust_first_device);
        tracing::info!(target: "audit", event = "workspace_added", workspace = %name, reissue, trust_first);
        Ok(code)
    }

    /// Makes the bearer of a code the workspace it was made for; a key that was there before is no longer good.
    /// A refusal leaves the code unused.
    pub async fn enroll(&self, request: &EnrollRequest, now: SystemTime) -> Result<EnrollAnswer, Refusal> {
        let code = self.read_code(request.code.expose(), CodeKind::Enrol)?;
        let (csr, pin) = read_csr(&request.csr)?;
        let mut change = self.store.begin().await.map_err(internal)?;
        let subject = use_code(&mut change, &code, now).await?.subject;
        let name = subject.ok_or_else(|| internal("an enrolment code without a workspace"))?;
        let record = change.workspace(&name).await.map_err(internal)?.filter(|record| record.revoked.is_none());
        let Some(record) = record else {
            return refuse(RefusalCode::Denied, no_workspace(&name));
        };
        check_workspace_key(&mut change, &name, pin).await?;
        let pins = change.device_pins().await.map_err(internal)?;
        if pins.is_empty() && !record.trust_first_device {
            return Err(no_device(&name));
        }
        change.enroll_workspace(&name, pin, &pins).await.map_err(internal)?;
        let authorities = self.authorities();
        let chain = self.issue(&mut change, &authorities, (&csr, pin), Role::Workspace(name.clone()), now).await?;
        change.put_trusts(pin, authorities.trust().ca_pin()).await.map_err(internal)?;
        change.commit().await.map_err(internal)?;
        let replaced = record.pin.filter(|old| *old != pin).map(|old| old.to_string());
        tracing::info!(target: "audit", event = "enrolled", workspace = %name, %pin, replaced);
        Ok(EnrollAnswer {
            workspace: name,
            domain: authorities.trust().domain.clone(),
            chain,
            ca: authority_of(&authorities, &code)?,
            authorities: authorities.bundle().to_owned(),
            trust_first_device: pins.is_empty(),
            device_pins: pins.iter().map(KeyPin::to_string).collect(),
        })
    }

    /// A fresh certificate for a known key, also after the old one has ended. The request proves possession;
    /// whoever replays another's gets a certificate for a key he does not have.
    pub async fn renew(&self, request: &RenewRequest, now: SystemTime) -> Result<RenewAnswer, Refusal> {
        let (csr, pin) = read_csr(&request.csr)?;
        let role = match self.store.device_by_pin(pin).await.map_err(internal)? {
            Some(device) => {
                device_in_force(&device)?;
                Role::Device(device.name)
            }
            None => match self.store.workspace_by_pin(pin).await.map_err(internal)? {
                Some(workspace) => {
                    workspace_in_force(&workspace)?;
                    Role::Workspace(workspace.name)
                }
                None => {
                    return refuse(
                        RefusalCode::Denied,
                        "this key is not known here, or another has taken its place. hint: pair this device (--new-key) or enrol this workspace again",
                    );
                }
            },
        };
        let authorities = self.authorities();
        let mut change = self.store.begin().await.map_err(internal)?;
        let chain = self.issue(&mut change, &authorities, (&csr, pin), role.clone(), now).await?;
        // Nobody has signed it, and it counts for waiting only: what is not the pin of an authority in force is no reason to
        // refuse, and is not noted.
        let trusts = request.trusts.as_deref().and_then(|text| text.parse().ok());
        if let Some(trusts) = trusts.filter(|pin| authorities.trust().age(*pin).is_some()) {
            change.put_trusts(pin, trusts).await.map_err(internal)?;
        }
        change.commit().await.map_err(internal)?;
        tracing::info!(target: "audit", event = "renewed", %role, %pin);
        Ok(RenewAnswer { chain, authorities: authorities.bundle().to_owned() })
    }

    /// Whether a peer, whose certificate the handshake has verified, belongs here now: known, not revoked, and
    /// with the key on record. For every connection, because certificates outlive decisions.
    pub async fn authorize(&self, peer: &PeerCertificate, now: SystemTime) -> Result<Member, Refusal> {
        if peer.identity.domain != self.authorities().trust().domain {
            return refuse(RefusalCode::Denied, "this certificate is of another coordinator. hint: check the address");
        }
        if peer.not_after <= now {
            return refuse(RefusalCode::Denied, "this certificate has expired. hint: renew it, and check the clock");
        }
        match &peer.identity.role {
            Role::Device(name) => {
                let device = self.store.device(name).await.map_err(internal)?;
                let device = device.ok_or_else(|| Refusal::new(RefusalCode::Denied, unknown("device", name)))?;
                device_in_force(&device)?;
                same_key("device", name, peer.pin, Some(device.pin))?;
                let now = unix(now);
                self.store.saw_device(name, now, now - LAST_SEEN_STEP).await.map_err(internal)?;
                Ok(Member::Device(device))
            }
            Role::Workspace(name) => {
                let workspace = self.store.workspace(name).await.map_err(internal)?;
                let workspace = workspace.ok_or_else(|| Refusal::new(RefusalCode::Denied, no_workspace(name)))?;
                workspace_in_force(&workspace)?;
                same_key("workspace", name, peer.pin, workspace.pin)?;
                Ok(Member::Workspace(workspace))
            }
            role @ (Role::Coordinator | Role::Node(_)) => {
                refuse(RefusalCode::Denied, format!("{role} is nobody who dials here. hint: pair a device"))
            }
        }
    }

    /// A workspace that exists and was not removed.
    pub async fn workspace(&self, name: &WorkspaceName) -> Result<WorkspaceRecord, Refusal> {
        let workspace = self.store.workspace(name).await.map_err(internal)?;
        let workspace = workspace.ok_or_else(|| Refusal::new(RefusalCode::NotFound, no_workspace(name)))?;
        workspace_in_force(&workspace)?;
        Ok(workspace)
    }

    /// Every device, revoked ones too, by name.
    pub async fn list_devices(&self) -> Result<Vec<DeviceRecord>, Refusal> {
        self.store.devices().await.map_err(internal)
    }

    /// Every workspace that was not removed, by name.
    pub async fn list_workspaces(&self) -> Result<Vec<WorkspaceRecord>, Refusal> {
        self.store.workspaces().await.map_err(internal)
    }

    /// From now on this device is refused. Workspaces enrolled before still have its key on their lists.
    pub async fn revoke_device(&self, name: &DeviceName, now: SystemTime) -> Result<(), Refusal> {
        let mut change = self.store.begin().await.map_err(internal)?;
        if !change.revoke_device(name, unix(now)).await.map_err(internal)? {
            return refuse(
                RefusalCode::NotFound,
                format!("there is no device `{name}` that is not revoked already. hint: list the devices"),
            );
        }
        change.commit().await.map_err(internal)?;
        tracing::info!(target: "audit", event = "device_revoked", device = %name);
        Ok(())
    }

    /// From now on this workspace is refused, and its codes with it. The name is free again.
    pub async fn remove_workspace(&self, name: &WorkspaceName, now: SystemTime) -> Result<(), Refusal> {
        let mut change = self.store.begin().await.map_err(internal)?;
        if !change.revoke_workspace(name, unix(now)).await.map_err(internal)? {
            return refuse(RefusalCode::NotFound, no_workspace(name));
        }
        change.drop_codes(name).await.map_err(internal)?;
        change.commit().await.map_err(internal)?;
        tracing::info!(target: "audit", event = "workspace_removed", workspace = %name);
        Ok(())
    }

    async fn new_code(
        &self,
        change: &mut Change,
        kind: CodeKind,
        subject: Option<&WorkspaceName>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Code, Refusal> {
        let code = Code::generate(kind, self.authorities().signing().trust().ca_pin());
        let life = (unix(now), unix(now + ttl.min(MAX_TTL)));
        let forget = unix(now - REMEMBER_CODES.min(now.duration_since(UNIX_EPOCH).unwrap_or_default()));
        change.add_code(code.hash(), kind.prefix(), subject, life, forget).await.map_err(internal)?;
        Ok(code)
    }

    fn read_code(&self, text: &str, kind: CodeKind) -> Result<Code, Refusal> {
        let code: Code = text.parse().map_err(|e| Refusal::new(RefusalCode::InvalidArguments, format!("{e}")))?;
        if code.kind() != kind {
            let sentence = match code.kind() {
                CodeKind::Pair => {
                    "this code pairs a laptop; it does not enrol a workspace. hint: use it with `nexus-proxy pair`, or make one for the workspace"
                }
                CodeKind::Enrol => {
                    "this code enrols a workspace; it does not pair a laptop. hint: use it in the workspace, or make one for the laptop"
                }
            };
            return refuse(RefusalCode::InvalidArguments, sentence);
        }
        authority_of(&self.authorities(), &code)?;
        Ok(code)
    }

    /// A certificate for the key of a request, and a note of which authority it is by.
    async fn issue(
        &self,
        change: &mut Change,
        authorities: &Authorities,
        (csr, pin): (&[u8], KeyPin),
        role: Role,
        now: SystemTime,
    ) -> Result<String, Refusal> {
        let signing = authorities.signing();
        let identity = Identity::new(signing.domain().clone(), role);
        let chain = signing.issue(csr, &identity, self.leaf_lifetime, now, &[]).map_err(internal)?;
        let leaf = PeerCertificate::parse(&chain[0]).map_err(internal)?;
        change.put_leaf(pin, signing.trust().ca_pin(), unix(leaf.not_after)).await.map_err(internal)?;
        Ok(chain_pem(&chain))
    }
}

/// The certificate of the authority in force that made a code.
fn authority_of(authorities: &Authorities, code: &Code) -> Result<String, Refusal> {
    authorities.with_prefix(code.ca_prefix()).ok_or_else(|| {
        let text = "this code is from another coordinator, or from before its authority was replaced. hint: check the address, or ask for a new code";
        Refusal::new(RefusalCode::Denied, text)
    })
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;

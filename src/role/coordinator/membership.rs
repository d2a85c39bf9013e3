//! Who still belongs here. A connection that stands is judged again when a device is revoked, a workspace removed or a
//! code used, by this process or by a command beside it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::registry::Registry;
use super::store::Revision;
use crate::identity::KeyPin;
use crate::identity::certificate::PeerCertificate;
use crate::wire::name::WorkspaceName;
use crate::wire::{Refusal, RefusalCode};

/// How often the database is looked at. Two counts over small tables.
const LOOK: Duration = Duration::from_millis(400);

/// Given to a certificate whose holder is judged again: a connection outlives the certificate that it began with.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// Judges connections that stand.
#[derive(Debug, Clone)]
pub struct Membership {
    registry: Registry,
    revision: watch::Receiver<Revision>,
    revoked: watch::Receiver<Revoked>,
}

/// The keys of revoked devices.
pub type Revoked = Arc<[KeyPin]>;

impl Membership {
    /// And the task that notices changes, for ever.
    pub fn new(registry: Registry) -> (Membership, impl Future<Output = ()>) {
        let (changes, revision) = watch::channel(Revision::default());
        let (lost, revoked) = watch::channel(Revoked::default());
        let devices = registry.clone();
        let store = registry.store().clone();
        let look = async move {
            // A change that was noticed, and of which nobody has heard who is revoked: the database may fail between the two.
            let mut owed = false;
            loop {
                match store.revision().await {
                    Ok(now) => owed |= changes.send_if_modified(|before| std::mem::replace(before, now) != now),
                    Err(error) => tracing::warn!(%error, "the database could not be looked at"),
                }
                if owed {
                    owed = !tell_revoked(&devices, &lost).await;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        (Membership { registry, revision, revoked }, look)
    }

    /// Where decisions stand, as they change.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.revision.clone()
    }

    /// The revoked devices, as they change.
    pub fn revoked(&self) -> watch::Receiver<Revoked> {
        self.revoked.clone()
    }

    /// Returns when the holder of this certificate no longer belongs here, or the workspace it is connected to does not.
    pub async fn lost(mut self, certificate: PeerCertificate, workspace: Option<WorkspaceName>) -> Refusal {
        loop {
            if self.revision.changed().await.is_err() {
                return std::future::pending().await;
            }
            let mut failed = false;
            while let Err(refusal) = self.judge(&certificate, workspace.as_ref()).await {
                if matches!(refusal.code, RefusalCode::Denied | RefusalCode::NotFound) {
                    return refusal;
                }
                // A database that does not answer is no verdict, and no other change may come: it is asked again.
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(%refusal, "a member could not be judged again yet");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn judge(&self, certificate: &PeerCertificate, workspace: Option<&WorkspaceName>) -> Result<(), Refusal> {
        let now = SystemTime::now();
        let renewed = PeerCertificate { not_after: now + RENEWED, ..certificate.clone() };
        self.registry.authorize(&renewed, now).await?;
        if let Some(workspace) = workspace {
            self.registry.workspace(workspace).await?;
        }
        Ok(())
    }
}

/// Whether the database could say who is revoked.
async fn tell_revoked(registry: &Registry, lost: &watch::Sender<Revoked>) -> bool {
    match registry.list_devices().await {
        Ok(devices) => {
            let pins: Revoked = devices.iter().filter(|d| d.revoked.is_some()).map(|d| d.pin).collect();
            lost.send_if_modified(|before| {
                let differs = *before != pins;
                *before = pins;
                differs
            });
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the revoked devices could not be listed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Authority, Identity, Role};
    use crate::role::coordinator::store::Store;
    use crate::wire::name::DeviceName;

    /// Enough for any number of looks.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_revocation_that_meets_a_database_error_is_heard_of_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let (name, pin, now): (DeviceName, _, _) =
            ("anna".parse().unwrap(), KeyPin::from_bytes([1; 32]), SystemTime::now());
        let store = Store::open(dir.path()).await.unwrap();
        let mut change = store.begin().await.unwrap();
        change.put_device(&name, pin, 5).await.unwrap();
        change.commit().await.unwrap();
        let domain = "d".parse().unwrap();
        let registry = Registry::new(store.clone(), Authority::create("d".parse().unwrap(), now).unwrap().into());
        let (membership, look) = Membership::new(registry);
        let look = tokio::spawn(look);
        let identity = Identity { domain, role: Role::Device(name) };
        let certificate = PeerCertificate { identity, pin, not_before: now, not_after: now + RENEWED };
        let (mut revision, mut revoked) = (membership.revision(), membership.revoked());
        let lost = tokio::spawn(membership.lost(certificate, None));

        // That something changed can be read, and what has changed cannot.
        let damage = "UPDATE device SET pin = 'damaged', revoked = 7 WHERE name = 'anna'";
        sqlx::query(damage).execute(&store.pool).await.unwrap();
        tokio::time::timeout(PATIENCE, revision.changed()).await.unwrap().unwrap();
        tokio::time::sleep(LOOK).await;
        assert!(!lost.is_finished() && revoked.borrow().is_empty(), "an error is no verdict");

        sqlx::query("UPDATE device SET pin = ?").bind(pin.to_string()).execute(&store.pool).await.unwrap();
        let refusal = tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
        assert_eq!(refusal.code, RefusalCode::Denied, "{refusal}");
        tokio::time::timeout(PATIENCE, revoked.changed()).await.unwrap().unwrap();
        assert_eq!(revoked.borrow()[..], [pin]);
        look.abort();
    }
}

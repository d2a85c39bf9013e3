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
            loop {
                match store.revision().await {
                    Ok(now) => {
                        if changes.send_if_modified(|before| std::mem::replace(before, now) != now) {
                            tell_revoked(&devices, &lost).await;
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the database could not be looked at"),
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
            let now = SystemTime::now();
            let renewed = PeerCertificate { not_after: now + RENEWED, ..certificate.clone() };
            let mut verdict = self.registry.authorize(&renewed, now).await.map(drop);
            if let (Ok(()), Some(workspace)) = (&verdict, &workspace) {
                verdict = self.registry.workspace(workspace).await.map(drop);
            }
            match verdict {
                Err(refusal) if matches!(refusal.code, RefusalCode::Denied | RefusalCode::NotFound) => return refusal,
                // A database that does not answer is no verdict.
                Err(error) => tracing::warn!(%error, "a member could not be judged again"),
                Ok(()) => {}
            }
        }
    }
}

async fn tell_revoked(registry: &Registry, lost: &watch::Sender<Revoked>) {
    match registry.list_devices().await {
        Ok(devices) => {
            let pins: Revoked = devices.iter().filter(|d| d.revoked.is_some()).map(|d| d.pin).collect();
            lost.send_if_modified(|before| {
                let differs = *before != pins;
                *before = pins;
                differs
            });
        }
        Err(error) => tracing::warn!(%error, "the revoked devices could not be listed"),
    }
}

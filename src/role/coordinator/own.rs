//! The coordinator's own certificate, and what its listeners go by: whose certificates count. Both follow the authorities,
//! and the certificate is renewed by a timer. Connections that stand keep what they began with.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::watch;

use super::authority::{Authorities, server_credential};
use super::balancer::Balancer;
use super::registry::Registry;
use super::store::Revision;
use crate::identity::verify::{ClientAuth, Expect, server_config};
use crate::identity::{Credential, IdentityError};
use crate::role::renewal::{SHORTEST, until};
use crate::transport::client::ALPN;

/// How much longer than the certificates of members it lives: clocks of clients may be wrong by days, and theirs are
/// judged by the coordinator's clock alone. Its key exists in memory only.
const LIVES: u32 = 7;

/// The certificate, for as long as the coordinator serves.
pub(super) struct OwnCertificate {
    registry: Registry,
    names: Vec<String>,
    credential: Credential,
    tls: Arc<ArcSwap<ServerConfig>>,
    steps: watch::Sender<i64>,
}

impl OwnCertificate {
    /// `names` are DNS names and addresses for the certificate.
    pub(super) fn new(registry: Registry, names: Vec<String>) -> Result<OwnCertificate, IdentityError> {
        let (credential, config) = make(&registry, &names)?;
        let steps = watch::Sender::new(Revision::default().authorities);
        Ok(OwnCertificate { registry, names, credential, tls: Arc::new(ArcSwap::new(config)), steps })
    }

    /// For a listener with TLS; changes under it.
    pub(super) fn tls(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.tls.clone()
    }

    /// Steps of rotations, each once it is in force here.
    pub(super) fn steps(&self) -> watch::Receiver<i64> {
        self.steps.subscribe()
    }

    /// Renews it when two thirds of its time are over, and follows each step of a rotation, for as long as it is polled.
    /// `balancer` is the listener without TLS.
    pub(super) async fn keep_fresh(mut self, balancer: Option<Arc<Balancer>>, mut revision: watch::Receiver<Revision>) {
        loop {
            let now = SystemTime::now();
            let outcome = async {
                let found = revision.borrow_and_update().authorities;
                if *self.steps.borrow() != found {
                    self.registry.reload(now).await?;
                    if let Some(balancer) = &balancer {
                        balancer.set_trust(self.registry.authorities().trust())?;
                    }
                    self.renew()?;
                    self.steps.send_replace(found);
                } else if now >= self.credential.renew_at() {
                    self.renew()?;
                }
                Ok::<_, super::authority::AuthorityError>(())
            };
            // A file that cannot be read for a moment, a database that is busy: what is in force stays so.
            let wait = match outcome.await {
                Ok(()) => until(self.credential.renew_at(), SystemTime::now()),
                Err(error) => {
                    tracing::error!(%error, "the coordinator's certificate could not be renewed");
                    SHORTEST
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = revision.changed() => {}
            }
        }
    }

    fn renew(&mut self) -> Result<(), IdentityError> {
        let (credential, config) = make(&self.registry, &self.names)?;
        tracing::info!(authorities = self.registry.authorities().trust().anchors().len(), "own certificate renewed");
        self.credential = credential;
        self.tls.store(config);
        Ok(())
    }
}

fn make(registry: &Registry, names: &[String]) -> Result<(Credential, Arc<ServerConfig>), IdentityError> {
    let authorities = registry.authorities();
    let lifetime = registry.leaf_lifetime().saturating_mul(LIVES);
    let mut own = server_credential(authorities.signing(), lifetime, SystemTime::now(), names)?;
    own.chain.extend(others(&authorities));
    let clients = ClientAuth::Optional(Expect::AnyClient);
    let config = server_config(authorities.trust(), &own, clients, ALPN)?;
    Ok((own, config))
}

/// The authorities in force beside the one that signs: a one-time code may be by one of them, and whoever brings it has
/// nothing else to know it by.
fn others(authorities: &Authorities) -> impl Iterator<Item = rustls::pki_types::CertificateDer<'static>> {
    let signs = authorities.signing().trust().ca_pin();
    let others = authorities.trust().anchors().iter().filter(move |anchor| anchor.pin != signs);
    others.map(|anchor| anchor.ca.clone())
}

//! TLS configurations that know whom they expect: TLS 1.3, our provider, no resumption, no early data.
//! The chain is verified against the authorities that are believed, then the URI name, then the pin. DNS names are not looked at:
//! the authority is private to one coordinator, so a name of its domain says all that a DNS name could.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::wire::limits::{MAX_AUTHORITIES, MAX_CROSSED};
use crate::wire::name::WorkspaceName;

use super::{Credential, IdentityError, KeyPin, PeerCertificate, Role, Trust};

/// A further check of a peer whose chain and name are right.
pub type PeerCheck = Arc<dyn Fn(&PeerCertificate) -> Result<(), IdentityError> + Send + Sync>;

/// Presented certificates in which an authority is looked for during bootstrap: the one that signs, those that vouch for
/// it, and the others in force.
const MAX_PRESENTED: usize = MAX_AUTHORITIES + MAX_CROSSED;

/// Whom a handshake expects on the other side. Always within one trust domain.
#[derive(Clone)]
pub enum Expect {
    /// The coordinator.
    Coordinator,
    /// Any device that passes the check, such as a list of pins.
    Device(PeerCheck),
    /// This workspace, and this key if it is known.
    Workspace {
        /// Its name.
        name: WorkspaceName,
        /// Its key, once it is known.
        pin: Option<KeyPin>,
    },
    /// A device, a workspace or a node: whoever dials a coordinator.
    AnyClient,
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Expect {
    fn describe(&self) -> String {
        match self {
            Expect::Coordinator => "the coordinator".into(),
            Expect::Device(_) => "a device".into(),
            Expect::Workspace { name, .. } => format!("the workspace {name}"),
            Expect::AnyClient => "a device, a workspace or a node".into(),
        }
    }

    /// Whether `peer`, whose chain has been verified against `trust`, is the one.
    fn check(&self, trust: &Trust, peer: &PeerCertificate) -> Result<(), IdentityError> {
        let fits = match (self, &peer.identity.role) {
            (Expect::Coordinator, Role::Coordinator) => true,
            (Expect::Device(_), Role::Device(_)) => true,
            (Expect::Workspace { name, .. }, Role::Workspace(found)) => name == found,
            (Expect::AnyClient, Role::Device(_) | Role::Workspace(_) | Role::Node(_)) => true,
            _ => false,
        };
        if !fits || peer.identity.domain != trust.domain {
            let expected = format!("{} of {}", self.describe(), trust.domain);
            return Err(IdentityError::WrongName { expected, found: peer.identity.to_string() });
        }
        match self {
            Expect::Device(check) => check(peer),
            Expect::Workspace { pin: Some(expected), .. } if *expected != peer.pin => {
                Err(IdentityError::WrongPin { expected: *expected, found: peer.pin })
            }
            _ => Ok(()),
        }
    }
}

/// Whether a client must say who it is.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// It need not; but a certificate that is wrong is refused.
    Optional(Expect),
    /// It must.
    Required(Expect),
}

/// The configuration of a client that knows its coordinator's authority. The server name passed to rustls is
/// sent to the peer, and is not what is verified.
pub fn client_config(
    trust: &Trust,
    expect: Expect,
    credential: Option<&Credential>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let provider = provider();
    let known = Known { roots: trust.roots()?, trust: trust.clone() };
    let verifier = ServerVerifier { anchor: Anchor::Known(known), expect, provider: provider.clone() };
    finish_client(provider, verifier, credential, alpn)
}

/// The configuration of a client that knows its coordinator only by a one-time code, which carries the first
/// 16 bytes of the authority's pin. After the handshake the handle has the authority.
pub fn bootstrap_client_config(
    ca_pin_prefix: &[u8; 16],
    alpn: &[&[u8]],
) -> Result<(Arc<ClientConfig>, BootstrapTrust), IdentityError> {
    let provider = provider();
    let handle = BootstrapTrust::default();
    let anchor = Anchor::Code { prefix: *ca_pin_prefix, seen: handle.clone() };
    let verifier = ServerVerifier { anchor, expect: Expect::Coordinator, provider: provider.clone() };
    Ok((finish_client(provider, verifier, None, alpn)?, handle))
}

/// What a bootstrap handshake learned.
#[derive(Debug, Clone, Default)]
pub struct BootstrapTrust(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    trust: Option<Trust>,
    proved: bool,
}

impl BootstrapTrust {
    /// The authority, once a peer has proved to hold the key of a coordinator's certificate from it.
    pub fn trust(&self) -> Option<Trust> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.trust.clone().filter(|_| seen.proved)
    }

    fn saw(&self, trust: Option<Trust>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Seen { trust, proved: false };
    }

    fn prove(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).proved = true;
    }
}

/// The configuration of a server whose clients have certificates of the same authority.
pub fn server_config(
    trust: &Trust,
    credential: &Credential,
    client: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let provider = provider();
    let (mandatory, expect) = match client {
        ClientAuth::Optional(expect) => (false, expect),
        ClientAuth::Required(expect) => (true, expect),
    };
    let verifier = verifier_of_clients(trust, expect, mandatory)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| IdentityError::internal("TLS", e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credential.chain.clone(), credential.key.to_rustls())
        .map_err(|e| IdentityError::internal("credential", e))?;
    // A resumed session skips the verifier above, and with it every revocation since.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// What a server's handshake does with a client's certificate, for certificates that come another way: the chain, its
/// time, its name.
pub fn client_verifier(trust: &Trust, expect: Expect) -> Result<Arc<dyn ClientCertVerifier>, IdentityError> {
    verifier_of_clients(trust, expect, true)
}

fn verifier_of_clients(
    trust: &Trust,
    expect: Expect,
    mandatory: bool,
) -> Result<Arc<dyn ClientCertVerifier>, IdentityError> {
    let builder = WebPkiClientVerifier::builder_with_provider(trust.roots()?, provider());
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    let chain = builder.build().map_err(|e| IdentityError::internal("client verifier", e))?;
    Ok(Arc::new(ClientVerifier { chain, trust: trust.clone(), expect }))
}

/// The provider of all cryptography in TLS; its first key exchange is X25519MLKEM768.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn finish_client(
    provider: Arc<CryptoProvider>,
    verifier: ServerVerifier,
    credential: Option<&Credential>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| IdentityError::internal("TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match credential {
        None => builder.with_no_client_auth(),
        Some(credential) => builder
            .with_client_auth_cert(credential.chain.clone(), credential.key.to_rustls())
            .map_err(|e| IdentityError::internal("credential", e))?,
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Known {
    trust: Trust,
    roots: Arc<RootCertStore>,
}

#[derive(Debug)]
enum Anchor {
    Known(Known),
    Code { prefix: [u8; 16], seen: BootstrapTrust },
}

#[derive(Debug)]
struct ServerVerifier {
    anchor: Anchor,
    expect: Expect,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    fn verify(
        &self,
        known: &Known,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &known.roots, rest, now, algorithms).map_err(chain_error)?;
        let peer = PeerCertificate::parse(leaf).map_err(IdentityError::into_rustls)?;
        self.expect.check(&known.trust, &peer).map_err(IdentityError::into_rustls)
    }
}

/// An authority with the same name and another key is another authority.
fn chain_error(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        other => other,
    }
}

fn find_authority(prefix: &[u8; 16], presented: &[CertificateDer<'_>]) -> Result<Known, IdentityError> {
    let trust = presented
        .iter()
        .take(MAX_PRESENTED)
        .filter_map(|der| Trust::from_der(der.clone().into_owned()).ok())
        .find(|trust| trust.ca_pin().prefix() == *prefix)
        .ok_or(IdentityError::NotOfThisCode)?;
    Ok(Known { roots: trust.roots()?, trust })
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.anchor {
            Anchor::Known(known) => self.verify(known, end_entity, intermediates, now)?,
            Anchor::Code { prefix, seen } => {
                seen.saw(None);
                let known = find_authority(prefix, intermediates).map_err(IdentityError::into_rustls)?;
                self.verify(&known, end_entity, intermediates, now)?;
                seen.saw(Some(known.trust));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)?;
        if let Anchor::Code { seen, .. } = &self.anchor {
            seen.prove();
        }
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust: Trust,
    expect: Expect,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now).map_err(chain_error)?;
        let peer = PeerCertificate::parse(end_entity).map_err(IdentityError::into_rustls)?;
        self.expect.check(&self.trust, &peer).map_err(IdentityError::into_rustls)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;

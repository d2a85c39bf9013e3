//! Certificates as this system reads them: what it presents itself ([`Credential`]) and what a peer presented
//! ([`PeerCertificate`]). Reading proves nothing; `verify` does that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::{Identity, IdentityError, KeyPin, PrivateKey, pem};

/// Bytes of one certificate that are looked at; ours have less than one kilobyte.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// What a program presents: its certificate, what leads to an authority, and the key.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The leaf, then the authority, then certificates with which earlier authorities vouch for it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the leaf.
    pub key: PrivateKey,
    leaf: PeerCertificate,
}

impl Credential {
    /// Refuses a chain whose leaf is not for `key`.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Credential, IdentityError> {
        let first = chain.first().ok_or(IdentityError::NoCertificate)?;
        let leaf = PeerCertificate::parse(first)?;
        if leaf.pin != key.pin() {
            return Err(IdentityError::KeyMismatch);
        }
        Ok(Credential { chain, key, leaf })
    }

    /// Reads a chain in PEM, leaf first.
    pub fn from_pem(chain: &str, key: PrivateKey) -> Result<Credential, IdentityError> {
        Credential::new(pem::certificates(chain)?, key)
    }

    /// The chain in PEM, leaf first. The key is not in it.
    pub fn to_pem(&self) -> String {
        chain_pem(&self.chain)
    }

    /// Who this is.
    pub fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// The pin of the authority that issued it, as the chain says.
    pub fn issuer(&self) -> Option<KeyPin> {
        parse_x509(self.chain.get(1)?).ok().map(|authority| KeyPin::of_spki(authority.public_key().raw))
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// When to ask for the next one: two thirds into its time.
    pub fn renew_at(&self) -> SystemTime {
        let lifetime = self.leaf.not_after.duration_since(self.leaf.not_before).unwrap_or(Duration::ZERO);
        self.leaf.not_before + lifetime / 3 * 2
    }
}

/// A chain in PEM, in its order.
pub fn chain_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| pem::encode("CERTIFICATE", certificate)).collect()
}

/// What a leaf certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whom it names.
    pub identity: Identity,
    /// The pin of its key.
    pub pin: KeyPin,
    /// Start of its time.
    pub not_before: SystemTime,
    /// End of its time.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    /// Reads a leaf; refuses one without exactly one URI name, and one of an authority.
    pub fn parse(der: &CertificateDer<'_>) -> Result<PeerCertificate, IdentityError> {
        let certificate = parse_x509(der)?;
        if certificate.is_ca() {
            return Err(IdentityError::malformed("the certificate of an authority where a peer's should be"));
        }
        let validity = certificate.validity();
        Ok(PeerCertificate {
            identity: only_uri(&certificate)?.parse()?,
            pin: KeyPin::of_spki(certificate.public_key().raw),
            not_before: system_time(validity.not_before)?,
            not_after: system_time(validity.not_after)?,
        })
    }
}

pub(super) fn parse_x509<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(IdentityError::TooLarge { what: "a certificate", len: der.len(), max: MAX_CERTIFICATE });
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(IdentityError::malformed("bytes behind the certificate")),
        Err(_) => Err(IdentityError::malformed("the certificate does not parse")),
    }
}

/// The one URI among the alternative names.
pub(super) fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::malformed("the names of the certificate do not parse"))?
        .map(|names| names.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        _ => Err(IdentityError::malformed("the certificate does not have exactly one URI name")),
    }
}

pub(super) fn system_time(time: ASN1Time) -> Result<SystemTime, IdentityError> {
    u64::try_from(time.timestamp())
        .ok()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or_else(|| IdentityError::malformed("the certificate's time is not a time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Authority, Role};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn credential(now: SystemTime) -> Credential {
        credential_for(DAY, now)
    }

    fn credential_for(lifetime: Duration, now: SystemTime) -> Credential {
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
        let chain = authority.issue(&key.csr_der().unwrap(), &identity, lifetime, now, &[]).unwrap();
        Credential::new(chain, key).unwrap()
    }

    #[test]
    fn reads_what_the_authority_wrote() {
        let now = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let credential = credential(now);
        assert_eq!(credential.identity().to_string(), "spiffe://d/device/laptop");
        assert_eq!(credential.not_after(), now + DAY);
        assert!(credential.renew_at() > now + DAY / 2 && credential.renew_at() < now + DAY * 2 / 3);
        let again = Credential::from_pem(&credential.to_pem(), credential.key.clone()).unwrap();
        assert_eq!(again.chain, credential.chain);
    }

    #[test]
    fn renewal_lies_ahead_however_short_the_life() {
        let now = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        for seconds in [6, 60, 300, 3600] {
            let lifetime = Duration::from_secs(seconds);
            let credential = credential_for(lifetime, now);
            assert!(credential.renew_at() > now && credential.renew_at() < now + lifetime, "{seconds}");
        }
    }

    #[test]
    fn refuses_the_wrong_key_and_the_wrong_order() {
        let good = credential(SystemTime::now());
        let other = PrivateKey::generate().unwrap();
        assert_eq!(Credential::new(good.chain.clone(), other).unwrap_err(), IdentityError::KeyMismatch);
        let reversed = good.chain.iter().rev().cloned().collect();
        assert!(Credential::new(reversed, good.key.clone()).is_err());
        assert!(Credential::from_pem("", good.key).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused(bytes: Vec<u8>) {
            proptest::prop_assert!(PeerCertificate::parse(&CertificateDer::from(bytes)).is_err());
        }
    }
}

//! The certificate authority of one trust domain. It decides nothing: whom a certificate may name is the
//! caller's decision. It refuses requests that do not prove possession of their key, takes nothing from a
//! request but that key, and signs no certificate that outlives its own. It vouches for the authority after it.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::wire::limits::MAX_CROSSED;
use crate::wire::name::TrustDomain;

use super::certificate::{parse_x509, system_time};
use super::error::unix_seconds;
use super::{Identity, IdentityError, KeyPin, PrivateKey, Trust, uri};

/// Bytes of a certificate request. Ours have about 200.
pub const MAX_CSR: usize = 4 * 1024;

/// How long an authority lives.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How far before `now` a certificate begins at most, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Bytes of a serial number; RFC 5280 allows 20.
const SERIAL: usize = 16;

/// Bytes of a P-256 point as certificates carry it, uncompressed.
const P256_POINT: usize = 65;

/// Additional DNS names and addresses in one certificate.
const MAX_EXTRA_SANS: usize = 64;

/// The authority: its certificate and its key.
#[derive(Debug)]
pub struct Authority {
    trust: Trust,
    key: PrivateKey,
    not_after: SystemTime,
    crossed: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// A new authority with a new key.
    pub fn create(domain: TrustDomain, now: SystemTime) -> Result<Authority, IdentityError> {
        Authority::create_with(domain, PrivateKey::generate()?, now)
    }

    /// A new authority for a key that exists.
    pub fn create_with(domain: TrustDomain, key: PrivateKey, now: SystemTime) -> Result<Authority, IdentityError> {
        let mut params = params(&common_name(&domain), now, CA_LIFETIME)?;
        params.subject_alt_names = vec![uri_san(&uri::domain_uri(&domain))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(MAX_CROSSED as u8));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(key.pair()).map_err(|e| IdentityError::internal("authority", e))?;
        Authority::new(Trust::from_der(ca.into())?, key)
    }

    /// Reads an authority from PEM; refuses a certificate and a key that do not belong together.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Authority, IdentityError> {
        Authority::new(Trust::from_pem(cert_pem)?, PrivateKey::from_pem(key_pem)?)
    }

    fn new(trust: Trust, key: PrivateKey) -> Result<Authority, IdentityError> {
        if trust.ca_pin() != key.pin() {
            return Err(IdentityError::KeyMismatch);
        }
        let not_after = system_time(parse_x509(&trust.newest().ca)?.validity().not_after)?;
        Ok(Authority { trust, key, not_after, crossed: Vec::new() })
    }

    /// The same, which shows with each certificate that earlier authorities have vouched for it: `crossed`, newest first.
    /// The oldest beyond [`MAX_CROSSED`] are left out.
    pub fn with_crossed(self, crossed: Vec<CertificateDer<'static>>) -> Authority {
        Authority { crossed: crossed.into_iter().take(MAX_CROSSED).collect(), ..self }
    }

    /// A certificate with which this authority vouches for `next`: whoever believes this one may believe that one.
    pub fn vouch(&self, next: &Authority, now: SystemTime) -> Result<CertificateDer<'static>, IdentityError> {
        self.own_domain(next.domain())?;
        let left = |authority: &Authority| authority.not_after.duration_since(now).map_err(|_| IdentityError::Expired);
        let mut params = params(&common_name(self.domain()), now, left(self)?.min(left(next)?))?;
        params.subject_alt_names = vec![uri_san(&uri::domain_uri(self.domain()))?];
        // One further authority may stand between this one and a leaf.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(MAX_CROSSED as u8 - 1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let issuer = self.issuer()?;
        let crossed = params.signed_by(next.key.pair(), &issuer).map_err(|e| IdentityError::internal("voucher", e))?;
        Ok(crossed.into())
    }

    /// Certificates with which earlier authorities vouch, newest first.
    pub fn crossed(&self) -> &[CertificateDer<'static>] {
        &self.crossed
    }

    /// When its time is over.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What clients remember of it.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Its domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.trust.domain
    }

    /// Its key in PEM, to be stored where only its owner reads.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    /// A certificate for the key of a request, naming `identity`, then the authority's own, then those that vouch for it.
    /// `extra_sans` are DNS names and addresses for clients that look at those.
    pub fn issue(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
        extra_sans: &[String],
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        self.own_domain(&identity.domain)?;
        let key = check_csr(csr_der)?;
        let name = identity.role.name().unwrap_or("coordinator");
        let left = self.not_after.duration_since(now).map_err(|_| IdentityError::Expired)?;
        let mut params = params(name, now, lifetime.min(left))?;
        params.subject_alt_names = subject_names(identity, extra_sans)?;
        // Explicit, because only then the subject key identifier is written.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer()?).map_err(|e| IdentityError::internal("certificate", e))?;
        let own = [leaf.into(), self.trust.newest().ca.clone()];
        Ok(own.into_iter().chain(self.crossed.iter().cloned()).collect())
    }

    fn own_domain(&self, found: &TrustDomain) -> Result<(), IdentityError> {
        if *found == self.trust.domain {
            return Ok(());
        }
        Err(IdentityError::WrongName { expected: self.trust.domain.to_string(), found: found.to_string() })
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, IdentityError> {
        let ca = &self.trust.newest().ca;
        Issuer::from_ca_cert_der(ca, self.key.pair()).map_err(|e| IdentityError::internal("issuer", e))
    }
}

/// The pin of the key in a certificate request that proves possession of it.
pub fn csr_pin(csr_der: &[u8]) -> Result<KeyPin, IdentityError> {
    Ok(KeyPin::of_spki(&check_csr(csr_der)?.subject_public_key_info()))
}

/// The DER of a request in PEM; refuses what is over [`MAX_CSR`].
pub fn csr_from_pem(text: &str) -> Result<Vec<u8>, IdentityError> {
    // Base64 and line ends make 4/3 and a little of it.
    if text.len() > MAX_CSR * 2 {
        return Err(IdentityError::TooLarge { what: "a certificate request", len: text.len(), max: MAX_CSR * 2 });
    }
    let csr = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
        .map_err(|_| IdentityError::malformed("no certificate request in the PEM text"))?;
    Ok(csr.to_vec())
}

/// The key of a request. Its kind is looked at before its signature, so that nobody chooses what verifying costs.
fn check_csr(der: &[u8]) -> Result<SubjectPublicKeyInfo, IdentityError> {
    if der.len() > MAX_CSR {
        return Err(IdentityError::TooLarge { what: "a certificate request", len: der.len(), max: MAX_CSR });
    }
    let request = match X509CertificationRequest::from_der(der) {
        Ok(([], request)) => request,
        _ => return Err(IdentityError::malformed("the certificate request does not parse")),
    };
    let raw = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(raw).map_err(|_| IdentityError::UnsupportedKey)?;
    let accepted = *key.algorithm() == PKCS_ED25519
        || (*key.algorithm() == PKCS_ECDSA_P256_SHA256 && key.der_bytes().len() == P256_POINT);
    // One key has one encoding, hence one pin.
    if !accepted || key.subject_public_key_info() != raw {
        return Err(IdentityError::UnsupportedKey);
    }
    request.verify_signature().map_err(|_| IdentityError::BadRequestSignature)?;
    Ok(key)
}

fn common_name(domain: &TrustDomain) -> String {
    format!("nexus-proxy {domain}")
}

fn params(name: &str, now: SystemTime, lifetime: Duration) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // Never by more than it lives, or two thirds of its time would be over when it begins.
    params.not_before = date(now.checked_sub(BACKDATE.min(lifetime)).unwrap_or(UNIX_EPOCH))?;
    params.not_after = date(now + lifetime)?;
    let mut serial = [0; SERIAL];
    rand::fill(&mut serial);
    // A serial number is positive and has no leading zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn date(time: SystemTime) -> Result<OffsetDateTime, IdentityError> {
    OffsetDateTime::from_unix_timestamp(unix_seconds(time)).map_err(|e| IdentityError::internal("date", e))
}

fn uri_san(text: &str) -> Result<SanType, IdentityError> {
    Ok(SanType::URI(ia5(text)?))
}

fn ia5(text: &str) -> Result<Ia5String, IdentityError> {
    text.try_into().map_err(|_| IdentityError::malformed("a name with characters outside ASCII"))
}

fn subject_names(identity: &Identity, extra: &[String]) -> Result<Vec<SanType>, IdentityError> {
    if extra.len() > MAX_EXTRA_SANS {
        return Err(IdentityError::TooLarge { what: "a list of names", len: extra.len(), max: MAX_EXTRA_SANS });
    }
    let mut names = vec![uri_san(&identity.to_string())?];
    for text in extra {
        names.push(match text.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(ia5(text)?),
        });
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{PeerCertificate, Role};

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        Authority::create("d".parse().unwrap(), SystemTime::now()).unwrap()
    }

    fn workspace() -> Identity {
        Identity::new("d".parse().unwrap(), Role::Workspace("web".parse().unwrap()))
    }

    #[test]
    fn survives_storing_and_loading() {
        let made = authority();
        let loaded = Authority::load(&made.trust().to_pem(), &made.key_pem()).unwrap();
        assert_eq!(loaded.trust(), made.trust());
        let other = authority();
        assert_eq!(Authority::load(&made.trust().to_pem(), &other.key_pem()).unwrap_err(), IdentityError::KeyMismatch);
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn an_authority_is_constrained() {
        let authority = authority();
        let ca = parse_x509(&authority.trust().newest().ca).unwrap();
        let constraints = ca.basic_constraints().unwrap().unwrap().value;
        assert!(constraints.ca && constraints.path_len_constraint == Some(MAX_CROSSED as u32));
        let usage = ca.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
        assert!(ca.extended_key_usage().unwrap().is_none());
    }

    #[test]
    fn only_the_key_of_a_request_is_taken() {
        let authority = authority();
        let key = PrivateKey::generate().unwrap();
        let mut greedy = CertificateParams::new(vec!["bank.example".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        greedy.subject_alt_names.push(uri_san("spiffe://d/coordinator").unwrap());
        let csr = greedy.serialize_request(key.pair()).unwrap();
        let chain = authority.issue(csr.der(), &workspace(), HOUR, SystemTime::now(), &[]).unwrap();
        let leaf = PeerCertificate::parse(&chain[0]).unwrap();
        assert_eq!(leaf.identity, workspace());
        assert_eq!(leaf.pin, key.pin());
        assert_eq!(csr_pin(csr.der()).unwrap(), key.pin());
        let x509 = parse_x509(&chain[0]).unwrap();
        assert_eq!(x509.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        let usage = x509.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let extended = x509.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && extended.server_auth && !extended.any);
        assert_eq!(x509.raw_serial().len(), SERIAL);
        assert_eq!(chain[1], authority.trust().newest().ca);
        assert_eq!(chain.len(), 2);
    }

    #[test]
    fn names_for_other_clients_are_added() {
        let key = PrivateKey::generate().unwrap();
        let extra = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let now = SystemTime::now();
        let chain = authority().issue(&key.csr_der().unwrap(), &workspace(), HOUR, now, &extra).unwrap();
        let x509 = parse_x509(&chain[0]).unwrap();
        assert_eq!(x509.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 4);
    }

    #[test]
    fn bad_requests_are_refused() {
        let authority = authority();
        let now = SystemTime::now();
        let issue = |csr: &[u8]| authority.issue(csr, &workspace(), HOUR, now, &[]).unwrap_err();
        let good = PrivateKey::generate().unwrap().csr_der().unwrap();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(issue(&forged), IdentityError::BadRequestSignature);
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(issue(&longer), IdentityError::Malformed(_)));
        assert!(matches!(issue(&vec![0; MAX_CSR + 1]), IdentityError::TooLarge { .. }));
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default().serialize_request(&p384).unwrap();
        assert_eq!(issue(csr.der()), IdentityError::UnsupportedKey);
        let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let csr = CertificateParams::default().serialize_request(&ed).unwrap();
        assert!(csr_pin(csr.der()).is_ok());
        let foreign = Identity::new("e".parse().unwrap(), Role::Coordinator);
        assert!(authority.issue(&good, &foreign, HOUR, now, &[]).is_err());
    }

    #[test]
    fn nothing_outlives_the_authority() {
        let authority = authority();
        let key = PrivateKey::generate().unwrap();
        let chain =
            authority.issue(&key.csr_der().unwrap(), &workspace(), CA_LIFETIME * 2, SystemTime::now(), &[]).unwrap();
        assert_eq!(PeerCertificate::parse(&chain[0]).unwrap().not_after, authority.not_after);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused(bytes: Vec<u8>) {
            proptest::prop_assert!(csr_pin(&bytes).is_err());
        }
    }
}

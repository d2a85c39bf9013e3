//! Assertions: how a client proves its key where TLS ends at a load balancer, so that no client certificate arrives.
//! A text that says for which request of which coordinator it is, and for how long; a signature over it; and the
//! certificate of the key. Refuses what is not for this very request, now. Whether one was used before, and whether
//! its owner still belongs here, is for others to say.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use data_encoding::BASE64URL_NOPAD;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SigningKey, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use crate::wire::limits::{ASSERTION_LIFETIME, ASSERTION_SKEW, MAX_ASSERTION};

use super::certificate::parse_x509;
use super::error::unix_seconds;
use super::verify::client_verifier;
use super::{Credential, Expect, IdentityError, PeerCertificate, Trust};

/// The first line of what is signed. No other text that a key of ours signs begins so: TLS signs 64 spaces and more,
/// a certificate request is DER.
const VERSION: &str = "nexus-assertion-v1";

/// Bytes of a nonce.
pub const NONCE: usize = 16;

/// The request that an assertion is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Path and query, as in the request's first line.
    pub path: &'a str,
    /// `HOST:PORT` under which the client knows the coordinator.
    pub audience: &'a str,
}

/// Whose fault it is that an assertion is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The clocks': they are set right, some day.
    Time,
    /// What is between both sides, or how it is set up.
    Way,
    /// Whoever asks.
    Client,
}

/// Why an assertion is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssertionError {
    /// Not three parts of base64url, or not the text that is signed.
    #[error("the assertion does not parse: {0}. hint: is what answers and what asks of one release?")]
    Malformed(&'static str),
    /// It is for another coordinator, or for this one under another address.
    #[error(
        "the assertion is for {found}; this coordinator is {expected}. hint: use the address that `nexus-coordinator invite` prints, or correct --public-url"
    )]
    WrongAudience {
        /// The address in it.
        found: String,
        /// The coordinator's own.
        expected: String,
    },
    /// It is for another request.
    #[error("the assertion is for another request. hint: a load balancer must not rewrite paths")]
    WrongRequest,
    /// Its time is over.
    #[error("the assertion has expired. hint: check the clocks of both sides")]
    Expired,
    /// Its time has not come.
    #[error("the assertion is from the future. hint: check the clocks of both sides")]
    NotYetValid,
    /// It asks to be good for longer than any may be, or for no time at all.
    #[error("the assertion's time is not one. hint: bring both programs to the same release")]
    BadTime,
    /// The certificate in it.
    #[error("the certificate of the assertion: {0}. hint: {hint}", hint = .0.hint())]
    Certificate(#[from] IdentityError),
    /// It is not signed by the key of its certificate.
    #[error("the assertion is not signed by the key of its certificate. hint: pair (--new-key) or enrol again")]
    BadSignature,
}

impl AssertionError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            AssertionError::Expired | AssertionError::NotYetValid => Fault::Time,
            AssertionError::WrongAudience { .. } | AssertionError::WrongRequest => Fault::Way,
            AssertionError::Malformed(_)
            | AssertionError::BadTime
            | AssertionError::Certificate(_)
            | AssertionError::BadSignature => Fault::Client,
        }
    }
}

/// An assertion for one request, good for [`ASSERTION_LIFETIME`] from `now`.
pub fn assert(credential: &Credential, purpose: &Purpose<'_>, now: SystemTime) -> Result<String, IdentityError> {
    let mut nonce = [0; NONCE];
    rand::fill(&mut nonce);
    let issued = unix_seconds(now);
    sign(credential, &text(purpose, issued, issued + ASSERTION_LIFETIME.as_secs() as i64, &nonce))
}

fn text(purpose: &Purpose<'_>, issued: i64, expires: i64, nonce: &[u8]) -> String {
    let Purpose { method, path, audience } = purpose;
    let nonce = BASE64URL_NOPAD.encode(nonce);
    format!("{VERSION}\n{method}\n{path}\n{audience}\n{issued}\n{expires}\n{nonce}")
}

fn sign(credential: &Credential, text: &str) -> Result<String, IdentityError> {
    let leaf = credential.chain.first().ok_or(IdentityError::NoCertificate)?;
    let signature = credential.key.pair().sign(text.as_bytes()).map_err(|e| IdentityError::internal("signature", e))?;
    Ok([text.as_bytes(), &signature, leaf].map(|part| BASE64URL_NOPAD.encode(part)).join("."))
}

/// An assertion that is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// Whose it is.
    pub certificate: PeerCertificate,
    /// What tells it from every other of that key.
    pub nonce: [u8; NONCE],
    /// When it was made, by its maker's clock.
    pub issued: SystemTime,
    /// Until when it would be accepted.
    pub until: SystemTime,
}

/// Judges assertions for one coordinator.
#[derive(Debug)]
pub struct Judge {
    clients: Arc<dyn ClientCertVerifier>,
    audience: String,
}

impl Judge {
    /// For clients of the authority `trust`, who know their coordinator as `audience` (`HOST:PORT`).
    pub fn new(trust: &Trust, audience: String) -> Result<Judge, IdentityError> {
        Ok(Judge { clients: client_verifier(trust, Expect::AnyClient)?, audience })
    }

    /// Reads the value of the header, and checks all that can be checked without remembering anything.
    pub fn judge(&self, header: &[u8], method: &str, path: &str, now: SystemTime) -> Result<Proved, AssertionError> {
        if header.len() > MAX_ASSERTION {
            return Err(AssertionError::Malformed("it is too long"));
        }
        let mut parts = header.split(|byte| *byte == b'.').map(|part| BASE64URL_NOPAD.decode(part));
        let (Some(Ok(text)), Some(Ok(signature)), Some(Ok(leaf)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(AssertionError::Malformed("it is not three parts of base64url"));
        };
        let claims = self.claims(&text, method, path, now)?;
        let leaf = CertificateDer::from(leaf);
        self.chain(&leaf, now)?;
        signed(&leaf, &text, &signature)?;
        let (nonce, issued, until) = claims;
        Ok(Proved { certificate: PeerCertificate::parse(&leaf)?, nonce, issued, until })
    }

    /// What is cheap comes first: the text costs nothing, each signature costs a verification.
    fn claims(
        &self,
        text: &[u8],
        method: &str,
        path: &str,
        now: SystemTime,
    ) -> Result<([u8; NONCE], SystemTime, SystemTime), AssertionError> {
        let text = std::str::from_utf8(text).map_err(|_| AssertionError::Malformed("its text is not UTF-8"))?;
        let lines: Vec<&str> = text.splitn(8, '\n').collect();
        let [version, for_method, for_path, audience, issued, expires, nonce] = lines[..] else {
            return Err(AssertionError::Malformed("its text does not have seven lines"));
        };
        if version != VERSION {
            return Err(AssertionError::Malformed("its version is not known here"));
        }
        let nonce = BASE64URL_NOPAD.decode(nonce.as_bytes()).ok().and_then(|nonce| nonce.try_into().ok());
        let nonce = nonce.ok_or(AssertionError::Malformed("its nonce is not 16 bytes"))?;
        if audience != self.audience {
            let found = crate::wire::refusal::printable(audience).chars().take(100).collect();
            return Err(AssertionError::WrongAudience { found, expected: self.audience.clone() });
        }
        if (for_method, for_path) != (method, path) {
            return Err(AssertionError::WrongRequest);
        }
        let (issued, expires) = (seconds(issued)?, seconds(expires)?);
        let lifetime = expires.duration_since(issued).map_err(|_| AssertionError::BadTime)?;
        if lifetime.is_zero() || lifetime > ASSERTION_LIFETIME {
            return Err(AssertionError::BadTime);
        }
        let until = expires.checked_add(ASSERTION_SKEW).ok_or(AssertionError::BadTime)?;
        if now >= until {
            return Err(AssertionError::Expired);
        }
        if issued > now + ASSERTION_SKEW {
            return Err(AssertionError::NotYetValid);
        }
        Ok((nonce, issued, until))
    }

    fn chain(&self, leaf: &CertificateDer<'_>, now: SystemTime) -> Result<(), IdentityError> {
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        // No certificates between: the authority issues leaves only.
        match self.clients.verify_client_cert(leaf, &[], now) {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(IdentityError::find(&error).unwrap_or_else(|| IdentityError::malformed(error.to_string())))
            }
        }
    }
}

fn seconds(text: &str) -> Result<SystemTime, AssertionError> {
    let number: u64 = text.parse().map_err(|_| AssertionError::BadTime)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(number)).ok_or(AssertionError::BadTime)
}

fn signed(leaf: &CertificateDer<'_>, text: &[u8], signature: &[u8]) -> Result<(), AssertionError> {
    let certificate = parse_x509(leaf)?;
    let key =
        SubjectPublicKeyInfo::from_der(certificate.public_key().raw).map_err(|_| IdentityError::UnsupportedKey)?;
    let algorithm: &dyn VerificationAlgorithm = if *key.algorithm() == PKCS_ECDSA_P256_SHA256 {
        &ECDSA_P256_SHA256_ASN1
    } else if *key.algorithm() == PKCS_ED25519 {
        &ED25519
    } else {
        return Err(IdentityError::UnsupportedKey.into());
    };
    let key = UnparsedPublicKey::new(algorithm, key.der_bytes());
    key.verify(text, signature).map_err(|_| AssertionError::BadSignature)
}

#[cfg(test)]
#[path = "assertion_tests.rs"]
mod tests;

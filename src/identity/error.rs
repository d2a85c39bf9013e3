//! What can be wrong with an identity, and the sentences for it. The peer only ever learns a TLS alert;
//! the details are for whoever checked.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{AlertDescription, CertificateError, OtherError};

use super::KeyPin;

/// Why an identity was not accepted, or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes or text are not what they should be.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The certificate is not from the authority that is trusted here.
    #[error("the certificate was issued by another authority")]
    WrongAuthority,
    /// A coordinator names authorities that those known here have not vouched for.
    #[error("the coordinator names an authority that the one known here has not vouched for")]
    NotVouchedFor,
    /// The certificate is for somebody else.
    #[error("the certificate names {found}; {expected} was expected")]
    WrongName {
        /// Who should have been there.
        expected: String,
        /// Who was.
        found: String,
    },
    /// The name is right and the key is not the one that is pinned.
    #[error("the key is {found}; {expected} is pinned")]
    WrongPin {
        /// The pin on record.
        expected: KeyPin,
        /// The pin of the key that was presented.
        found: KeyPin,
    },
    /// A device whose key is not on the list of keys that are admitted.
    #[error("the device {device} with the key {pin} is not admitted here")]
    NotAdmitted {
        /// Its name.
        device: String,
        /// Its key.
        pin: KeyPin,
    },
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// Its time has not come.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// The peer presented none.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// No presented certificate authority fits the one-time code.
    #[error(
        "no authority that was presented fits the code: it is another coordinator's, or the authority was replaced since"
    )]
    NotOfThisCode,
    /// Neither ECDSA on P-256 nor Ed25519.
    #[error("keys of this kind are not accepted; P-256 and Ed25519 are")]
    UnsupportedKey,
    /// The request is not signed by the key it asks a certificate for.
    #[error("the request is not signed by its own key")]
    BadRequestSignature,
    /// Over a bound.
    #[error("{what} of {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// How large.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A key could not be made: the system gave no randomness.
    #[error("a key could not be generated")]
    KeyGeneration,
    /// The certificate and the key beside it do not belong together.
    #[error("the certificate and the key do not belong together")]
    KeyMismatch,
    /// A fault on this side.
    #[error("internal: {0}")]
    Internal(String),
}

impl IdentityError {
    pub(super) fn malformed(what: impl Into<String>) -> IdentityError {
        IdentityError::Malformed(what.into())
    }

    pub(super) fn internal(what: &str, error: impl std::fmt::Display) -> IdentityError {
        IdentityError::Internal(format!("{what}: {error}"))
    }

    /// As rustls carries it: the peer is told `certificate_unknown`, the caller finds this error again with
    /// [`find`](Self::find).
    pub(super) fn into_rustls(self) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            IdentityError::Malformed(_) => "check that the file or the text is complete",
            IdentityError::WrongAuthority => {
                "the address may lead to another coordinator, or its data were replaced; pair (--new-key) or enrol again if that was meant"
            }
            IdentityError::NotVouchedFor => {
                "something between may have put it there; or the authority was replaced three times while this was off: then pair (--new-key) or enrol again"
            }
            IdentityError::WrongName { .. } => {
                "check the address and the name; this is another peer than the one asked for"
            }
            IdentityError::WrongPin { .. } => {
                "if it was enrolled anew on purpose, `nexus-proxy forget WORKSPACE --coordinator URL` forgets the old key; if not, do not go on"
            }
            IdentityError::NotAdmitted { .. } => {
                "a laptop that the workspace knows can admit it: `nexus-proxy device add WORKSPACE PIN`"
            }
            IdentityError::Expired => "renew the certificate, and check the clocks of both sides",
            IdentityError::NotYetValid => "check the clocks of both sides",
            IdentityError::NoCertificate => "pair this device or enrol this workspace first",
            IdentityError::NotOfThisCode => "check that the code and the address are from the same coordinator",
            IdentityError::UnsupportedKey | IdentityError::BadRequestSignature => "make a new key and try again",
            IdentityError::TooLarge { .. } => "send less",
            IdentityError::KeyGeneration => "check that the system provides randomness",
            IdentityError::KeyMismatch => "restore both from the same backup, or make both anew",
            IdentityError::Internal(_) => "this is a fault of the program; its log says more",
        }
    }

    /// The identity error inside an error, typically an `io::Error` of a TLS handshake: ours, or what rustls
    /// says in its own words about a certificate that this side refused.
    pub fn find(error: &(dyn Error + 'static)) -> Option<IdentityError> {
        chain(error).find_map(|error| {
            if let Some(found) = error.downcast_ref::<IdentityError>() {
                return Some(found.clone());
            }
            from_rustls(error.downcast_ref::<rustls::Error>()?)
        })
    }

    /// Whether an error of a TLS connection is the alert of a peer that read our certificate and does not accept us.
    pub fn is_their_refusal(error: &(dyn Error + 'static)) -> bool {
        let refusal = rustls::Error::AlertReceived(AlertDescription::CertificateUnknown);
        chain(error).any(|error| error.downcast_ref::<rustls::Error>() == Some(&refusal))
    }

    /// A sentence with a hint for an error of a TLS connection: our own refusals, and the alerts with which
    /// the peer refused us. `None` when it is about neither.
    pub fn explain(error: &io::Error) -> Option<String> {
        if let Some(found) = IdentityError::find(error) {
            return Some(format!("{found}. hint: {}", found.hint()));
        }
        let error = chain(error).find_map(|error| error.downcast_ref::<rustls::Error>())?;
        let (what, hint) = match error {
            rustls::Error::AlertReceived(alert) => explain_alert(*alert)?,
            rustls::Error::NoApplicationProtocol => {
                ("the peer speaks none of our protocols", "check that the versions of both sides fit")
            }
            rustls::Error::PeerIncompatible(_) => {
                ("the peer's TLS does not fit ours", "something between may end TLS 1.3; connect directly")
            }
            rustls::Error::InvalidMessage(_) => {
                ("what answered does not speak TLS", "check the address and the port, and any proxy between")
            }
            _ => return None,
        };
        Some(format!("{what}. hint: {hint}"))
    }
}

fn from_rustls(error: &rustls::Error) -> Option<IdentityError> {
    let certificate = match error {
        rustls::Error::NoCertificatesPresented => return Some(IdentityError::NoCertificate),
        rustls::Error::InvalidCertificate(certificate) => certificate,
        rustls::Error::Other(OtherError(inner)) => return inner.downcast_ref::<IdentityError>().cloned(),
        _ => return None,
    };
    Some(match certificate {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => IdentityError::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => IdentityError::NotYetValid,
        CertificateError::UnknownIssuer => IdentityError::WrongAuthority,
        CertificateError::Other(OtherError(inner)) => return inner.downcast_ref::<IdentityError>().cloned(),
        other => IdentityError::malformed(format!("the certificate is not usable: {other}")),
    })
}

fn explain_alert(alert: AlertDescription) -> Option<(&'static str, &'static str)> {
    Some(match alert {
        AlertDescription::CertificateUnknown | AlertDescription::BadCertificate => (
            "the peer does not accept who we are",
            "its log says why; the name, the role or the key of our certificate is not the one it expects",
        ),
        AlertDescription::CertificateExpired => {
            ("the peer says our certificate is outside its time", "renew it, and check the clocks of both sides")
        }
        AlertDescription::UnknownCA => (
            "the peer does not know the authority that issued our certificate",
            "its coordinator's data may have been replaced; pair (--new-key) or enrol again",
        ),
        AlertDescription::AccessDenied => {
            ("the peer denies us access", "we may have been revoked; pair (--new-key) or enrol again")
        }
        AlertDescription::CertificateRevoked => ("our certificate was revoked", "pair (--new-key) or enrol again"),
        AlertDescription::CertificateRequired => {
            ("the peer asks for a certificate and we have none", "pair this device or enrol this workspace first")
        }
        AlertDescription::DecryptError => {
            ("the peer could not verify our signature", "our certificate and key may not belong together; enrol again")
        }
        AlertDescription::ProtocolVersion => {
            ("the peer does not speak TLS 1.3", "something between may end TLS; connect directly")
        }
        AlertDescription::HandshakeFailure => {
            ("the peer broke the handshake off", "its log says why; check that the versions of both sides fit")
        }
        AlertDescription::NoApplicationProtocol => {
            ("the peer speaks none of our protocols", "check that the versions of both sides fit")
        }
        _ => return None,
    })
}

/// An error and what is inside it. `io::Error` hides its own payload from `source`, so it is opened here.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    /// Errors inside errors that are followed; a cycle must not hold us.
    const MAX_DEPTH: usize = 16;
    fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        match error.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), |error| inner(*error)).take(MAX_DEPTH)
}

/// Seconds since 1970; the time before is 0.
pub(super) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_what_is_ours_and_what_the_peer_says() {
        let ours = io::Error::other(IdentityError::Expired.into_rustls());
        assert_eq!(IdentityError::find(&ours), Some(IdentityError::Expired));
        let nested = io::Error::other(io::Error::other(rustls::Error::Other(OtherError(Arc::new(
            IdentityError::WrongAuthority,
        )))));
        assert_eq!(IdentityError::find(&nested), Some(IdentityError::WrongAuthority));
        for alert in [
            AlertDescription::CertificateUnknown,
            AlertDescription::CertificateExpired,
            AlertDescription::UnknownCA,
            AlertDescription::AccessDenied,
            AlertDescription::CertificateRequired,
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
            assert!(IdentityError::explain(&error).unwrap().contains("hint: "), "{alert:?}");
        }
        assert_eq!(IdentityError::explain(&io::Error::other("else")), None);
    }
}

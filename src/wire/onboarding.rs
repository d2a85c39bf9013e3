//! How a key gets its certificate: pairing a laptop, enrolling a workspace, renewing either. JSON over HTTPS,
//! one request and one answer each; a refusal is a [`Refusal`] object. Certificates and requests are PEM. Each answer
//! says which authorities are in force, and so does [`AUTHORITIES_PATH`].
//!
//! A code never prints. Renewing needs no certificate: the request proves possession of a known key, and the
//! answer is of no use without it.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::limits::{MAX_DEVICES, MAX_ONBOARDING, MAX_ONBOARDING_ANSWER};
use super::name::{DeviceName, TrustDomain, WorkspaceName};
use super::refusal::{Refusal, RefusalCode};

/// Where a [`PairRequest`] is posted.
pub const PAIR_PATH: &str = "/v1/pair";
/// Where an [`EnrollRequest`] is posted.
pub const ENROLL_PATH: &str = "/v1/enroll";
/// Where a [`RenewRequest`] is posted.
pub const RENEW_PATH: &str = "/v1/renew";
/// Where [`Authorities`] are read.
pub const AUTHORITIES_PATH: &str = "/v1/authorities";
/// Where a [`Health`] is read.
pub const HEALTH_PATH: &str = "/health";

/// A one-time code as text. Masked in `Debug`, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct CodeText(String);

impl CodeText {
    /// Wraps the text of a code.
    pub fn new(text: impl Into<String>) -> CodeText {
        CodeText(text.into())
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CodeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeText(masked)")
    }
}

/// A laptop asks to become a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRequest {
    /// `nxp-…`.
    pub code: CodeText,
    /// What it wants to be called.
    pub device: DeviceName,
    /// Certificate request, PEM.
    pub csr: String,
}

/// The laptop is a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairAnswer {
    /// What it is called.
    pub device: DeviceName,
    /// Of which coordinator.
    pub domain: TrustDomain,
    /// Its certificate, the authority's, and those that vouch for that, PEM.
    pub chain: String,
    /// The certificate of the authority that made the code, PEM.
    pub ca: String,
    /// As in [`Authorities`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authorities: String,
}

/// A machine asks to become the workspace that the code was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// `nxe-…`.
    pub code: CodeText,
    /// Certificate request, PEM.
    pub csr: String,
}

/// The machine is the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollAnswer {
    /// What it is called.
    pub workspace: WorkspaceName,
    /// At which coordinator.
    pub domain: TrustDomain,
    /// Its certificate, the authority's, and those that vouch for that, PEM.
    pub chain: String,
    /// The certificate of the authority that made the code, PEM.
    pub ca: String,
    /// As in [`Authorities`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authorities: String,
    /// The keys of the devices that it admits (`sha256:…`); from here on only they can add another.
    pub device_pins: Vec<String>,
    /// No device was known, and whoever made the code chose to admit the first one that comes.
    #[serde(default)]
    pub trust_first_device: bool,
}

/// An answer with the certificates of the coordinator's authorities.
pub trait NamesAuthority {
    /// The one that made the code, PEM.
    fn authority(&self) -> &str;
    /// Those in force, PEM as in [`Authorities`]; empty when only that one is.
    fn authorities(&self) -> &str;
}

impl NamesAuthority for PairAnswer {
    fn authority(&self) -> &str {
        &self.ca
    }

    fn authorities(&self) -> &str {
        &self.authorities
    }
}

impl NamesAuthority for EnrollAnswer {
    fn authority(&self) -> &str {
        &self.ca
    }

    fn authorities(&self) -> &str {
        &self.authorities
    }
}

/// A known key asks for a fresh certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate request, PEM, signed by the known key.
    pub csr: String,
    /// The pin of the newest authority that it believes (`sha256:…`), so that the coordinator knows whom it can do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusts: Option<String>,
}

/// The fresh certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// Certificate, the authority's, and those that vouch for that, PEM.
    pub chain: String,
    /// As in [`Authorities`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authorities: String,
}

/// The authorities of a coordinator. Proves itself: who answers need not be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorities {
    /// Certificates in PEM: the authority that signs, the others in force, then those with which one authority vouches
    /// for the next, newest first.
    pub authorities: String,
}

/// What a coordinator says of itself to anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Of the program.
    pub version: String,
}

fn read<T: DeserializeOwned>(bytes: &[u8], max: usize, what: &str) -> Result<T, Refusal> {
    if bytes.len() > max {
        return Err(Refusal::new(RefusalCode::TooLarge, format!("{what} of more than {max} bytes")));
    }
    // Only the place is repeated: the parser's own words could quote a code.
    serde_json::from_slice(bytes).map_err(|e| {
        let place = format!("line {}, column {}", e.line(), e.column());
        Refusal::new(
            RefusalCode::Malformed,
            format!("{what} does not parse at {place}. hint: are both sides of one version?"),
        )
    })
}

macro_rules! parse {
    ($($type:ident, $max:ident, $what:literal;)*) => {$(
        impl $type {
            /// Reads it; refuses what is over its bound or does not parse.
            pub fn parse(bytes: &[u8]) -> Result<$type, Refusal> {
                read(bytes, $max, $what)
            }
        }
    )*};
}

parse! {
    PairRequest, MAX_ONBOARDING, "the pairing request";
    EnrollRequest, MAX_ONBOARDING, "the enrolment request";
    RenewRequest, MAX_ONBOARDING, "the renewal request";
    PairAnswer, MAX_ONBOARDING_ANSWER, "the pairing answer";
    RenewAnswer, MAX_ONBOARDING_ANSWER, "the renewal answer";
    Authorities, MAX_ONBOARDING_ANSWER, "the list of authorities";
    Health, MAX_ONBOARDING, "the health answer";
}

impl EnrollAnswer {
    /// Reads it; refuses what is over its bounds or does not parse.
    pub fn parse(bytes: &[u8]) -> Result<EnrollAnswer, Refusal> {
        let answer: EnrollAnswer = read(bytes, MAX_ONBOARDING_ANSWER, "the enrolment answer")?;
        if answer.device_pins.len() > MAX_DEVICES {
            return Err(Refusal::new(RefusalCode::TooLarge, format!("more than {MAX_DEVICES} device pins")));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_text() {
        let pair = PairRequest { code: CodeText::new("nxp-1"), device: "laptop".parse().unwrap(), csr: "PEM".into() };
        let text = r#"{"code":"nxp-1","device":"laptop","csr":"PEM"}"#;
        assert_eq!(serde_json::to_string(&pair).unwrap(), text);
        assert_eq!(PairRequest::parse(text.as_bytes()).unwrap(), pair);
        let enroll = EnrollAnswer {
            workspace: "web".parse().unwrap(),
            domain: "d".parse().unwrap(),
            chain: "A".into(),
            ca: "B".into(),
            authorities: String::new(),
            device_pins: vec!["sha256:00".into()],
            trust_first_device: false,
        };
        let text = r#"{"workspace":"web","domain":"d","chain":"A","ca":"B","device_pins":["sha256:00"],"trust_first_device":false}"#;
        assert_eq!(serde_json::to_string(&enroll).unwrap(), text);
        assert_eq!(EnrollAnswer::parse(text.as_bytes()).unwrap(), enroll);
        assert_eq!(
            RenewRequest::parse(br#"{"csr":"x","later":1}"#).unwrap(),
            RenewRequest { csr: "x".into(), trusts: None }
        );
        let renew = RenewAnswer { chain: "A".into(), authorities: "B".into() };
        let text = r#"{"chain":"A","authorities":"B"}"#;
        assert_eq!(serde_json::to_string(&renew).unwrap(), text);
        assert_eq!(RenewAnswer::parse(text.as_bytes()).unwrap(), renew);
        assert!(RenewAnswer::parse(br#"{"chain":"A"}"#).unwrap().authorities.is_empty());
    }

    #[test]
    fn codes_do_not_print() {
        let pair = EnrollRequest { code: CodeText::new("nxe-secret"), csr: String::new() };
        assert!(!format!("{pair:?}").contains("secret"));
        let refusal = PairRequest::parse(br#"{"code":"nxp-secret","device":"NOT A NAME","csr":""}"#).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Malformed);
        assert!(!refusal.message.contains("secret"));
    }

    #[test]
    fn bounds() {
        let long = format!(r#"{{"csr":"{}"}}"#, "x".repeat(MAX_ONBOARDING));
        assert_eq!(RenewRequest::parse(long.as_bytes()).unwrap_err().code, RefusalCode::TooLarge);
        let pins = vec!["p"; MAX_DEVICES + 1];
        let many = serde_json::json!({"workspace":"w","domain":"d","chain":"","ca":"","device_pins":pins});
        assert_eq!(EnrollAnswer::parse(many.to_string().as_bytes()).unwrap_err().code, RefusalCode::TooLarge);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = (PairRequest::parse(&bytes), EnrollRequest::parse(&bytes), EnrollAnswer::parse(&bytes));
        }
    }
}

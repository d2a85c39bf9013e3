//! The pin of a key: what stays the same when its certificate is renewed. Refuses any text but the full hash.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::IdentityError;

const PREFIX: &str = "sha256:";

/// SHA-256 of a key's SubjectPublicKeyInfo in DER. As text: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyPin([u8; 32]);

impl KeyPin {
    /// The pin of a SubjectPublicKeyInfo.
    pub fn of_spki(spki_der: &[u8]) -> KeyPin {
        KeyPin(Sha256::digest(spki_der).into())
    }

    /// A pin from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> KeyPin {
        KeyPin(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first 16 bytes, which a one-time code carries.
    pub fn prefix(&self) -> [u8; 16] {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&self.0[..16]);
        prefix
    }
}

impl PartialEq for KeyPin {
    fn eq(&self, other: &KeyPin) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyPin {}

impl Hash for KeyPin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyPin {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<KeyPin, IdentityError> {
        text.strip_prefix(PREFIX)
            .and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(KeyPin)
            .ok_or_else(|| IdentityError::malformed("a key pin is `sha256:` and 64 hexadecimal digits"))
    }
}

impl TryFrom<String> for KeyPin {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<KeyPin, IdentityError> {
        text.parse()
    }
}

impl From<KeyPin> for String {
    fn from(pin: KeyPin) -> String {
        pin.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_text() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(KeyPin::of_spki(b"").to_string(), text);
        assert_eq!(serde_json::to_string(&KeyPin::of_spki(b"")).unwrap(), format!("\"{text}\""));
        for bad in ["", "sha256:", &text[7..], &text[..70], &text.to_uppercase(), "sha1:00"] {
            assert!(bad.parse::<KeyPin>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(bytes: [u8; 32]) {
            let pin = KeyPin::from_bytes(bytes);
            prop_assert_eq!(pin.to_string().parse::<KeyPin>().unwrap(), pin);
        }
    }
}

//! One-time codes: what a person carries from the coordinator to a laptop or a workspace. A code proves the
//! carrier to the coordinator (its secret) and the coordinator to the carrier (the start of its authority's pin).
//! Refuses typos as typos, so that a person does not look for a code that never was. Never prints itself.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::KeyPin;

/// Crockford's alphabet: no `i`, `l`, `o`, `u`. What looks alike reads alike.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut alphabet = Specification::new();
    alphabet.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
    alphabet.translate.from.push_str("ABCDEFGHJKMNPQRSTVWXYZiIlLoO");
    alphabet.translate.to.push_str("abcdefghjkmnpqrstvwxyz111100");
    alphabet.encoding().expect("a constant alphabet of 32 distinct symbols")
});

/// Bytes of secret, and bytes of the authority's pin: 128 bits each are out of reach of guessing.
const PART: usize = 16;

/// Bytes of checksum: three fill the last base32 digit, and let one typo in sixteen million pass.
const CHECKSUM: usize = 3;

const BYTES: usize = 2 * PART + CHECKSUM;

/// Digits between two hyphens.
const GROUP: usize = 7;

/// Characters of text that are looked at; a code has 67.
const MAX_TEXT: usize = 256;

/// What a code is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeKind {
    /// `nxp-`: makes a laptop a device.
    Pair,
    /// `nxe-`: makes a machine the workspace the code was made for.
    Enrol,
}

impl CodeKind {
    /// How its codes begin.
    pub fn prefix(self) -> &'static str {
        match self {
            CodeKind::Pair => "nxp",
            CodeKind::Enrol => "nxe",
        }
    }
}

/// Why a text is not a code. The text itself is not repeated: it may be nearly right, and secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// It does not begin like one.
    #[error("this is not a code: codes begin with `nxp-` or `nxe-`. hint: copy it whole, from its first letter")]
    NoPrefix,
    /// Characters are missing, too many, or outside the alphabet.
    #[error("this is not a whole code: a part is missing or too much. hint: copy it whole")]
    Incomplete,
    /// It looks like one, and the checksum says that a character is wrong.
    #[error("there is a typo in this code. hint: copy it instead of typing it")]
    Typo,
}

/// A one-time code.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Code {
    secret: [u8; PART],
    #[zeroize(skip)]
    ca_prefix: [u8; PART],
    #[zeroize(skip)]
    kind: CodeKind,
}

impl Code {
    /// A new code of the authority with this pin.
    pub fn generate(kind: CodeKind, ca: KeyPin) -> Code {
        let mut secret = [0; PART];
        rand::fill(&mut secret);
        Code { secret, ca_prefix: ca.prefix(), kind }
    }

    /// What it is for.
    pub fn kind(&self) -> CodeKind {
        self.kind
    }

    /// The first 16 bytes of the pin of the authority that made it.
    pub fn ca_prefix(&self) -> &[u8; 16] {
        &self.ca_prefix
    }

    /// SHA-256 of the secret: what the coordinator stores.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// The text, for the person it is made for. Wiped when dropped.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        bytes[..PART].copy_from_slice(&self.secret);
        bytes[PART..2 * PART].copy_from_slice(&self.ca_prefix);
        let sum = checksum(self.kind, &bytes[..2 * PART]);
        bytes[2 * PART..].copy_from_slice(&sum);
        let digits = Zeroizing::new(BASE32.encode(&*bytes));
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT));
        text.push_str(self.kind.prefix());
        for (at, digit) in digits.chars().enumerate() {
            if at % GROUP == 0 {
                text.push('-');
            }
            text.push(digit);
        }
        text
    }
}

fn checksum(kind: CodeKind, bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new();
    hash.update(b"nexus-proxy code\0");
    hash.update(kind.prefix());
    hash.update(bytes);
    let hash = hash.finalize();
    [hash[0], hash[1], hash[2]]
}

impl FromStr for Code {
    type Err = CodeError;

    /// Tolerates upper case, spaces, line breaks, and hyphens anywhere.
    fn from_str(text: &str) -> Result<Code, CodeError> {
        if text.len() > MAX_TEXT {
            return Err(CodeError::Incomplete);
        }
        let mut dense = Zeroizing::new(String::with_capacity(MAX_TEXT));
        dense.extend(text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_lowercase()));
        let kind = [CodeKind::Pair, CodeKind::Enrol]
            .into_iter()
            .find(|kind| dense.starts_with(kind.prefix()))
            .ok_or(CodeError::NoPrefix)?;
        let digits = &dense[kind.prefix().len()..];
        let bytes = BASE32.decode(digits.as_bytes()).map(Zeroizing::new).map_err(|_| CodeError::Incomplete)?;
        if bytes.len() != BYTES {
            return Err(CodeError::Incomplete);
        }
        let (body, sum) = bytes.split_at(2 * PART);
        if checksum(kind, body) != *sum {
            return Err(CodeError::Typo);
        }
        let mut code = Code { secret: [0; PART], ca_prefix: [0; PART], kind };
        code.secret.copy_from_slice(&body[..PART]);
        code.ca_prefix.copy_from_slice(&body[PART..]);
        Ok(code)
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Code) -> bool {
        bool::from(self.secret.ct_eq(&other.secret)) && self.ca_prefix == other.ca_prefix && self.kind == other.kind
    }
}

impl Eq for Code {}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({}-…)", self.kind.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(kind: CodeKind) -> Code {
        Code { secret: [0xa5; PART], ca_prefix: [0x0f; PART], kind }
    }

    #[test]
    fn golden_text() {
        let text = code(CodeKind::Pair).reveal();
        assert_eq!(*text, "nxp-mpjtb9d-5mpjtb9-d5mpjtb-9d5mm7g-y3rf1w7-gy3rf1w-7gy3rf1-w7vqc5p");
        assert_eq!(text.split('-').skip(1).map(str::len).collect::<Vec<_>>(), [GROUP; 8]);
        assert!(code(CodeKind::Enrol).reveal().starts_with("nxe-"));
    }

    #[test]
    fn tolerates_how_people_copy() {
        let code = code(CodeKind::Enrol);
        let text = code.reveal();
        let variants = [
            text.to_uppercase(),
            text.replace('-', " "),
            text.replace('-', ""),
            format!("  {}\n", text.replace('0', "o").replace('1', "L")),
        ];
        for variant in variants {
            assert_eq!(variant.parse::<Code>().unwrap(), code);
        }
    }

    #[test]
    fn a_typo_is_told_apart() {
        let text = code(CodeKind::Pair).reveal();
        assert_eq!(text.replacen("mpj", "mpk", 1).parse::<Code>(), Err(CodeError::Typo));
        assert_eq!(text.replacen("nxp", "nxe", 1).parse::<Code>(), Err(CodeError::Typo));
        assert_eq!(text[..60].parse::<Code>(), Err(CodeError::Incomplete));
        assert_eq!(text[4..].parse::<Code>(), Err(CodeError::NoPrefix));
        assert_eq!("x".repeat(10_000).parse::<Code>(), Err(CodeError::Incomplete));
    }

    #[test]
    fn debug_is_masked() {
        assert_eq!(format!("{:?}", code(CodeKind::Pair)), "Code(nxp-…)");
    }

    proptest! {
        #[test]
        fn round_trips(secret: [u8; PART], ca_prefix: [u8; PART], enrol: bool) {
            let kind = if enrol { CodeKind::Enrol } else { CodeKind::Pair };
            let code = Code { secret, ca_prefix, kind };
            prop_assert_eq!(code.reveal().parse::<Code>().unwrap(), code);
        }

        #[test]
        fn one_wrong_digit_never_passes(at in 4usize..67, digit in "[0-9a-hjkmnp-tv-z]") {
            let text = code(CodeKind::Pair).reveal();
            let mut wrong = text.to_string();
            if &wrong[at..=at] != "-" && wrong[at..=at] != digit {
                wrong.replace_range(at..=at, &digit);
                prop_assert_eq!(wrong.parse::<Code>(), Err(CodeError::Typo));
            }
        }

        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            let _ = text.parse::<Code>();
        }
    }
}

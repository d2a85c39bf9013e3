//! Names: workspaces, devices, nodes, sessions. Parsed once, at the edge; from then on a type says what it is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes: one DNS label.
pub const MAX_NAME: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a name: lower-case letters, digits and inner hyphens, at most 63 characters")]
pub struct NameError {
    text: String,
}

fn check(text: &str) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let good = !bytes.is_empty()
        && bytes.len() <= MAX_NAME
        && bytes.iter().all(inner)
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-';
    if good {
        Ok(())
    } else {
        let text = super::refusal::printable(text).chars().take(80).collect();
        Err(NameError { text })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok($type(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text)?;
                Ok($type(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.0)
            }
        }
    };
}

name! {
    /// A workspace, unique at its coordinator.
    WorkspaceName
}
name! {
    /// A device: one key on one laptop.
    DeviceName
}
name! {
    /// A node: a host that runs workspaces.
    NodeName
}
name! {
    /// A trust domain: one coordinator's certificate authority.
    TrustDomain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_name() {
        for good in ["a", "default", "my-project-2", &"x".repeat(63)] {
            assert!(good.parse::<WorkspaceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/../b", "ü", "a.b", &"x".repeat(64), "a\u{1b}[0m"] {
            assert!(bad.parse::<WorkspaceName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_safe_in_a_path_and_a_uri(text: String) {
            if let Ok(name) = text.parse::<DeviceName>() {
                prop_assert!(!name.as_str().contains(['/', '.', '%', '\0', '?', '#']));
            }
        }
    }
}

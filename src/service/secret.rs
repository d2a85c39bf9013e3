//! A secret in memory: it is zeroized when dropped, and there is no way to print it by accident.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

/// A secret text. Read it with [`expose`](Secret::expose), at the last moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    /// Reads what a source printed: UTF-8 with trailing line ends removed. `None` if it is not UTF-8 or empty.
    /// The bytes are zeroized either way.
    pub fn from_output(mut bytes: Vec<u8>) -> Option<Secret> {
        let secret = std::str::from_utf8(&bytes)
            .ok()
            .map(|text| text.trim_end_matches(['\r', '\n']))
            .filter(|text| !text.is_empty())
            .map(|text| Secret::new(text.to_owned()));
        bytes.zeroize();
        secret
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_not_print_and_is_trimmed() {
        let secret = Secret::from_output(b"hunter2\r\n\n".to_vec()).unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert!(!format!("{secret:?} {:#?}", Some(&secret)).contains("hunter2"));
        for bad in [&b""[..], b"\n", b"\xff\xfe"] {
            assert!(Secret::from_output(bad.to_vec()).is_none());
        }
    }
}

//! What makes two processes stubs of one workspace: both read one secret in its state directory. Whoever has a socket of
//! theirs and not the directory, as programs that are given `NEXUS_STUB_SOCKET` alone, is no kin: hands nothing over, brings
//! no carrier, ends nothing.
//!
//! Programs of the same user that may read the directory have all of the workspace already.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::role::files;
use crate::wire::{Refusal, RefusalCode};

/// Its name in the state directory.
const FILE: &str = "kin.key";

/// Bytes of the secret; the file has them in hexadecimal.
const SECRET: usize = 32;

/// The parameter of a request that shows it.
const PARAMETER: &str = "kin";

/// The secret. Does not print.
#[derive(Clone)]
pub struct Kin(Zeroizing<String>);

impl std::fmt::Debug for Kin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kin")
    }
}

impl Kin {
    /// Reads it from the state directory `dir`; `None` where no stub has made one.
    pub fn load(dir: &Path) -> io::Result<Option<Kin>> {
        let path = dir.join(FILE);
        let Some(text) = files::read(&path)?.map(Zeroizing::new) else { return Ok(None) };
        let bytes = data_encoding::HEXLOWER.decode(text.trim().as_bytes()).map(Zeroizing::new);
        if !bytes.is_ok_and(|bytes| bytes.len() == SECRET) {
            let text = format!("{} is damaged. hint: stop the stubs of this workspace, and remove it", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(Kin(Zeroizing::new(text.trim().to_owned()))))
    }

    /// The same; it is made where there is none. For the one stub that serves the workspace: two would each make their own.
    pub fn load_or_make(dir: &Path) -> io::Result<Kin> {
        if let Some(kin) = Kin::load(dir)? {
            return Ok(kin);
        }
        let secret = Zeroizing::new(rand::random::<[u8; SECRET]>());
        let kin = Kin(Zeroizing::new(data_encoding::HEXLOWER.encode(&secret[..])));
        files::write(&dir.join(FILE), kin.0.as_bytes())?;
        Ok(kin)
    }

    /// Parameters of a request that shows it.
    pub fn show(&self, mut params: Value) -> Value {
        if params.is_null() {
            params = json!({});
        }
        params[PARAMETER] = self.0.as_str().into();
        params
    }

    /// Whether whoever sent these parameters has it.
    pub fn check(&self, params: &Value) -> Result<(), Refusal> {
        let shown = params.get(PARAMETER).and_then(Value::as_str).unwrap_or_default();
        if bool::from(shown.as_bytes().ct_eq(self.0.as_bytes())) {
            return Ok(());
        }
        let text = format!(
            "only a stub with the same state directory may ask for that. hint: run it with --state, and as the same user; \
             it reads {FILE} there"
        );
        Err(Refusal::new(RefusalCode::Denied, text))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_directory_makes_kin_and_nothing_else_does() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(Kin::load(dir.path()).unwrap().is_none());
        let made = Kin::load_or_make(dir.path()).unwrap();
        let read = Kin::load(dir.path()).unwrap().unwrap();
        made.check(&read.show(json!({"a": 1}))).unwrap();
        Kin::load_or_make(dir.path()).unwrap().check(&made.show(Value::Null)).unwrap();
        let stranger = Kin::load_or_make(other.path()).unwrap();
        for params in
            [Value::Null, json!({}), json!([1]), json!({"kin": ""}), json!({"kin": 1}), stranger.show(json!({}))]
        {
            assert_eq!(made.check(&params).unwrap_err().code, RefusalCode::Denied, "{params}");
        }
        assert!(!format!("{made:?}").contains(made.0.as_str()));
    }

    #[test]
    fn a_file_that_is_damaged_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        Kin::load_or_make(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in ["", "zz", "00"] {
            files::write(&path, damaged.as_bytes()).unwrap();
            assert!(Kin::load_or_make(dir.path()).unwrap_err().to_string().contains("hint:"));
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Kin::load(dir.path()).unwrap_err().to_string().contains("chmod 600"));
    }
}

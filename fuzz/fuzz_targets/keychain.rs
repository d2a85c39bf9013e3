//! The keychain's encrypted file: any bytes, genuine ones with edits, and any content in a box that opens.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Unstructured;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use libfuzzer_sys::fuzz_target;
use nexus_proxy::service::keychain::{Keychain, KeychainError};
use nexus_proxy::service::secret::Secret;
use nexus_proxy_fuzz::{directory, edited, runtime};

const KEY: [u8; 32] = [7; 32];
const GENUINE: &[u8] = br#"{"service\u0000account":"aHVudGVyMg=="}"#;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = directory("keychain");
    std::fs::write(dir.join("keychain.key"), KEY).unwrap();
    dir
});

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (file, genuine) = match bytes.int_in_range(0..=2)? {
        0 => (bytes.bytes(bytes.len())?.to_vec(), false),
        1 => {
            let (file, changed) = edited(&sealed(GENUINE), bytes)?;
            (file, !changed)
        }
        _ => (sealed(bytes.bytes(bytes.len())?), true),
    };
    std::fs::write(DIR.join("keychain.enc"), &file).unwrap();
    let keychain = Keychain::file_only(&DIR);
    match runtime().block_on(keychain.get("service", "account")) {
        Ok(found) => {
            assert!(genuine, "what was changed opens");
            drop::<Option<Secret>>(found);
        }
        Err(KeychainError::Locked | KeychainError::Damaged) => {}
        Err(error) => panic!("{error}"),
    }
    Ok(())
}

/// A file of ours with that content, in a box that the key file opens.
fn sealed(content: &[u8]) -> Vec<u8> {
    let (salt, nonce) = ([1; 16], [2; 24]);
    let mut file = [&b"NXKC\x01\x00"[..], &salt, &nonce].concat();
    let payload = Payload { msg: content, aad: &file };
    let sealed = XChaCha20Poly1305::new(&KEY.into()).encrypt(&XNonce::from(nonce), payload).unwrap();
    file.extend_from_slice(&sealed);
    file
}

//! A private key: ECDSA on P-256, which every TLS stack and every hardware token knows. Never prints itself;
//! its encoded form is wiped when the last holder lets go.

use std::fmt;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::{IdentityError, KeyPin, pem};

/// A private key. Cloning shares it.
#[derive(Clone)]
pub struct PrivateKey(Arc<Wiped>);

struct Wiped(KeyPair);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PrivateKey {
    /// A new key.
    pub fn generate() -> Result<PrivateKey, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| IdentityError::KeyGeneration)?;
        Ok(PrivateKey(Arc::new(Wiped(pair))))
    }

    /// Reads a PEM key; refuses all but P-256.
    pub fn from_pem(text: &str) -> Result<PrivateKey, IdentityError> {
        // The parser's own error could quote the text.
        let refused = || IdentityError::malformed("this is not a PEM private key on P-256");
        if text.len() > pem::MAX_PEM {
            return Err(refused());
        }
        let pair = Wiped(KeyPair::from_pem(text).map_err(|_| refused())?);
        if !pair.0.is_compatible(&PKCS_ECDSA_P256_SHA256) {
            return Err(refused());
        }
        Ok(PrivateKey(Arc::new(pair)))
    }

    /// PKCS #8 in PEM, wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode("PRIVATE KEY", self.0.0.serialized_der()))
    }

    /// The pin of the public half.
    pub fn pin(&self) -> KeyPin {
        KeyPin::of_spki(&self.0.0.subject_public_key_info())
    }

    /// A certificate request in DER: it proves possession of the key and asks for nothing.
    pub fn csr_der(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&self.0.0).map_err(|e| IdentityError::internal("request", e))?;
        Ok(csr.der().to_vec())
    }

    /// The same request in PEM, as onboarding messages carry it.
    pub fn csr_pem(&self) -> Result<String, IdentityError> {
        Ok(pem::encode("CERTIFICATE REQUEST", &self.csr_der()?))
    }

    /// For rustls.
    pub fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.0.serialized_der().to_vec()))
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, private half masked)", self.pin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trips_and_the_pin_stays() {
        let key = PrivateKey::generate().unwrap();
        let pem = key.to_pem();
        let again = PrivateKey::from_pem(&pem).unwrap();
        assert_eq!(again.pin(), key.pin());
        assert_eq!(*again.to_pem(), *pem);
        assert_ne!(PrivateKey::generate().unwrap().pin(), key.pin());
    }

    #[test]
    fn debug_is_masked() {
        let key = PrivateKey::generate().unwrap();
        let pem = key.to_pem();
        let shown = format!("{key:?}");
        assert!(pem.lines().filter(|line| !line.starts_with('-')).all(|line| !shown.contains(line)));
        assert!(shown.contains("masked"));
    }

    #[test]
    fn other_keys_are_refused() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(PrivateKey::from_pem(&other.serialize_pem()).is_err());
        assert!(PrivateKey::from_pem(&pem::encode("PRIVATE KEY", &[0])).is_err());
        assert!(PrivateKey::from_pem("").is_err());
    }
}

//! What a client remembers of its coordinator: the trust domain and the certificate of its authority.
//! Refuses a certificate that is not an authority's own.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use crate::wire::name::TrustDomain;

use super::certificate::{only_uri, parse_x509};
use super::{IdentityError, KeyPin, pem, uri};

/// The authority that is believed, and the domain it speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The domain its certificates may name.
    pub domain: TrustDomain,
    /// Its certificate.
    pub ca: CertificateDer<'static>,
    pin: KeyPin,
}

impl Trust {
    /// Reads an authority's certificate: marked as one, signed by itself, named by its domain alone.
    pub fn from_der(ca: CertificateDer<'static>) -> Result<Trust, IdentityError> {
        let certificate = parse_x509(&ca)?;
        if !certificate.is_ca() {
            return Err(IdentityError::malformed("the certificate is not an authority's"));
        }
        let domain = uri::parse_domain_uri(only_uri(&certificate)?)
            .ok_or_else(|| IdentityError::malformed("the authority's certificate names no trust domain"))?;
        certificate
            .verify_signature(None)
            .map_err(|_| IdentityError::malformed("the authority's certificate is not signed by itself"))?;
        let pin = KeyPin::of_spki(certificate.public_key().raw);
        Ok(Trust { domain, ca, pin })
    }

    /// Reads the authority's certificate in PEM; refuses more than one.
    pub fn from_pem(text: &str) -> Result<Trust, IdentityError> {
        let mut certificates = pem::certificates(text)?;
        match (certificates.pop(), certificates.is_empty()) {
            (Some(ca), true) => Trust::from_der(ca),
            _ => Err(IdentityError::malformed("more than one certificate where the authority's should be")),
        }
    }

    /// The authority's certificate in PEM.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.ca)
    }

    /// The pin of the authority's key.
    pub fn ca_pin(&self) -> KeyPin {
        self.pin
    }

    /// For rustls: this authority and no other.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, IdentityError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.ca.clone())
            .map_err(|e| IdentityError::malformed(format!("the authority's certificate: {e}")))?;
        Ok(Arc::new(roots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Authority, Identity, PrivateKey, Role};
    use std::time::{Duration, SystemTime};

    #[test]
    fn pem_round_trips_and_leaves_are_refused() {
        let now = SystemTime::now();
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let trust = authority.trust();
        assert_eq!(&Trust::from_pem(&trust.to_pem()).unwrap(), trust);
        assert_eq!(trust.domain.as_str(), "d");
        let key = PrivateKey::generate().unwrap();
        let identity = Identity::new("d".parse().unwrap(), Role::Coordinator);
        let chain = authority.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(60), now, &[]).unwrap();
        assert!(Trust::from_der(chain[0].clone()).is_err());
        assert!(Trust::from_pem(&format!("{0}{0}", trust.to_pem())).is_err());
    }
}

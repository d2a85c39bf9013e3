//! Who ends the outer TLS, and how a client knows them: the coordinator by its own authority, a load balancer by the
//! ordinary rules of the web. The inner TLS is the same behind either, and is what protects a session.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::address::CoordinatorUrl;
use super::client::{ALPN, ClientError};
use crate::identity::verify::provider;

/// Certificates in a file of authorities. A bundle of all that browsers trust has fewer than 200.
const MAX_AUTHORITIES: usize = 1024;

/// Who ends the outer TLS.
#[derive(Debug, Clone, Default)]
pub enum OuterTls {
    /// The coordinator, which is known by its authority and knows clients by their certificates.
    #[default]
    Coordinator,
    /// A load balancer, with what is needed to know it. It knows nobody; clients send assertions through it.
    Balancer(Arc<ClientConfig>),
}

impl OuterTls {
    /// As `url` says. `authorities`, in PEM, are the only ones believed to certify a balancer; without them, those that
    /// the system trusts are.
    pub fn new(url: &CoordinatorUrl, authorities: Option<&str>) -> Result<OuterTls, ClientError> {
        if !url.is_behind_balancer() {
            return Ok(OuterTls::Coordinator);
        }
        let unusable = |e: &dyn std::fmt::Display| {
            let hint = "--ca-file names the authority of the load balancer, in PEM";
            ClientError::Identity(format!("no authority to know the load balancer by: {e}. hint: {hint}"))
        };
        let verifier: Arc<dyn ServerCertVerifier> = match authorities {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_AUTHORITIES) {
                    roots.add(certificate.map_err(|e| unusable(&e))?).map_err(|e| unusable(&e))?;
                }
                let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
                builder.build().map_err(|e| unusable(&e))?
            }
            None => Arc::new(Verifier::new(provider()).map_err(|e| unusable(&e))?),
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable(&e))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(OuterTls::Balancer(Arc::new(config)))
    }
}

/// What is wrong with a balancer's certificate, with what to do, when that is what an error of TLS is about.
pub(super) fn explain(error: &std::io::Error) -> Option<String> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let (what, hint) = match inner {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer => (
                "no authority that is trusted here has certified the load balancer".to_owned(),
                "--ca-file names a private authority; something between may have put itself in the load balancer's place",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                "the load balancer's certificate is for another name".to_owned(),
                "use the address that `nexus-coordinator invite` prints",
            ),
            other => (
                format!("the load balancer's certificate is not usable: {other}"),
                "tell whoever runs the load balancer, and check the clock",
            ),
        },
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            rustls::AlertDescription::ProtocolVersion | rustls::AlertDescription::HandshakeFailure,
        ) => ("the load balancer does not speak TLS 1.3".to_owned(), "tell whoever runs it to allow TLS 1.3"),
        rustls::Error::InvalidMessage(_) => {
            ("what answered does not speak TLS".to_owned(), "check the address and the port")
        }
        _ => return None,
    };
    Some(format!("{what}. hint: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Authority;
    use std::time::SystemTime;

    #[test]
    fn the_address_says_who_ends_tls() {
        let url = |text: &str| text.parse::<CoordinatorUrl>().unwrap();
        let authority = Authority::create("d".parse().unwrap(), SystemTime::now()).unwrap();
        let pem = authority.trust().to_pem();
        assert!(matches!(OuterTls::new(&url("https://h"), Some(&pem)).unwrap(), OuterTls::Coordinator));
        let behind = url("https+balancer://h");
        let OuterTls::Balancer(config) = OuterTls::new(&behind, Some(&pem)).unwrap() else { panic!("a balancer") };
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        for bad in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = OuterTls::new(&behind, Some(bad)).unwrap_err().to_string();
            assert!(error.contains("hint: --ca-file"), "{bad}: {error}");
        }
    }
}

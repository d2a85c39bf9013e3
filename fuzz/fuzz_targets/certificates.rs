//! What a certificate, a request for one, or an authority may look like: genuine ones with edits, and any bytes. The first
//! byte selects what the rest is taken for.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::assertion::{Judge, Purpose, assert as sign};
use nexus_proxy::identity::authority::{MAX_CSR, csr_from_pem, csr_pin};
use nexus_proxy::identity::{Authority, Credential, Identity, PeerCertificate, PrivateKey, Role, Trust};
use nexus_proxy::wire::limits::MAX_ASSERTION;
use nexus_proxy_fuzz::edited;
use rustls::pki_types::CertificateDer;

/// The second in which everything here happens, since 1970.
const SECOND: u64 = 2_000_000_000;
const AUDIENCE: &str = "nexus.example:443";

struct Genuine {
    trust: Trust,
    device: Credential,
    leaf: PeerCertificate,
    csr: Vec<u8>,
    csr_pem: String,
    chain_pem: String,
    trust_pem: String,
    assertion: String,
    judge: Judge,
}

static GENUINE: LazyLock<Genuine> = LazyLock::new(|| {
    // The keys are new in each process: an input says which edits to make, not what they are made to.
    let authority = Authority::create("d".parse().unwrap(), now()).unwrap();
    let key = PrivateKey::generate().unwrap();
    let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
    let csr = key.csr_der().unwrap();
    let chain = authority.issue(&csr, &identity, Duration::from_secs(86_400), now(), &["localhost".into()]).unwrap();
    let device = Credential::new(chain, key.clone()).unwrap();
    let purpose = Purpose { method: "GET", path: "/v1/park", audience: AUDIENCE };
    let trust = authority.trust().clone();
    Genuine {
        leaf: PeerCertificate::parse(&device.chain[0]).unwrap(),
        csr,
        csr_pem: key.csr_pem().unwrap(),
        chain_pem: device.to_pem(),
        trust_pem: trust.to_pem(),
        assertion: sign(&device, &purpose, now()).unwrap(),
        judge: Judge::new(&trust, AUDIENCE.into()).unwrap(),
        trust,
        device,
    }
});

fuzz_target!(|data: &[u8]| {
    let mut bytes = Unstructured::new(data);
    let _ = run(&mut bytes);
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let genuine = &*GENUINE;
    match bytes.int_in_range(0..=7)? {
        0 => {
            let (der, _) = edited(&genuine.device.chain[0], bytes)?;
            leaf(der);
        }
        1 => leaf(bytes.bytes(bytes.len())?.to_vec()),
        2 => {
            let (der, changed) = edited(&genuine.csr, bytes)?;
            let pin = csr_pin(&der);
            // A request is signed over all of it: with one byte changed it proves nothing, but the signature's own.
            if pin.is_ok() && changed {
                assert_eq!(pin.as_ref().ok(), Some(&genuine.leaf.pin));
            }
        }
        3 => {
            let rest = bytes.bytes(bytes.len())?;
            assert!(csr_pin(rest).is_err() || rest.len() <= MAX_CSR);
        }
        4 => {
            let (pem, _) = edited(genuine.csr_pem.as_bytes(), bytes)?;
            if let Ok(der) = csr_from_pem(&String::from_utf8_lossy(&pem)) {
                assert!(der.len() <= 2 * MAX_CSR);
                let _ = csr_pin(&der);
            }
        }
        5 => {
            let (pem, _) = edited(genuine.chain_pem.as_bytes(), bytes)?;
            let pem = String::from_utf8_lossy(&pem);
            if let Ok(credential) = Credential::from_pem(&pem, genuine.device.key.clone()) {
                assert_eq!(credential.key.pin(), genuine.leaf.pin);
                assert!(
                    credential.renew_at() <= credential.not_after() || credential.not_after() < genuine.leaf.not_before
                );
                let again = Credential::from_pem(&credential.to_pem(), credential.key.clone()).unwrap();
                assert_eq!(again.chain, credential.chain);
            }
        }
        6 => {
            let (pem, _) = edited(genuine.trust_pem.as_bytes(), bytes)?;
            if let Ok(trust) = Trust::from_pem(&String::from_utf8_lossy(&pem)) {
                let again = Trust::from_pem(&trust.to_pem()).unwrap();
                assert_eq!((again.ca_pin(), &again.domain), (trust.ca_pin(), &trust.domain));
                let _ = trust.roots();
            }
        }
        _ => {
            let (header, changed) = edited(genuine.assertion.as_bytes(), bytes)?;
            match genuine.judge.judge(&header, "GET", "/v1/park", now()) {
                Ok(proved) => {
                    // What is signed is the text; nobody else's certificate verifies it.
                    assert!(
                        !changed
                            || header.split(|b| *b == b'.').next()
                                == genuine.assertion.as_bytes().split(|b| *b == b'.').next()
                    );
                    assert_eq!(proved.certificate, genuine.leaf);
                    assert!(header.len() <= MAX_ASSERTION);
                }
                Err(error) => {
                    assert!(changed, "{error}");
                    let _ = error.is_passing();
                }
            }
            let _ = genuine.judge.judge(bytes.bytes(bytes.len())?, "GET", "/v1/park", now());
        }
    }
    assert_eq!(genuine.trust.domain.as_str(), "d");
    Ok(())
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(SECOND)
}

fn leaf(der: Vec<u8>) {
    if let Ok(leaf) = PeerCertificate::parse(&CertificateDer::from(der)) {
        assert_eq!(leaf.identity.to_string().parse::<Identity>().unwrap(), leaf.identity);
    }
}

//! What a certificate, a request for one, or an authority may look like: genuine ones with edits, and any bytes; and whom a
//! member believes after a bundle of authorities. The first byte selects what the rest is taken for.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::assertion::{Judge, Purpose, assert as sign};
use nexus_proxy::identity::authority::{MAX_CSR, csr_from_pem, csr_pin};
use nexus_proxy::identity::verify::client_verifier;
use nexus_proxy::identity::{
    Authority, Bundle, Credential, Expect, Identity, KeyPin, PeerCertificate, PrivateKey, Role, Trust,
};
use nexus_proxy::wire::limits::{MAX_ASSERTION, MAX_AUTHORITIES};
use nexus_proxy_fuzz::{comes_back, edited};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

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
    verifier: Arc<dyn ClientCertVerifier>,
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
        verifier: client_verifier(&trust, Expect::AnyClient).unwrap(),
        trust,
        device,
    }
});

/// Three authorities of one domain. The first vouches for the next, and nobody whom the first knows vouches for the third.
struct Line {
    first: Trust,
    /// Who knows the first and the next.
    both: Trust,
    next: KeyPin,
    /// The certificates of the three, in PEM, and those with which they vouch; a leaf is among them.
    pieces: Vec<String>,
    /// A leaf of each.
    leaves: Vec<CertificateDer<'static>>,
}

/// In [`Line::pieces`]: what a coordinator says that has switched.
const SWITCHED: [usize; 3] = [0, 1, 3];

/// Certificates that a bundle is made of: more than are read.
const MOST_PIECES: usize = 6;

static LINE: LazyLock<Line> = LazyLock::new(|| {
    let [first, next, stranger] = [(); 3].map(|()| Authority::create("d".parse().unwrap(), now()).unwrap());
    let own = |authority: &Authority| authority.trust().to_pem();
    let pem = |der: CertificateDer<'static>| {
        let bundle = Bundle::new(first.trust().clone(), vec![], vec![der]).unwrap().to_pem();
        bundle.strip_prefix(&own(&first)).unwrap().to_owned()
    };
    let vouch = |by: &Authority, of: &Authority| pem(by.vouch(of, now()).unwrap());
    let key = PrivateKey::generate().unwrap().csr_der().unwrap();
    let identity = Identity::new("d".parse().unwrap(), Role::Device("laptop".parse().unwrap()));
    let leaf =
        |by: &Authority| by.issue(&key, &identity, Duration::from_secs(86_400), now(), &[]).unwrap().swap_remove(0);
    let leaves: Vec<_> = [&first, &next, &stranger].into_iter().map(leaf).collect();
    let pieces = vec![
        own(&next),
        own(&first),
        own(&stranger),
        vouch(&first, &next),
        vouch(&next, &first),
        vouch(&stranger, &next),
        vouch(&stranger, &first),
        vouch(&stranger, &stranger),
        pem(leaves[0].clone()),
    ];
    let both = Trust::of_all(vec![next.trust().clone(), first.trust().clone()]).unwrap();
    Line { first: first.trust().clone(), both, next: next.trust().ca_pin(), pieces, leaves }
});

fuzz_target!(|data: &[u8]| {
    let mut bytes = Unstructured::new(data);
    let _ = run(&mut bytes);
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let genuine = &*GENUINE;
    match bytes.int_in_range(0..=9)? {
        0 => {
            let (der, changed) = edited(&genuine.device.chain[0], bytes)?;
            let second = UnixTime::since_unix_epoch(Duration::from_secs(SECOND));
            let is_admitted = genuine.verifier.verify_client_cert(&der.as_slice().into(), &[], second).is_ok();
            assert!(is_admitted || changed);
            // Who is admitted with a changed one has changed nothing that was signed.
            if is_admitted {
                assert_eq!(PeerCertificate::parse(&der.as_slice().into()).as_ref(), Ok(&genuine.leaf));
            }
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
        7 => bundle(bytes, &LINE, true)?,
        8 => bundle(bytes, &LINE, false)?,
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
                    let _ = error.fault();
                }
            }
            let _ = genuine.judge.judge(bytes.bytes(bytes.len())?, "GET", "/v1/park", now());
        }
    }
    assert_eq!(genuine.trust.domain.as_str(), "d");
    Ok(())
}

/// What a bundle makes of those who know the first authority alone, and of those who know the next one too. Whoever brings
/// it need not be believed: so nobody but these two is believed after it.
fn bundle(bytes: &mut Unstructured<'_>, line: &Line, switched: bool) -> arbitrary::Result<()> {
    let mut pieces = SWITCHED.to_vec();
    if !switched {
        pieces.clear();
        for _ in 0..bytes.int_in_range(1..=MOST_PIECES)? {
            pieces.push(bytes.choose_index(line.pieces.len())?);
        }
    }
    let by = bytes.choose_index(line.leaves.len())?;
    let pem: String = pieces.iter().map(|piece| line.pieces[*piece].as_str()).collect();
    let (pem, changed) = edited(pem.as_bytes(), bytes)?;
    let bundle = match Bundle::from_pem(&String::from_utf8_lossy(&pem)) {
        Ok(bundle) => bundle,
        Err(error) => {
            assert!(changed || !switched, "{error}");
            return Ok(());
        }
    };
    assert!((1..=MAX_AUTHORITIES).contains(&bundle.in_force()));
    comes_back(&bundle, Bundle::from_pem(&bundle.to_pem()));
    let first = line.first.ca_pin();
    let believed = |trust: &Trust| {
        assert_eq!(Trust::kept_from_pem(&trust.to_pem()).as_ref(), Ok(trust));
        assert_eq!(trust.domain, line.first.domain);
        let pins: Vec<KeyPin> = trust.anchors().iter().map(|anchor| anchor.pin).collect();
        let is_in_line = [&[line.next, first][..], &[line.next], &[first]].contains(&pins.as_slice());
        assert!(is_in_line, "nobody has vouched for one of {pins:?}");
        pins
    };
    for (trust, newest) in [(&line.first, first), (&line.both, line.next)] {
        let learned = trust.learn(&bundle, now()).map(|learned| believed(&learned));
        let followed = trust.follow(&bundle, now()).map(|followed| believed(&followed));
        let renewed = trust.follow_renewal(&bundle, &line.leaves[by], now()).map(|renewed| believed(&renewed));
        assert_eq!(learned.is_ok(), followed.is_ok());
        assert_eq!(learned.is_ok(), renewed.is_ok());
        let (Ok(learned), Ok(followed), Ok(renewed)) = (learned, followed, renewed) else {
            assert!(changed || !switched, "what is genuine is refused");
            continue;
        };
        assert!(learned.len() >= trust.anchors().len(), "who learns forgets nobody");
        assert!(followed[0] == newest || followed[0] == line.next, "nobody goes back");
        assert!(renewed == learned || (renewed == followed && bundle.signs() == followed[0]));
        // Only a leaf by the newest one shows that it signs.
        let shows = [first, line.next].get(by) == Some(&followed[0]);
        assert!(renewed == learned || shows, "who has shown nothing made somebody forget");
        if switched && !changed {
            assert_eq!(learned, [line.next, first]);
        }
    }
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

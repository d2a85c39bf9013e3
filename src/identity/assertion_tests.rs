//! Assertions that are right, and every way of being wrong.

use super::*;
use crate::identity::{Authority, Identity, PrivateKey, Role};

const AUDIENCE: &str = "nexus.example:443";
const PURPOSE: Purpose<'_> = Purpose { method: "GET", path: "/v1/park", audience: AUDIENCE };

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(2_000_000_000)
}

fn later(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

struct World {
    judge: Judge,
    authority: Authority,
    stub: Credential,
}

fn world() -> World {
    let authority = Authority::create("d".parse().unwrap(), now()).unwrap();
    let judge = Judge::new(authority.trust(), AUDIENCE.to_owned()).unwrap();
    let stub = certified(&authority, Role::Workspace("web".parse().unwrap()), 3600);
    World { judge, authority, stub }
}

fn certified(authority: &Authority, role: Role, seconds: u64) -> Credential {
    let key = PrivateKey::generate().unwrap();
    let identity = Identity::new(authority.domain().clone(), role);
    let lifetime = Duration::from_secs(seconds);
    let chain = authority.issue(&key.csr_der().unwrap(), &identity, lifetime, now(), &[]).unwrap();
    Credential::new(chain, key).unwrap()
}

impl World {
    fn judge(&self, header: &str, at: SystemTime) -> Result<Proved, AssertionError> {
        self.judge.judge(header.as_bytes(), "GET", "/v1/park", at)
    }

    /// What is said of a text that its key has signed.
    fn of_text(&self, text: &str) -> Result<Proved, AssertionError> {
        self.judge(&sign(&self.stub, text).unwrap(), now())
    }
}

#[test]
fn a_right_one_is_accepted_and_says_who() {
    let world = world();
    let header = assert(&world.stub, &PURPOSE, now()).unwrap();
    assert!(header.len() < MAX_ASSERTION / 2, "{}", header.len());
    let proved = world.judge(&header, later(2)).unwrap();
    assert_eq!(proved.certificate, PeerCertificate::parse(&world.stub.chain[0]).unwrap());
    assert_eq!((proved.issued, proved.until), (now(), now() + ASSERTION_LIFETIME + ASSERTION_SKEW));
    let again = world.judge(&assert(&world.stub, &PURPOSE, now()).unwrap(), now()).unwrap();
    assert_ne!(again.nonce, proved.nonce);
}

#[test]
fn it_has_its_time() {
    let world = world();
    let header = assert(&world.stub, &PURPOSE, now()).unwrap();
    world.judge(&header, later(119)).unwrap();
    assert_eq!(world.judge(&header, later(120)).unwrap_err(), AssertionError::Expired);
    world.judge(&header, now() - ASSERTION_SKEW).unwrap();
    let early = now() - ASSERTION_SKEW - Duration::from_secs(1);
    assert_eq!(world.judge(&header, early).unwrap_err(), AssertionError::NotYetValid);
    let issued = unix_seconds(now());
    for (from, to) in [(issued, issued + 61), (issued, issued), (issued, issued - 1), (0, issued), (-1, issued)] {
        let error = world.of_text(&text(&PURPOSE, from, to, &[7; NONCE])).unwrap_err();
        assert_eq!(error, AssertionError::BadTime, "{from} {to}");
    }
    let huge = text(&PURPOSE, 1, 2, &[7; NONCE]).replace("\n1\n2\n", &format!("\n{0}\n{0}\n", u64::MAX));
    assert_eq!(world.of_text(&huge).unwrap_err(), AssertionError::BadTime);
}

#[test]
fn it_is_for_one_request_of_one_coordinator() {
    let world = world();
    let header = assert(&world.stub, &PURPOSE, now()).unwrap();
    for (method, path) in [("POST", "/v1/park"), ("GET", "/v1/connect/web"), ("GET", "/v1/park?x"), ("GET", "")] {
        let error = world.judge.judge(header.as_bytes(), method, path, now()).unwrap_err();
        assert_eq!(error, AssertionError::WrongRequest, "{method} {path}");
    }
    let other = Purpose { audience: "other.example:443\u{1b}[31m", ..PURPOSE };
    let error = world.judge(&assert(&world.stub, &other, now()).unwrap(), now()).unwrap_err();
    assert!(matches!(&error, AssertionError::WrongAudience { found, .. } if found.starts_with("other.example")));
    assert!(!error.to_string().contains('\u{1b}') && error.to_string().contains("hint:"), "{error}");
}

#[test]
fn it_is_of_a_key_that_the_authority_certified_now() {
    let world = world();
    let header = assert(&world.stub, &PURPOSE, now()).unwrap();
    let (signed, _) = header.rsplit_once('.').unwrap();

    // A certificate that another key has.
    let other = certified(&world.authority, Role::Workspace("web".parse().unwrap()), 3600);
    let swapped = format!("{signed}.{}", BASE64URL_NOPAD.encode(&other.chain[0]));
    assert_eq!(world.judge(&swapped, now()).unwrap_err(), AssertionError::BadSignature);

    // An authority of the same name.
    let impostor = Authority::create("d".parse().unwrap(), now()).unwrap();
    let forged = certified(&impostor, Role::Workspace("web".parse().unwrap()), 3600);
    let error = world.judge(&assert(&forged, &PURPOSE, now()).unwrap(), now()).unwrap_err();
    assert_eq!(error, AssertionError::Certificate(IdentityError::WrongAuthority));

    // The authority itself, and the coordinator, are no clients.
    let ca = format!("{signed}.{}", BASE64URL_NOPAD.encode(&world.authority.trust().newest().ca));
    assert!(matches!(world.judge(&ca, now()).unwrap_err(), AssertionError::Certificate(_)));
    let coordinator = certified(&world.authority, Role::Coordinator, 3600);
    let error = world.judge(&assert(&coordinator, &PURPOSE, now()).unwrap(), now()).unwrap_err();
    assert!(matches!(error, AssertionError::Certificate(IdentityError::WrongName { .. })), "{error:?}");

    // A certificate that has ended.
    let short = certified(&world.authority, Role::Device("anna".parse().unwrap()), 30);
    let header = assert(&short, &PURPOSE, now()).unwrap();
    world.judge(&header, later(29)).unwrap();
    assert_eq!(world.judge(&header, later(31)).unwrap_err(), AssertionError::Certificate(IdentityError::Expired));
}

#[test]
fn during_a_rotation_either_authority_will_do_and_afterwards_the_next() {
    let (world, next) = (world(), Authority::create("d".parse().unwrap(), now()).unwrap());
    let both = Trust::of_all(vec![next.trust().clone(), world.authority.trust().clone()]).unwrap();
    let moved = certified(&next, Role::Workspace("web".parse().unwrap()), 3600);
    let said = [&world.stub, &moved].map(|credential| assert(credential, &PURPOSE, now()).unwrap());
    let heard = |trust: &Trust| {
        let judge = Judge::new(trust, AUDIENCE.to_owned()).unwrap();
        said.each_ref().map(|header| judge.judge(header.as_bytes(), "GET", "/v1/park", now()).map(drop))
    };
    let refused = Err(AssertionError::Certificate(IdentityError::WrongAuthority));
    assert_eq!(heard(world.authority.trust()), [Ok(()), refused.clone()]);
    assert_eq!(heard(&both), [Ok(()), Ok(())]);
    assert_eq!(heard(next.trust()), [refused, Ok(())]);
}

#[test]
fn ed25519_signs_as_well() {
    use rcgen::{CertificateParams, KeyPair};
    let world = world();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let identity = Identity::new(world.authority.domain().clone(), Role::Device("anna".parse().unwrap()));
    let chain = world.authority.issue(csr.der(), &identity, Duration::from_secs(60), now(), &[]).unwrap();
    let text = text(&PURPOSE, unix_seconds(now()), unix_seconds(now()) + 60, &[7; NONCE]);
    let signature = key.sign(text.as_bytes()).unwrap();
    let header = [text.as_bytes(), &signature, &chain[0]].map(|part| BASE64URL_NOPAD.encode(part)).join(".");
    assert_eq!(world.judge(&header, now()).unwrap().nonce, [7; NONCE]);
    assert_eq!(world.judge(&header.replacen('.', ".A", 1), now()).unwrap_err().fault(), Fault::Client);
}

#[test]
fn texts_that_are_not_whole_are_refused() {
    let world = world();
    let issued = unix_seconds(now());
    let good = text(&PURPOSE, issued, issued + 60, &[7; NONCE]);
    world.of_text(&good).unwrap();
    let bad = [
        String::new(),
        good.replace("v1", "v2"),
        good.replace('\n', "\r\n"),
        format!("{good}\n"),
        format!("{good}\nmore"),
        good.rsplit_once('\n').unwrap().0.to_owned(),
        text(&PURPOSE, issued, issued + 60, &[7; NONCE - 1]),
        text(&PURPOSE, issued, issued + 60, &[7; NONCE + 1]),
    ];
    for text in bad {
        assert!(world.of_text(&text).is_err(), "{text:?}");
    }
}

#[test]
fn what_is_cut_or_changed_or_huge_is_refused() {
    let world = world();
    let header = assert(&world.stub, &PURPOSE, now()).unwrap();
    for end in 0..header.len() {
        assert!(world.judge(&header[..end], now()).is_err(), "cut at {end}");
    }
    for at in (0..header.len()).step_by(3) {
        let mut changed = header.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(world.judge.judge(&changed, "GET", "/v1/park", now()).is_err(), "changed at {at}");
    }
    let not_utf8 = [&b"\xff\xfe"[..], b"", b""].map(|part| BASE64URL_NOPAD.encode(part)).join(".");
    assert_eq!(world.judge(&not_utf8, now()).unwrap_err(), AssertionError::Malformed("its text is not UTF-8"));
    let long = "A".repeat(MAX_ASSERTION + 1);
    assert_eq!(world.judge(&long, now()).unwrap_err(), AssertionError::Malformed("it is too long"));
    for odd in [&b"\xff\x00\n"[..], b"..", b"a.b.c.d", b"====.AA.AA", b"."] {
        assert!(world.judge.judge(odd, "GET", "/v1/park", now()).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>, text: Vec<u8>, signature: Vec<u8>, leaf: Vec<u8>) {
        let authority = Authority::create("d".parse().unwrap(), now()).unwrap();
        let judge = Judge::new(authority.trust(), AUDIENCE.to_owned()).unwrap();
        proptest::prop_assert!(judge.judge(&bytes, "GET", "/v1/park", now()).is_err());
        let parts = [text, signature, leaf].map(|part| BASE64URL_NOPAD.encode(&part)).join(".");
        proptest::prop_assert!(judge.judge(parts.as_bytes(), "GET", "/v1/park", now()).is_err());
    }
}

//! Every decision and every refusal, on a real file.

use super::*;
use crate::identity::{Authority, Credential, PrivateKey};
use crate::wire::limits::MAX_DEVICES;
use crate::wire::onboarding::CodeText;

const MINUTE: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    registry: Registry,
    now: SystemTime,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let registry = Registry::new(Store::open(dir.path()).await.unwrap(), authority.into());
        World { dir, registry, now }
    }

    /// As after a restart, or in another process.
    async fn again(&self) -> Registry {
        Registry { store: Store::open(self.dir.path()).await.unwrap(), ..self.registry.clone() }
    }

    async fn pair(&self, name: &str, key: &PrivateKey) -> Result<PairAnswer, Refusal> {
        let code = self.registry.invite(PAIR_TTL, self.now).await.unwrap();
        self.registry.pair(&pairing(&code, name, key), self.now).await
    }

    async fn add(&self, name: &str, options: AddWorkspace) -> Result<Code, Refusal> {
        self.registry.add_workspace(&name.parse().unwrap(), &options, self.now).await
    }

    async fn enroll(&self, code: &Code, key: &PrivateKey) -> Result<EnrollAnswer, Refusal> {
        self.registry.enroll(&enrolment(code, key), self.now).await
    }

    async fn renew(&self, key: &PrivateKey, now: SystemTime) -> Result<RenewAnswer, Refusal> {
        self.registry.renew(&RenewRequest { csr: key.csr_pem().unwrap(), trusts: None }, now).await
    }
}

fn key() -> PrivateKey {
    PrivateKey::generate().unwrap()
}

fn text(code: &Code) -> CodeText {
    CodeText::new(code.reveal().as_str())
}

fn pairing(code: &Code, name: &str, key: &PrivateKey) -> PairRequest {
    PairRequest { code: text(code), device: name.parse().unwrap(), csr: key.csr_pem().unwrap() }
}

fn enrolment(code: &Code, key: &PrivateKey) -> EnrollRequest {
    EnrollRequest { code: text(code), csr: key.csr_pem().unwrap() }
}

fn reissue() -> AddWorkspace {
    AddWorkspace { reissue: true, ..Default::default() }
}

fn peer(chain: &str, key: &PrivateKey) -> PeerCertificate {
    let credential = Credential::from_pem(chain, key.clone()).unwrap();
    PeerCertificate::parse(&credential.chain[0]).unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, code: RefusalCode, words: &str) {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.message.contains(words), "{refusal}");
    assert!(refusal.message.contains("hint: "), "{refusal}");
}

#[tokio::test]
async fn from_invitation_to_connection() {
    let world = World::new().await;
    let (laptop, stub) = (key(), key());
    let paired = world.pair("laptop", &laptop).await.unwrap();
    assert_eq!(&crate::identity::Trust::from_pem(&paired.ca).unwrap(), world.registry.authorities().trust());
    let device = peer(&paired.chain, &laptop);
    let member = world.registry.authorize(&device, world.now).await.unwrap();
    assert!(matches!(member, Member::Device(record) if record.name.as_str() == "laptop"));
    assert!(world.registry.list_devices().await.unwrap()[0].last_seen.is_some());

    let code = world.add("web", AddWorkspace::default()).await.unwrap();
    let enrolled = world.enroll(&code, &stub).await.unwrap();
    assert_eq!(enrolled.device_pins, [laptop.pin().to_string()]);
    assert!(!enrolled.trust_first_device);
    let workspace = peer(&enrolled.chain, &stub);
    assert_eq!(workspace.identity.to_string(), "spiffe://d/workspace/web");
    assert!(matches!(world.registry.authorize(&workspace, world.now).await, Ok(Member::Workspace(_))));
    let listed = world.registry.list_workspaces().await.unwrap();
    assert_eq!((listed[0].pin, &listed[0].device_pins[..]), (Some(stub.pin()), &[laptop.pin()][..]));
}

#[tokio::test]
async fn every_way_a_code_fails_has_its_own_sentence() {
    let world = World::new().await;
    let code = world.registry.invite(PAIR_TTL, world.now).await.unwrap();
    let request = pairing(&code, "laptop", &key());
    let late = world.now + PAIR_TTL;
    refused(world.registry.pair(&request, late).await, RefusalCode::Denied, "expired");
    world.again().await.pair(&request, world.now).await.unwrap();
    refused(world.again().await.pair(&request, world.now).await, RefusalCode::Denied, "used already");
    let ca = world.registry.authorities().trust().ca_pin();
    let unknown = Code::generate(CodeKind::Pair, ca);
    refused(world.registry.pair(&pairing(&unknown, "a", &key()), world.now).await, RefusalCode::Denied, "not known");
    let foreign = Code::generate(CodeKind::Pair, key().pin());
    let result = world.registry.pair(&pairing(&foreign, "a", &key()), world.now).await;
    refused(result, RefusalCode::Denied, "another coordinator");
    let mut typo = request.clone();
    typo.code = CodeText::new(code.reveal().replace("nxp", "nxe"));
    refused(world.registry.pair(&typo, world.now).await, RefusalCode::InvalidArguments, "typo");
    let enrol = Code::generate(CodeKind::Enrol, ca);
    refused(
        world.registry.pair(&pairing(&enrol, "a", &key()), world.now).await,
        RefusalCode::InvalidArguments,
        "enrols",
    );
    let pair = Code::generate(CodeKind::Pair, ca);
    refused(world.enroll(&pair, &key()).await, RefusalCode::InvalidArguments, "pairs");
    let unknown = Code::generate(CodeKind::Enrol, ca);
    refused(world.enroll(&unknown, &key()).await, RefusalCode::Denied, "not known");
}

#[tokio::test]
async fn one_of_many_wins_a_code() {
    let world = World::new().await;
    let code = world.registry.invite(PAIR_TTL, world.now).await.unwrap();
    let other = world.again().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let registry = if n % 2 == 0 { world.registry.clone() } else { other.clone() };
        let (request, now) = (pairing(&code, &format!("laptop-{n}"), &key()), world.now);
        tasks.spawn(async move { registry.pair(&request, now).await });
    }
    let results = tasks.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results.into_iter().filter(Result::is_err) {
        refused(result, RefusalCode::Denied, "used already");
    }
    assert_eq!(world.registry.list_devices().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_name_belongs_to_a_key_and_a_refusal_does_not_spend_the_code() {
    let world = World::new().await;
    let (first, second) = (key(), key());
    world.pair("laptop", &first).await.unwrap();
    let code = world.registry.invite(PAIR_TTL, world.now).await.unwrap();
    let result = world.registry.pair(&pairing(&code, "laptop", &second), world.now).await;
    refused(result, RefusalCode::InvalidArguments, "another device");
    world.registry.pair(&pairing(&code, "laptop-2", &second), world.now).await.unwrap();
    refused(world.pair("laptop-3", &second).await, RefusalCode::InvalidArguments, "laptop-2");
    world.pair("laptop", &first).await.unwrap();
    assert_eq!(world.registry.list_devices().await.unwrap().len(), 2);
}

#[tokio::test]
async fn revoking_a_device_ends_it_and_frees_its_name() {
    let world = World::new().await;
    let lost = key();
    let certificate = peer(&world.pair("laptop", &lost).await.unwrap().chain, &lost);
    let name: DeviceName = "laptop".parse().unwrap();
    world.registry.revoke_device(&name, world.now).await.unwrap();
    refused(world.registry.revoke_device(&name, world.now).await, RefusalCode::NotFound, "laptop");
    refused(world.registry.authorize(&certificate, world.now).await, RefusalCode::Denied, "revoked");
    refused(world.renew(&lost, world.now).await, RefusalCode::Denied, "revoked");
    refused(world.pair("laptop", &lost).await, RefusalCode::Denied, "revoked");
    world.pair("laptop", &key()).await.unwrap();
    refused(world.registry.authorize(&certificate, world.now).await, RefusalCode::Denied, "another key");
    refused(world.renew(&lost, world.now).await, RefusalCode::Denied, "not known");
}

#[tokio::test]
async fn a_workspace_needs_somebody_to_admit() {
    let world = World::new().await;
    refused(world.add("web", AddWorkspace::default()).await, RefusalCode::Denied, "no device is paired");
    let code = world.add("web", AddWorkspace { trust_first_device: true, ..Default::default() }).await.unwrap();
    let answer = world.enroll(&code, &key()).await.unwrap();
    assert!(answer.trust_first_device && answer.device_pins.is_empty());
    // Devices that are gone by the time of the enrolment.
    let laptop = key();
    world.pair("laptop", &laptop).await.unwrap();
    let code = world.add("api", AddWorkspace::default()).await.unwrap();
    world.registry.revoke_device(&"laptop".parse().unwrap(), world.now).await.unwrap();
    refused(world.enroll(&code, &key()).await, RefusalCode::Denied, "no device is paired");
    world.pair("laptop", &key()).await.unwrap();
    world.enroll(&code, &key()).await.unwrap();
}

#[tokio::test]
async fn a_workspace_is_enrolled_anew_only_on_request() {
    let world = World::new().await;
    world.pair("laptop", &key()).await.unwrap();
    refused(world.add("web", reissue()).await, RefusalCode::NotFound, "no workspace");
    let superseded = world.add("web", AddWorkspace::default()).await.unwrap();
    refused(world.add("web", AddWorkspace::default()).await, RefusalCode::Denied, "exists");
    let code = world.add("web", reissue()).await.unwrap();
    refused(world.enroll(&superseded, &key()).await, RefusalCode::Denied, "not known");
    let (old, new) = (key(), key());
    let old_certificate = peer(&world.enroll(&code, &old).await.unwrap().chain, &old);
    refused(world.enroll(&code, &new).await, RefusalCode::Denied, "used already");
    let code = world.add("web", reissue()).await.unwrap();
    world.registry.authorize(&old_certificate, world.now).await.unwrap();
    world.enroll(&code, &new).await.unwrap();
    refused(world.registry.authorize(&old_certificate, world.now).await, RefusalCode::Denied, "another key");
    refused(world.renew(&old, world.now).await, RefusalCode::Denied, "not known");
    world.renew(&new, world.now).await.unwrap();
}

#[tokio::test]
async fn removing_a_workspace_ends_it_and_its_codes() {
    let world = World::new().await;
    world.pair("laptop", &key()).await.unwrap();
    let stub = key();
    let code = world.add("web", AddWorkspace::default()).await.unwrap();
    let certificate = peer(&world.enroll(&code, &stub).await.unwrap().chain, &stub);
    let open = world.add("web", reissue()).await.unwrap();
    let name = "web".parse().unwrap();
    world.registry.remove_workspace(&name, world.now).await.unwrap();
    refused(world.registry.remove_workspace(&name, world.now).await, RefusalCode::NotFound, "no workspace");
    refused(world.registry.authorize(&certificate, world.now).await, RefusalCode::Denied, "removed");
    refused(world.renew(&stub, world.now).await, RefusalCode::Denied, "removed");
    refused(world.enroll(&open, &key()).await, RefusalCode::Denied, "not known");
    assert!(world.registry.list_workspaces().await.unwrap().is_empty());
    world.add("web", AddWorkspace::default()).await.unwrap();
    refused(world.registry.authorize(&certificate, world.now).await, RefusalCode::Denied, "another key");
}

#[tokio::test]
async fn one_key_is_one_member() {
    let world = World::new().await;
    let (laptop, stub) = (key(), key());
    world.pair("laptop", &laptop).await.unwrap();
    let code = world.add("web", AddWorkspace::default()).await.unwrap();
    refused(world.enroll(&code, &laptop).await, RefusalCode::InvalidArguments, "device `laptop`");
    world.enroll(&code, &stub).await.unwrap();
    refused(world.pair("other", &stub).await, RefusalCode::InvalidArguments, "workspace `web`");
    let code = world.add("api", AddWorkspace::default()).await.unwrap();
    refused(world.enroll(&code, &stub).await, RefusalCode::InvalidArguments, "workspace `web`");
}

#[tokio::test]
async fn renewal_works_after_the_end() {
    let world = World::new().await;
    let laptop = key();
    let chain = world.pair("laptop", &laptop).await.unwrap().chain;
    let later = world.now + LEAF_LIFETIME + MINUTE;
    refused(world.registry.authorize(&peer(&chain, &laptop), later).await, RefusalCode::Denied, "expired");
    let fresh = peer(&world.renew(&laptop, later).await.unwrap().chain, &laptop);
    assert_eq!(fresh.identity.to_string(), "spiffe://d/device/laptop");
    world.registry.authorize(&fresh, later).await.unwrap();
    refused(world.renew(&key(), later).await, RefusalCode::Denied, "not known");
}

#[tokio::test]
async fn strangers_are_not_authorized() {
    let world = World::new().await;
    let authorities = world.registry.authorities();
    let certificate = |domain: &str, role| {
        let key = key();
        let other = Authority::create(domain.parse().unwrap(), world.now).unwrap();
        let by = if domain == "d" { authorities.signing() } else { &other };
        let identity = Identity::new(domain.parse().unwrap(), role);
        let chain = by.issue(&key.csr_der().unwrap(), &identity, MINUTE, world.now, &[]).unwrap();
        PeerCertificate::parse(&chain[0]).unwrap()
    };
    let cases = [
        ("e", Role::Device("a".parse().unwrap()), "another coordinator"),
        ("d", Role::Device("a".parse().unwrap()), "no device"),
        ("d", Role::Workspace("a".parse().unwrap()), "no workspace"),
        ("d", Role::Node("a".parse().unwrap()), "nobody"),
        ("d", Role::Coordinator, "nobody"),
    ];
    for (domain, role, words) in cases {
        refused(world.registry.authorize(&certificate(domain, role), world.now).await, RefusalCode::Denied, words);
    }
}

#[tokio::test]
async fn bad_certificate_requests_are_refused_and_do_not_spend_the_code() {
    let world = World::new().await;
    let code = world.registry.invite(PAIR_TTL, world.now).await.unwrap();
    let mut request = pairing(&code, "laptop", &key());
    for (csr, expected) in
        [("", RefusalCode::Malformed), ("x", RefusalCode::Malformed), (&"x".repeat(10_000), RefusalCode::TooLarge)]
    {
        request.csr = csr.to_owned();
        refused(world.registry.pair(&request, world.now).await, expected, "certificate request");
    }
    world.registry.pair(&pairing(&code, "laptop", &key()), world.now).await.unwrap();
}

#[tokio::test]
async fn the_number_of_devices_is_bounded() {
    let world = World::new().await;
    let mut change = world.registry.store().begin().await.unwrap();
    for n in 0..MAX_DEVICES {
        let mut pin = [0; 32];
        pin[..8].copy_from_slice(&(n as u64).to_be_bytes());
        change.put_device(&format!("laptop-{n}").parse().unwrap(), KeyPin::from_bytes(pin), 0).await.unwrap();
    }
    change.commit().await.unwrap();
    refused(world.pair("one-more", &key()).await, RefusalCode::Busy, "256");
}

#[tokio::test]
async fn codes_do_not_live_longer_than_their_bound() {
    let world = World::new().await;
    let code = world.registry.invite(MAX_TTL * 100, world.now).await.unwrap();
    let request = pairing(&code, "laptop", &key());
    refused(world.registry.pair(&request, world.now + MAX_TTL).await, RefusalCode::Denied, "expired");
}

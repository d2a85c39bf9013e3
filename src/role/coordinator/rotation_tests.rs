//! Whole rotations on real files, with members that are quick, slow, revoked or new.

use super::*;
use crate::identity::{Bundle, Code, Credential, PrivateKey, Trust};
use crate::role::coordinator::store::Store;
use crate::wire::onboarding::{CodeText, PairRequest, RenewAnswer, RenewRequest};

const DAY: Duration = Duration::from_secs(24 * 3600);
const TTL: Duration = Duration::from_secs(3600);

struct World {
    dir: tempfile::TempDir,
    registry: Registry,
    now: SystemTime,
}

/// A device as a laptop keeps it.
struct Device {
    key: PrivateKey,
    trust: Trust,
    credential: Credential,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path()).await;
        World { dir, registry, now: SystemTime::now() }
    }

    /// As after a restart, or in another process.
    async fn again(&self) -> Registry {
        open(self.dir.path()).await
    }

    async fn pair_with(&self, code: &Code, name: &str) -> Result<Device, Refusal> {
        let key = PrivateKey::generate().unwrap();
        let text = CodeText::new(code.reveal().as_str());
        let request = PairRequest { code: text, device: name.parse().unwrap(), csr: key.csr_pem().unwrap() };
        let answer = self.registry.pair(&request, self.now).await?;
        let trust = Trust::from_pem(&answer.ca).unwrap();
        assert_eq!(trust.ca_pin().prefix(), *code.ca_prefix());
        let trust = trust.learn(&Bundle::from_pem(&answer.authorities).unwrap(), self.now).unwrap();
        let credential = Credential::from_pem(&answer.chain, key.clone()).unwrap();
        Ok(Device { key, trust, credential })
    }

    async fn pair(&self, name: &str) -> Device {
        let code = self.registry.invite(TTL, self.now).await.unwrap();
        self.pair_with(&code, name).await.unwrap()
    }

    async fn rotate(&self) -> Result<Step, Refusal> {
        self.registry.rotate(&Patience::default(), self.now).await
    }

    async fn force(&self) -> Step {
        self.registry.rotate(&Patience { force: true, ..Patience::default() }, self.now).await.unwrap()
    }

    fn signs(&self) -> KeyPin {
        self.registry.authorities().signing().trust().ca_pin()
    }

    async fn waiting(&self) -> Vec<String> {
        self.registry.rotation(self.now).await.unwrap().waiting.iter().map(Waiting::to_string).collect()
    }
}

async fn open(dir: &Path) -> Registry {
    let store = Store::open(dir).await.unwrap();
    let authorities = authority::load(&store, SystemTime::now()).await.unwrap();
    Registry::new(store, authorities)
}

impl Device {
    /// Renews as a program does that is connected: it learns, and then says what it believes.
    async fn renew(&mut self, world: &World) -> Result<(), Refusal> {
        for _ in 0..2 {
            let trusts = Some(self.trust.ca_pin().to_string());
            let request = RenewRequest { csr: self.key.csr_pem().unwrap(), trusts };
            let answer: RenewAnswer = world.registry.renew(&request, world.now).await?;
            self.credential = Credential::from_pem(&answer.chain, self.key.clone()).unwrap();
            let (bundle, leaf) = (Bundle::from_pem(&answer.authorities).unwrap(), &self.credential.chain[0]);
            self.trust = self.trust.follow_renewal(&bundle, leaf, world.now).unwrap();
        }
        Ok(())
    }
}

#[track_caller]
fn refused(result: Result<Step, Refusal>, words: &[&str]) {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Unavailable, "{refusal}");
    for word in words.iter().chain(&["hint: "]) {
        assert!(refusal.message.contains(word), "`{word}` is not in {refusal}");
    }
}

#[tokio::test]
async fn a_rotation_goes_step_by_step_and_waits_for_its_members() {
    let world = World::new().await;
    let mut anna = world.pair("anna").await;
    let first = world.signs();
    assert_eq!(world.rotate().await.unwrap(), Step::Published);
    assert_eq!(world.signs(), first);
    assert_eq!(world.waiting().await, ["device `anna`"]);
    refused(world.rotate().await, &["device `anna`", "--force", "--overlap"]);

    anna.renew(&world).await.unwrap();
    assert_eq!((anna.trust.anchors().len(), anna.credential.issuer()), (2, Some(first)));
    assert_eq!(world.rotate().await.unwrap(), Step::Switched);
    let next = world.signs();
    assert_ne!(next, first);
    refused(world.rotate().await, &["still in use", "device `anna`"]);

    anna.renew(&world).await.unwrap();
    assert_eq!((anna.trust.ca_pin(), anna.credential.issuer()), (next, Some(next)));
    assert_eq!(world.rotate().await.unwrap(), Step::Retired);
    anna.renew(&world).await.unwrap();
    assert_eq!(anna.trust.anchors().len(), 1);
    let rotation = world.registry.rotation(world.now).await.unwrap();
    assert_eq!((rotation.authorities.len(), rotation.next), (1, Step::Published));
    assert!(rotation.to_string().contains("no rotation is under way"), "{rotation}");
}

#[tokio::test]
async fn what_serves_and_what_starts_later_agree_after_each_step() {
    let world = World::new().await;
    let served = world.again().await;
    for _ in 0..3 {
        world.force().await;
        served.reload(world.now).await.unwrap();
        for other in [&served, &world.again().await] {
            let (own, other) = (world.registry.authorities(), other.authorities());
            assert_eq!((own.trust(), own.bundle()), (other.trust(), other.bundle()));
            assert_eq!(own.signing().trust(), other.signing().trust());
        }
    }
    assert_eq!(served.store().revision().await.unwrap().authorities, 2 + 2 + 1);
    // Of the former key nothing is left.
    assert!(!world.dir.path().join("next.key").exists());
    let key = std::fs::read_to_string(world.dir.path().join("ca.key")).unwrap();
    assert_eq!(PrivateKey::from_pem(&key).unwrap().pin(), world.signs());
    let certificate = std::fs::read_to_string(world.dir.path().join("ca.pem")).unwrap();
    assert_eq!(Trust::from_pem(&certificate).unwrap().ca_pin(), world.signs());
}

#[tokio::test]
async fn a_crash_between_database_and_files_costs_nothing() {
    let world = World::new().await;
    world.force().await;
    let files = ["ca.key", "ca.pem", "next.key"].map(|name| world.dir.path().join(name));
    let before = files.each_ref().map(|file| std::fs::read(file).unwrap());
    world.force().await;
    let switched = world.signs();
    for (file, content) in files.iter().zip(before) {
        std::fs::write(file, content).unwrap();
    }
    assert_eq!(world.again().await.authorities().signing().trust().ca_pin(), switched);
    assert_eq!(world.force().await, Step::Retired);
    assert!(!files[2].exists());
    assert_eq!(world.again().await.authorities().signing().trust().ca_pin(), switched);
}

#[tokio::test]
async fn a_lost_key_is_said_and_not_made_anew() {
    let world = World::new().await;
    world.force().await;
    std::fs::remove_file(world.dir.path().join("next.key")).unwrap();
    let lost = world.registry.rotate(&Patience { force: true, ..Patience::default() }, world.now).await;
    assert_eq!(lost.unwrap_err().code, RefusalCode::Internal);
    std::fs::remove_file(world.dir.path().join("ca.key")).unwrap();
    let store = Store::open(world.dir.path()).await.unwrap();
    let error = authority::load(&store, world.now).await.unwrap_err();
    assert!(matches!(error, AuthorityError::KeyMissing { .. }), "{error}");
}

#[tokio::test]
async fn an_overlap_and_the_end_of_a_certificate_end_the_waiting() {
    let mut world = World::new().await;
    let mut here = world.pair("here").await;
    world.pair("away").await;
    world.rotate().await.unwrap();
    here.renew(&world).await.unwrap();
    assert_eq!(world.waiting().await, ["device `away`"]);
    let patience = Patience { overlap: Some(7 * DAY), force: false };
    refused(world.registry.rotate(&patience, world.now + 6 * DAY).await, &["device `away`"]);
    world.now += 7 * DAY;
    assert_eq!(world.registry.rotate(&patience, world.now).await.unwrap(), Step::Switched);
    here.renew(&world).await.unwrap();
    // What the other one has has ended long ago.
    assert_eq!(world.rotate().await.unwrap(), Step::Retired);
}

#[tokio::test]
async fn one_who_slept_through_all_of_it_follows() {
    let world = World::new().await;
    let mut asleep = world.pair("asleep").await;
    for _ in 0..6 {
        world.force().await;
    }
    asleep.renew(&world).await.unwrap();
    assert_eq!((asleep.trust.ca_pin(), asleep.trust.anchors().len()), (world.signs(), 1));
    // And one who slept through a third: it has to be paired again, and hears so.
    let first = asleep.trust.clone();
    for _ in 0..9 {
        world.force().await;
    }
    let bundle = Bundle::from_pem(world.registry.authorities().bundle()).unwrap();
    let error = first.follow(&bundle, world.now).unwrap_err();
    assert!(error.hint().contains("pair (--new-key) or enrol again"), "{error}");
}

#[tokio::test]
async fn who_is_revoked_stays_so_and_is_not_waited_for() {
    let world = World::new().await;
    let mut anna = world.pair("anna").await;
    world.rotate().await.unwrap();
    world.registry.revoke_device(&"anna".parse().unwrap(), world.now).await.unwrap();
    for step in [Step::Switched, Step::Retired] {
        assert!(world.waiting().await.is_empty());
        assert_eq!(world.rotate().await.unwrap(), step);
        let refusal = anna.renew(&world).await.unwrap_err();
        assert!(refusal.message.contains("revoked"), "{refusal}");
    }
}

#[tokio::test]
async fn a_code_is_good_while_its_authority_is_in_force() {
    let world = World::new().await;
    let code = |_| world.registry.invite(TTL, world.now);
    let (one, two, three) = (code(1).await.unwrap(), code(2).await.unwrap(), code(3).await.unwrap());
    world.force().await;
    let device = world.pair_with(&one, "one").await.unwrap();
    assert_eq!(device.trust.anchors().len(), 2);
    // Whoever comes now knows the next authority from the beginning.
    assert!(world.waiting().await.is_empty());
    world.force().await;
    let device = world.pair_with(&two, "two").await.unwrap();
    assert_eq!((device.trust.ca_pin(), device.credential.issuer()), (world.signs(), Some(world.signs())));
    world.force().await;
    let refusal = world.pair_with(&three, "three").await.err().unwrap();
    assert!(refusal.message.contains("hint:") && refusal.message.contains("new code"), "{refusal}");
}

#[tokio::test]
async fn a_code_is_good_in_the_phase_it_was_made_in() {
    let world = World::new().await;
    for (name, believed) in [("one", 1), ("two", 2), ("three", 1), ("four", 1)] {
        let device = world.pair(name).await;
        assert!(device.trust.age(world.signs()).is_some());
        assert_eq!(device.trust.anchors().len(), believed);
        world.force().await;
    }
}

#[tokio::test]
async fn what_a_renewal_says_of_no_authority_is_not_noted() {
    let world = World::new().await;
    let mut anna = world.pair("anna").await;
    world.rotate().await.unwrap();
    anna.renew(&world).await.unwrap();
    assert!(world.waiting().await.is_empty());
    let stray = PrivateKey::generate().unwrap().pin().to_string();
    for trusts in [Some(stray), Some("no pin".to_owned()), None] {
        let request = RenewRequest { csr: anna.key.csr_pem().unwrap(), trusts };
        world.registry.renew(&request, world.now).await.unwrap();
        assert!(world.waiting().await.is_empty());
    }
}

#[tokio::test]
async fn two_operators_take_one_step_each() {
    let world = World::new().await;
    let other = world.again().await;
    let patience = Patience { force: true, ..Patience::default() };
    let (one, two) = tokio::join!(world.registry.rotate(&patience, world.now), other.rotate(&patience, world.now));
    let mut steps = [one.unwrap(), two.unwrap()];
    steps.sort_by_key(|step| *step as u8);
    assert_eq!(steps, [Step::Published, Step::Switched]);
    assert_eq!(world.again().await.authorities().trust().anchors().len(), 2);
}

#[tokio::test]
async fn a_data_directory_from_before_rotations_begins_with_what_it_has() {
    let world = World::new().await;
    let mut anna = world.pair("anna").await;
    let first = world.signs();
    let before = "DROP TABLE authority; DROP TABLE leaf; PRAGMA user_version = 1";
    sqlx::raw_sql(before).execute(&world.registry.store().pool).await.unwrap();
    let again = world.again().await;
    assert_eq!(again.authorities().signing().trust().ca_pin(), first);
    let world = World { registry: again, ..world };
    world.rotate().await.unwrap();
    assert_eq!(world.waiting().await, ["device `anna`"]);
    anna.renew(&world).await.unwrap();
    assert_eq!(world.rotate().await.unwrap(), Step::Switched);
}

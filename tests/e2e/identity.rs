//! Who may come in: codes that count once, certificates that end, keys that changed, devices that were revoked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::program::command;
use crate::support::*;

/// Exit codes as `--help` gives them.
const USAGE: i32 = 2;
const REFUSED: i32 = 4;

/// Asserts how a command failed: its exit code, and every one of these texts in its sentence.
#[track_caller]
fn fails(run: Run, code: i32, texts: &[&str]) {
    assert_eq!(run.status.code(), Some(code), "{}{}", run.text(), run.stderr);
    for text in texts.iter().chain(&["hint:"]) {
        assert!(run.stderr.contains(text), "`{text}` is not in:\n{}", run.stderr);
    }
}

struct World {
    laptop: Laptop,
    machine: Machine,
    stub: Running,
    coordinator: Coordinator,
    /// Between everybody and the coordinator.
    wire: Link,
    url: String,
}

/// How long a byte is under way to the coordinator.
const DELAY: Duration = Duration::from_millis(10);

impl World {
    /// A laptop that is paired, and a workspace `box` that is ready.
    #[track_caller]
    fn new(options: &[&str]) -> World {
        let coordinator = Coordinator::start_at(&Place::Here, options);
        let wire = Link::with(coordinator.port, Wire { delay: DELAY, ..Wire::default() });
        let url = wire.url();
        let laptop = Laptop::new();
        laptop.pair(&url, &coordinator.invite(), "anna").ok();
        let machine = Machine::at(&Place::Here, &url);
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        World { laptop, machine, stub, coordinator, wire, url }
    }

    fn words(&self) -> [&str; 3] {
        ["box", "--coordinator", &self.url]
    }

    /// `nexus-proxy up` that is expected to end by itself.
    #[track_caller]
    fn up_fails(&self, code: i32, texts: &[&str]) {
        fails(self.laptop.run(&[&["up"], &self.words()[..]].concat()), code, texts);
    }
}

/// The certificate in a laptop's or a stub's directory.
pub fn chain_below(folder: &Path) -> PathBuf {
    find_below(folder, "chain.pem").expect("a chain.pem")
}

pub fn has_expired(chain: &Path) -> bool {
    let mut check = command("openssl", ["x509", "-noout", "-checkend", "0", "-in"]);
    check.arg(chain);
    !Run::of(check).status.success()
}

#[test]
fn a_code_pairs_once() {
    let coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    let code = coordinator.invite();
    Laptop::new().pair(&url, &code, "anna").ok();
    fails(Laptop::new().pair(&url, &code, "bert"), REFUSED, &["used already", "ask for a new code"]);
    let devices = coordinator.run(&["device", "list"]).ok();
    assert!(devices.contains("anna") && !devices.contains("bert"), "{devices}");
}

#[test]
fn a_code_expires() {
    let coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    let (code, ends) = (coordinator.code(&["invite", "--ttl", "1s"]), SystemTime::now() + Duration::from_secs(1));
    until("the code's end", || (SystemTime::now() > ends).then_some(()));
    fails(Laptop::new().pair(&url, &code, "anna"), REFUSED, &["expired", "ask for a new code"]);
}

#[test]
fn a_code_is_for_one_thing_at_one_coordinator() {
    let coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    // A workspace is for a device that is there.
    Laptop::new().pair(&url, &coordinator.invite(), "first").ok();
    let laptop = Laptop::new();
    let code = coordinator.invite();
    let last = if code.ends_with('2') { "3" } else { "2" };
    let typo = format!("{}{last}", &code[..code.len() - 1]);
    fails(laptop.pair(&url, &typo, "anna"), USAGE, &["typo", "copy it"]);
    fails(laptop.pair(&url, &code[..20], "anna"), USAGE, &["not a whole code"]);
    fails(laptop.pair(&url, "hello", "anna"), USAGE, &["not a code"]);

    let other = Coordinator::start();
    fails(laptop.pair(&url, &other.invite(), "anna"), REFUSED, &["the code and the address are from the same"]);

    let enrol = coordinator.add_workspace("box");
    fails(laptop.pair(&url, &enrol, "anna"), USAGE, &["enrolment code", "nexus-coordinator invite"]);
    let machine = Machine::at(&Place::Here, &url);
    fails(Run::of(machine.command(Some(&code))), USAGE, &["pairing code", "workspace add"]);
    fails(Run::of(machine.command(None)), USAGE, &["not enrolled", "--enroll"]);
    // None of the attempts used one up.
    machine.stub(Some(&enrol));
    laptop.pair(&url, &code, "anna").ok();
}

#[test]
fn one_of_twenty_wins_a_code() {
    let coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    let code = coordinator.invite();
    let runs: Vec<Run> = std::thread::scope(|scope| {
        let pair = |n: usize| Laptop::new().pair(&url, &code, &format!("device-{n}"));
        let threads: Vec<_> = (0..20).map(|n| scope.spawn(move || pair(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a laptop")).collect()
    });
    let (won, lost): (Vec<Run>, Vec<Run>) = runs.into_iter().partition(|run| run.status.success());
    assert_eq!(won.len(), 1);
    lost.into_iter().for_each(|run| fails(run, REFUSED, &["used already"]));
    assert_eq!(coordinator.run(&["device", "list"]).ok().lines().count(), 1);
}

#[test]
fn another_coordinator_at_the_same_address_is_refused_and_not_taken_for_the_end() {
    let mut world = World::new(&[]);
    drop(world.laptop.up(&world.words()));
    world.coordinator.kill();
    world.coordinator.start_anew();
    world.up_fails(REFUSED, &["another authority", "pair (--new-key) or enrol again"]);
    // What answers in the coordinator's place may be a network that wants a login: nobody is near to start a stub again.
    world.stub.says("another authority");
    assert!(world.stub.has_ended().is_none(), "{}", world.stub.output());
}

#[test]
fn a_workspace_with_another_key_is_refused_until_it_is_forgotten() {
    let world = World::new(&[]);
    drop(world.laptop.up(&world.words()));
    let anew = Machine::at(&Place::Here, &world.url);
    let code = world.coordinator.code(&["workspace", "add", "box", "--reissue"]);
    let _stub = anew.stub(Some(&code));
    until("the old stub to be out of the way", || {
        world.laptop.run(&[&["up"], &world.words()[..]].concat()).stderr.contains("is pinned").then_some(())
    });
    world.up_fails(REFUSED, &["is pinned", "nexus-proxy forget"]);
    world.laptop.run(&["forget", "box", "--coordinator", &world.url]).ok();
    let _up = world.laptop.up(&world.words());
    assert_eq!(world.laptop.exec("box", &["pwd"]).ok().trim(), anew.workspace.path().to_string_lossy());
}

#[test]
fn a_certificate_that_ended_while_its_owner_was_off_is_renewed() {
    let mut world = World::new(&["--leaf-lifetime", "3s"]);
    world.stub.stop(nix::sys::signal::Signal::SIGKILL);
    let chains = [chain_below(world.laptop.home()), chain_below(world.machine.state())];
    until("the certificates to end", || chains.iter().all(|chain| has_expired(chain)).then_some(()));
    let before = chains.each_ref().map(|chain| fs::read(chain).expect("a chain"));
    world.stub = world.machine.stub(None);
    let _up = world.laptop.up(&world.words());
    for (chain, before) in chains.iter().zip(before) {
        assert_ne!(fs::read(chain).expect("a chain"), before, "{} is a fresh one", chain.display());
    }
}

#[test]
fn certificates_are_renewed_while_a_session_stands() {
    let world = World::new(&["--leaf-lifetime", "6s"]);
    let up = world.laptop.up(&world.words());
    let process = ["exec", "box", "--", "sh", "-c", "while read word; do echo \"$word\"; done"];
    let mut talk = Dialogue::with(world.laptop.command(&process));
    talk.ask(PATIENCE, str::to_owned);
    for chain in [chain_below(world.laptop.home()), chain_below(world.machine.state())] {
        for _ in 0..2 {
            let before = fs::read(&chain).expect("a chain");
            until("a renewal", || (fs::read(&chain).expect("a chain") != before).then_some(()));
            world.wire.reset();
            talk.ask(PATIENCE, str::to_owned);
        }
    }
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert_eq!(up.tunnels(), 1, "the session outlived both its certificates");
    // And so did a stream that was open all along.
    talk.ask(PATIENCE, str::to_owned);
    talk.ends_well();
    let second = world.laptop.twin();
    let _again = second.up(&world.words());
}

#[test]
fn an_up_that_runs_leaves_a_device_alone_that_was_paired_anew() {
    let world = World::new(&["--leaf-lifetime", "6s"]);
    let mut up = world.laptop.up(&world.words());
    let code = world.coordinator.invite();
    fails(world.laptop.pair(&world.url, &code, "renamed"), USAGE, &["paired", "as device `anna`", "--new-key"]);
    let said = world.laptop.run(&["pair", &world.url, &code, "--name", "renamed", "--new-key"]).ok();
    assert!(said.contains("its key was: ") && said.contains("nexus-proxy device add WORKSPACE "), "{said}");
    // Its next certificate is of the former key.
    up.program.says("paired anew");
    world.laptop.run(&["device", "add", "box", &world.coordinator.pin_of("renamed")]).ok();
    drop(up);
    let _up = world.laptop.up(&world.words());
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
}

#[test]
fn what_is_revoked_is_cut_while_it_stands() {
    let world = World::new(&[]);
    let mut up = world.laptop.up(&world.words());
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    world.coordinator.run(&["device", "revoke", "anna"]).ok();
    assert_eq!(up.program.ends().code(), Some(REFUSED), "{}", up.program.output());
    assert!(up.program.output().contains("revoked"), "{}", up.program.output());
}

#[test]
fn a_coordinator_that_is_not_named_makes_no_second_workspace_of_that_name() {
    let world = World::new(&[]);
    drop(world.laptop.up(&world.words()));
    fails(
        world.laptop.run(&["up", "box"]),
        USAGE,
        &["a workspace `box`", "of that name was met at https://", "up box --coordinator https://"],
    );
    let mut here = world.laptop.up(&["another"]);
    here.program.says("embedded");
}

#[test]
fn a_revoked_device_is_refused() {
    let world = World::new(&[]);
    drop(world.laptop.up(&world.words()));
    world.coordinator.run(&["device", "revoke", "anna"]).ok();
    world.up_fails(REFUSED, &["revoked", "pair it again"]);
    let listed = world.coordinator.run(&["device", "list"]).ok();
    assert!(listed.contains("anna") && listed.contains("revoked"), "{listed}");
}

#[test]
fn a_removed_workspace_is_refused() {
    let mut world = World::new(&[]);
    world.coordinator.run(&["workspace", "remove", "box"]).ok();
    world.up_fails(REFUSED, &["the workspace `box` was removed"]);
    world.stub.stop(nix::sys::signal::Signal::SIGTERM);
    fails(Run::of(world.machine.command(None)), REFUSED, &["was removed"]);
}

#[test]
fn keys_are_for_their_owner_alone() {
    let world = World::new(&[]);
    drop(world.laptop.up(&world.words()));
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    for root in [&world.laptop.home().join("data"), world.machine.state(), world.coordinator.data()] {
        let files = files_below(root);
        assert!(files.iter().any(|path| path.to_string_lossy().contains("key")), "{files:?}");
        for path in files {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    let key = find_below(world.laptop.home(), "key.pem").expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    world.up_fails(USAGE, &["others can read it", "chmod 600"]);
}

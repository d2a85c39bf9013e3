//! What a person has open when the network goes: a shell, a copy, a transaction, a clone. All of them end as if
//! nothing had been, whichever way the session goes.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::reliability::{UNDER_WAY, lasts};
use crate::support::faults::{Faults, overtake};
use crate::support::laptop::Up;
use crate::support::linked::Frozen;
use crate::support::transfers::{RECOVERY, digest};
use crate::support::wait::within;
use crate::support::*;

/// Bytes of the file that is copied, and of the one in the repository: some seconds on the wire.
const LARGE: usize = 24 << 20;

/// How often all connections of a wire are cut in the end, one after another, in the long form.
const CUTS: usize = 1000;

/// How long a byte takes on the longest way: the other side of the world.
const LONG: Duration = Duration::from_millis(150);

/// How long a copy or a clone may take, with all that happens meanwhile.
fn most() -> Duration {
    Duration::from_secs(if is_long() { 900 } else { 240 })
}

fn noise() -> Vec<u8> {
    rand::random_iter().take(LARGE).collect()
}

/// The large file in the repository of `daemon`; gives its content.
fn add_large_file(daemon: &GitDaemon) -> Vec<u8> {
    let folder = TempDir::new().expect("a temporary folder");
    let work = folder.path().join("work");
    Run::of(git::git(&["clone", "-q", &daemon.repository.to_string_lossy(), &work.to_string_lossy()])).ok();
    let content = noise();
    fs::write(work.join("large"), &content).expect("a file of ours");
    for words in [&["add", "large"][..], &["commit", "-q", "-m", "Large"], &["push", "-q", "origin", "main"]] {
        let mut git = git::git(words);
        // Noise does not become smaller, and trying takes long.
        let plain = [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "core.compression"), ("GIT_CONFIG_VALUE_0", "0")];
        git.current_dir(&work).envs(plain);
        Running::start(git).completes(RECOVERY);
    }
    content
}

/// Held while there may be no way: what begins after a while of that is refused at once, as it should be.
#[derive(Default)]
struct Gate(Mutex<()>);

impl Gate {
    fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does a program's work again and again until `enough`, at least once; gives how often. `begin` starts it and returns when
/// it is under way: it begins only while there is a way. `is_correct` looks at what it did.
fn again(enough: &AtomicBool, gate: &Gate, begin: impl Fn() -> Running, is_correct: impl Fn()) -> usize {
    let mut count = 0;
    while count == 0 || !enough.load(Relaxed) {
        let held = gate.hold();
        let program = begin();
        drop(held);
        program.completes(most());
        is_correct();
        count += 1;
    }
    count
}

/// Ends the copies when the conversations have, in whatever way.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The wire on which everything happens.
fn wire() -> Wire {
    Wire::new(100_000_000, Duration::from_millis(5))
}

/// Who is there while things happen.
struct Scene<'a> {
    /// Each took over from the one before it.
    ups: Vec<Up<'a>>,
    /// Stubs that handed over, and coordinators that drain.
    former: Vec<Running>,
    laptop: &'a Laptop,
    address: Ipv4Addr,
    world: World,
}

impl Scene<'_> {
    /// The session's wire that ends at the laptop.
    fn near(&self) -> &Link {
        self.world.wires()[0]
    }

    /// The one that ends at the workspace; on the direct way it is the same.
    fn far(&self) -> &Link {
        self.world.wires().pop().expect("one at least")
    }

    /// The direction in which the far wire takes what the workspace sends.
    fn of_workspace(&self) -> Direction {
        match self.world.way {
            Way::Relay | Way::Balanced => Direction::Up,
            Way::Direct => Direction::Down,
        }
    }

    /// Whether a harm that was asked for is still to come.
    fn harm_is_due(&self) -> bool {
        self.world.all_wires().iter().any(|link| link.harm_is_due())
    }

    fn out(&self, links: &[&Link], begin: impl Fn(&Link)) {
        links.iter().for_each(|link| begin(link));
        std::thread::sleep(lasts(3, 30));
        links.iter().for_each(|link| link.heal());
    }

    fn sleep(&mut self, meanwhile: impl Fn(&World)) {
        let here = self.ups.iter_mut().filter_map(|up| up.program.has_ended().is_none().then(|| up.program.pid()));
        let frozen: Vec<Frozen> = here.map(Frozen::new).collect();
        meanwhile(&self.world);
        std::thread::sleep(lasts(5, 180));
        drop(frozen);
    }
}

/// Something that happens to whoever is there.
struct Trouble {
    what: &'static str,
    /// Where it happens in the usual run.
    usual: &'static [Way],
    /// And in the long one: wherever it can.
    long: &'static [Way],
    strike: fn(&mut Scene<'_>),
}

impl Trouble {
    fn happens(&self, by: Way) -> bool {
        if is_long() { self.long } else { self.usual }.contains(&by)
    }
}

const ALL: &[Way] = &[Way::Relay, Way::Direct, Way::Balanced];
const RELAY: &[Way] = &[Way::Relay];
const TWO_WIRES: &[Way] = &[Way::Relay, Way::Balanced];
const HOSTS: &[Way] = &[Way::Relay, Way::Direct];
const DIRECT: &[Way] = &[Way::Direct];

/// In this order: what is open stays behind at the hand-overs, and what comes after them happens to it there.
const TROUBLES: [Trouble; 19] = [
    Trouble { what: "a reset of the near wire", usual: ALL, long: ALL, strike: |scene| scene.near().reset() },
    Trouble { what: "a reset of the far wire", usual: TWO_WIRES, long: ALL, strike: |scene| scene.far().reset() },
    Trouble {
        what: "`up --take-over`",
        usual: ALL,
        long: ALL,
        strike: |scene| {
            let next = scene.world.up_with(scene.laptop, &["--take-over"]);
            scene.ups.last_mut().expect("one at least").program.says("handed over");
            scene.ups.push(next);
        },
    },
    Trouble {
        what: "a message cut in two",
        usual: ALL,
        long: ALL,
        strike: |scene| scene.near().cut_after(Direction::Down, 100_000),
    },
    Trouble {
        what: "bytes that come twice",
        usual: ALL,
        long: ALL,
        strike: |scene| scene.far().harm_after(Direction::Up, 100_000, Harm::Double),
    },
    Trouble {
        what: "bytes that come in part",
        usual: HOSTS,
        long: ALL,
        strike: |scene| scene.near().harm_after(Direction::Down, 100_000, Harm::Shorten),
    },
    Trouble {
        what: "`run --take-over` of the stub",
        usual: ALL,
        long: ALL,
        strike: |scene| {
            let linked = &mut scene.world.linked;
            let mut former = std::mem::replace(&mut linked.stub, linked.machine.successor());
            former.says("handed over");
            scene.former.push(former);
        },
    },
    Trouble {
        what: "connections that are overtaken by later ones",
        usual: RELAY,
        long: ALL,
        strike: |scene| overtake(scene.near()),
    },
    Trouble {
        what: "a wire that holds everything",
        usual: RELAY,
        long: ALL,
        strike: |scene| scene.out(&[scene.near()], Link::hold),
    },
    Trouble {
        what: "a way that is long for a while",
        usual: RELAY,
        long: ALL,
        strike: |scene| {
            scene.out(&[scene.near()], |link| link.set_wire(Wire { delay: LONG, ..wire() }));
            scene.near().set_wire(wire());
        },
    },
    Trouble {
        what: "a black hole",
        usual: ALL,
        long: ALL,
        strike: |scene| scene.out(&[scene.near()], Link::black_hole),
    },
    Trouble {
        what: "a black hole on all wires",
        usual: DIRECT,
        long: ALL,
        strike: |scene| scene.out(&scene.world.all_wires(), Link::black_hole),
    },
    Trouble {
        what: "a near wire that is half dead",
        usual: RELAY,
        long: ALL,
        strike: |scene| scene.out(&[scene.near()], |link| link.half_open(Direction::Up)),
    },
    Trouble {
        what: "a far wire that is half dead",
        usual: HOSTS,
        long: ALL,
        strike: |scene| scene.out(&[scene.far()], |link| link.half_open(scene.of_workspace())),
    },
    Trouble {
        what: "a crash of the coordinator",
        usual: ALL,
        long: ALL,
        strike: |scene| {
            scene.world.linked.coordinator.kill();
            scene.world.linked.coordinator.start_again();
        },
    },
    Trouble {
        what: "another coordinator, while the former drains",
        usual: ALL,
        long: ALL,
        strike: |scene| scene.former.push(scene.world.linked.coordinator.replace()),
    },
    Trouble {
        what: "another address of the laptop",
        usual: HOSTS,
        long: HOSTS,
        strike: |scene| {
            let hosts = scene.world.hosts.as_ref().expect("the laptop has a host of its own");
            let next = Ipv4Addr::new(10, 77, 1, 77);
            hosts.readdress(&hosts.laptop, scene.address, next);
            scene.address = next;
        },
    },
    Trouble { what: "sleep of the laptop", usual: HOSTS, long: ALL, strike: |scene| scene.sleep(|_| ()) },
    Trouble {
        what: "sleep of the laptop, whose connections go meanwhile",
        usual: TWO_WIRES,
        long: ALL,
        strike: |scene| scene.sleep(|world| world.laptops_wires().iter().for_each(|link| link.forget_present())),
    },
];

#[track_caller]
fn what_is_open_notices_nothing(by: Way) {
    let world = match by {
        // Three hosts, so that the laptop's can have another address.
        Way::Relay | Way::Direct => World::across(Hosts::new(), by),
        Way::Balanced => World::by(by),
    };
    let there = world.workspace();
    let (sshd, postgres, daemon) = (Sshd::start_at(&there), Postgres::start_at(&there), GitDaemon::start_at(&there));
    let in_repository = add_large_file(&daemon);
    let folder = TempDir::new().expect("a temporary folder");
    let original = folder.path().join("original");
    fs::write(&original, noise()).expect("a file of ours");
    let expected = digest(&original);

    let laptop = world.linked.laptop.twin();
    let first = world.up_of(&laptop);
    let [ssh, sql, git] =
        [sshd.port, postgres.port, daemon.port].map(|port| laptop.forward_to(format!("127.0.0.1:{port}")));
    let (ssh_port, sql_port, git_port) = (ssh.0, sql.0, git.0);
    world.wires().iter().for_each(|link| link.set_wire(wire()));
    let at_laptop = world.laptops_place();

    let mut shell = Dialogue::with(at_laptop.run(sshd.client(ssh_port, &["-tt", "there", "sh -i"])));
    let mut session = Dialogue::with(at_laptop.run(Postgres::session(sql_port)));
    // What is typed comes back from the terminal: the word is put together there.
    let typed = |word: &str| format!("echo {}''{}", &word[..4], &word[4..]);
    shell.ask(PATIENCE, typed);
    shell.say("kept=here");
    session.ask(PATIENCE, |word| format!("create table kept (word text); begin; select '{word}';"));

    let mut scene = Scene { ups: vec![first], former: Vec::new(), laptop: &laptop, address: Hosts::LAPTOP, world };
    let (enough, gate) = (AtomicBool::new(false), Gate::default());
    std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            let there = folder.path().join("there");
            let begin = || {
                let _ = fs::remove_file(&there);
                let copy = sshd.copy(ssh_port, &[&original.to_string_lossy(), &format!("there:{}", there.display())]);
                let program = Running::start(at_laptop.run(copy));
                until("a copy to be under way", || there.exists().then_some(()));
                program
            };
            again(&enough, &gate, begin, || assert_eq!(digest(&there), expected, "the copy"))
        });
        let clones = scope.spawn(|| {
            let clone = folder.path().join("clone");
            let begin = || {
                let _ = fs::remove_dir_all(&clone);
                let words = ["clone", "-q", &GitDaemon::url(git_port), &clone.to_string_lossy()];
                let program = Running::start(at_laptop.run(git::git(&words)));
                // What arrives is kept under a name of its own until it is complete.
                let begun = || fs::read_dir(clone.join(".git/objects/pack")).is_ok_and(|packs| packs.count() > 0);
                until("a clone to be under way", || begun().then_some(()));
                program
            };
            let is_correct = || {
                assert!(fs::read(clone.join("large")).expect("it was cloned") == in_repository, "the clone");
            };
            again(&enough, &gate, begin, is_correct)
        });
        let end = Enough(&enough);
        let mut words = Vec::new();
        for trouble in TROUBLES.iter().filter(|trouble| trouble.happens(by)) {
            let before = scene.near().counts();
            let moves = within(RECOVERY, || (scene.near().counts().down > before.down + 500_000).then_some(()));
            assert!(moves.is_some(), "nothing is under way before {}", trouble.what);
            let mut held = gate.hold();
            println!("{by:?}: {}", trouble.what);
            (trouble.strike)(&mut scene);
            if scene.harm_is_due() {
                // With bytes that what begins meanwhile may have to bring.
                drop(held);
                let came = within(RECOVERY, || (!scene.harm_is_due()).then_some(()));
                assert!(came.is_some(), "{} did not come", trouble.what);
                held = gate.hold();
            }
            let began = Instant::now();
            shell.ask(RECOVERY, typed);
            println!("{by:?}: an answer {:?} after that", began.elapsed());
            words.push(session.ask(RECOVERY, |word| format!("insert into kept values ('{word}') returning word;")));
            scene.world.settle_of(&laptop);
            drop(held);
        }
        let mut faults = Faults::new();
        for cut in 0..if is_long() { CUTS } else { 4 } {
            let wires = scene.world.wires();
            let goal = scene.near().counts().down + 1 + faults.below(UNDER_WAY);
            let moves = within(RECOVERY, || (scene.near().counts().down >= goal).then_some(()));
            assert!(moves.is_some(), "nothing is under way before cut {cut}");
            let held = gate.hold();
            let wire = wires[cut % wires.len()];
            let stands = within(RECOVERY, || (wire.counts().open > 0).then_some(()));
            assert!(stands.is_some(), "no connection is back for cut {cut}");
            wire.reset();
            shell.ask(RECOVERY, typed);
            words.push(session.ask(RECOVERY, |word| format!("insert into kept values ('{word}') returning word;")));
            drop(held);
        }
        drop(end);
        let (copies, clones) = (copies.join().expect("a copy broke"), clones.join().expect("a clone broke"));
        println!("{by:?}: {} troubles and cuts, {copies} copies, {clones} clones", words.len());

        shell.ask(PATIENCE, |word| format!("test \"$kept\" = here && {}", typed(word)));
        shell.say("exit 0");
        shell.ends_well();
        session.ask(PATIENCE, |word| format!("commit; select '{word}';"));
        session.ends_well();
        let kept = postgres.psql(postgres.port, "select word from kept order by 1").ok();
        words.sort();
        assert_eq!(kept.lines().collect::<Vec<_>>(), words);
    });
    let Scene { mut ups, mut former, .. } = scene;
    let _last = ups.pop();
    for up in &mut ups {
        assert_eq!(up.tunnels(), 1, "one session carried all of it:\n{}", up.program.output());
    }
    for old in ups.iter_mut().map(|up| &mut up.program).chain(&mut former) {
        let ended = within(RECOVERY, || old.has_ended());
        old.ended_well(ended);
    }
}

#[test]
fn a_shell_a_copy_a_transaction_and_a_clone_notice_nothing() {
    what_is_open_notices_nothing(Way::Relay);
}

#[test]
fn a_shell_a_copy_a_transaction_and_a_clone_notice_nothing_on_the_direct_way() {
    what_is_open_notices_nothing(Way::Direct);
}

#[test]
fn a_shell_a_copy_a_transaction_and_a_clone_notice_nothing_behind_a_balancer() {
    what_is_open_notices_nothing(Way::Balanced);
}

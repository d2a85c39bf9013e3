//! What a person has open when the network goes: a shell, a copy, a transaction, a clone. All of them end as if
//! nothing had been.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::faults::overtake;
use crate::support::linked::Frozen;
use crate::support::transfers::{RECOVERY, digest};
use crate::support::*;

/// Bytes of the file that is copied, and of the one in the repository: some seconds on the wire.
const LARGE: usize = 24 << 20;

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
        git.current_dir(&work);
        Run::of(git).ok();
    }
    content
}

/// Held while there may be no way: what begins after a while of that is refused at once, as it should be.
#[derive(Default)]
struct Way(Mutex<()>);

impl Way {
    fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does `work` again and again until `enough`, at least once; gives how often. Begins only while there is a way.
fn again(enough: &AtomicBool, way: &Way, work: impl Fn()) -> usize {
    let mut count = 0;
    while count == 0 || !enough.load(Relaxed) {
        drop(way.hold());
        work();
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

#[test]
fn a_shell_a_copy_a_transaction_and_a_clone_notice_nothing() {
    // Three hosts, so that the laptop's can have another address.
    let mut world = World::across(Hosts::new());
    let there = world.workspace();
    let (sshd, postgres, daemon) = (Sshd::start_at(&there), Postgres::start_at(&there), GitDaemon::start_at(&there));
    let in_repository = add_large_file(&daemon);
    let folder = TempDir::new().unwrap();
    let original = folder.path().join("original");
    fs::write(&original, noise()).unwrap();
    let expected = digest(&original);

    let laptop = world.linked.laptop.twin();
    let up = world.up_of(&laptop);
    let [ssh, sql, git] =
        [sshd.port, postgres.port, daemon.port].map(|port| laptop.forward_to(format!("127.0.0.1:{port}")));
    let (ssh_port, sql_port, git_port) = (ssh.0, sql.0, git.0);
    let wire = Wire::new(100_000_000, Duration::from_millis(5));
    world.wires().iter().for_each(|link| link.set_wire(wire));
    let at_laptop = world.laptops_place();

    let mut shell = Dialogue::with(at_laptop.run(sshd.client(ssh_port, &["-tt", "there", "sh -i"])));
    let mut session = Dialogue::with(at_laptop.run(Postgres::session(sql_port)));
    // What is typed comes back from the terminal: the word is put together there.
    let typed = |word: &str| format!("echo {}''{}", &word[..4], &word[4..]);
    shell.ask(PATIENCE, typed);
    shell.say("kept=here");
    session.ask(PATIENCE, |word| format!("create table kept (word text); begin; select '{word}';"));

    let (enough, way) = (AtomicBool::new(false), Way::default());
    std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            again(&enough, &way, || {
                let there = folder.path().join("there");
                let copy = sshd.copy(ssh_port, &[&original.to_string_lossy(), &format!("there:{}", there.display())]);
                Running::start(at_laptop.run(copy)).completes(most());
                assert_eq!(digest(&there), expected, "the copy");
            })
        });
        let clones = scope.spawn(|| {
            again(&enough, &way, || {
                let folder = TempDir::new().expect("a temporary folder");
                let clone = folder.path().join("clone");
                let words = ["clone", "-q", &GitDaemon::url(git_port), &clone.to_string_lossy()];
                Running::start(at_laptop.run(git::git(&words))).completes(most());
                assert!(fs::read(clone.join("large")).expect("it was cloned") == in_repository, "the clone");
            })
        });
        let end = Enough(&enough);
        let World { linked, hosts, .. } = &mut world;
        let hosts = hosts.as_ref().expect("there are three");
        let (coordinator, near, far) = (&mut linked.coordinator, &linked.near, &linked.far);
        let outage = |link: &Link, begin: &dyn Fn(&Link)| {
            begin(link);
            std::thread::sleep(Duration::from_secs(if is_long() { 30 } else { 3 }));
            link.heal();
        };
        let mut address = Hosts::LAPTOP;
        let faults: [(&str, &mut dyn FnMut()); 14] = [
            ("a reset of the near wire", &mut || near.reset()),
            ("a reset of the far wire", &mut || far.reset()),
            ("a message cut in two", &mut || near.cut_after(Direction::Down, 100_000)),
            ("bytes that come twice", &mut || far.harm_after(Direction::Up, 100_000, Harm::Double)),
            ("bytes that come in part", &mut || near.harm_after(Direction::Down, 100_000, Harm::Shorten)),
            ("connections that are overtaken by later ones", &mut || overtake(near)),
            ("a wire that holds everything", &mut || outage(near, &Link::hold)),
            ("a way that is long for a while", &mut || {
                outage(near, &|link| link.set_wire(Wire { delay: LONG, ..wire }));
                near.set_wire(wire);
            }),
            ("a black hole", &mut || outage(near, &Link::black_hole)),
            ("a near wire that is half dead", &mut || outage(near, &|link| link.half_open(Direction::Up))),
            ("a far wire that is half dead", &mut || outage(far, &|link| link.half_open(Direction::Up))),
            ("a crash of the coordinator", &mut || {
                coordinator.kill();
                coordinator.start_again();
            }),
            ("another address of the laptop", &mut || {
                let next = Ipv4Addr::new(10, 77, 1, 77);
                hosts.readdress(&hosts.laptop, address, next);
                address = next;
            }),
            ("sleep of the laptop", &mut || {
                let frozen = Frozen::new(up.program.pid());
                std::thread::sleep(Duration::from_secs(if is_long() { 180 } else { 5 }));
                drop(frozen);
            }),
        ];
        let mut words = Vec::new();
        for (what, fault) in faults {
            let before = near.counts();
            until("something to be under way", || (near.counts().down > before.down + 500_000).then_some(()));
            println!("{what}");
            let held = way.hold();
            fault();
            let began = Instant::now();
            shell.ask(RECOVERY, typed);
            println!("an answer {:?} after that", began.elapsed());
            words.push(session.ask(RECOVERY, |word| format!("insert into kept values ('{word}') returning word;")));
            drop(held);
        }
        drop(end);
        println!("{} copies, {} clones", copies.join().expect("a copy broke"), clones.join().expect("a clone broke"));

        shell.ask(PATIENCE, |word| format!("test \"$kept\" = here && {}", typed(word)));
        shell.say("exit 0");
        shell.ends_well();
        session.ask(PATIENCE, |word| format!("commit; select '{word}';"));
        session.ends_well();
        let kept = postgres.psql(postgres.port, "select word from kept order by 1").ok();
        words.sort();
        assert_eq!(kept.lines().collect::<Vec<_>>(), words);
    });
}

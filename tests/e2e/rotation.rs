//! The certificate authority is replaced, and so is the coordinator's own certificate, while everything is connected.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nexus_proxy::identity::{Authority, Bundle, Credential, Trust};
use nexus_proxy::role::proxy::profile::{Profile, directory};
use nexus_proxy::transport::client::CoordinatorClient;
use nexus_proxy::transport::outer::OuterTls;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::reliability::{TRANSFER, slow_down, until_it_moves};
use crate::support::linked::Frozen;
use crate::support::program::command;
use crate::support::transfers::{RECOVERY, Transfers};
use crate::support::*;

const REFUSED: i32 = 4;
const UNAVAILABLE: i32 = 3;
const INTERRUPTED: i32 = 130;

/// What `authority rotate` says, step by step.
const STEPS: [&str; 3] = ["is published", "next authority signs", "is retired; the rotation is complete"];

struct World {
    laptop: Laptop,
    machine: Machine,
    stub: Running,
    coordinator: Coordinator,
    url: String,
}

impl World {
    /// A laptop that is paired, and a workspace `box` that is ready.
    #[track_caller]
    fn new(options: &[&str]) -> World {
        World::with(options, &[])
    }

    /// The same, with further laptops, which the workspace knows.
    #[track_caller]
    fn with(options: &[&str], others: &[(&Laptop, &str)]) -> World {
        let coordinator = Coordinator::start_at(&Place::Here, options);
        let url = coordinator.url("127.0.0.1");
        let laptop = Laptop::new();
        for (laptop, name) in others.iter().chain(&[(&laptop, "anna")]) {
            laptop.pair(&url, &coordinator.invite(), name).ok();
        }
        let machine = Machine::at(&Place::Here, &url);
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        World { laptop, machine, stub, coordinator, url }
    }

    fn words(&self) -> [&str; 4] {
        ["box", "--no-direct", "--coordinator", &self.url]
    }

    #[track_caller]
    fn forward(&self, port: u16) -> (u16, Running) {
        let (line, program) = self.laptop.forward("box", &["-L", &format!("0:127.0.0.1:{port}")], "forward");
        (laptop::port_in(&line), program)
    }

    /// Takes all steps at once, and waits until what serves has noticed the last.
    #[track_caller]
    fn force(&self, steps: &[&str]) {
        for words in steps {
            let said = self.coordinator.run(&["authority", "rotate", "--force"]).ok();
            assert!(said.contains(words), "{said}");
        }
        noticed(&self.coordinator, 1);
    }

    /// The laptop's and the stub's files of this name.
    fn files(&self, name: &str) -> [PathBuf; 2] {
        [self.laptop.home(), self.machine.state()].map(|folder| find_below(folder, name).expect("it is kept"))
    }
}

/// Waits until what serves has noticed which authority signs, and that so many are in force.
#[track_caller]
fn noticed(coordinator: &Coordinator, in_force: usize) {
    let url = format!("{}/v1/authorities", coordinator.url("127.0.0.1"));
    let signs = read(&coordinator.data().join("ca.pem"));
    until("the coordinator to notice", || {
        let served: serde_json::Value = serde_json::from_str(&Run::of(curl(&["-k", &url])).ok()).expect("JSON");
        let served = served["authorities"].as_str().expect("PEM");
        // Beside those in force there are those that vouch.
        (served.starts_with(&signs) && Bundle::from_pem(served).expect("a bundle").in_force() == in_force).then_some(())
    });
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One authority is in force, another than before; everybody believes that one alone, and has a certificate by it.
#[track_caller]
fn only_the_next_is_left(coordinator: &Coordinator, before: &str, kept: &[PathBuf], chains: &[PathBuf]) {
    let next = coordinator.data().join("ca.pem");
    assert_ne!(read(&next), before);
    until("everybody to believe the next authority alone", || {
        kept.iter().all(|kept| read(kept) == read(&next)).then_some(())
    });
    for chain in chains {
        let mut verify = command("openssl", ["verify", "-partial_chain", "-no_check_time", "-CAfile"]);
        verify.arg(&next).arg(chain);
        Run::of(verify).ok();
    }
    let shown: serde_json::Value =
        serde_json::from_str(&coordinator.run(&["--json", "authority", "show"]).ok()).expect("--json is JSON");
    assert_eq!(shown["authorities"].as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!(shown["authorities"][0]["duty"], "signs", "{shown}");
}

#[test]
fn a_download_and_an_ssh_connection_outlive_a_rotation_and_a_crash_after_it() {
    let mut world = World::new(&["--leaf-lifetime", "6s"]);
    let up = world.laptop.up(&world.words());
    let before = read(&world.coordinator.data().join("ca.pem"));

    let sshd = Sshd::start();
    let (ssh_port, _ssh_forward) = world.forward(sshd.port);
    let mut talk = Dialogue::with(sshd.client(ssh_port, &["there", "cat"]));
    talk.ask(PATIENCE, str::to_owned);
    let nginx = Nginx::start();
    let original = nginx.root.join("original");
    fs::write(&original, rand::random_iter::<u8>().take(40 << 20).collect::<Vec<_>>()).unwrap();
    let (web_port, _web_forward) = world.forward(nginx.addr.port());
    let got = world.laptop.home().join("got");
    let slowly = ["--limit-rate", "1M", "--max-time", "600", "-o", got.to_str().unwrap()];
    let download = Running::start(curl(&[&slowly[..], &[&format!("http://127.0.0.1:{web_port}/original")]].concat()));
    until("the download to begin", || fs::metadata(&got).is_ok_and(|file| file.len() > 0).then_some(()));

    let steps = world.coordinator.run(&["authority", "rotate", "--wait", "5m"]).ok();
    for words in STEPS {
        assert!(steps.contains(words), "{steps}");
    }
    talk.ask(PATIENCE, str::to_owned);
    only_the_next_is_left(&world.coordinator, &before, &world.files("ca.pem"), &world.files("chain.pem"));
    assert_eq!(up.tunnels(), 1, "the session was not touched:\n{}", up.program.output());

    // Whoever begins anew knows nothing but the next authority.
    world.coordinator.kill();
    world.coordinator.start_again();
    until("the session to go on", || (up.resumed() >= 1).then_some(()));
    talk.ask(PATIENCE, str::to_owned);
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    talk.ends_well();
    download.completes(Duration::from_secs(600));
    let sum = |path: &Path| {
        let mut sum = command("sha256sum", ["--"]);
        sum.arg(path);
        Run::of(sum).ok().split_whitespace().next().map(str::to_owned)
    };
    assert_eq!(sum(&got), sum(&original));

    drop(up);
    world.stub.stop(nix::sys::signal::Signal::SIGKILL);
    world.stub = world.machine.stub(None);
    let _again = world.laptop.up(&world.words());
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
}

/// Transfers each way and an `ssh` connection go on through all steps of a rotation, after each of which all wires break, and through the
/// renewals after it.
#[track_caller]
fn transfers_outlive_a_rotation_while_wires_break(way: Way) {
    let world = world::World::with(way, &["--leaf-lifetime", "6s"]);
    slow_down(&world);
    let up = world.up();
    let (linked, coordinator) = (&world.linked, &world.linked.coordinator);
    let before = read(&coordinator.data().join("ca.pem"));
    let files = |name: &str| {
        [linked.laptop.home(), linked.machine.state()].map(|folder| find_below(folder, name).expect("it is kept"))
    };
    let sshd = Sshd::start();
    let (port, _forward) = linked.forward(format!("127.0.0.1:{}", sshd.port));
    let mut talk = Dialogue::with(sshd.client(port, &["there", "cat"]));
    let mut transfers = Transfers::start(linked, TRANSFER);
    let mut break_all = |transfers: &mut Transfers| {
        until_it_moves("bytes before the wires break", transfers, &world);
        world.all_wires().iter().for_each(|link| link.reset());
        talk.ask(RECOVERY, str::to_owned);
        world.settle();
    };

    let mut steps = Running::start(coordinator.command(&["authority", "rotate", "--wait", "5m"]));
    for words in STEPS {
        steps.says_after(0, RECOVERY, words);
        break_all(&mut transfers);
    }
    steps.completes(PATIENCE);
    only_the_next_is_left(coordinator, &before, &files("ca.pem"), &files("chain.pem"));
    // What breaks from here on is mended with certificates by the next authority, and by those after them.
    for _ in 0..2 {
        let chains = files("chain.pem").map(|chain| (read(&chain), chain));
        until("everybody to have another certificate", || {
            chains.iter().all(|(former, chain)| read(chain) != *former).then_some(())
        });
        break_all(&mut transfers);
    }
    transfers.finish();
    assert_eq!(up.tunnels(), 1, "one session carried all of it:\n{}", up.program.output());
    talk.ends_well();
}

#[test]
fn transfers_outlive_a_rotation_while_wires_to_the_coordinator_break() {
    transfers_outlive_a_rotation_while_wires_break(Way::Relay);
}

#[test]
fn transfers_on_the_direct_way_outlive_a_rotation_while_all_wires_break() {
    transfers_outlive_a_rotation_while_wires_break(Way::Direct);
}

#[test]
fn transfers_behind_a_balancer_outlive_a_rotation_while_wires_break() {
    transfers_outlive_a_rotation_while_wires_break(Way::Balanced);
}

#[test]
fn who_waits_for_members_is_told_which_and_may_go_on_later() {
    let world = World::new(&[]);
    let refused = world.coordinator.run(&["authority", "rotate", "--wait", "1h", "--force"]).err();
    assert!(refused.contains("--wait") && refused.contains("--force"), "{refused}");

    let frozen = Frozen::new(world.stub.pid());
    let mut waits = Running::start(world.coordinator.command(&["authority", "rotate", "--wait", "1h"]));
    let said = waits.says("waits for 2 members to know the next authority");
    assert!(said.contains("device `anna`") && said.contains("workspace `box`"), "{said}");
    drop(frozen);
    waits.says("waits for 1 member to know the next authority: device `anna`");
    waits.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(waits.ends().code(), Some(INTERRUPTED), "{}", waits.output());
    assert!(waits.output().contains("the steps that were taken stay"), "{}", waits.output());

    let shown: serde_json::Value =
        serde_json::from_str(&world.coordinator.run(&["--json", "authority", "show"]).ok()).expect("--json is JSON");
    assert_eq!(shown["authorities"][0]["duty"], "next", "{shown}");
    let published = shown["authorities"][0]["published"].as_str().expect("a text");
    let published = OffsetDateTime::parse(published, &Rfc3339).expect("as RFC 3339 has times");
    assert!(published <= OffsetDateTime::now_utc(), "{published}");
}

#[test]
fn who_was_away_all_the_while_follows_and_who_was_revoked_does_not() {
    let (bert, cleo) = (Laptop::new(), Laptop::new());
    let mut world = World::with(&[], &[(&bert, "bert"), (&cleo, "cleo")]);
    let (before, kept) = (read(&world.coordinator.data().join("ca.pem")), world.files("ca.pem"));
    world.stub.stop(nix::sys::signal::Signal::SIGKILL);
    world.coordinator.run(&["device", "revoke", "cleo"]).ok();

    assert!(world.coordinator.run(&["authority", "rotate"]).ok().contains("is published"));
    let shown = world.coordinator.run(&["authority", "show"]).ok();
    for member in ["device `anna`", "device `bert`", "workspace `box`"] {
        assert!(shown.contains(member), "{shown}");
    }
    assert!(!shown.contains("cleo"), "nobody waits for one who is revoked: {shown}");
    let refused = world.coordinator.run(&["authority", "rotate"]);
    assert_eq!(refused.status.code(), Some(UNAVAILABLE), "{}", refused.stderr);
    assert!(refused.stderr.contains("device `anna`") && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert!(world.coordinator.run(&["authority", "rotate", "--overlap", "7d"]).err().contains("bert"));
    world.force(&STEPS[1..]);

    // Their certificates are good for a day, by an authority that is nobody's any more.
    world.stub = world.machine.stub(None);
    let up = world.laptop.up(&world.words());
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    drop(up);
    only_the_next_is_left(&world.coordinator, &before, &kept, &world.files("chain.pem"));
    let revoked = cleo.run(&[&["up"], &world.words()[..]].concat());
    assert_eq!(revoked.status.code(), Some(REFUSED), "{}", revoked.stderr);
    assert!(revoked.stderr.contains("revoked"), "{}", revoked.stderr);
    // One who comes after yet another rotation has two steps to take at once.
    world.force(&STEPS);
    let _up = bert.up(&world.words());
    assert_eq!(bert.exec("box", &["echo", "hi"]).ok(), "hi\n");
    let kept = find_below(bert.home(), "ca.pem").expect("it is kept");
    assert_eq!(read(&kept), read(&world.coordinator.data().join("ca.pem")));
}

#[test]
fn who_is_connected_when_a_rotation_is_forced_stays_connected() {
    let world = World::new(&[]);
    let up = world.laptop.up(&world.words());
    let sshd = Sshd::start();
    let (port, _forward) = world.forward(sshd.port);
    let mut talk = Dialogue::with(sshd.client(port, &["there", "cat"]));
    talk.ask(PATIENCE, str::to_owned);
    world.force(&STEPS);
    talk.ask(PATIENCE, str::to_owned);
    // The laptop begins a session with what it had, and the workspace is told of the rotation while it waits.
    let twin = world.laptop.twin();
    let kept = find_below(world.machine.state(), "ca.pem").expect("it is kept");
    until("the stub to follow", || (read(&kept) == read(&world.coordinator.data().join("ca.pem"))).then_some(()));
    talk.ask(PATIENCE, str::to_owned);
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    talk.ends_well();
    drop(up);
    let _up = twin.up(&world.words());
    assert_eq!(twin.exec("box", &["echo", "hi"]).ok(), "hi\n");
}

#[test]
fn codes_are_good_in_each_phase_of_a_rotation() {
    let coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    for (phase, (words, in_force)) in STEPS.iter().zip([2, 2, 1]).enumerate() {
        let said = coordinator.run(&["authority", "rotate", "--force"]).ok();
        assert!(said.contains(words), "{said}");
        noticed(&coordinator, in_force);
        let laptop = Laptop::new();
        laptop.pair(&url, &coordinator.invite(), &format!("laptop{phase}")).ok();
        let name = format!("box{phase}");
        let machine = Machine::at(&Place::Here, &url);
        let _stub = machine.stub(Some(&coordinator.add_workspace(&name)));
        let _up = laptop.up(&[&name, "--no-direct", "--coordinator", &url]);
        assert_eq!(laptop.exec(&name, &["echo", "hi"]).ok(), "hi\n");
    }
}

#[test]
fn an_authority_that_a_balancer_names_is_not_believed() {
    let coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    let laptop = Laptop::new();
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let url = url.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = directory(&laptop.home().join("data/coordinators"), &url);
    let profile = runtime.block_on(Profile::load(&dir, &url)).unwrap();
    let own = Trust::clone(&profile.trust);
    let forged = Authority::create(own.domain.clone(), SystemTime::now()).unwrap();
    let vouched = forged.vouch(&forged, SystemTime::now()).unwrap();
    let bundles = [
        (Bundle::new(forged.trust().clone(), vec![], vec![]).unwrap().to_pem(), true),
        (Bundle::new(forged.trust().clone(), vec![own.clone()], vec![vouched.clone()]).unwrap().to_pem(), true),
        (Bundle::new(own.clone(), vec![forged.trust().clone()], vec![vouched]).unwrap().to_pem(), true),
        // As an older one would be that this laptop never knew: it is left out.
        (Bundle::new(own.clone(), vec![forged.trust().clone()], vec![]).unwrap().to_pem(), false),
        ("nothing that is PEM".to_owned(), true),
    ];

    // One that has the name and the certificate of the web, and answers in the coordinator's place.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let balancer = Balancer::before(listener.local_addr().unwrap().port());
    let behind = format!("https+balancer://localhost:{}", balancer.port).parse().unwrap();
    let outer = OuterTls::new(&behind, Some(&read(&balancer.ca))).unwrap();
    let client = CoordinatorClient::new(behind, own.clone(), profile.credential.clone()).with_outer(outer);
    for (bundle, is_refused) in bundles {
        let body = serde_json::json!({"authorities": bundle});
        let looked =
            answered(&listener, "GET /v1/authorities ", &body, || runtime.block_on(client.look(SystemTime::now())));
        match looked {
            Ok(learned) => assert!(learned.is_none() && !is_refused, "it learned nothing: {bundle}"),
            Err(error) => {
                assert!(is_refused && error.is_passing() && error.to_string().contains("hint:"), "{error}");
            }
        }
        assert_eq!(*client.trust(), own);
    }

    // A renewal is of use whatever came with it.
    let file = |name: &str| read(&coordinator.data().join(name));
    let authority = Authority::load(&file("ca.pem"), &file("ca.key")).unwrap();
    let (before, day, now) = (client.credential(), Duration::from_secs(24 * 3600), SystemTime::now());
    let chain = authority.issue(&before.key.csr_der().unwrap(), before.identity(), day, now, &[]).unwrap();
    let fresh = Credential::new(chain.clone(), before.key.clone()).unwrap();
    let forged = Bundle::new(forged.trust().clone(), vec![], vec![]).unwrap().to_pem();
    let body = serde_json::json!({"chain": fresh.to_pem(), "authorities": forged});
    let renewed = answered(&listener, "POST /v1/renew ", &body, || runtime.block_on(client.renew_if_due(now + day)));
    assert!(renewed.expect("a renewal").is_some());
    assert_eq!(client.credential().chain, chain);
    assert_eq!(*client.trust(), own);
}

/// What `ask` gives when the next who comes to `listener` with such a request is answered with `body`.
#[track_caller]
fn answered<T>(listener: &TcpListener, request: &str, body: &serde_json::Value, ask: impl FnOnce() -> T) -> T {
    let body = body.to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut asked = BufReader::new(listener.accept().expect("nginx comes").0);
            let mut line = String::new();
            let mut length = 0;
            asked.read_line(&mut line).expect("a request");
            assert!(line.starts_with(request), "{line}");
            while line != "\r\n" {
                line.clear();
                asked.read_line(&mut line).expect("a head");
                if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().expect("a number");
                }
            }
            asked.read_exact(&mut vec![0; length]).expect("a body");
            asked.get_mut().write_all(answer.as_bytes()).expect("it waits for the answer");
        });
        ask()
    })
}

#[test]
fn the_coordinators_own_certificate_is_renewed_while_it_serves() {
    let world = World::new(&["--leaf-lifetime", "3s"]);
    let up = world.laptop.up(&world.words());
    let process = ["exec", "box", "--", "cat"];
    let mut talk = Dialogue::with(world.laptop.command(&process));
    talk.ask(PATIENCE, str::to_owned);
    let address = format!("127.0.0.1:{}", world.coordinator.port);
    let certificate = || {
        let shown = Run::of(command("openssl", ["s_client", "-connect", &address])).text();
        let end = shown.find("-----END CERTIFICATE-----").unwrap_or_else(|| panic!("no certificate:\n{shown}"));
        shown[..end].to_owned()
    };
    let mut seen = vec![certificate()];
    until("two renewals", || {
        let now = certificate();
        if !seen.contains(&now) {
            seen.push(now);
        }
        (seen.len() == 3).then_some(())
    });
    talk.ask(PATIENCE, str::to_owned);
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    drop(up);
    drop(world.laptop.up(&world.words()));
}

//! The direct way: a session moves to it and back while connections run through it, and nobody who only reaches the
//! port gets anything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nexus_proxy::lifeline::first_attach;
use nexus_proxy::transport::direct;
use nexus_proxy::wire::control::Control;
use nexus_proxy::wire::lifeline::{Attach, AttachMode, LifelineId, LifelineMessage, TAG};
use nexus_proxy::wire::{Refusal, RefusalCode};
use tokio::runtime::Runtime;

use crate::support::link::Link;
use crate::support::transfers::{RECOVERY, Transfers, digest};
use crate::support::*;

/// Bytes of one transfer.
const TRANSFER: usize = 32 << 20;

#[test]
fn a_session_moves_to_the_direct_way_and_back_and_nothing_notices() {
    let world = World::by(Way::Direct);
    let up = world.linked.laptop.up(&["box", "--coordinator", &world.url()]);
    let mut transfers = Transfers::start(&world.linked, TRANSFER);
    let way = world.direct.as_ref().expect("that is the way");
    let mut goes_on = |what: &str| {
        let moved = || world.linked.moved() + world.moved();
        let goal = moved() + 4_000_000;
        transfers.go_on_until(what, || moved() >= goal);
    };
    let tunnel = world.until_it_goes("direct", true);
    assert!(tunnel["round_trip_ms"].is_number(), "{tunnel}");
    goes_on("bytes on the direct way");
    for break_it in [Link::reset, Link::black_hole] {
        way.refuse();
        break_it(way);
        world.until_it_goes("relay", false);
        goes_on("bytes through the coordinator");
        way.heal();
        world.until_it_goes("direct", true);
        goes_on("bytes on the direct way again");
    }
    transfers.finish();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

/// Bytes after which a direct way is cut each time, much fewer than make one of use; and how long a download by the other way
/// has them cut, at the least.
const CUT: u64 = 50_000;
const DOWNLOAD: usize = 24 << 20;

/// The least that a direct way that did not last is left alone for is half a second, half as long again each time: so many
/// seconds for so many times.
fn least_wait(times: usize) -> f64 {
    1.5_f64.powi(times as i32) - 1.0
}

#[test]
fn a_direct_way_that_never_lasts_is_taken_less_and_less_and_a_download_goes_on() {
    let nginx = Nginx::start();
    let original = nginx.root.join("original");
    std::fs::write(&original, rand::random_iter::<u8>().take(DOWNLOAD).collect::<Vec<_>>()).expect("a file of ours");
    let world = World::by(Way::Direct);
    let (near, far) = (&world.linked.near, &world.linked.far);
    [near, far].iter().for_each(|link| link.set_wire(Wire::new(20_000_000, Duration::from_millis(5))));
    let way = world.direct.as_ref().expect("that is the way");
    way.set_wire(Wire::new(5_000_000, Duration::from_millis(5)));
    let up = world.up();
    let (port, _forward) = world.linked.forward(nginx.addr);
    let arrives = nginx.root.join("arrives");
    let url = format!("http://127.0.0.1:{port}/original");
    let words = ["--max-time", &RECOVERY.as_secs().to_string(), "-o", &arrives.to_string_lossy(), &url];
    let began = Instant::now();
    let mut download = Running::start(curl(&words));
    let ended = wait::within(RECOVERY, || {
        if !way.harm_is_due() {
            way.cut_after(Direction::Down, CUT);
        }
        download.has_ended()
    });
    download.ended_well(ended);
    assert_eq!(digest(&arrives), digest(&original), "what arrived is not what was sent");
    let (again, time) = (up.program.output().matches(", directly").count(), began.elapsed());
    println!("the direct way was taken again {again} times in {time:?}");
    assert!(again >= 2, "it was given up: {}", up.program.output());
    // The first one may have lasted, on a machine that is slow enough.
    assert!(least_wait(again - 1) <= time.as_secs_f64(), "{again} times in {time:?}: {}", up.program.output());
    until("`status` to say so", || {
        way.reset();
        world.linked.laptop.run(&["status"]).ok().contains("the direct way did not last (next attempt in").then_some(())
    });
    assert!(up.program.output().contains("the direct way did not last, and is left alone"), "{}", up.program.output());
    way.heal();
    world.until_it_goes("direct", true);
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

/// Somebody on the way changes bytes. That ends a session, as nobody can tell what was meant; it does not end one after the
/// other, since the way through the coordinator is there.
#[test]
fn a_direct_way_that_changes_bytes_does_not_keep_a_laptop_from_working() {
    const OUTPUT: &str = "60000";
    const TRIES: usize = 12;
    let world = World::by(Way::Direct);
    let way = world.direct.as_ref().expect("that is the way");
    let up = world.up();
    let done = AtomicBool::new(false);
    let works = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                if !way.harm_is_due() {
                    way.harm_after(Direction::Down, 20_000, Harm::Alter);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let exec = || {
            until("a session", || (world.tunnel()["state"] == "up").then_some(()));
            world.linked.laptop.exec("box", &["head", "-c", OUTPUT, "/dev/zero"])
        };
        let works = (0..TRIES).filter(|_| exec().stdout.len().to_string() == OUTPUT).count();
        done.store(true, Relaxed);
        works
    });
    println!("{works} of {TRIES} commands had all of their output, in {} sessions", up.tunnels());
    assert!(up.tunnels() > 1, "nothing was changed: {}", up.program.output());
    assert!(works * 2 > TRIES, "{works} of {TRIES}: {}", up.program.output());
}

#[test]
fn a_direct_session_needs_no_coordinator_and_finds_it_again() {
    let redis = Redis::start();
    let mut world = World::by(Way::Direct);
    // What the world changes must not be borrowed meanwhile.
    let laptop = world.linked.laptop.twin();
    let up = laptop.up(&["box", "--coordinator", &world.linked.near.url()]);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    let tunnel = || laptop.workspace_status()["tunnel"].clone();
    until("the direct way, and another behind it", || {
        let tunnel = tunnel();
        (tunnel["path"] == "direct" && tunnel["standby"] == true).then_some(())
    });
    talk.echo();
    world.linked.coordinator.kill();
    until("nothing to fall back on", || (tunnel()["standby"] == false).then_some(()));
    let text = laptop.run(&["status"]).ok();
    assert!(text.contains("no way through the coordinator behind it"), "{text}");
    let why = until("why that is so", || tunnel()["standby_why"].as_str().map(str::to_owned));
    until("`status` to say so, and what is next", || {
        let text = laptop.run(&["status"]).ok();
        (text.contains("behind it: ") && text.contains("attempt")).then_some(())
    });
    assert!(!why.is_empty() && tunnel()["direct_why"].is_null(), "{}", tunnel());
    talk.echo();
    assert_eq!(tunnel()["path"], "direct", "{}", up.program.output());
    world.linked.coordinator.start_again();
    until("another way to be ready again", || (tunnel()["standby"] == true).then_some(()));
    until("nothing to be said of it", || tunnel()["standby_why"].is_null().then_some(()));
    talk.echo();
    talk.ends_well();
}

/// The coordinator is away, and the direct connection breaks, in every way that it can: another one leads to where the first did.
#[test]
fn a_direct_session_that_breaks_while_there_is_no_coordinator_goes_on() {
    let redis = Redis::start();
    let mut world = World::by(Way::Direct);
    // What the world changes must not be borrowed meanwhile.
    let laptop = world.linked.laptop.twin();
    let up = laptop.up(&["box", "--coordinator", &world.linked.near.url()]);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    let tunnel = || laptop.workspace_status()["tunnel"].clone();
    let goes = |standby: bool| {
        until("the direct way", || {
            let tunnel = tunnel();
            (tunnel["state"] == "up" && tunnel["path"] == "direct" && tunnel["standby"] == standby).then_some(())
        });
    };
    goes(true);
    world.linked.coordinator.kill();
    goes(false);
    let way = world.direct.as_ref().expect("that is the way");
    let refuses = || {
        way.refuse();
        way.reset();
        until("nothing to go on", || (tunnel()["state"] == "resuming").then_some(()));
        way.heal();
    };
    let troubles: [(&str, &dyn Fn()); 5] = [
        ("it is reset", &|| way.reset()),
        ("it is forgotten without a word", &|| way.forget_present()),
        ("it is refused for a while", &refuses),
        ("it is reset", &|| way.reset()),
        ("it is reset soon again", &|| way.reset()),
    ];
    for (what, trouble) in troubles {
        talk.echo();
        trouble();
        let began = Instant::now();
        talk.echo();
        println!("{what}: an answer after {:?}", began.elapsed());
        goes(false);
    }
    world.linked.coordinator.start_again();
    goes(true);
    talk.echo();
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn why_a_session_does_not_go_directly_is_told_and_when_that_is_tried_again() {
    let world = World::by(Way::Direct);
    let way = world.direct.as_ref().expect("that is the way");
    way.refuse();
    let mut up = world.linked.laptop.up(&["box", "--coordinator", &world.url()]);
    let told = until("the reason", || Some(world.tunnel()).filter(|tunnel| tunnel["direct_why"].is_string()));
    assert_eq!((&told["path"], &told["state"]), (&"relay".into(), &"up".into()), "{told}");
    assert!(told["direct_why"].as_str().is_some_and(|why| why.contains(&way.address())), "{told}");
    until("`status` to say so, and what is next", || {
        let text = world.linked.laptop.run(&["status"]).ok();
        (text.contains("; not directly: ") && text.contains("next attempt in")).then_some(())
    });
    up.program.says("  up, not directly: ");
    way.heal();
    let told = world.until_it_goes("direct", true);
    assert!(told["direct_why"].is_null() && told["direct_next"].is_null(), "{told}");
}

#[test]
fn a_stub_that_is_started_again_is_reached_directly_at_once() {
    let mut world = World::by(Way::Direct);
    let up = world.linked.laptop.up(&["box", "--coordinator", &world.url()]);
    world.until_it_goes("direct", true);
    for _ in 0..4 {
        world.linked.stub.stop(nix::sys::signal::Signal::SIGKILL);
        until("the session to be over", || (world.tunnel()["state"] != "up").then_some(()));
        world.linked.stub = world.linked.machine.stub(None);
        until("the direct way", || {
            let tunnel = world.tunnel();
            // It would be left alone for longer and longer, though nothing is wrong with it.
            assert!(!tunnel["direct_why"].as_str().is_some_and(|why| why.contains("did not last")), "{tunnel}");
            (tunnel["path"] == "direct").then_some(())
        });
    }
    assert!(!up.program.output().contains("left alone"), "{}", up.program.output());
}

#[test]
fn a_revoked_device_loses_its_direct_session() {
    let redis = Redis::start();
    let world = World::by(Way::Direct);
    let mut up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    world.until_it_goes("direct", true);
    world.linked.coordinator.run(&["device", "revoke", "anna"]).ok();
    until("the conversation to end", || talk.program.has_ended());
    until("`up` to give up, with the reason", || up.program.has_ended());
    assert!(up.program.output().contains("revoked"), "{}", up.program.output());
}

#[test]
fn a_stub_that_was_cut_off_hears_of_a_revocation_when_it_parks_again() {
    let redis = Redis::start();
    let world = World::by(Way::Direct);
    let mut up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    world.until_it_goes("direct", true);
    [&world.linked.near, &world.linked.far].iter().for_each(|link| link.black_hole());
    world.linked.coordinator.run(&["device", "revoke", "anna"]).ok();
    talk.echo();
    assert_eq!(world.tunnel()["path"], "direct");
    let has_left = || world.linked.stub.output().contains("anna left");
    assert!(!has_left(), "it has not heard of it");
    // The laptop's own way to the coordinator stays out: it is the stub that ends the session.
    world.linked.far.heal();
    until("the stub to end the session", || has_left().then_some(()));
    world.linked.near.heal();
    until("the conversation to end", || talk.program.has_ended());
    until("`up` to give up, with the reason", || up.program.has_ended());
    assert!(up.program.output().contains("revoked"), "{}", up.program.output());
}

#[test]
fn a_stranger_at_the_direct_port_gets_nothing_and_harms_nothing() {
    let redis = Redis::start();
    let world = World::by(Way::Direct);
    let _up = world.up();
    let (port, _forward) = world.linked.forward(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    world.until_it_goes("direct", true);

    let upgrade = "GET /v1/direct HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: nexus.v2, nexus.v1\r\nNexus-Masking: none\r\n\r\n";
    let forged = |mode| {
        let attach = Attach { id: LifelineId([7; 16]), sequence: u64::MAX, mode, received: 0, tag: [0; TAG] };
        LifelineMessage::Attach(attach).encode()
    };
    let framed = |payload: &[u8]| [&[0x82, payload.len() as u8], payload].concat();
    let greetings = [
        vec![],
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        upgrade.as_bytes().to_vec(),
        [upgrade.as_bytes(), &framed(b"hello")].concat(),
        [upgrade.as_bytes(), &framed(&forged(AttachMode::Begin))].concat(),
        [upgrade.as_bytes(), &framed(&forged(AttachMode::Move))].concat(),
        [upgrade.as_bytes(), &[0x82, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]].concat(),
    ];
    let door = world.direct.as_ref().expect("that is the way").port;
    // More at a time than are let in front of the door.
    let mut strangers: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stranger = TcpStream::connect(("127.0.0.1", door)).expect("the port is open");
            stranger.write_all(&greetings[i % greetings.len()]).expect("it takes that much");
            stranger
        })
        .collect();
    talk.echo();
    for (i, stranger) in strangers.iter_mut().enumerate() {
        stranger.set_read_timeout(Some(PATIENCE * 2)).expect("a socket");
        let mut answer = Vec::new();
        if let Err(error) = stranger.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{i}");
        }
    }
    talk.echo();
    assert_eq!(world.tunnel()["path"], "direct");
    assert_eq!(world.linked.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    talk.ends_well();
}

/// A host at the address that the workspace names, and not the workspace: it answers the upgrade, reads the attach, and
/// then says something else to each that comes.
struct Impostor {
    address: SocketAddr,
    lies: Arc<AtomicUsize>,
    _runtime: Runtime,
}

/// What a host says that has no key.
#[derive(Debug, Clone)]
enum Lie {
    Control(Control),
    Message(LifelineMessage),
}

impl Lie {
    /// How many there are.
    const COUNT: usize = 5;

    fn all(attach: &Attach) -> [Lie; Lie::COUNT] {
        let (offset, ack, payload) = (attach.received, 0, Bytes::from_static(&[0x17; 69]));
        let refusal = Refusal::new(RefusalCode::Denied, "go away");
        [
            Lie::Control(Control::Refused(refusal.clone())),
            Lie::Message(LifelineMessage::Data { offset, ack, ack_now: true, payload }),
            Lie::Control(Control::Drain { reconnect_after_ms: 0 }),
            Lie::Message(LifelineMessage::Ping { nonce: 1, ack }),
            Lie::Message(LifelineMessage::End { offset, refusal: Some(refusal) }),
        ]
    }
}

impl Impostor {
    #[track_caller]
    fn start() -> Impostor {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let lies = Arc::<AtomicUsize>::default();
        let told = lies.clone();
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("the port is ours");
                let Ok(mut carrier) = direct::accept(tcp).await else { continue };
                let Some(attach) = first_attach(&mut carrier).await else { continue };
                let all = Lie::all(&attach);
                let sent = match all[told.load(Relaxed) % all.len()].clone() {
                    Lie::Control(control) => carrier.send_control(&control).await,
                    Lie::Message(message) => carrier.send(message.encode()).await,
                };
                // It stays on the line: what ends the connection is what the laptop thinks of it.
                while let Ok(Some(_)) = carrier.arrival().await {}
                if sent.is_ok() {
                    told.fetch_add(1, Relaxed);
                }
            }
        });
        Impostor { address, lies, _runtime: runtime }
    }

    fn lies(&self) -> usize {
        self.lies.load(Relaxed)
    }
}

#[test]
fn who_answers_in_the_workspaces_place_and_proves_nothing_can_only_break() {
    let redis = Redis::start();
    let impostor = Impostor::start();
    let advertised = impostor.address.to_string();
    let world = Linked::with(&[], |machine| machine.env("NEXUS_DIRECT_ADVERTISE", &advertised));
    let mut up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let mut open = world.talk(&redis);
    for told in 1..=Lie::COUNT {
        until("the next lie", || (impostor.lies() >= told).then_some(()));
        open.talk.echo();
    }
    let tunnel = world.laptop.workspace_status()["tunnel"].clone();
    assert_eq!(tunnel["path"], "relay", "{tunnel}");
    assert_eq!((up.tunnels(), up.resumed()), (1, 0), "{}", up.program.output());
    assert!(up.program.has_ended().is_none());
    open.talk.ends_well();
}

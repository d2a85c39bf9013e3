//! The direct way: a session moves to it and back while connections run through it, and nobody who only reaches the
//! port gets anything.

use std::io::{Read, Write};
use std::net::TcpStream;

use nexus_proxy::wire::lifeline::{Attach, AttachMode, LifelineId, LifelineMessage, TAG};

use crate::support::link::Link;
use crate::support::transfers::Transfers;
use crate::support::*;

/// Bytes of one transfer.
const TRANSFER: usize = 32 << 20;

#[test]
fn a_session_moves_to_the_direct_way_and_back_and_nothing_notices() {
    let world = World::by(Way::Direct);
    let up = world.linked.laptop.up(&["box", "--coordinator", &world.url()]);
    let interruptions = || up.program.output().matches("interrupted").count();
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
    assert_eq!(interruptions(), 0, "a move to a better way is made before the other is left");
    for break_it in [Link::reset, Link::black_hole] {
        way.refuse();
        break_it(way);
        world.until_it_goes("relay", false);
        goes_on("bytes through the coordinator");
        let before = interruptions();
        way.heal();
        world.until_it_goes("direct", true);
        goes_on("bytes on the direct way again");
        assert_eq!(interruptions(), before, "{}", up.program.output());
    }
    transfers.finish();
}

#[test]
fn a_direct_session_needs_no_coordinator_and_finds_it_again() {
    let redis = Redis::start();
    let mut world = World::by(Way::Direct);
    let url = world.linked.near.url();
    let laptop = world.linked.laptop.twin();
    let up = laptop.up(&["box", "--coordinator", &url]);
    let (line, _forward) = laptop.forward("box", &["-L", &format!("0:127.0.0.1:{}", redis.port)], "forward");
    let mut talk = Dialogue::redis(laptop::port_in(&line));
    let tunnel = || laptop.workspace_status()["tunnel"].clone();
    until("the direct way, and another behind it", || {
        let tunnel = tunnel();
        (tunnel["path"] == "direct" && tunnel["standby"] == true).then_some(())
    });
    talk.echo();
    world.linked.coordinator.kill();
    until("nothing to fall back on", || (tunnel()["standby"] == false).then_some(()));
    talk.echo();
    assert_eq!(tunnel()["path"], "direct", "{}", up.program.output());
    world.linked.coordinator.start_again();
    until("another way to be ready again", || (tunnel()["standby"] == true).then_some(()));
    talk.echo();
    talk.ends_well();
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

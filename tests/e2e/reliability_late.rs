//! What comes late, or a second time: a connection that its successor overtook, and one that somebody recorded. Neither
//! changes anything, nor is it of use to anybody.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::reliability::{TRANSFER, slow_down, talk_to, until_it_moves};
use crate::support::faults::overtake;
use crate::support::transfers::{RECOVERY, Transfers};
use crate::support::*;

/// Connections that are there say what they say after later ones, at each wire, with transfers and a conversation on them.
#[track_caller]
fn what_comes_late_changes_nothing(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    slow_down(&world);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    let mut transfers = Transfers::start(&world.linked, TRANSFER);
    for link in world.wires() {
        for _ in 0..2 {
            until_it_moves("bytes before", &mut transfers, &world);
            let late = link.counts().late;
            overtake(link);
            talk.echo_within(RECOVERY);
            until_it_moves("bytes after", &mut transfers, &world);
            assert!(link.counts().late > late, "nothing came late: {:?}", link.counts());
        }
    }
    transfers.finish();
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_connection_that_comes_after_its_successor_changes_nothing() {
    what_comes_late_changes_nothing(Way::Relay);
}

#[test]
fn a_direct_connection_that_comes_after_its_successor_changes_nothing() {
    what_comes_late_changes_nothing(Way::Direct);
}

#[test]
fn a_connection_behind_a_balancer_that_comes_after_its_successor_changes_nothing() {
    what_comes_late_changes_nothing(Way::Balanced);
}

#[test]
fn an_attempt_that_a_later_one_overtakes_changes_nothing() {
    let redis = Redis::start();
    let world = World::by(Way::Relay);
    let (near, far) = (&world.linked.near, &world.linked.far);
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    // So that the workspace notices soon, too, that nothing is answered.
    let mut transfers = Transfers::start(&world.linked, TRANSFER);
    // One that only begins while nothing gets through is refused after a while.
    transfers.go_on_until("bytes each way", || near.counts().up.min(near.counts().down) > 1_000_000);
    for _ in 0..3 {
        until_it_moves("bytes before", &mut transfers, &world);
        // The workspace's parked connection is a fresh one, which is not asked whether it is there. It is among those held,
        // and with it the first attempt to go on.
        let accepted = far.counts().accepted;
        far.reset();
        until("the session to go on over one connection, and the next to be there", || {
            let counts = far.counts();
            (counts.accepted >= accepted + 2 && counts.open >= 2).then_some(())
        });
        talk.echo_within(RECOVERY);
        let before = far.counts();
        far.hold_present();
        near.reset();
        talk.echo_within(RECOVERY);
        assert!(far.counts().accepted > before.accepted, "it went on over another connection");
        far.heal();
        until("the attempt that was overtaken to arrive", || (far.counts().late > before.late).then_some(()));
        talk.echo();
    }
    transfers.finish();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    talk.ends_well();
}

/// What was said on a connection is said again: to who listened, and to who began.
#[track_caller]
fn a_recording_is_of_no_use(way: Way) {
    let redis = Redis::start();
    let world = World::by(way);
    let links = world.wires();
    links.iter().for_each(|link| link.record());
    let up = world.up();
    let (mut talk, _forward) = talk_to(&redis, &world);
    // So that connections which went on with the session are among the recorded ones.
    for link in &links {
        for _ in 0..2 {
            link.reset();
            talk.echo();
            world.settle();
        }
    }
    for (at, link) in links.into_iter().enumerate() {
        let recorded = link.recorded();
        assert!(recorded.len() >= 3, "{} connections at wire {at}", recorded.len());
        let moves = world.tunnel()["moves"].clone();
        for connection in &recorded {
            let mut stranger = TcpStream::connect(("127.0.0.1", link.port)).expect("the wire is there");
            stranger.set_read_timeout(Some(PATIENCE)).expect("a socket of ours");
            // Who listens may have had enough before the end.
            let _ = stranger.write_all(&connection.up);
            if way == Way::Balanced {
                // A balancer may keep a connection for its next request.
                let _ = stranger.shutdown(std::net::Shutdown::Write);
            }
            if let Err(error) = stranger.read_to_end(&mut Vec::new()) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "wire {at}: it is kept");
            }
            talk.echo();
        }
        assert_eq!(world.tunnel()["moves"], moves, "the session moved to a connection that was said before");
        for connection in recorded.into_iter().filter(|connection| !connection.down.is_empty()) {
            link.answer_next(connection.down);
            link.reset();
            talk.echo_within(RECOVERY);
        }
        world.settle();
    }
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    talk.ends_well();
}

#[test]
fn a_recorded_connection_is_of_no_use() {
    a_recording_is_of_no_use(Way::Relay);
}

#[test]
fn a_recorded_direct_connection_is_of_no_use() {
    a_recording_is_of_no_use(Way::Direct);
}

#[test]
fn a_connection_that_was_recorded_behind_a_balancer_is_of_no_use() {
    a_recording_is_of_no_use(Way::Balanced);
}

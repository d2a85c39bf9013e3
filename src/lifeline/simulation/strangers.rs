//! Who answers where the laptop dials, and is not the other end of the session.

use bytes::Bytes;

use super::super::core::{HEARTBEAT, MAX_CARRIERS, MAX_GAPS};
use super::super::standing::{Ended, Fault, Route, Standing};
use super::{DIALER, LISTENER, World, exchange, go_over_directly, stand_by_directly, steady};
use crate::wire::lifeline::{Attach, AttachMode, LifelineId, LifelineMessage, TAG};
use crate::wire::{Refusal, RefusalCode};

#[test]
fn a_stranger_on_the_direct_way_cannot_end_it() {
    let mut world = steady();
    world.dial(Route::Direct, AttachMode::Standby);
    let id = world.links[1].ids[DIALER].unwrap();
    let end = LifelineMessage::End { offset: 1000, refusal: None }.encode();
    assert_eq!(world.cores[DIALER].message(id, end.clone(), world.now), Err(Fault::NotProven));
    exchange(&mut world, 1, DIALER);
    assert_eq!(world.cores[DIALER].message(id, end, world.now), Err(Fault::Closed), "nor on the way of ours");
    assert_eq!(world.cores[DIALER].ended(), None);
}

#[test]
fn what_has_proven_nothing_is_not_listened_to() {
    let rubbish = |world: &World| {
        let (offset, ack, payload) = (world.read[DIALER], 0, Bytes::from_static(&[7; 69]));
        let refusal = Some(Refusal::new(RefusalCode::Denied, "go away"));
        [
            LifelineMessage::Data { offset, ack, ack_now: false, payload: payload.clone() },
            LifelineMessage::Data { offset, ack, ack_now: true, payload },
            LifelineMessage::Ack { ack: world.written[DIALER], at: 0 },
            LifelineMessage::Ping { nonce: 1, ack: world.written[DIALER] },
            LifelineMessage::Pong { nonce: 1, ack: world.written[DIALER] },
            LifelineMessage::End { offset, refusal: None },
            LifelineMessage::End { offset, refusal },
        ]
    };
    for (route, mode) in [(Route::Direct, AttachMode::Standby), (Route::Relay, AttachMode::Move)] {
        let mut world = steady();
        world.write(DIALER, 100);
        world.dial(route, mode);
        let id = world.links[1].ids[DIALER].unwrap();
        let before = world.cores[DIALER].moved();
        // A stub that does not have the lifeline says so by way of the coordinator, and proves nothing.
        let answers = if route == Route::Relay { 1 } else { 0 };
        let all = rubbish(&world);
        for message in &all[..all.len() - answers] {
            let outcome = world.cores[DIALER].message(id, message.encode(), world.now);
            assert_eq!(outcome, Err(Fault::NotProven), "{route:?}: {message:?}");
        }
        assert_eq!((world.cores[DIALER].moved(), world.cores[DIALER].incoming()), (before, None));
        assert_eq!(world.cores[DIALER].ended(), None);
        for message in &all[all.len() - answers..] {
            assert_eq!(world.cores[DIALER].message(id, message.encode(), world.now), Ok(()));
            assert!(matches!(world.cores[DIALER].ended(), Some(Ended::Refused(_))));
        }
    }
}

/// Another process that serves the same workspace, such as one with a copy of its state, does not know the session.
#[test]
fn who_does_not_know_the_session_ends_it_only_when_nobody_else_is_there() {
    let silent = |world: &mut World| {
        world.write(DIALER, 100);
        exchange(world, 0, DIALER);
        world.now += HEARTBEAT;
        world.cores[DIALER].tick(world.now);
        assert!(matches!(world.cores[DIALER].standing(), Standing::Suspect { .. }));
    };
    let in_doubt = |world: &mut World| {
        world.cores[DIALER].probe(world.now);
        assert!(world.cores[DIALER].in_doubt());
    };
    type Happens<'a> = &'a dyn Fn(&mut World);
    let ways: [(Happens, bool); 4] =
        [(&|_| {}, false), (&|world| world.cut(0, DIALER, "cut"), true), (&silent, true), (&in_doubt, true)];
    for (number, (happens, ends)) in ways.into_iter().enumerate() {
        let mut world = steady();
        exchange(&mut world, 0, DIALER);
        exchange(&mut world, 0, LISTENER);
        happens(&mut world);
        world.dial(Route::Relay, AttachMode::Standby);
        let other = world.links[1].ids[DIALER].unwrap();
        let end = LifelineMessage::End { offset: 0, refusal: Some(World::unknown()) }.encode();
        let outcome = world.cores[DIALER].message(other, end, world.now);
        assert_eq!(outcome, if ends { Ok(()) } else { Err(Fault::Elsewhere) }, "{number}");
        assert_eq!(world.cores[DIALER].ended().is_some(), ends, "{number}");
    }
    // Any other reason is the workspace's or the coordinator's to give.
    let mut world = steady();
    world.dial(Route::Relay, AttachMode::Standby);
    let other = world.links[1].ids[DIALER].unwrap();
    let revoked = Refusal::new(RefusalCode::Denied, "it is revoked");
    let end = LifelineMessage::End { offset: 0, refusal: Some(revoked) }.encode();
    assert_eq!(world.cores[DIALER].message(other, end, world.now), Ok(()));
    assert!(world.cores[DIALER].ended().is_some());
}

#[test]
fn what_has_proven_itself_stays_so_while_it_is_asked_again() {
    let mut world = steady();
    let id = go_over_directly(&mut world);
    let ping = LifelineMessage::Ping { nonce: 1, ack: 0 }.encode();
    assert_eq!(world.cores[DIALER].message(id, ping, world.now), Ok(()));
}

#[test]
fn only_the_coordinators_carrier_brings_its_words() {
    let mut world = steady();
    for attached in [false, true] {
        world.dial(Route::Direct, AttachMode::Standby);
        let last = world.links.len() - 1;
        if attached {
            exchange(&mut world, last, DIALER);
        }
        let [relay, direct] = [0, last].map(|link| world.links[link].ids[DIALER].unwrap());
        assert_eq!(world.cores[DIALER].control(relay), Ok(()));
        assert_eq!(world.cores[DIALER].control(direct), Err(Fault::OutOfPlace));
    }
}

/// With a direct carrier beside the one in use, on which somebody acknowledges all that `side` has written, and nothing of it arrives.
fn acknowledged_by_a_stranger(side: usize) -> World {
    let mut world = steady();
    stand_by_directly(&mut world);
    world.write(side, 100);
    world.links[0].hole[1 - side] = true;
    world.pump(0, side);
    let forged = LifelineMessage::Ack { ack: world.written[side], at: 0 }.encode();
    let id = world.links[1].ids[side].unwrap();
    assert_eq!(world.cores[side].message(id, forged, world.now), Ok(()), "it cannot be told from an honest one");
    world.blow_over();
    world
}

#[test]
fn what_a_stranger_acknowledged_to_the_laptop_ends_it_at_the_next_move() {
    let mut world = acknowledged_by_a_stranger(DIALER);
    world.dial(Route::Relay, AttachMode::Move);
    exchange(&mut world, 0, DIALER);
    assert!(matches!(world.cores[DIALER].ended(), Some(Ended::Position(_))), "{:?}", world.cores[DIALER].standing());
}

#[test]
fn what_a_stranger_acknowledged_to_the_stub_ends_it_after_some_moves() {
    let mut world = acknowledged_by_a_stranger(LISTENER);
    world.write(LISTENER, 100);
    for _ in 0..MAX_GAPS {
        assert_eq!(world.cores[DIALER].ended(), None);
        world.dial(Route::Relay, AttachMode::Move);
        exchange(&mut world, 0, DIALER);
        world.blow_over();
    }
    assert!(matches!(world.cores[DIALER].ended(), Some(Ended::Position(_))));
}

#[test]
fn gaps_that_a_stranger_makes_end_nothing() {
    let mut world = steady();
    let gap = LifelineMessage::Data { offset: 5000, ack: 0, ack_now: false, payload: Bytes::from_static(b"x") };
    for _ in 0..2 * MAX_GAPS {
        stand_by_directly(&mut world);
        let id = world.links[1].ids[DIALER].unwrap();
        assert_eq!(world.cores[DIALER].message(id, gap.encode(), world.now), Err(Fault::Gap));
        for side in [DIALER, LISTENER] {
            world.cut(1, side, "a fault");
        }
        world.bury();
    }
    assert_eq!(world.cores[DIALER].ended(), None);
}

#[test]
fn an_attach_that_proves_nothing_takes_nobodys_place() {
    let mut world = steady();
    for link in 1..MAX_CARRIERS {
        world.dial(Route::Direct, AttachMode::Standby);
        exchange(&mut world, link, DIALER);
    }
    let forged =
        Attach { id: LifelineId([7; 16]), sequence: 1000, mode: AttachMode::Standby, received: 0, tag: [0; TAG] };
    for mode in [AttachMode::Begin, AttachMode::Move, AttachMode::Standby] {
        let forged = Attach { mode, ..forged };
        assert!(world.cores[LISTENER].arrived(Route::Direct, &forged, world.now).is_err());
    }
    assert_eq!(world.cores[LISTENER].retired(), None);
    assert!(world.links.iter().all(|link| world.cores[LISTENER].has(link.ids[LISTENER].unwrap())));
}

//! Moves of which the two ends do not learn the same, or not at the same time.

use bytes::Bytes;

use super::super::core::LEAST_PATIENCE;
use super::super::standing::{Route, Standing};
use super::{DIALER, LISTENER, World, exchange, go_over_directly, stand_by_directly, steady};
use crate::wire::lifeline::{AttachMode, Attached, LifelineMessage, TAG};

fn routes(world: &World) -> [Option<Route>; 2] {
    [DIALER, LISTENER].map(|side| match world.cores[side].standing() {
        Standing::Attached { route, .. } => Some(route),
        _ => None,
    })
}

#[test]
fn a_move_whose_answer_is_lost_is_settled_on_the_carrier_in_use() {
    let mut world = steady();
    go_over_directly(&mut world);
    world.pump(1, DIALER);
    world.deliver(1, LISTENER);
    assert_eq!(routes(&world), [Some(Route::Relay), Some(Route::Direct)]);
    for side in [DIALER, LISTENER] {
        world.cut(1, side, "cut");
    }
    world.bury();
    exchange(&mut world, 0, DIALER);
    assert_eq!(routes(&world), [Some(Route::Relay); 2]);
    world.write(LISTENER, 100);
    exchange(&mut world, 0, LISTENER);
    assert_eq!(world.read[DIALER], world.written[LISTENER]);
}

/// Both moves are lost before the carrier in use has answered that it goes on there.
#[test]
fn the_carrier_in_use_may_be_asked_twice() {
    let mut world = steady();
    let relay = world.links[0].ids[DIALER].unwrap();
    go_over_directly(&mut world);
    world.dial(Route::Relay, AttachMode::Move);
    world.pump(1, DIALER);
    world.pump(2, DIALER);
    world.cut(2, DIALER, "cut");
    world.pump(0, DIALER);
    world.deliver(0, LISTENER);
    world.pump(0, LISTENER);
    world.cut(1, DIALER, "cut");
    exchange(&mut world, 0, DIALER);
    assert!(world.cores[DIALER].has(relay), "an honest answer came first, to what was asked first");
    assert_eq!(routes(&world), [Some(Route::Relay); 2]);
    for side in [DIALER, LISTENER] {
        world.write(side, 100);
        exchange(&mut world, 0, side);
        assert_eq!(world.read[1 - side], world.written[side]);
    }
}

#[test]
fn a_move_that_a_stranger_answers_is_settled_on_the_carrier_in_use() {
    let mut world = steady();
    let direct = go_over_directly(&mut world);
    world.pump(1, DIALER);
    world.deliver(1, LISTENER);
    world.pump(1, LISTENER);
    let (due, answer) = world.links[1].queues[DIALER].pop_back().unwrap();
    let Ok(LifelineMessage::Attached(answer)) = LifelineMessage::parse(answer) else { panic!() };
    let forged = LifelineMessage::Attached(Attached { tag: [0; TAG], ..answer });
    world.links[1].queues[DIALER].push_front((due, forged.encode()));
    world.deliver(1, DIALER);
    assert!(!world.cores[DIALER].has(direct));
    world.cut(1, LISTENER, "cut");
    world.bury();
    exchange(&mut world, 0, DIALER);
    assert_eq!(routes(&world), [Some(Route::Relay); 2]);
}

#[test]
fn a_move_that_never_left_is_not_repeated() {
    let mut world = steady();
    world.dial(Route::Direct, AttachMode::Move);
    world.cut(1, DIALER, "cut");
    assert_eq!(world.cores[DIALER].waiting(), 0);
}

#[test]
fn where_nothing_is_in_use_the_next_one_that_stands_by_is_asked() {
    let mut world = steady();
    for (link, route) in [(1, Route::Direct), (2, Route::Relay)] {
        world.dial(route, AttachMode::Standby);
        exchange(&mut world, link, DIALER);
    }
    world.cut(0, DIALER, "cut");
    // It goes over to the first of the two, which breaks as well.
    world.cut(1, DIALER, "cut");
    world.pump(2, DIALER);
    world.deliver(2, LISTENER);
    let last = world.links.len() - 1;
    exchange(&mut world, last, LISTENER);
    assert_eq!(routes(&world), [Some(Route::Relay); 2]);
}

#[test]
fn of_those_that_stand_by_the_last_of_its_route_is_kept() {
    let mut world = steady();
    let [first, second] = [1, 2].map(|link| {
        world.dial(Route::Direct, AttachMode::Standby);
        let id = world.links[link].ids[DIALER].unwrap();
        exchange(&mut world, link, DIALER);
        assert!(world.cores[DIALER].is_attached(id));
        id
    });
    let dialer = &world.cores[DIALER];
    assert!(!dialer.has(first) && dialer.is_attached(second));
    assert_eq!(routes(&world), [Some(Route::Relay); 2], "the one in use stays");
}

#[test]
fn the_answer_to_an_overtaken_move_moves_nothing() {
    let mut world = steady();
    stand_by_directly(&mut world);
    world.dial(Route::Relay, AttachMode::Move);
    world.pump(2, DIALER);
    let direct = world.links[1].ids[DIALER].unwrap();
    assert!(world.cores[DIALER].go_over(direct, world.now));
    world.pump(1, DIALER);
    for link in [2, 1] {
        world.deliver(link, LISTENER);
    }
    for link in [1, 2] {
        world.pump(link, LISTENER);
        world.deliver(link, DIALER);
    }
    assert_eq!(routes(&world), [Some(Route::Direct); 2]);
}

/// The laptop only listens: by itself it would hear of it when it asks the next time.
#[test]
fn one_that_stood_by_and_breaks_makes_the_one_in_use_be_asked() {
    for breaks in [false, true] {
        let mut world = steady();
        stand_by_directly(&mut world);
        exchange(&mut world, 0, DIALER);
        if breaks {
            world.cut(1, DIALER, "cut");
        }
        world.pump(0, DIALER);
        let ping = |(_, message): &(_, Bytes)| {
            matches!(LifelineMessage::parse(message.clone()), Ok(LifelineMessage::Ping { .. }))
        };
        assert_eq!(world.links[0].queues[LISTENER].iter().any(ping), breaks);
        world.links[0].queues[LISTENER].clear();
        world.pass(LEAST_PATIENCE * 2);
        assert_eq!(matches!(world.cores[DIALER].standing(), Standing::Suspect { .. }), breaks);
    }
}

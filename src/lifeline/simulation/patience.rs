//! How long each end waits before it suspects its carrier, and what it believes after that.

use std::time::Duration;

use super::super::core::{HEARTBEAT, LEAST_PATIENCE, QUIET, QUIET_PATIENCE, UNANSWERED};
use super::super::standing::{Route, Standing};
use super::{DIALER, LISTENER, World, exchange, steady};
use crate::wire::lifeline::AttachMode;

#[test]
fn a_silent_carrier_is_suspected_and_believed_again() {
    let mut world = steady();
    world.pass(Duration::from_millis(100));
    world.cores[DIALER].probe(world.now);
    world.pass(Duration::from_millis(600));
    assert!(matches!(world.cores[DIALER].standing(), Standing::Suspect { .. }), "half a second after a change");
    for _ in 0..4 {
        world.pump(0, DIALER);
        world.deliver(0, LISTENER);
        world.pump(0, LISTENER);
        world.deliver(0, DIALER);
    }
    assert!(matches!(world.cores[DIALER].standing(), Standing::Attached { .. }));
}

#[test]
fn a_carrier_is_in_doubt_from_a_change_until_it_answers_or_another_is_in_use() {
    let in_doubt = |world: &World| [DIALER, LISTENER].map(|side| world.cores[side].in_doubt());
    let mut world = steady();
    exchange(&mut world, 0, DIALER);
    // A heartbeat is no reason to doubt.
    world.pass(HEARTBEAT);
    assert_eq!(in_doubt(&world), [false; 2]);
    exchange(&mut world, 0, DIALER);
    world.write(LISTENER, 10);
    world.pump(0, LISTENER);
    world.cores[DIALER].probe(world.now);
    assert_eq!(in_doubt(&world), [true, false], "only the dialer can bring another");
    // What was said before it was asked shows nothing.
    world.deliver(0, DIALER);
    assert_eq!(in_doubt(&world), [true, false]);
    exchange(&mut world, 0, DIALER);
    assert_eq!(in_doubt(&world), [false; 2], "it has answered");
    world.links[0].hole = [true; 2];
    world.cores[DIALER].probe(world.now);
    world.dial(Route::Relay, AttachMode::Move);
    assert_eq!(in_doubt(&world), [true, false]);
    for side in [DIALER, LISTENER] {
        world.pump(1, side);
        world.deliver(1, 1 - side);
    }
    assert_eq!(in_doubt(&world), [false; 2], "another one is in use");
}

#[test]
fn a_long_way_is_given_three_round_trips() {
    let mut world = steady();
    for _ in 0..50 {
        world.cores[DIALER].probe(world.now);
        world.pump(0, DIALER);
        world.pass(Duration::from_secs(1));
        exchange(&mut world, 0, DIALER);
    }
    let standing = world.cores[DIALER].standing();
    let Standing::Attached { round_trip: Some(round_trip), .. } = standing else { panic!("{standing:?}") };
    assert!(round_trip > Duration::from_millis(900), "{round_trip:?}");
    world.links[0].hole = [true; 2];
    world.cores[DIALER].probe(world.now);
    world.pass(round_trip * 3 - Duration::from_millis(10));
    assert!(matches!(world.cores[DIALER].standing(), Standing::Attached { .. }), "it may still come");
    world.pass(Duration::from_millis(20));
    assert!(matches!(world.cores[DIALER].standing(), Standing::Suspect { .. }));
}

#[test]
fn what_is_sent_after_a_silence_finds_a_dead_way_soon() {
    for side in [DIALER, LISTENER] {
        let mut world = steady();
        exchange(&mut world, 0, DIALER);
        exchange(&mut world, 0, LISTENER);
        world.pass(QUIET);
        world.links[0].hole = [true; 2];
        world.write(side, 10);
        world.pump(0, side);
        world.pass(QUIET_PATIENCE - Duration::from_millis(10));
        assert!(matches!(world.cores[side].standing(), Standing::Attached { .. }), "it may still come");
        world.pass(Duration::from_millis(10));
        assert!(matches!(world.cores[side].standing(), Standing::Suspect { .. }), "side {side}");
    }
}

#[test]
fn on_a_busy_way_an_answer_may_take_longer() {
    let mut world = steady();
    exchange(&mut world, 0, DIALER);
    world.write(LISTENER, 10);
    world.pump(0, LISTENER);
    world.pass(QUIET_PATIENCE);
    assert!(matches!(world.cores[LISTENER].standing(), Standing::Attached { .. }));
    world.pass(LEAST_PATIENCE);
    assert!(matches!(world.cores[LISTENER].standing(), Standing::Suspect { .. }));
}

#[test]
fn a_listener_that_sends_nothing_misses_the_heartbeat() {
    let mut world = steady();
    exchange(&mut world, 0, DIALER);
    exchange(&mut world, 0, LISTENER);
    let well = |world: &World| matches!(world.cores[LISTENER].standing(), Standing::Attached { .. });
    for _ in 0..600 {
        world.pass(Duration::from_secs(1));
        exchange(&mut world, 0, DIALER);
        assert!(well(&world), "heartbeats come");
    }
    world.links[0].hole[LISTENER] = true;
    world.pass(HEARTBEAT);
    assert!(well(&world));
    world.pass(LEAST_PATIENCE * UNANSWERED);
    assert!(!well(&world));
    // It was only slow: a heartbeat that comes after all is believed.
    world.links[0].hole[LISTENER] = false;
    world.cores[DIALER].probe(world.now);
    exchange(&mut world, 0, DIALER);
    assert!(well(&world));
}

#[test]
fn what_a_listener_says_does_not_put_off_that_it_misses_the_heartbeat() {
    let mut world = steady();
    exchange(&mut world, 0, DIALER);
    exchange(&mut world, 0, LISTENER);
    world.links[0].hole[LISTENER] = true;
    let moment = Duration::from_millis(1);
    world.pass(HEARTBEAT + LEAST_PATIENCE * UNANSWERED - moment);
    world.write(LISTENER, 10);
    world.pump(0, LISTENER);
    assert!(matches!(world.cores[LISTENER].standing(), Standing::Attached { .. }));
    world.pass(moment);
    assert!(matches!(world.cores[LISTENER].standing(), Standing::Suspect { .. }));
}

#[test]
fn a_way_that_was_suspected_first_is_gone_since_then() {
    let mut world = steady();
    world.pass(Duration::from_millis(100));
    world.cores[DIALER].probe(world.now);
    world.pass(Duration::from_millis(600));
    let Standing::Suspect { since, .. } = world.cores[DIALER].standing() else { panic!() };
    world.pass(Duration::from_secs(3));
    world.cut(0, DIALER, "cut");
    let Standing::Lost { since: gone, why } = world.cores[DIALER].standing() else { panic!() };
    assert_eq!((gone, why.as_str()), (since, "cut"));
}

#[test]
fn a_dialer_that_only_listens_finds_out_that_it_is_not_heard() {
    let mut world = steady();
    exchange(&mut world, 0, DIALER);
    exchange(&mut world, 0, LISTENER);
    world.links[0].hole[LISTENER] = true;
    for _ in 0..(HEARTBEAT + LEAST_PATIENCE * UNANSWERED).as_secs() {
        assert!(matches!(world.cores[DIALER].standing(), Standing::Attached { .. }), "it has asked nothing for long");
        world.pass(Duration::from_secs(1));
        world.write(LISTENER, 10);
        exchange(&mut world, 0, LISTENER);
    }
    assert!(matches!(world.cores[DIALER].standing(), Standing::Suspect { .. }));
}

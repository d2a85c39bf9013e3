//! Who waits for room learns that there may be some, also when another part of the same poll sees it.

use std::time::Duration;

use super::{DIALER, LISTENER, World, steady};

/// Bulk as fast as it may go, for a moment of a long path.
fn rush(world: &mut World) {
    while let Some(piece) = world.cores[DIALER].takes_bulk(world.now) {
        world.write(DIALER, piece as u64);
        world.pump(0, DIALER);
    }
}

#[test]
fn a_pace_that_falls_due_is_told() {
    let mut world = steady();
    world.delay = Duration::from_millis(20);
    for _ in 0..10_000 {
        rush(&mut world);
        let due = world.cores[DIALER].deadline().expect("something is under way");
        if due > world.now && due <= world.now + Duration::from_millis(2) {
            let before = world.cores[DIALER].room_made();
            world.now = due;
            world.cores[DIALER].tick(due);
            if world.cores[DIALER].takes_bulk(due).is_some() {
                assert_ne!(world.cores[DIALER].room_made(), before, "nobody would ask again");
                return;
            }
        }
        world.pass(Duration::from_millis(1));
        for side in [LISTENER, DIALER] {
            // The path takes so many messages within this time.
            for _ in 0..2 {
                world.deliver(0, side);
            }
            world.read(side);
            world.pump(0, side);
        }
    }
    panic!("bulk keeps to no pace: {:?}", world.cores[DIALER]);
}

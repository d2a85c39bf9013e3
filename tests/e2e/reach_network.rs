//! The network between: routers that forget, laptops that come while there is no way, and such that come to another network.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::transfers::RECOVERY;
use crate::support::*;

/// A recovery is looked at so often: the best tells what the programs can do, the others may tell what else the machine did.
const LOOKS: usize = 3;

/// A parked connection that was silent for as long is asked before it is given away, with room to spare (`FRESH` of the
/// coordinator); a stub has not noticed yet that it is dead (`PARKED_PING`).
const SILENT: Duration = Duration::from_secs(3);

/// A way that is dead without a word is found sooner than the usual heartbeat would (`PING`).
const FOUND: Duration = Duration::from_secs(12);

/// Breaks what the workspace has at the coordinator; returns when it has parked the next connection.
#[track_caller]
fn parks_anew(world: &mut Linked) {
    let heard = world.stub.heard();
    world.far.reset();
    world.stub.says_after(heard, PATIENCE, "ready for laptops");
}

#[test]
fn a_laptop_that_comes_to_a_forgotten_connection_is_told_and_gets_the_next_one() {
    let mut world = Linked::new();
    let mut told = 0;
    for _ in 0..LOOKS {
        parks_anew(&mut world);
        world.far.forget_present();
        // Nothing happens: that is what makes it silent.
        std::thread::sleep(SILENT);
        let began = Instant::now();
        let words = ["up", "box", "--no-direct", "--coordinator", &world.near.url()];
        let mut up = Running::start(world.laptop.command(&words));
        up.says("end-to-end verified");
        println!("up after {:?} where the parked connection was forgotten", began.elapsed());
        told += usize::from(up.output().contains("has not answered for"));
        assert!(up.stop(Signal::SIGTERM).success(), "{}", up.output());
    }
    assert_ne!(told, 0, "a connection was given away that does not answer");
}

#[test]
fn a_session_whose_workspace_was_forgotten_goes_on_soon() {
    let redis = Redis::start();
    let mut world = Linked::new();
    // Its own, so that the stub can be listened to while it is used.
    let laptop = world.laptop.twin();
    let up = Linked::up(&world.near, &laptop);
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    let answers = [(); LOOKS].map(|()| {
        parks_anew(&mut world);
        talk.echo_within(RECOVERY);
        world.far.forget_present();
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        println!("the workspace's connections were forgotten; an answer {:?} after that", began.elapsed());
        began.elapsed()
    });
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    let best = answers.into_iter().min().expect("one at least");
    assert!(best < FOUND, "{best:?}");
}

//! Programs that run on and whose output nobody reads, as those that a terminal which was stopped, or a supervisor that
//! stands still, has started: what they do for others goes on, and they end when they are asked to.

use nix::sys::signal::Signal;

use crate::support::linked::Talk;
use crate::support::transfers::RECOVERY;
use crate::support::*;

/// Broken connections. The lines of each are far more than the pipe takes in all.
const FAULTS: usize = 20;

#[test]
fn an_up_whose_lines_nobody_takes_serves_answers_and_ends() {
    let redis = Redis::start();
    let world = Linked::new();
    let words = ["--json", "-vv", "up", "box", "--no-direct", "--coordinator", &world.near.url()];
    let (mut up, unread) = Running::start_unread(world.laptop.command(&words), "\"state\":\"up\"");
    let Talk { mut talk, port, forward: _forward } = world.talk(&redis);
    for _ in 0..FAULTS {
        world.near.reset();
        talk.echo_within(RECOVERY);
    }
    Dialogue::redis(port).echo();
    assert_eq!(world.laptop.workspace_status()["tunnel"]["state"], "up");
    up.signal(Signal::SIGINT);
    assert!(up.ends().success());
    unread.was_full();
}

#[test]
fn a_stub_whose_lines_nobody_takes_serves_answers_and_ends() {
    let redis = Redis::start();
    let mut world = Linked::new();
    assert!(world.stub.stop(Signal::SIGTERM).success());
    let mut stub = world.machine.command(None);
    stub.args(["--json", "-vv"]);
    let (mut stub, unread) = Running::start_unread(stub, "parked");
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, port, forward: _forward } = world.talk(&redis);
    for _ in 0..FAULTS {
        world.far.reset();
        talk.echo_within(RECOVERY);
    }
    Dialogue::redis(port).echo();
    let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_nexus-stub"));
    status.arg("--socket").arg(world.machine.state().join("stub.sock")).arg("status");
    Run::of(status).ok();
    stub.signal(Signal::SIGINT);
    assert!(stub.ends().success());
    unread.was_full();
}

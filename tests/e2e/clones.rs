//! Machines that were copied with everything on them: whose workspace it is, and how everybody is told.

use nix::sys::signal::Signal;

use crate::support::transfers::RECOVERY;
use crate::support::*;

/// Whether a process that the laptop starts is a child of this stub.
#[track_caller]
fn is_served_by(world: &Linked, stub: &Running) -> bool {
    let run = world.laptop.exec("box", &["sh", "-c", "echo $PPID"]);
    run.ok().trim() == stub.pid().to_string()
}

#[test]
fn a_clone_is_told_that_it_is_one_takes_no_laptop_and_follows_the_first_one() {
    let mut world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    let clone = world.machine.cloned();
    let mut second = Running::start(clone.command(None));
    let said = second.says("another nexus-stub serves workspace `box`");
    assert!(said.contains("cloned image") && said.contains("nexus-coordinator workspace add"), "{said}");
    until("status of the clone to say so", || clone.status().contains("another nexus-stub serves").then_some(()));
    until("status of the first one to say so", || world.machine.status().contains("was refused").then_some(()));

    assert!(is_served_by(&world, &world.stub));
    assert_eq!(up.tunnels(), 1, "its session goes on where it is");
    assert!(!second.output().contains("ready for laptops"), "{}", second.output());
    assert_eq!(second.has_ended(), None, "{}", second.output());

    assert!(world.stub.stop(Signal::SIGTERM).success());
    second.says_after(0, RECOVERY, "ready for laptops");
    until("the laptop to be served", || world.laptop.exec("box", &["true"]).status.success().then_some(()));
    assert!(is_served_by(&world, &second));
}

//! `nexus-stub run --take-over`: an update of the stub breaks nothing that runs through it, and leaves nobody in who was
//! sent away.

use std::fs;
use std::path::PathBuf;

use futures::future::join_all;
use nexus_proxy::role::stub::{gateway, hand_over};
use nexus_proxy::wire::RefusalCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::linked::{Frozen, Talk};
use crate::support::transfers::{RECOVERY, Transfers};
use crate::support::wait::within;
use crate::support::*;

/// Bytes of one transfer.
const TRANSFER: usize = 32 << 20;

/// A successor takes the place of the workspace's stub; gives the old one.
#[track_caller]
fn replace(machine: &Machine, stub: &mut Running) -> Running {
    let mut old = std::mem::replace(stub, machine.successor());
    old.says("handed over");
    old
}

/// A successor takes the place of the workspace's stub and is killed; that stub serves again.
#[track_caller]
fn handed_over_in_vain(machine: &Machine, stub: &mut Running) {
    let mut successor = Running::start(machine.take_over());
    successor.says("took over");
    taken_back(stub, successor);
}

/// Kills a stub that took over; the one before it serves again.
#[track_caller]
fn taken_back(before: &mut Running, mut successor: Running) {
    let heard = before.heard();
    successor.signal(Signal::SIGKILL);
    successor.ends();
    before.says_after(heard, RECOVERY, "taken back");
    before.says_after(heard, RECOVERY, "ready for laptops");
}

/// Waits until a program that the laptop starts in the workspace is a child of its present stub.
#[track_caller]
fn reaches_the_new_one(world: &Linked) {
    let pid = world.stub.pid().to_string();
    until("a new process to be the new stub's", || {
        let run = world.laptop.exec("box", &["sh", "-c", "echo $PPID"]);
        (run.text().trim() == pid).then_some(())
    });
}

/// A conversation with a program that the laptop runs in the workspace.
#[track_caller]
fn in_workspace(world: &Linked, script: &str) -> Dialogue {
    Dialogue::with(world.laptop.command(&["exec", "box", "--", "sh", "-c", script]))
}

/// Waits for the end of a stub that handed over, which must be a good one.
#[track_caller]
fn is_done(mut old: Running) {
    let ended = within(RECOVERY, || old.has_ended());
    old.ended_well(ended);
    assert!(old.output().contains("everything that began here is over"), "{}", old.output());
}

/// Sockets of stubs that handed over.
fn sockets_left(world: &Linked) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.machine.state()).expect("the state").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("earlier-"))).collect()
}

#[test]
fn a_transfer_a_process_and_a_conversation_go_on_and_the_old_stub_ends_after_them() {
    let redis = Redis::start();
    let mut world = Linked::new();
    world.near.set_wire(Wire::new(200_000_000, std::time::Duration::from_millis(5)));
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, port, forward: _forward } = world.talk(&redis);
    let mut process = in_workspace(&world, "while read word; do echo \"$word\"; done");
    process.ask(PATIENCE, str::to_owned);
    let mut transfers = Transfers::start(&world, TRANSFER);
    let goal = world.moved() + 1_000_000;
    transfers.go_on_until("bytes before", || world.moved() >= goal);

    let mut old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    process.ask(RECOVERY, str::to_owned);
    reaches_the_new_one(&world);
    let mut second = Dialogue::redis(port);
    second.echo();
    let goal = world.moved() + 2 * TRANSFER as u64;
    transfers.go_on_until("transfers after", || world.moved() >= goal);
    transfers.finish_unrefused();
    talk.echo();
    assert!(old.has_ended().is_none(), "it has a conversation and a process:\n{}", old.output());
    talk.ends_well();
    process.ask(PATIENCE, str::to_owned);
    process.ends_well();
    is_done(old);
    second.echo();
    second.ends_well();
    assert_eq!(sockets_left(&world), Vec::<PathBuf>::new());
}

#[test]
fn a_session_with_nothing_open_is_followed_at_once() {
    let mut world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    for _ in 0..2 {
        is_done(replace(&world.machine, &mut world.stub));
        reaches_the_new_one(&world);
    }
    assert_eq!(up.tunnels(), 3, "{}", up.program.output());
    assert!(!up.program.output().contains("next attempt"), "{}", up.program.output());
}

#[test]
fn a_session_that_stayed_behind_outlives_its_connections() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let mut old = replace(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    let faults: [fn(&Linked); 4] = [
        |world| world.near.reset(),
        |world| world.far.reset(),
        |world| world.near.cut_after(Direction::Up, 10),
        |world| {
            world.near.reset();
            world.far.reset();
        },
    ];
    for fault in faults {
        fault(&world);
        talk.echo_within(RECOVERY);
    }
    assert!(old.has_ended().is_none(), "{}", old.output());
    assert!(world.stub.output().contains("a session goes on in an earlier stub"), "{}", world.stub.output());
    talk.ends_well();
    is_done(old);
}

#[test]
fn two_take_overs_in_a_row_break_nothing() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let (port, _forward) = world.forward(format!("127.0.0.1:{}", redis.port));
    let mut transfers = Transfers::start(&world, TRANSFER);
    let mut first = Dialogue::redis(port);
    first.echo();
    let oldest = replace(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    let mut second = Dialogue::redis(port);
    second.echo();
    let older = replace(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    // Their sessions are found from the newest, each in its place.
    for link in [&world.near, &world.far] {
        link.reset();
        first.echo_within(RECOVERY);
        second.echo_within(RECOVERY);
    }
    let goal = world.moved() + TRANSFER as u64;
    transfers.go_on_until("bytes after both", || world.moved() >= goal);
    transfers.finish_unrefused();
    // The one between may go before the oldest.
    second.ends_well();
    is_done(older);
    world.near.reset();
    first.echo_within(RECOVERY);
    first.ends_well();
    is_done(oldest);
    reaches_the_new_one(&world);
    assert_eq!(sockets_left(&world), Vec::<PathBuf>::new());
}

#[test]
fn a_direct_session_goes_on_and_the_port_is_the_successors() {
    let redis = Redis::start();
    let (mut world, way, _) = Linked::with_direct_way();
    let _up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    world.until_it_goes("direct", true);
    let mut old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    reaches_the_new_one(&world);
    world.until_it_goes("direct", true);
    way.reset();
    talk.echo_within(RECOVERY);
    reaches_the_new_one(&world);
    // The laptop finds the port again, for the session that stayed behind too.
    let again = world.stub.says_after(0, RECOVERY, "route=Direct");
    assert!(again.contains("goes on in an earlier stub"), "{again}");
    world.until_it_goes("direct", true);
    talk.echo();
    assert!(old.has_ended().is_none(), "{}", old.output());
    talk.ends_well();
    is_done(old);
}

#[test]
fn a_revoked_device_loses_the_session_that_stayed_behind() {
    let redis = Redis::start();
    let (mut world, _way, _) = Linked::with_direct_way();
    let up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    world.until_it_goes("direct", true);
    let old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    reaches_the_new_one(&world);
    // A laptop that does nothing any more: it is for the workspace to end what it has.
    let frozen = Frozen::new(up.program.pid());
    world.coordinator.run(&["device", "revoke", "anna"]).ok();
    is_done(old);
    world.stub.says("anna left");
    drop(frozen);
}

/// With its way to the coordinator dead and its program frozen, only the workspace's side can end what stayed behind.
#[test]
fn a_removed_workspace_loses_the_session_that_stayed_behind() {
    let redis = Redis::start();
    let (mut world, _way, _) = Linked::with_direct_way();
    let up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    world.until_it_goes("direct", true);
    let mut old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    reaches_the_new_one(&world);
    let frozen = Frozen::new(up.program.pid());
    world.coordinator.run(&["workspace", "remove", "box"]).ok();
    assert!(within(RECOVERY, || world.stub.has_ended()).is_some(), "{}", world.stub.output());
    assert!(within(RECOVERY, || old.has_ended()).is_some(), "{}", old.output());
    drop(frozen);
}

/// A laptop that the workspace knows beside the first, which is up.
#[track_caller]
fn another_laptop(world: &Linked) -> Laptop {
    let bert = Laptop::new();
    bert.pair(&world.near.url(), &world.coordinator.invite(), "bert").ok();
    world.laptop.run(&["device", "add", "box", &world.coordinator.pin_of("bert")]).ok();
    bert
}

#[test]
fn a_device_that_was_removed_loses_the_session_that_stayed_behind() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let bert = another_laptop(&world);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    let _bert_up = Linked::up(&world.near, &bert);
    bert.run(&["device", "remove", "box", &world.coordinator.pin_of("anna")]).ok();
    until("the conversation to end", || talk.program.has_ended());
    is_done(old);
}

/// What was said while an earlier stub stood still is heard as soon as it does not.
#[test]
fn a_device_that_was_removed_is_ended_in_a_stub_that_stood_still() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    let bert = another_laptop(&world);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    let _bert_up = Linked::up(&world.near, &bert);
    // A laptop that does nothing any more, either: it is for the workspace to end what it has.
    let (laptop, stub) = (Frozen::new(up.program.pid()), Frozen::new(old.pid()));
    bert.run(&["device", "remove", "box", &world.coordinator.pin_of("anna")]).ok();
    world.stub.says_after(0, RECOVERY, "an earlier stub stands still");
    drop(stub);
    is_done(old);
    drop(laptop);
}

/// Whoever has the workspace's socket, as every program there that calls its laptop, and not the state directory.
#[test]
fn who_has_the_socket_alone_cannot_have_it_handed_over() {
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let own = world.machine.state();
    let socket = own.join("stub.sock").display().to_string();
    let stranger = Machine::at(&Place::Here, &world.far.url()).env("NEXUS_STUB_SOCKET", &socket);
    for file in ["stub.json", "ca.pem", "chain.pem", "key.pem"] {
        fs::copy(own.join(file), stranger.state().join(file)).expect("a file of the state");
    }
    let refused = Run::of(stranger.take_over()).err();
    assert!(refused.contains("same state directory") && refused.contains("hint:"), "{refused}");
    assert!(world.stub.has_ended().is_none() && !world.stub.output().contains("handed over"));
    reaches_the_new_one(&world);
}

#[test]
fn programs_of_the_workspace_call_through_the_same_socket() {
    let mut world = Linked::new();
    world.laptop.configure("version: 1\nconfig: {values: {greeting: hello from the laptop}}\n");
    let _up = Linked::up(&world.near, &world.laptop);
    let ask = "while read word; do nexus-stub config get greeting && echo \"$word\"; done";
    let mut process = in_workspace(&world, ask);
    process.ask(PATIENCE, str::to_owned);
    let old = replace(&world.machine, &mut world.stub);
    // It was started by the old one, and asks at once.
    process.ask(RECOVERY, str::to_owned);
    assert_eq!(process.program.output().matches("hello from the laptop").count(), 2, "{}", process.program.output());
    process.ends_well();
    is_done(old);
}

#[test]
fn what_runs_in_the_background_of_the_workspace_lives_on() {
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let pid = world.laptop.exec("box", &["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]).ok();
    let pid = Pid::from_raw(pid.trim().parse().expect("a process id"));
    let mut old = replace(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    assert!(kill(pid, None).is_ok() && old.has_ended().is_none(), "{}", old.output());
    kill(pid, Signal::SIGKILL).expect("it runs");
    is_done(old);
}

#[test]
fn a_stub_is_replaced_from_inside_the_workspace() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let (log, pid) = (world.machine.workspace.path().join("stub.log"), world.machine.workspace.path().join("stub.pid"));
    let successor_ended = Ended(pid.clone());
    let successor = world.machine.take_over();
    let mut words = vec!["exec".to_owned(), "box".into(), "--".into(), "setsid".into(), "-f".into()];
    let script = format!("echo $$ >{}; exec \"$0\" \"$@\" >{} 2>&1 </dev/null", pid.display(), log.display());
    words.extend(["sh".into(), "-c".into(), script]);
    let own = std::iter::once(successor.get_program()).chain(successor.get_args());
    words.extend(own.map(|word| word.to_string_lossy().into_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    world.laptop.run(&words).ok();
    let said = |text: &str| until(text, || fs::read_to_string(&log).ok().filter(|said| said.contains(text)));
    said("ready for laptops");
    world.stub.says("handed over");
    talk.echo_within(RECOVERY);
    talk.ends_well();
    // It ends, and leaves the successor alone that it started.
    let ended = within(RECOVERY, || world.stub.has_ended());
    world.stub.ended_well(ended);
    let pid = fs::read_to_string(&pid).expect("it wrote its number");
    until("a process of the new stub", || {
        let run = world.laptop.exec("box", &["sh", "-c", "echo $PPID"]);
        (run.text().trim() == pid.trim()).then_some(())
    });
    drop(successor_ended);
    until("the successor to end", || (!world.machine.state().join("stub.sock").exists()).then_some(()));
}

/// Ends the process whose number is in this file, when this is dropped.
struct Ended(PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).ok().and_then(|pid| pid.trim().parse().ok());
        pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
    }
}

#[test]
fn what_stays_behind_ends_with_the_workspace() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let mut old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    assert!(world.stub.stop(Signal::SIGTERM).success());
    assert!(old.ends().success(), "{}", old.output());
    until("the conversation to end", || talk.program.has_ended());
    assert_eq!(sockets_left(&world), Vec::<PathBuf>::new());
}

#[test]
fn a_stub_that_was_killed_after_it_handed_over_leaves_nothing_in_the_way() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, port, forward: _forward } = world.talk(&redis);
    let mut old = replace(&world.machine, &mut world.stub);
    talk.echo_within(RECOVERY);
    old.signal(Signal::SIGKILL);
    old.ends();
    assert_eq!(sockets_left(&world).len(), 1);
    until("the conversation to end", || talk.program.has_ended());
    world.near.reset();
    reaches_the_new_one(&world);
    let mut second = Dialogue::redis(port);
    second.echo();
    let old = replace(&world.machine, &mut world.stub);
    second.echo_within(RECOVERY);
    assert_eq!(sockets_left(&world).len(), 1, "of the one that lives");
    second.ends_well();
    is_done(old);
}

#[test]
fn a_successor_that_crashed_is_followed_by_one_that_finds_what_stayed_behind() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let old = replace(&world.machine, &mut world.stub);
    world.stub.signal(Signal::SIGKILL);
    world.stub.ends();
    world.near.reset();
    world.stub = world.machine.stub(None);
    talk.echo_within(RECOVERY);
    reaches_the_new_one(&world);
    talk.ends_well();
    is_done(old);
}

#[test]
fn a_stub_whose_successor_is_killed_serves_the_workspace_again() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, port, forward: _forward } = world.talk(&redis);
    handed_over_in_vain(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    let background = world.laptop.exec("box", &["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]).ok();
    let background = Pid::from_raw(background.trim().parse().expect("a process id"));
    let mut second = Dialogue::redis(port);
    second.echo();
    // What it had goes on beside that, also over a wire that breaks, and can be handed over with the rest.
    world.near.reset();
    talk.echo_within(RECOVERY);
    let old = replace(&world.machine, &mut world.stub);
    for talk in [&mut talk, &mut second] {
        talk.echo_within(RECOVERY);
    }
    reaches_the_new_one(&world);
    second.ends_well();
    talk.ends_well();
    // What runs in the background keeps the process, and not each of its lives.
    until("one of two sockets to be gone", || (sockets_left(&world).len() == 1).then_some(()));
    kill(background, Signal::SIGKILL).expect("it runs");
    is_done(old);
    assert_eq!(sockets_left(&world), Vec::<PathBuf>::new());
}

/// A stub that serves the workspace again outlives two more hand-overs for what was left in the background meanwhile; the door
/// through which it hears of the workspace's end stays open, and it follows a successor that dies.
#[test]
fn what_was_left_in_the_background_of_a_stub_that_serves_again_lives_on() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { talk, forward: _forward, .. } = world.talk(&redis);
    handed_over_in_vain(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    // The first life has nothing any more.
    talk.ends_well();
    world.stub.says("anna left");
    let background = world.laptop.exec("box", &["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"]).ok();
    let background: u32 = background.trim().parse().expect("a process id");
    let mut old = replace(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    until("the later life to be over", || (sockets_left(&world).len() < 2).then_some(()));
    reaches_the_new_one(&world);
    assert!(kernel::runs(background) && old.has_ended().is_none(), "{}", old.output());
    let successor = std::mem::replace(&mut world.stub, old);
    taken_back(&mut world.stub, successor);
    reaches_the_new_one(&world);
    assert!(kernel::runs(background), "{}", world.stub.output());
    let mut old = replace(&world.machine, &mut world.stub);
    reaches_the_new_one(&world);
    assert!(world.stub.stop(Signal::SIGTERM).success());
    assert!(old.ends().success(), "{}", old.output());
    assert!(!kernel::runs(background), "the workspace is closed");
}

/// As the networks of hotels do. It decides nothing: neither for the successor, nor for a stub that was started beside what
/// goes on, nor for the first one, which serves the workspace again.
#[test]
fn who_answers_in_the_coordinators_place_ends_nothing_that_was_handed_over() {
    let redis = Redis::start();
    let (mut world, _way, _) = Linked::with_direct_way();
    let _up = world.laptop.up(&["box", "--coordinator", &world.near.url()]);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    world.until_it_goes("direct", true);
    // The successor has looked whether it reaches the coordinator, and asks; that is another one when it is answered.
    let still = Frozen::new(world.stub.pid());
    let before = world.far.counts();
    let mut successor = Running::start(world.machine.take_over());
    until("the successor to have looked", || {
        let now = world.far.counts();
        (now.accepted > before.accepted && now.open <= before.open).then_some(())
    });
    world.far.refuse();
    drop(still);
    successor.says("took over");
    world.coordinator.kill();
    let impostor = world.coordinator.impostor();
    world.far.heal();
    successor.says_after(0, RECOVERY, "another authority");
    assert!(successor.has_ended().is_none(), "{}", successor.output());
    successor.signal(Signal::SIGKILL);
    successor.ends();
    let refused = Run::of(world.machine.command(None)).err();
    assert!(refused.contains("another authority"), "{refused}");
    let taken_back = world.stub.says_after(0, RECOVERY, "taken back");
    let heard = world.stub.lines().iter().position(|line| *line == taken_back).expect("it said so");
    world.stub.says_after(heard, RECOVERY, "another authority");
    drop(impostor);
    world.coordinator.start_again();
    world.stub.says_after(heard, RECOVERY, "ready for laptops");
    talk.echo_within(RECOVERY);
    reaches_the_new_one(&world);
    talk.ends_well();
    assert_eq!(world.stub.has_ended(), None, "{}", world.stub.output());
}

/// Whoever cleans up a state directory takes the door away from the one that serves, and nothing from what goes on.
#[test]
fn a_stub_whose_successor_lost_its_sockets_file_goes_on_until_it_is_done() {
    let redis = Redis::start();
    let mut world = Linked::new();
    let _up = Linked::up(&world.near, &world.laptop);
    let Talk { mut talk, forward: _forward, .. } = world.talk(&redis);
    let old = replace(&world.machine, &mut world.stub);
    fs::remove_file(world.machine.state().join(gateway::SOCKET)).expect("the successor's socket");
    let mut third = Running::start(world.machine.take_over());
    third.says("that file is gone");
    assert!(!third.ends().success());
    talk.echo_within(RECOVERY);
    talk.ends_well();
    is_done(old);
    reaches_the_new_one(&world);
}

/// Whoever asks while it hands over is told so: nobody waits for an answer that never comes, nor the old stub for them.
#[test]
fn of_many_who_take_over_at_once_one_does_and_the_others_are_told() {
    let mut world = Linked::new();
    let (dir, socket) = (world.machine.state().to_owned(), world.machine.state().join("stub.sock"));
    let still = Frozen::new(world.stub.pid());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answers = runtime.block_on(async {
        let all = join_all((0..8).map(|_| hand_over::ask(&socket, &dir)));
        // They are polled in this order: each has connected when it goes on.
        tokio::join!(all, async { drop(still) }).0
    });
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok(Some(_)))).count(), 1, "{answers:?}");
    for refusal in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_ne!(refusal.code, RefusalCode::Timeout, "{refusal}");
    }
    let old = std::mem::replace(&mut world.stub, world.machine.stub(None));
    is_done(old);
}

#[test]
fn who_does_not_ask_is_refused_and_told_how() {
    let mut world = Linked::new();
    let refused = Run::of(world.machine.command(None)).err();
    let other = format!("another nexus-stub (process {}) serves", world.stub.pid());
    assert!(refused.contains(&other) && refused.contains("hint: with --take-over"), "{refused}");
    assert!(world.stub.stop(Signal::SIGTERM).success());
    // Nothing to take over is no fault.
    let mut alone = Running::start(world.machine.take_over());
    alone.says("ready for laptops");
    assert!(!alone.output().contains("took over"), "{}", alone.output());
    let mut next = world.machine.take_over();
    next.arg("--json");
    let mut next = Running::start(next);
    let took = next.says("took_over");
    assert!(took.contains(&format!("\"pid\":{}", alone.pid())) && took.contains("\"sessions\":0"), "{took}");
    assert!(alone.ends().success(), "{}", alone.output());
    next.says("parked");
}

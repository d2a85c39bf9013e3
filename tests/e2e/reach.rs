//! Nobody waits in silence: while the way between laptop and workspace is dead, whoever waits for it is told, on either
//! side, and when it is back nothing says any more that it is dead.

use std::process::Command;

use serde_json::Value;

use crate::support::program::free_port;
use crate::support::*;

/// `nexus-stub` with these words, as a program in the workspace would run it.
fn in_workspace(machine: &Machine, words: &[&str]) -> Run {
    Run::of(of_workspace(machine, words))
}

fn of_workspace(machine: &Machine, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-stub"));
    command.arg("--state").arg(machine.state()).args(words);
    command
}

/// What `nexus-stub status --json` says.
#[track_caller]
fn stub_status(machine: &Machine) -> Value {
    let text = in_workspace(machine, &["status", "--json"]).ok();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("status --json is not JSON ({e}):\n{text}"))
}

/// What was said before anybody knew is delivered; who comes later is told at once.
#[test]
fn a_call_whose_way_dies_goes_on_when_it_is_back_and_the_next_is_refused_meanwhile() {
    let world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    let list = || in_workspace(&world.machine, &["tool", "list"]);
    assert!(list().ok().contains("no tools are declared"));
    for _ in 0..2 {
        world.near.black_hole();
        let mut begun = Running::start(of_workspace(&world.machine, &["tool", "list"]));
        begun.says("has been interrupted for");
        for _ in 0..2 {
            let refused = list().err();
            assert!(refused.contains("interrupted") && refused.contains("hint:"), "{refused}");
        }
        let laptop = stub_status(&world.machine)["laptops"][0].clone();
        assert!(laptop["state"] == "suspect" || laptop["state"] == "lost", "{laptop}");
        assert!(laptop["why"].is_string() && laptop["interrupted_s"].is_number(), "{laptop}");
        assert!(begun.has_ended().is_none(), "{}", begun.output());
        world.near.heal();
        assert!(begun.ends().success(), "{}", begun.output());
        assert!(begun.output().contains("no tools are declared"), "{}", begun.output());
        assert!(list().status.success(), "what begins now gets through");
    }
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn the_workspace_says_how_it_is() {
    let mut world = Linked::new();
    let status = stub_status(&world.machine);
    assert_eq!((&status["workspace"], &status["reached"]["state"]), (&"box".into(), &"ready".into()), "{status}");
    assert_eq!(status["laptops"], Value::Array(vec![]));
    let up = Linked::up(&world.near, &world.laptop);
    let laptop = until("the laptop", || {
        let laptop = stub_status(&world.machine)["laptops"][0].clone();
        (laptop["state"] == "attached" && laptop["round_trip_ms"].is_number()).then_some(laptop)
    });
    assert_eq!((&laptop["path"], &laptop["device"]), (&"relay".into(), &"anna".into()), "{laptop}");
    let listed = world.coordinator.run(&["device", "list"]).ok();
    assert!(listed.contains(laptop["key"].as_str().expect("a key")), "{laptop} in {listed}");
    let text = in_workspace(&world.machine, &["status"]).ok();
    for words in ["ready for laptops since", "anna since", "through the coordinator"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let ready = || world.stub.lines().iter().filter(|line| line.contains("connected, ready for laptops")).count();
    assert_eq!(ready(), 1, "another connection that is parked is no news: {}", world.stub.output());

    world.coordinator.kill();
    let away = until("the stub to say that the coordinator is gone", || {
        let reached = stub_status(&world.machine)["reached"].clone();
        (reached["state"] == "away" && reached["failed"].as_u64() > Some(1)).then_some(reached)
    });
    assert!(away["why"].is_string() && away["since"].is_string() && away["next"].is_string(), "{away}");
    let text = in_workspace(&world.machine, &["status"]).ok();
    assert!(text.contains("not reached since"), "{text}");
    world.coordinator.start_again();
    until("the stub to be ready again", || (stub_status(&world.machine)["reached"]["state"] == "ready").then_some(()));
    // One line of the log for each time, however many attempts there were between.
    let said = |text: &str| world.stub.lines().iter().filter(|line| line.contains(text)).count();
    assert_eq!((said("the coordinator is not reached"), said("the coordinator is reached again")), (1, 1));
    until("the session to go on", || (up.resumed() == 1).then_some(()));

    world.stub.stop(nix::sys::signal::Signal::SIGTERM);
    let gone = in_workspace(&world.machine, &["status"]);
    assert_eq!(gone.status.code(), Some(3), "{}", gone.stderr);
}

#[test]
fn what_is_mended_is_not_told_any_more() {
    let redis = Redis::start();
    let world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    let target = free_port();
    let (port, _forward) = world.forward(format!("127.0.0.1:{target}"));
    let forward = || world.laptop.workspace_status()["forwards"][0].clone();
    assert!(forward()["error"].is_null(), "{}", forward());
    let refused = || drop(std::net::TcpStream::connect(("127.0.0.1", port)));
    until("the forward to say that nothing listens", || {
        refused();
        forward()["error"].as_str().filter(|error| error.contains("nothing listens")).map(drop)
    });
    // While the way is dead, that is what there is to say of each forward.
    world.near.black_hole();
    until("the forward to say that the way is dead", || {
        let forward = forward();
        let said = forward["error"].as_str().is_some_and(|error| error.contains("interrupted"));
        (said && forward["ready"] == false).then_some(())
    });
    world.near.heal();
    until("the forward to be ready", || (forward()["ready"] == true).then_some(()));
    let serve = command(
        "socat",
        [&format!("TCP-LISTEN:{target},bind=127.0.0.1,reuseaddr,fork"), &format!("TCP:127.0.0.1:{}", redis.port)],
    );
    let server = Running::start(serve);
    until("the target", || server.listens_on(target).then_some(()));
    let mut talk = Dialogue::redis(port);
    talk.echo();
    assert!(forward()["error"].is_null(), "{}", forward());
    // Coming and going are in the log without being asked for, once each.
    let said = |text: &str| up.program.lines().iter().filter(|line| line.contains(text)).count();
    let (gone, back) = (said("the connection is interrupted"), said("the session goes on"));
    assert!(gone == back && gone >= 1, "{gone} and {back}:\n{}", up.program.output());
    talk.ends_well();
}

/// The laptop reaches the coordinator, and nobody is there for it: that is what it waits for.
#[test]
fn who_waits_for_a_workspace_that_is_cut_off_is_told_so() {
    let world = Linked::new();
    let mut up = Linked::up(&world.near, &world.laptop);
    world.far.refuse();
    world.far.reset();
    let tunnel = || world.laptop.workspace_status()["tunnel"].clone();
    let told = until("what is waited for", || Some(tunnel()).filter(|tunnel| tunnel["doing"] == "waits_for_stub"));
    assert_eq!((&told["state"], &told["next"]), (&"resuming".into(), &Value::Null), "{told}");
    let text = until("`status` to say it", || {
        let text = world.laptop.run(&["status"]).ok();
        text.contains("it waits for the workspace's stub at the coordinator").then_some(text)
    });
    assert!(text.contains("interrupted since"), "{text}");
    world.far.heal();
    up.program.says("  goes on after ");
    let well = until("the session to go on", || Some(tunnel()).filter(|tunnel| tunnel["state"] == "up"));
    assert!(well["doing"].is_null(), "{well}");
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_code_that_is_not_needed_is_said_to_be_ignored() {
    let mut world = Linked::new();
    world.stub.stop(nix::sys::signal::Signal::SIGTERM);
    let again = world.machine.stub(Some("ABCD-EFGH"));
    let output = again.output();
    assert!(output.contains("is enrolled already") && output.contains("hint:"), "{output}");
}

#[test]
fn a_configuration_that_is_not_there_is_said_to_be_missing() {
    let laptop = Laptop::new();
    let text = laptop.run(&["config", "check"]).ok();
    assert!(text.contains("there is no configuration at") && !text.contains("in order"), "{text}");
    laptop.configure("version: 1\n");
    let text = laptop.run(&["config", "check"]).ok();
    let nothing = "is in order: 0 tools, 0 tokens, 0 values, 0 configuration files, 0 files or directories, 0 forwards";
    assert!(text.trim_end().ends_with(nothing), "{text}");
    laptop.configure(
        "version: 1\n\
         tools: {hi: {argv: [echo, hi]}}\n\
         tokens: {one: {env: ONE}, two: {env: TWO}}\n\
         config: {values: {tabs: 4, spaces: 2}, files: {mine: {path: /etc/hostname}}}\n\
         files: [{path: /etc/hostname}]\n\
         forwards: {local: [\"0:127.0.0.1:9\"], remote: [\"0:127.0.0.1:9\"], dynamic: [\"0\"]}\n",
    );
    let text = laptop.run(&["config", "check"]).ok();
    let all = "is in order: 1 tool, 2 tokens, 2 values, 1 configuration file, 1 file or directory, 3 forwards";
    assert!(text.trim_end().ends_with(all), "{text}");
    let json: serde_json::Value = serde_json::from_str(&laptop.run(&["--json", "config", "check"]).ok()).unwrap();
    assert_eq!((&json["values"][1], &json["config_files"][0]), (&"tabs".into(), &"mine".into()), "{json}");
    assert_eq!((&json["files"], &json["forwards"]), (&1.into(), &3.into()), "{json}");
    assert_eq!(laptop.run(&["config", "check", "/nonexistent.yaml"]).status.code(), Some(2));
}

#[test]
fn a_laptop_that_was_taken_down_is_gone_at_the_workspace() {
    let world = Linked::new();
    let laptops = || stub_status(&world.machine)["laptops"].as_array().map(Vec::len);
    for _ in 0..6 {
        let mut up = Linked::up(&world.near, &world.laptop);
        until("the laptop at the workspace", || (laptops() == Some(1)).then_some(()));
        assert!(up.program.stop(nix::sys::signal::Signal::SIGTERM).success(), "{}", up.program.output());
        // One that is expected back would stay for a day.
        until("nobody at the workspace", || (laptops() == Some(0)).then_some(()));
        let said = up.program.output();
        assert!(!said.contains("tunnel is down") && !said.contains("interrupted"), "{said}");
    }
}

#[test]
fn a_stub_that_was_ended_is_gone_at_the_laptop() {
    let mut world = Linked::new();
    let up = Linked::up(&world.near, &world.laptop);
    for round in 1..=6 {
        assert!(world.stub.stop(nix::sys::signal::Signal::SIGTERM).success(), "{}", world.stub.output());
        // One that is expected back would be waited for, with everything that is open.
        until("the laptop to know that its session is over", || {
            let state = world.laptop.workspace_status()["tunnel"]["state"].clone();
            (state == "connecting" || state == "waiting").then_some(())
        });
        world.stub = world.machine.stub(None);
        until("the next session", || (up.tunnels() == round + 1).then_some(()));
    }
    let said = up.program.output();
    assert!(!said.contains("interrupted"), "{said}");
}

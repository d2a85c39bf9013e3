//! A coordinator that is known by name: the name is not known yet, or not any more, or nobody answers for it.

use std::net::{Ipv4Addr, UdpSocket};

use serde_json::Value;

use crate::support::kernel::footprint;
use crate::support::transfers::Transfers;
use crate::support::*;

/// The name.
const NAME: &str = "coordinator.test";

/// Where it leads when it is known.
const KNOWN: &str = "127.0.0.1 coordinator.test";

/// Nobody is at this address, and a machine says so at once.
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 53);

/// A name server that says nothing is at this one.
const SILENT: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 54);

/// Bytes of one transfer.
const TRANSFER: usize = 64 << 20;

/// The longest wait, in milliseconds, while it is for a name that there is no way.
const LONGEST_WAIT: u64 = 2000;

/// A paired laptop that knows the coordinator by name, and that name.
#[track_caller]
fn world(server: Ipv4Addr) -> (Linked, Names, String) {
    let names = Names::served_by(server);
    names.say(KNOWN);
    let coordinator = Coordinator::start();
    let (near, far) = (Link::to(coordinator.port), Link::to(coordinator.port));
    let url = near.url().replace("127.0.0.1", NAME);
    assert!(url.contains(NAME), "{url}");
    let laptop = Laptop::at(&names.place());
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&Place::Here, &far.url());
    let stub = machine.stub(Some(&coordinator.add_workspace("box")));
    (Linked { laptop, stub, machine, near, far, coordinator }, names, url)
}

/// Waits until `status` says that the name cannot be looked up, since when, and when the next attempt is; gives that.
#[track_caller]
fn says_what_fails(laptop: &Laptop) -> Value {
    until("`status` to say what fails", || {
        let status = laptop.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).ok()?;
        let tunnel = status["workspaces"][0]["tunnel"].clone();
        let said =
            |key: &str| tunnel[key].as_str().is_some_and(|text| text.contains(NAME) && text.contains("looked up"));
        let since = tunnel["since"].is_string();
        let next = tunnel["next"].is_string() && tunnel["retry_ms"].as_u64().is_some_and(|wait| wait > 0);
        ((said("why") || said("last")) && since && next).then_some(tunnel)
    })
}

#[track_caller]
fn start(laptop: &Laptop, url: &str) -> Running {
    let command = laptop.command(&["up", "box", "--no-direct", "--coordinator", url]);
    Running::start(laptop.place().run(command))
}

#[test]
fn a_name_that_is_not_known_yet_is_waited_for() {
    let (world, names, url) = world(NOBODY);
    names.say("");
    let mut up = start(&world.laptop, &url);
    for _ in 0..10 {
        let tunnel = says_what_fails(&world.laptop);
        let wait = tunnel["retry_ms"].as_u64().expect("asked for above");
        assert!(wait <= LONGEST_WAIT, "it waits long for a name: {tunnel}");
    }
    let text = world.laptop.run(&["status"]).ok();
    assert!(text.contains("down since") && text.contains(NAME), "{text}");
    names.say(KNOWN);
    up.says("end-to-end verified");
    assert_eq!(world.laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
}

#[test]
fn transfers_go_on_where_a_name_led_when_it_is_not_known_any_more() {
    let (world, names, url) = world(NOBODY);
    let up = world.laptop.up(&["box", "--no-direct", "--coordinator", &url]);
    world.near.set_wire(Wire::new(200_000_000, std::time::Duration::from_millis(5)));
    let mut transfers = Transfers::start(&world, TRANSFER);
    let moves = |transfers: &mut Transfers, what: &str| {
        let goal = world.moved() + 4_000_000;
        transfers.go_on_until(what, || world.moved() >= goal);
    };
    moves(&mut transfers, "bytes before the name is lost");
    names.say("");
    for number in 1..=3 {
        world.near.reset();
        moves(&mut transfers, &format!("bytes after connection {number} without a name"));
    }
    // And a name that leads elsewhere, where nobody is, and then back.
    names.say("127.0.0.9 coordinator.test");
    world.near.reset();
    until("the laptop to say that nobody is there", || {
        let tunnel = world.laptop.workspace_status()["tunnel"].clone();
        (tunnel["state"] == "resuming" && tunnel["last"].is_string() && tunnel["next"].is_string()).then_some(())
    });
    names.say(KNOWN);
    moves(&mut transfers, "bytes after the name led back");
    transfers.finish();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn name_servers_that_say_nothing_hold_few_threads_and_nobody_up() {
    let _silent = UdpSocket::bind((SILENT, 53)).expect("root may listen there");
    let (world, names, url) = world(SILENT);
    names.say("");
    let mut up = start(&world.laptop, &url);
    let tunnel = says_what_fails(&world.laptop);
    println!("while nobody answers: {tunnel}");
    let threads = footprint(up.pid()).threads;
    for _ in 0..3 {
        says_what_fails(&world.laptop);
    }
    let now = footprint(up.pid()).threads;
    // Lookups that hang at a time, of which one did before.
    assert!(now <= threads + 4, "{threads} threads became {now}");
    names.say(KNOWN);
    up.says("end-to-end verified");
    assert!(up.stop(nix::sys::signal::Signal::SIGINT).success(), "a lookup that hangs holds no program back");
}

//! The network between: routers that forget, laptops that come while there is no way, and such that come to another network.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nexus_proxy::lifeline::core::LEAST_PATIENCE;
use nix::sys::signal::Signal;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::reliability::lasts;
use crate::support::told::Told;
use crate::support::transfers::RECOVERY;
use crate::support::wait::{judged, within};
use crate::support::*;

/// A recovery is looked at so often: the best tells what the programs can do, the others may tell what else the machine did.
const LOOKS: usize = 3;

/// A parked connection that was silent for as long is asked before it is given away, with room to spare (`FRESH` of the
/// coordinator); a stub has not noticed yet that it is dead (`PARKED_PING`).
const SILENT: Duration = Duration::from_secs(3);

/// A way that is dead without a word is found sooner than the usual heartbeat would (`PING`).
const FOUND: Duration = Duration::from_secs(12);

/// How long it takes at the most to see whether a break met a connection that was parked.
const SEEN: Duration = Duration::from_secs(3);

/// Breaks what the workspace has at the coordinator; returns when it has parked the next connection. A session that has just
/// taken the last one leaves none for a moment, and of a break in that moment there is nothing to say: then again.
#[track_caller]
fn parks_anew(world: &mut Linked) {
    let parked = within(PATIENCE, || {
        let heard = world.stub.heard();
        world.far.reset();
        let ready = || world.stub.lines().iter().skip(heard).any(|line| line.contains("ready for laptops"));
        within(SEEN, || ready().then_some(()))
    });
    assert!(parked.is_some(), "it does not park again: {}", world.stub.output());
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

/// How far ahead the next attempt has to be for a change to be told from its time.
fn far_ahead() -> Duration {
    lasts(6, 10)
}

/// Longest time for waits to grow so far.
const GROWTH: Duration = Duration::from_secs(90);

/// Waits until the next attempt is far ahead; gives when it is said to be.
#[track_caller]
fn waits_for_long(world: &World) -> OffsetDateTime {
    let next = || OffsetDateTime::parse(world.tunnel()["next"].as_str()?, &Rfc3339).ok();
    let long = || next().filter(|next| *next - OffsetDateTime::now_utc() > far_ahead());
    within(GROWTH, long).unwrap_or_else(|| panic!("waits do not grow: {}", world.tunnel()))
}

/// The laptop is without its coordinator until its waits have become long; then `change` happens, and the coordinator is
/// there: it is not the end of the wait that brings the session back.
#[track_caller]
fn a_long_wait_ends_with(what: &str, gone: impl Fn(&World), change: impl Fn(&World)) {
    let world = World::across(Hosts::new(), Way::Relay);
    let up = world.up();
    let mut early = Duration::ZERO;
    for _ in 0..2 {
        world.linked.near.refuse();
        world.linked.near.reset();
        gone(&world);
        let next = waits_for_long(&world);
        world.linked.near.heal();
        change(&world);
        until("the session to go on", || (world.tunnel()["state"] == "up").then_some(()));
        let left = next - OffsetDateTime::now_utc();
        println!("{what}: the session goes on {left:.1} before the time of the next attempt");
        early = early.max(left.try_into().unwrap_or_default());
        if early > far_ahead() / 3 {
            break;
        }
    }
    assert!(early > far_ahead() / 3, "it came back {early:?} before its time: it waited for it");
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_wire_that_is_plugged_in_ends_a_long_wait() {
    let plug = |up| {
        move |world: &World| {
            let hosts = world.hosts.as_ref().expect("there are three");
            hosts.set_link(&hosts.laptop, up);
        }
    };
    a_long_wait_ends_with("a wire was plugged in", plug(false), plug(true));
}

#[test]
fn another_network_ends_a_long_wait() {
    let address = std::cell::Cell::new(Hosts::LAPTOP);
    let moves = |world: &World| {
        let hosts = world.hosts.as_ref().expect("there are three");
        let [a, b, c, d] = address.get().octets();
        let next = Ipv4Addr::new(a, b, c, d + 50);
        hosts.readdress(&hosts.laptop, address.replace(next), next);
    };
    a_long_wait_ends_with("another address", |_| (), moves);
}

#[test]
fn another_network_with_the_same_address_ends_a_long_wait() {
    let interface = std::cell::Cell::new("eth0");
    let moves = |world: &World| {
        let hosts = world.hosts.as_ref().expect("there are three");
        let next = if interface.get() == "eth0" { "wlan0" } else { "eth0" };
        hosts.replug_laptop(interface.replace(next), next);
    };
    a_long_wait_ends_with("another network with the same address", |_| (), moves);
}

/// Some megabytes a second.
const TELLS: usize = 300_000;

/// Nothing that the laptop sends could tell it.
#[track_caller]
fn a_workspace_at_another_address_is_heard_again(way: &str, soon: Duration) {
    let world = World::across(Hosts::new(), Way::Relay);
    let hosts = world.hosts.as_ref().expect("there are three");
    let direct = way == "direct";
    hosts.let_through(direct);
    let up = world.linked.laptop.up(&["box", "--coordinator", &world.url()]);
    let told = Told::start(&world, TELLS);
    let mut address = Hosts::WORKSPACE;
    let took = [77, 78, 79].map(|last| {
        world.until_it_goes(way, direct);
        // A connection that was joined a moment ago is not asked.
        std::thread::sleep(JOINED);
        told.more(told.arrived());
        let next = Ipv4Addr::new(10, 77, 2, last);
        hosts.readdress(&hosts.workspace, address, next);
        address = next;
        // What was under way still arrives, and then nothing for a while.
        let mut heard = (told.arrived(), Instant::now());
        let silent = within(RECOVERY, || {
            let (before, silent) = (heard.0, heard.1.elapsed());
            if told.arrived() == before {
                return None;
            }
            heard = (told.arrived(), Instant::now());
            (silent > SILENCE).then_some(silent)
        });
        let silent = silent.unwrap_or_else(|| panic!("it goes on, or not at all: {}", up.program.output()));
        println!("at {next}; nothing was heard for {silent:?}");
        silent
    });
    told.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    let judged = judged(took);
    assert!(judged < soon, "{judged:?}");
}

const JOINED: Duration = Duration::from_secs(6);

/// What the workspace says comes more often than that, on a busy machine too, and nobody gives a way up sooner.
const SILENCE: Duration = Duration::from_millis(1500);

/// The workspace parks another connection, and then the coordinator asks the one that is in use, and waits for two seconds for an answer.
#[test]
fn a_workspace_that_changes_its_address_while_it_alone_speaks_is_heard_again_soon() {
    a_workspace_at_another_address_is_heard_again("relay", Duration::from_secs(6));
}

/// The laptop sees by the connection that stood by that the direct one may be dead, and waits for two seconds for an answer.
#[test]
fn a_workspace_that_changes_its_address_while_it_alone_speaks_directly_is_heard_again_soon() {
    a_workspace_at_another_address_is_heard_again("direct", Duration::from_secs(9));
}

#[test]
fn a_laptop_takes_the_direct_way_by_itself_and_takes_it_again_at_another_address() {
    let world = World::across(Hosts::new(), Way::Relay);
    let hosts = world.hosts.as_ref().expect("there are three");
    hosts.let_through(true);
    let redis = Redis::start_at(&hosts.workspace);
    let laptop = &world.linked.laptop;
    let up = laptop.up(&["box", "--coordinator", &world.url()]);
    let status = |tunnel: Value, way: &str| {
        let text = laptop.run(&["status"]).ok();
        println!("{}", text.lines().find(|line| line.contains("  tunnel ")).unwrap_or_default());
        assert!(tunnel["round_trip_ms"].is_number(), "{tunnel}");
        assert!(text.contains(way) && text.contains("ms there and back"), "{text}");
    };
    let (port, _forward) = laptop.forward_to(format!("127.0.0.1:{}", redis.port));
    let mut talk = Dialogue::with(hosts.laptop.run(Dialogue::socat(port)));
    talk.echo();
    let told = Told::start(&world, TELLS);
    status(world.until_it_goes("direct", true), "directly");

    let mut address = Hosts::LAPTOP;
    let took = [77, 78, 79].map(|last| {
        // A firewall, or the path through a VPN that ended: they do not reach each other any more.
        hosts.let_through(false);
        status(world.until_it_goes("relay", false), "through the coordinator");
        talk.echo_within(RECOVERY);
        let next = Ipv4Addr::new(10, 77, 1, last);
        hosts.readdress(&hosts.laptop, address, next);
        address = next;
        hosts.let_through(true);
        let began = Instant::now();
        talk.echo_within(RECOVERY);
        let took = began.elapsed();
        println!("at {next}; an answer {took:?} after that");
        status(world.until_it_goes("direct", true), "directly");
        talk.echo();
        // And from one address to another without anything between.
        let next = Ipv4Addr::new(10, 77, 1, last + 100);
        hosts.readdress(&hosts.laptop, address, next);
        address = next;
        hosts.let_through(true);
        talk.echo_within(RECOVERY);
        status(world.until_it_goes("direct", true), "directly");
        took
    });
    // Who waits for an answer on a busy way doubts it after that, and would then begin to dial.
    let judged = judged(took);
    assert!(judged < LEAST_PATIENCE, "{judged:?}");
    told.ends_well();
    talk.ends_well();
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

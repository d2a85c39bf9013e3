//! Where a program runs: on this host, on this host with names of its own, or on one of three hosts that are network
//! namespaces.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tempfile::TempDir;

use super::link::{Link, Wire};
use super::program::{Run, command, find, is_root, take_surroundings};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// This one.
    Here,
    /// A network namespace by this name.
    Namespace(String),
    /// This one, with `hosts` and `resolv.conf` of this directory in place of those in `/etc`.
    Named(PathBuf),
}

impl Place {
    /// `command`, to be run at this place. Its process id is that of the program itself.
    pub fn run(&self, command: Command) -> Command {
        match self {
            Place::Here => command,
            Place::Namespace(name) => {
                let mut inside = Command::new(find("ip"));
                inside.args(["netns", "exec", name]).arg(command.get_program()).args(command.get_args());
                take_surroundings(&mut inside, &command);
                inside
            }
            Place::Named(dir) => {
                let mut inside = Command::new(find("unshare"));
                let mount =
                    "for file in hosts resolv.conf; do mount --bind \"$0/$file\" \"/etc/$file\" || exit 9; done";
                inside.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{mount}; exec \"$@\"")]);
                inside.arg(dir).arg(command.get_program()).args(command.get_args());
                take_surroundings(&mut inside, &command);
                inside
            }
        }
    }

    /// A link there, to a port of the loopback there, for those who dial `host`.
    pub fn link(&self, host: Ipv4Addr, target: u16, wire: Wire) -> Link {
        let place = self.clone();
        Link::within(move || place.enter(), self.bind(), host, target, wire)
    }

    /// Takes the calling thread there, for good: the sockets that it makes are at this place.
    fn enter(&self) {
        if let Place::Namespace(name) = self {
            let namespace = std::fs::File::open(format!("/run/netns/{name}")).expect("the namespace is there");
            let moved = nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET);
            moved.expect("root may enter it");
        }
    }

    /// The address that servers for other hosts listen on: all of a namespace, only the loopback here.
    pub fn bind(&self) -> IpAddr {
        match self {
            Place::Here | Place::Named(_) => LOOPBACK,
            Place::Namespace(_) => Ipv4Addr::UNSPECIFIED.into(),
        }
    }
}

/// Names as some programs of this host look them up, and no others.
#[derive(Debug)]
pub struct Names {
    dir: TempDir,
}

impl Names {
    /// Only `localhost` is known, and name servers are asked at this address.
    #[track_caller]
    pub fn served_by(server: Ipv4Addr) -> Names {
        assert!(is_root(), "names of a program's own need root. hint: run scripts/test as root, or with sudo");
        let names = Names { dir: TempDir::new().expect("a temporary folder") };
        fs::write(names.dir.path().join("resolv.conf"), format!("nameserver {server}\n")).expect("a file of ours");
        names.say("");
        names
    }

    /// Where programs look names up so.
    pub fn place(&self) -> Place {
        Place::Named(self.dir.path().to_owned())
    }

    /// What is known from here on, as lines of a `hosts` file.
    pub fn say(&self, hosts: &str) {
        // In place: another file by the same name would not be the one that is mounted.
        fs::write(self.dir.path().join("hosts"), format!("127.0.0.1 localhost\n{hosts}\n")).expect("a file of ours");
    }
}

/// Three hosts, joined so that laptop and workspace reach the coordinator, and each other only when they are let through.
/// Deleted on drop.
///
/// ```text
/// laptop 10.77.1.2 ── 10.77.1.1 coordinator 10.77.2.1 ── 10.77.2.2 workspace
/// ```
#[derive(Debug)]
pub struct Hosts {
    /// Where the person sits.
    pub laptop: Place,
    /// Where both can dial.
    pub coordinator: Place,
    /// Where the agent works.
    pub workspace: Place,
    names: Vec<String>,
    through: AtomicBool,
}

impl Hosts {
    /// The coordinator's address as the laptop sees it.
    pub const COORDINATOR_FOR_LAPTOP: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
    /// The coordinator's address as the workspace sees it.
    pub const COORDINATOR_FOR_WORKSPACE: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);
    /// The laptop's address.
    pub const LAPTOP: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
    /// The workspace's address.
    pub const WORKSPACE: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);

    /// Makes them. Needs root, or the capability to administer networks.
    #[track_caller]
    pub fn new() -> Hosts {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(is_root(), "network namespaces need root. hint: run scripts/test as root, or with sudo");
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [l, c, w] = ["l", "c", "w"].map(|role| format!("nexus-{role}-{id}"));
        let mut hosts = Hosts {
            laptop: Place::Namespace(l.clone()),
            coordinator: Place::Namespace(c.clone()),
            workspace: Place::Namespace(w.clone()),
            names: Vec::new(),
            through: AtomicBool::new(false),
        };
        for name in [&l, &c, &w] {
            ip(["netns", "add", name]);
            hosts.names.push(name.clone());
            ip(["-n", name, "link", "set", "lo", "up"]);
        }
        join(&l, "eth0", Hosts::LAPTOP, &c, Hosts::COORDINATOR_FOR_LAPTOP, "laptop");
        join(&w, "eth0", Hosts::WORKSPACE, &c, Hosts::COORDINATOR_FOR_WORKSPACE, "workspace");
        hosts.forward(false);
        hosts
    }

    /// Has the coordinator's host pass on what laptop and workspace send each other, or drop it: they reach each other, or do not.
    #[track_caller]
    pub fn let_through(&self, through: bool) {
        self.through.store(through, Ordering::Relaxed);
        if through {
            [&self.laptop, &self.workspace].into_iter().for_each(|place| self.route(place));
        }
        self.forward(through);
    }

    #[track_caller]
    fn forward(&self, packets: bool) {
        let set = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(packets));
        Run::of(self.coordinator.run(command("sh", ["-c", &set]))).ok();
    }

    /// Tells `place` (laptop or workspace) how it reaches the other one.
    #[track_caller]
    fn route(&self, place: &Place) {
        let Place::Namespace(name) = place else { panic!("this host has its own routes") };
        let (other, by) = if *place == self.laptop {
            (Hosts::COORDINATOR_FOR_WORKSPACE, Hosts::COORDINATOR_FOR_LAPTOP)
        } else {
            (Hosts::COORDINATOR_FOR_LAPTOP, Hosts::COORDINATOR_FOR_WORKSPACE)
        };
        let network = Ipv4Addr::from(u32::from(other) & !0xff);
        ip(["-n", name, "route", "replace", &format!("{network}/24"), "via", &by.to_string()]);
    }

    /// Gives `place` (laptop or workspace) the address `to` instead of `from`, on the same wire: as another network would.
    #[track_caller]
    pub fn readdress(&self, place: &Place, from: Ipv4Addr, to: Ipv4Addr) {
        let Place::Namespace(name) = place else { panic!("this host keeps its address") };
        ip(["-n", name, "address", "del", &format!("{from}/24"), "dev", "eth0"]);
        ip(["-n", name, "address", "add", &format!("{to}/24"), "dev", "eth0"]);
        if self.through.load(Ordering::Relaxed) {
            // It went with the last address.
            self.route(place);
        }
    }

    /// The laptop leaves its network for another one, by an interface called `to` instead of `from`; it gets the same address there.
    #[track_caller]
    pub fn replug_laptop(&self, from: &str, to: &str) {
        let (Place::Namespace(laptop), Place::Namespace(hub)) = (&self.laptop, &self.coordinator) else {
            panic!("this host keeps its interfaces")
        };
        ip(["-n", laptop, "link", "del", from]);
        join(laptop, to, Hosts::LAPTOP, hub, Hosts::COORDINATOR_FOR_LAPTOP, "laptop");
    }

    /// Takes the wire between `place` (laptop or workspace) and the coordinator out, or puts it back in.
    #[track_caller]
    pub fn set_link(&self, place: &Place, up: bool) {
        let Place::Namespace(name) = place else { panic!("this host has no wire of its own") };
        ip(["-n", name, "link", "set", "eth0", if up { "up" } else { "down" }]);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // The wires go with their namespaces. During a panic a second one must not hide the first.
            let _ = command("ip", ["netns", "del", name]).status();
        }
    }
}

/// A wire from `interface` of `leaf` to `hub`, where its end is called `wire`.
#[track_caller]
fn join(leaf: &str, interface: &str, leaf_address: Ipv4Addr, hub: &str, hub_address: Ipv4Addr, wire: &str) {
    ip(["-n", leaf, "link", "add", interface, "type", "veth", "peer", "name", wire, "netns", hub]);
    for (host, interface, address) in [(leaf, interface, leaf_address), (hub, wire, hub_address)] {
        ip(["-n", host, "address", "add", &format!("{address}/24"), "dev", interface]);
        ip(["-n", host, "link", "set", interface, "up"]);
    }
}

#[track_caller]
fn ip<const N: usize>(args: [&str; N]) {
    Run::of(command("ip", args)).ok();
}

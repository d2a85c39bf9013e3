//! A laptop and a workspace that reach each other in one of the ways there are, over wires that a test disturbs.

use std::time::Duration;

use serde_json::Value;

use super::balancer::Balancer;
use super::coordinator::{Coordinator, Machine};
use super::laptop::{Laptop, Up};
use super::link::{Link, Wire};
use super::linked::Linked;
use super::place::{Hosts, Place};
use super::program::{HeldPort, free_port};

/// How a session goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the coordinator, over TLS on either side: `near` is the laptop's wire, `far` the workspace's.
    Relay,
    /// Straight to the workspace, over `direct`, on which there is no TLS; with the way through the coordinator behind it.
    Direct,
    /// Through a coordinator behind nginx, which ends TLS: `near` is before nginx, for laptop and workspace; `far` is
    /// behind it, and there is no TLS on it.
    Balanced,
}

/// A paired laptop, and a workspace `box` whose stub is ready. Programs end before the hosts that they run on.
#[derive(Debug)]
pub struct World {
    /// Which way.
    pub way: Way,
    /// Who is there, and the wires to the coordinator.
    pub linked: Linked,
    /// The wire from laptop to workspace, when that is the way.
    pub direct: Option<Link>,
    balancer: Option<(Balancer, HeldPort)>,
    /// The hosts, when there are three.
    pub hosts: Option<Hosts>,
}

impl World {
    /// On this host, over wires that nothing slows down.
    #[track_caller]
    pub fn by(way: Way) -> World {
        World::with(way, &[])
    }

    /// The same, with more options for `nexus-coordinator serve`.
    #[track_caller]
    pub fn with(way: Way, options: &[&str]) -> World {
        if way == Way::Balanced {
            return World::balanced(options);
        }
        let coordinator = Coordinator::start_at(&Place::Here, options);
        let (near, far) = (Link::to(coordinator.port), Link::to(coordinator.port));
        let laptop = Laptop::new();
        laptop.pair(&near.url(), &coordinator.invite(), "anna").ok();
        let mut machine = Machine::at(&Place::Here, &far.url());
        let direct = (way == Way::Direct).then(|| {
            let port = free_port();
            (format!("127.0.0.1:{port}"), Link::to(port).of_messages())
        });
        if let Some((listen, wire)) = &direct {
            machine = reachable(machine, listen, wire);
        }
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        let linked = Linked { laptop, stub, machine, near, far, coordinator };
        World { way, linked, direct: direct.map(|(_, wire)| wire), balancer: None, hosts: None }
    }

    /// On three hosts, by a way without a balancer. The wires to the coordinator end at its host, a direct one at the
    /// workspace's.
    #[track_caller]
    pub fn across(hosts: Hosts, way: Way) -> World {
        assert_ne!(way, Way::Balanced, "there is no host for a balancer");
        let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
        let link = |host| hosts.coordinator.link(host, coordinator.port, Wire::default());
        let (near, far) = (link(Hosts::COORDINATOR_FOR_LAPTOP), link(Hosts::COORDINATOR_FOR_WORKSPACE));
        let laptop = Laptop::at(&hosts.laptop);
        laptop.pair(&near.url(), &coordinator.invite(), "anna").ok();
        let mut machine = Machine::at(&hosts.workspace, &far.url());
        let direct = (way == Way::Direct).then(|| {
            hosts.let_through(true);
            let port = free_port();
            let wire = hosts.workspace.link(Hosts::WORKSPACE, port, Wire::default()).of_messages();
            (format!("127.0.0.1:{port}"), wire)
        });
        if let Some((listen, wire)) = &direct {
            machine = reachable(machine, listen, wire);
        }
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        let linked = Linked { laptop, stub, machine, near, far, coordinator };
        World { way, linked, direct: direct.map(|(_, wire)| wire), balancer: None, hosts: Some(hosts) }
    }

    #[track_caller]
    fn balanced(options: &[&str]) -> World {
        let plain = HeldPort::new();
        let far = Link::to(plain.number).of_messages();
        let balancer = Balancer::before(far.port);
        let near = Link::to(balancer.port);
        let (listen, public) = (format!("127.0.0.1:{}", plain.number), format!("https://localhost:{}", near.port));
        let own = ["--listen-plain", &listen, "--public-url", &public];
        let mut coordinator = Coordinator::start_at(&Place::Here, &[&own, options].concat());
        coordinator.program.says("without TLS");
        let (url, ca) = (balanced_url(&near), balancer.ca.to_str().expect("a path of ours"));
        let laptop = Laptop::new();
        laptop.run(&["pair", &url, &coordinator.invite(), "--name", "anna", "--ca-file", ca]).ok();
        let machine = Machine::at(&Place::Here, &url).env("NEXUS_CA_FILE", ca);
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        let linked = Linked { laptop, stub, machine, near, far, coordinator };
        World { way: Way::Balanced, linked, direct: None, balancer: Some((balancer, plain)), hosts: None }
    }

    /// Where the laptop dials the coordinator.
    pub fn url(&self) -> String {
        match self.way {
            Way::Balanced => balanced_url(&self.linked.near),
            Way::Relay | Way::Direct => self.linked.near.url(),
        }
    }

    /// `nexus-proxy up` of `laptop`, which may be a twin of ours; returns when the session goes this way.
    #[track_caller]
    pub fn up_of<'a>(&self, laptop: &'a Laptop) -> Up<'a> {
        self.up_with(laptop, &[])
    }

    /// The same, with more options for `up`.
    #[track_caller]
    pub fn up_with<'a>(&self, laptop: &'a Laptop, options: &[&str]) -> Up<'a> {
        let up = self.begin(laptop, options);
        self.settle_of(laptop);
        up
    }

    /// The same; returns when the tunnel is up, whichever way it goes by then.
    #[track_caller]
    pub fn begin<'a>(&self, laptop: &'a Laptop, options: &[&str]) -> Up<'a> {
        let url = self.url();
        let way: &[&str] = if self.direct.is_some() { &[] } else { &["--no-direct"] };
        laptop.up(&[&["box", "--coordinator", &url], way, options].concat())
    }

    /// Another laptop, called `name`, that the workspace admits. Ours has to be up.
    #[track_caller]
    pub fn another_laptop(&self, name: &str) -> Laptop {
        let another = Laptop::new();
        let (url, code) = (self.url(), self.linked.coordinator.invite());
        let mut words = vec!["pair", &url, &code, "--name", name];
        let ca = self.balancer.as_ref().map(|(balancer, _)| balancer.ca.to_string_lossy());
        words.extend(ca.iter().flat_map(|ca| ["--ca-file", ca]));
        let said = another.run(&words).ok();
        let pin = said.lines().find_map(|line| line.strip_prefix("this device's key: ")).expect("pair says the key");
        self.linked.laptop.run(&["device", "add", "box", pin]).ok();
        another
    }

    /// `nexus-proxy up` of our own laptop; returns when the session goes this way.
    #[track_caller]
    pub fn up(&self) -> Up<'_> {
        self.up_of(&self.linked.laptop)
    }

    /// The wires that the session's bytes take, in order from the laptop.
    pub fn wires(&self) -> Vec<&Link> {
        match &self.direct {
            Some(direct) => vec![direct],
            None => vec![&self.linked.near, &self.linked.far],
        }
    }

    /// All wires.
    pub fn all_wires(&self) -> Vec<&Link> {
        self.direct.iter().chain([&self.linked.near, &self.linked.far]).collect()
    }

    /// The wires that end at the laptop.
    pub fn laptops_wires(&self) -> Vec<&Link> {
        self.direct.iter().chain([&self.linked.near]).collect()
    }

    /// Makes the session's wires one long way: each has so many bit/s, and together a byte takes `delay` on them.
    pub fn stretch(&self, bandwidth: u64, delay: Duration) {
        let wires = self.wires();
        let wire = Wire::new(bandwidth, delay / wires.len() as u32);
        wires.iter().for_each(|link| link.set_wire(wire));
    }

    /// Waits until the session is back on its way, where it can be on another.
    #[track_caller]
    pub fn settle(&self) {
        self.settle_of(&self.linked.laptop);
    }

    /// The same of the session of `laptop`, which may be a twin of ours.
    #[track_caller]
    pub fn settle_of(&self, laptop: &Laptop) {
        if self.direct.is_some() {
            laptop.until_it_goes("direct", true);
        }
    }

    /// Bytes that went over the session's wires, whatever they were.
    pub fn moved(&self) -> u64 {
        self.wires().iter().map(|link| link.counts().up + link.counts().down).sum()
    }

    /// What `status` says of the tunnel.
    #[track_caller]
    pub fn tunnel(&self) -> Value {
        self.linked.laptop.workspace_status()["tunnel"].clone()
    }

    /// Waits until the session goes by `path`, with another one behind it or without.
    #[track_caller]
    pub fn until_it_goes(&self, path: &str, standby: bool) -> Value {
        self.linked.until_it_goes(path, standby)
    }

    /// Where the person sits.
    pub fn laptops_place(&self) -> Place {
        self.hosts.as_ref().map_or(Place::Here, |hosts| hosts.laptop.clone())
    }

    /// Where the agent works.
    pub fn workspace(&self) -> Place {
        self.hosts.as_ref().map_or(Place::Here, |hosts| hosts.workspace.clone())
    }
}

/// A machine whose stub listens for laptops at `listen`, and says that `wire` leads there.
fn reachable(machine: Machine, listen: &str, wire: &Link) -> Machine {
    machine.env("NEXUS_DIRECT_LISTEN", listen).env("NEXUS_DIRECT_ADVERTISE", &wire.address())
}

fn balanced_url(near: &Link) -> String {
    format!("https+balancer://localhost:{}", near.port)
}

/// Tests that tell one story, each on a way of its own: `on_ways! { story: fn one() on Relay; fn other() on Direct; }`.
macro_rules! on_ways {
    ($story:ident: $(fn $name:ident() on $way:ident;)+) => {
        $(
            #[test]
            fn $name() {
                $story($crate::support::Way::$way);
            }
        )+
    };
}
pub(crate) use on_ways;

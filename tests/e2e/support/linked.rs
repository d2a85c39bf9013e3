//! A laptop and a workspace that reach their coordinator over a simulated wire each, so that either can be disturbed.

use std::fmt::Display;
use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use super::coordinator::{Coordinator, Machine};
use super::laptop::{Laptop, Up};
use super::link::Link;
use super::place::Place;
use super::program::{Running, command, free_port};
use super::redis::Redis;

/// A paired laptop, and a workspace `box` whose stub is ready.
///
/// ```text
/// laptop ── near ── coordinator ── far ── workspace
/// ```
#[derive(Debug)]
pub struct Linked {
    /// Where the person sits.
    pub laptop: Laptop,
    /// The program in the workspace.
    pub stub: Running,
    /// The workspace's machine.
    pub machine: Machine,
    /// Between laptop and coordinator.
    pub near: Link,
    /// Between workspace and coordinator.
    pub far: Link,
    /// Where both dial.
    pub coordinator: Coordinator,
}

impl Linked {
    /// All of it, on this host, over wires that nothing slows down.
    #[track_caller]
    pub fn new() -> Linked {
        Linked::with(&[], |machine| machine)
    }

    /// The same, with more options of `nexus-coordinator serve`, and a workspace's machine as `set_up` makes it.
    #[track_caller]
    pub fn with(options: &[&str], set_up: impl FnOnce(Machine) -> Machine) -> Linked {
        let coordinator = Coordinator::start_at(&Place::Here, options);
        let (near, far) = (Link::to(coordinator.port), Link::to(coordinator.port));
        let laptop = Laptop::new();
        laptop.pair(&near.url(), &coordinator.invite(), "anna").ok();
        let machine = set_up(Machine::at(&Place::Here, &far.url()));
        let stub = machine.stub(Some(&coordinator.add_workspace("box")));
        Linked { laptop, stub, machine, near, far, coordinator }
    }

    /// A workspace that the laptop reaches directly too, on a port that is always the same and over a wire of its own: that
    /// wire, and the port.
    #[track_caller]
    pub fn with_direct_way() -> (Linked, Link, u16) {
        let port = free_port();
        let way = Link::to(port);
        let linked = Linked::with(&[], |machine| {
            machine
                .env("NEXUS_DIRECT_LISTEN", &format!("127.0.0.1:{port}"))
                .env("NEXUS_DIRECT_ADVERTISE", way.url().trim_start_matches("https://"))
        });
        (linked, way, port)
    }

    /// A conversation with a Redis in the workspace, through a forward of a command's own that goes with it.
    #[track_caller]
    pub fn talk(&self, redis: &Redis) -> Talk {
        let (port, forward) = self.forward(format!("127.0.0.1:{}", redis.port));
        let mut talk = Dialogue::redis(port);
        talk.echo();
        Talk { talk, port, forward }
    }

    /// Waits until the session goes this way, with the other one ready or not.
    #[track_caller]
    pub fn until_it_goes(&self, path: &str, standby: bool) -> serde_json::Value {
        self.laptop.until_it_goes(path, standby)
    }

    /// `nexus-proxy up`, by way of the coordinator only, of `laptop`, which may be a twin of ours; returns when the tunnel is up. Borrows no more than the laptop.
    #[track_caller]
    pub fn up<'a>(near: &Link, laptop: &'a Laptop) -> Up<'a> {
        laptop.up(&["box", "--no-direct", "--coordinator", &near.url()])
    }

    /// A forward from a free port of the laptop to `target` in the workspace; it lasts as long as what is returned.
    #[track_caller]
    pub fn forward(&self, target: impl Display) -> (u16, Running) {
        self.laptop.forward_to(target)
    }

    /// Bytes that have arrived at the laptop or left it, whatever they were.
    pub fn moved(&self) -> u64 {
        let counts = self.near.counts();
        counts.up + counts.down
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (stub, coordinator) = (self.stub.output(), self.coordinator.program.output());
            eprintln!("the stub said:\n{stub}\nthe coordinator said:\n{coordinator}");
            eprintln!("the near wire: {:?}; the far one: {:?}", self.near.counts(), self.far.counts());
        }
    }
}

/// A conversation that is open, the port that it came through, and what keeps that open.
#[derive(Debug)]
pub struct Talk {
    /// The conversation.
    pub talk: Dialogue,
    /// The laptop's port.
    pub port: u16,
    /// Its forward.
    pub forward: Running,
}

/// A program that is talked to line by line, for as long as it takes: its connection is one and the same.
#[derive(Debug)]
pub struct Dialogue {
    /// The program.
    pub program: Running,
    input: ChildStdin,
    asked: usize,
}

impl Dialogue {
    /// Starts `command`.
    #[track_caller]
    pub fn with(command: Command) -> Dialogue {
        let (program, input) = Running::start_with(command, Stdio::piped());
        Dialogue { program, input: input.expect("piped"), asked: 0 }
    }

    /// A connection to a Redis on `port` of the loopback, held by `socat`, which never makes a second one.
    #[track_caller]
    pub fn redis(port: u16) -> Dialogue {
        Dialogue::with(Dialogue::socat(port))
    }

    /// A `socat` between its own input and output and `port` of the loopback; it ends when the other side does.
    #[track_caller]
    pub fn socat(port: u16) -> Command {
        command("socat", ["-t", "5", "STDIO", &format!("TCP:127.0.0.1:{port}")])
    }

    /// Says a line.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let outcome = self.input.write_all(format!("{line}\n").as_bytes());
        outcome.unwrap_or_else(|e| panic!("it does not listen any more ({e}):\n{}", self.program.output()));
    }

    /// Says what `line` makes of a word that was not there yet, and waits until a line with that word comes back.
    #[track_caller]
    pub fn ask(&mut self, time: Duration, line: impl Fn(&str) -> String) -> String {
        self.asked += 1;
        let word = format!("word{}end", self.asked);
        let heard = self.program.heard();
        self.say(&line(&word));
        self.program.says_after(heard, time, &word)
    }

    /// Asks the Redis at the other end to say something back.
    #[track_caller]
    pub fn echo(&mut self) {
        self.echo_within(super::PATIENCE);
    }

    /// As [`echo`](Self::echo); it may take longer.
    #[track_caller]
    pub fn echo_within(&mut self, time: Duration) {
        self.ask(time, |word| format!("ECHO {word}"));
    }

    /// Ends its input, and waits for it to end in good order.
    #[track_caller]
    pub fn ends_well(self) {
        let Dialogue { mut program, input, .. } = self;
        drop(input);
        assert!(program.ends().success(), "{}", program.output());
    }
}

/// A process that is stopped for as long as this is: as a laptop that sleeps, or a machine that thrashes.
#[derive(Debug)]
pub struct Frozen(nix::unistd::Pid);

impl Frozen {
    /// Stops process `pid`, which goes on when this is dropped.
    #[track_caller]
    pub fn new(pid: u32) -> Frozen {
        let id = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a process id"));
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGSTOP).expect("the process runs, and is ours");
        super::until("the process to stand still", || super::kernel::is_stopped(pid).then_some(()));
        Frozen(id)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGCONT);
    }
}

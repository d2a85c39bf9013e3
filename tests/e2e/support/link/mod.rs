//! A simulated wire: a TCP relay on the loopback that programs are pointed at instead of their target. It has a delay, a
//! bandwidth and a bounded queue, and it fails on demand, in the ways that networks do.
//!
//! ```text
//! program ──▶ 127.0.0.1:port ▷ queue ▷ bandwidth ▷ delay ▷ target          Up
//!         ◀── ............. ◁ delay ◁ bandwidth ◁ queue ◁ target          Down
//! ```
//!
//! All connections share each direction's bandwidth, first come first served. It ends TCP on either side: there is no
//! slow start and no loss on it, and a sender learns of a full queue as it does of a slow reader. Everything runs on one
//! thread of its own, and ends when the [`Link`] is dropped. Knows nothing of what it carries, unless it is asked to
//! find the messages of a WebSocket in it.

mod frames;
mod relay;
mod wire;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use relay::{Settings, Shared};
pub use wire::Wire;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the program that dialled the link to the target.
    Up,
    /// From the target to that program.
    Down,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];
}

/// What becomes of bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// They arrive.
    Open,
    /// They are held, and arrive when this is over: packets are lost, and TCP sends them again.
    Held,
    /// They and the ends of connections vanish although the sender's kernel saw them acknowledged. As a TCP stream
    /// has no gaps, a connection that lost something this way stays silent in that direction for good.
    Lost,
}

/// What happens to bytes on their way, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// The connection ends.
    Cut,
    /// They are delivered twice: what was read at a time, or a whole message.
    Double,
    /// The last half of them is missing, and what comes after follows: of what was read at a time, or of a message, which
    /// then says that it is as short as that.
    Shorten,
    /// The last bit of them is another one.
    Alter,
}

/// What one connection said, from its beginning on, in either direction.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    number: u64,
    /// To the target.
    pub up: Vec<u8>,
    /// From it.
    pub down: Vec<u8>,
}

/// What went over a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Connections open now.
    pub open: usize,
    /// Bytes delivered to the target.
    pub up: u64,
    /// Bytes delivered from it.
    pub down: u64,
    /// Of both, those that came after others of later connections had passed them.
    pub late: u64,
}

/// How long the link's own thread may take to do what it is told. Only a fault of the link takes longer.
const OBEDIENCE: Duration = Duration::from_secs(30);

/// A link. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Link {
    /// The address at which it is dialled.
    pub host: Ipv4Addr,
    /// Its port there, the same for its life.
    pub port: u16,
    shared: Arc<Shared>,
    listening: watch::Receiver<bool>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// A link to `target`, a port of the loopback, that nothing slows down yet.
    pub fn to(target: u16) -> Link {
        Link::with(target, Wire::default())
    }

    /// A link to `target`, a port of the loopback, over a wire.
    pub fn with(target: u16, wire: Wire) -> Link {
        Link::within(|| (), Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST, target, wire)
    }

    /// A link where `enter` takes its thread, a network namespace; it listens on `bind` there, for those who dial `host`, and
    /// leads to a port of the loopback there.
    pub fn within(
        enter: impl FnOnce() + Send + 'static,
        bind: IpAddr,
        host: Ipv4Addr,
        target: u16,
        wire: Wire,
    ) -> Link {
        let shared = Arc::new(Shared::new(wire));
        let (listens, listening) = watch::channel(false);
        let stop = CancellationToken::new();
        let (relayed, stopped) = (shared.clone(), stop.clone());
        let (opened, port) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("link".into()).spawn(move || {
            enter();
            let port = relay::Port::reserve(bind).expect("the kernel has a free port");
            let _ = opened.send(port.number());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(relay::run(port, target, relayed, listens, stopped));
        });
        let thread = thread.expect("a thread");
        let port = port.recv_timeout(OBEDIENCE).expect("the link opens a port");
        let link = Link { host, port, shared, listening, stop, thread: Some(thread) };
        link.obeyed("to listen", || *link.listening.borrow());
        link
    }

    /// From here on doubles and shortens whole messages of the WebSockets that it carries, in the connections that are
    /// yet to come: for a wire on which there is no TLS.
    pub fn of_messages(self) -> Link {
        self.change(|settings| settings.messages = true);
        self
    }

    /// The address of a coordinator at its other end.
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// Where it is dialled.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Takes another wire, for what is sent from now on.
    pub fn set_wire(&self, wire: Wire) {
        self.change(|settings| settings.wire = wire);
    }

    /// Holds everything back, as a network that is out for a while: nothing is lost. New connections wait too.
    pub fn hold(&self) {
        self.flow(&Direction::BOTH, Flow::Held);
    }

    /// Loses everything in both directions from now on: connections stay open and say nothing. New ones reach nobody
    /// until this is over; then they do, as the packet that begins one is sent again and again.
    pub fn black_hole(&self) {
        self.flow(&Direction::BOTH, Flow::Lost);
    }

    /// Loses everything in one direction.
    pub fn half_open(&self, lost: Direction) {
        self.flow(&[lost], Flow::Lost);
    }

    /// Breaks every connection at once, with a TCP reset on both sides; returns when they are gone. New ones are taken.
    pub fn reset(&self) {
        let mut now = 0;
        self.change(|settings| {
            settings.epoch += 1;
            now = settings.epoch;
        });
        self.obeyed("to break its connections", || self.shared.open_before(now) == 0);
    }

    /// Delivers exactly `bytes` more in one direction, over all its connections; then ends the connection that carried
    /// the last one, wherever in a message that is. What comes after goes on as before.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.harm_after(direction, bytes, Harm::Cut);
    }

    /// Does `harm` to what is under way when `bytes` more have been delivered in one direction, over all its connections.
    pub fn harm_after(&self, direction: Direction, bytes: u64, harm: Harm) {
        self.shared.harm_after(direction, bytes, harm);
    }

    /// Whether a harm that was asked for is still to come.
    pub fn harm_is_due(&self) -> bool {
        self.shared.harm_is_due()
    }

    /// Holds the connections that are there, as [`hold`](Self::hold) does, until it is healed. New ones pass: they overtake.
    pub fn hold_present(&self) {
        let present = self.counts().accepted;
        self.change(|settings| settings.overtaken = present);
    }

    /// Lets the connections that are there say nothing more, in either direction and for good, without a word to either
    /// end: as a router that forgets what it knew. New ones pass.
    pub fn forget_present(&self) {
        let present = self.counts().accepted;
        self.change(|settings| settings.forgotten = present);
    }

    /// The same of those connections only that were dialled from these ports, one at least.
    #[track_caller]
    pub fn forget_those_from(&self, ports: &[u16]) {
        assert!(!ports.is_empty(), "nobody is there to be forgotten");
        self.shared.forget_ports(ports);
    }

    /// Records from now on what connections say.
    pub fn record(&self) {
        self.change(|settings| settings.records = true);
    }

    /// What was recorded, oldest connection first.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.shared.recorded()
    }

    /// Answers the next connection with these bytes, in the target's place, which is not dialled.
    pub fn answer_next(&self, bytes: Vec<u8>) {
        self.shared.answer_next(bytes.into());
    }

    /// Refuses new connections, as a port on which nobody listens; those that are there go on.
    pub fn refuse(&self) {
        self.change(|settings| settings.accepts = false);
        self.obeyed("to refuse", || !*self.listening.borrow());
    }

    /// Works again, whatever it was told. Connections that lost something stay silent.
    pub fn heal(&self) {
        self.shared.forget_harms();
        self.change(|settings| {
            settings.flow = [Flow::Open; 2];
            settings.accepts = true;
            settings.overtaken = 0;
        });
        self.obeyed("to listen", || *self.listening.borrow());
    }

    /// What went over it.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    fn flow(&self, directions: &[Direction], flow: Flow) {
        self.change(|settings| directions.iter().for_each(|direction| settings.flow[*direction as usize] = flow));
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.shared.settings.send_modify(change);
    }

    fn obeyed(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + OBEDIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "the link at {} was told {what}, and did not", self.port);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // What it panicked with is in its output; a second panic would hide the test's own.
            let _ = thread.join();
        }
    }
}

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
//! thread of its own, and ends when the [`Link`] is dropped. Knows nothing of what it carries.

mod relay;
mod wire;

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
}

/// How long the link's own thread may take to do what it is told. Only a fault of the link takes longer.
const OBEDIENCE: Duration = Duration::from_secs(30);

/// A link. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Link {
    /// Its port on 127.0.0.1, the same for its life.
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
        let held = relay::Port::reserve().expect("the kernel has a free port");
        let port = held.number();
        let shared = Arc::new(Shared::new(wire));
        let (listens, listening) = watch::channel(false);
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let run = relay::run(held, target, shared.clone(), listens, stop.clone());
        let thread = std::thread::Builder::new().name(format!("link {port}"));
        let thread = thread.spawn(move || runtime.block_on(run)).expect("a thread");
        let link = Link { port, shared, listening, stop, thread: Some(thread) };
        link.obeyed("to listen", || *link.listening.borrow());
        link
    }

    /// The address of a coordinator at its other end.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
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
        self.shared.cut_after(direction, bytes);
    }

    /// Whether a cut that was asked for is still to come.
    pub fn cut_is_due(&self) -> bool {
        self.shared.cut_is_due()
    }

    /// Refuses new connections, as a port on which nobody listens; those that are there go on.
    pub fn refuse(&self) {
        self.change(|settings| settings.accepts = false);
        self.obeyed("to refuse", || !*self.listening.borrow());
    }

    /// Works again, whatever it was told. Connections that lost something stay silent.
    pub fn heal(&self) {
        self.shared.forget_cuts();
        self.change(|settings| {
            settings.flow = [Flow::Open; 2];
            settings.accepts = true;
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

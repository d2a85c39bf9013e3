//! Bulk transfers both ways at once, by programs that others wrote, over and over until it is enough. Each is one TCP
//! connection from its first byte to its last: none of these programs tries a second time. Only one of which nothing has reached
//! the other end is begun anew: while a session is interrupted it refuses new connections.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::laptop::Laptop;
use super::linked::Linked;
use super::program::{Run, Running, command, free_port, listens};
use super::wait::within;
use super::{Nginx, curl};

/// How long everything may stand still after something went wrong before it is taken for stuck: more than the
/// longest silence that any of the programs waits out. No judgement of how fast they are.
pub const RECOVERY: Duration = Duration::from_secs(120);

/// How long one transfer may take. Only what stands still takes longer.
const MOST: Duration = Duration::from_secs(600);

/// How long one waits that was refused.
const REFUSED: Duration = Duration::from_millis(200);

/// How much longer transfers go on.
#[derive(Debug, Default)]
struct Until {
    until: AtomicU8,
    /// Transfers that were refused before anything of them had reached the other end.
    refused: AtomicUsize,
}

impl Until {
    /// After the ones that are under way there are no more.
    const ENOUGH: u8 = 1;
    /// Those are given up, too.
    const GIVEN_UP: u8 = 2;

    fn set(&self, until: u8) {
        self.until.fetch_max(until, Relaxed);
    }

    fn is(&self, until: u8) -> bool {
        self.until.load(Relaxed) >= until
    }

    /// Waits for the end of a program.
    fn ends(&self, program: &mut Running) -> Option<ExitStatus> {
        let ended = within(MOST, || {
            let ended = program.has_ended();
            (ended.is_some() || self.is(Until::GIVEN_UP)).then_some(ended)
        });
        ended.flatten()
    }

    /// Runs what `attempt` starts to its end, which must be a good one; again while `has_begun` denies that anything of a bad one
    /// has reached the other end.
    #[track_caller]
    fn completes<T>(&self, mut attempt: impl FnMut() -> (Running, T), has_begun: impl Fn(&mut T) -> bool) -> T {
        let since = Instant::now();
        loop {
            let (mut program, mut rest) = attempt();
            let status = self.ends(&mut program);
            let is_refused = status.is_some_and(|status| !status.success()) && !has_begun(&mut rest);
            if is_refused && since.elapsed() < RECOVERY && !self.is(Until::GIVEN_UP) {
                self.refused.fetch_add(1, Relaxed);
                println!("a new connection was refused, and is tried again");
                std::thread::sleep(REFUSED);
                continue;
            }
            program.ended_well(status);
            return rest;
        }
    }
}

/// Transfers under way. Given up and gone when this is dropped.
#[derive(Debug)]
pub struct Transfers {
    ways: Vec<JoinHandle<()>>,
    done: Arc<[AtomicUsize; 2]>,
    until: Arc<Until>,
    _nginx: Arc<Nginx>,
    _forwards: Vec<Running>,
}

impl Transfers {
    /// Downloads `bytes` with `curl` from nginx, and uploads as many with `socat` to another, both in the workspace
    /// and through a forward to it; compares what arrived with what was sent.
    #[track_caller]
    pub fn start(world: &Linked, bytes: usize) -> Transfers {
        Transfers::of(&world.laptop, bytes)
    }

    /// The same, through the `up` of `laptop`.
    #[track_caller]
    pub fn of(laptop: &Laptop, bytes: usize) -> Transfers {
        let nginx = Nginx::start();
        fs::write(nginx.root.join("original"), rand::random_iter::<u8>().take(bytes).collect::<Vec<_>>())
            .expect("a file of ours");
        let sink = free_port();
        let (down, down_forward) = laptop.forward_to(nginx.addr);
        let (up, up_forward) = laptop.forward_to(format!("127.0.0.1:{sink}"));
        let original = nginx.root.join("original");
        let nginx = Arc::new(nginx);
        let server = nginx.clone();
        let expected = digest(&original);
        let (done, until): (Arc<[AtomicUsize; 2]>, Arc<Until>) = Default::default();
        let again = |way: usize, one: Box<dyn Fn(&Until) -> String + Send>| {
            let (done, until, expected) = (done.clone(), until.clone(), expected.clone());
            std::thread::spawn(move || {
                while !until.is(Until::ENOUGH) {
                    assert_eq!(one(&until), expected, "what arrived is not what was sent");
                    done[way].fetch_add(1, Relaxed);
                }
            })
        };
        let ways = vec![
            again(0, Box::new(move |until| download(down, &server, until))),
            again(1, Box::new(move |until| upload(&original, up, sink, until))),
        ];
        Transfers { ways, done, until, _nginx: nginx, _forwards: vec![down_forward, up_forward] }
    }

    /// Waits until `condition` holds, and fails at once when a transfer has.
    #[track_caller]
    pub fn go_on_until(&mut self, what: &str, condition: impl Fn() -> bool) {
        let held = within(RECOVERY, || {
            if let Some(failed) = self.ways.iter().position(JoinHandle::is_finished) {
                panic!("before {what} {}", broke(self.ways.swap_remove(failed)).unwrap_or_default());
            }
            condition().then_some(())
        });
        assert!(held.is_some(), "transfers stand still: waited {RECOVERY:?} in vain for {what}");
    }

    /// As [`finish`](Self::finish), where no session may have been interrupted for so long that a new connection was refused.
    #[track_caller]
    pub fn finish_unrefused(self) -> [usize; 2] {
        self.finish_refusing(0)
    }

    /// As [`finish`](Self::finish), where no more new connections than so many may have been refused.
    #[track_caller]
    pub fn finish_refusing(self, at_most: usize) -> [usize; 2] {
        let until = self.until.clone();
        let done = self.finish();
        let refused = until.refused.load(Relaxed);
        assert!(refused <= at_most, "{refused} new connections were refused");
        done
    }

    /// Ends them after the ones that are under way, which must be correct; gives how many there were down and up.
    #[track_caller]
    pub fn finish(mut self) -> [usize; 2] {
        self.until.set(Until::ENOUGH);
        let broken: Vec<String> = self.ways.drain(..).filter_map(broke).collect();
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        let done = [self.done[0].load(Relaxed), self.done[1].load(Relaxed)];
        println!("{} downloads and {} uploads, all correct", done[0], done[1]);
        done
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.until.set(Until::GIVEN_UP);
        for way in self.ways.drain(..) {
            let _ = way.join();
        }
    }
}

/// Waits for the end of a way; says how a transfer broke, when one did.
fn broke(way: JoinHandle<()>) -> Option<String> {
    let panic = way.join().err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default();
    Some(format!("a transfer broke: {text}"))
}

fn download(port: u16, nginx: &Nginx, until: &Until) -> String {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("down");
    let url = format!("http://127.0.0.1:{port}/original");
    let attempt = || {
        let accepted = nginx.accepted();
        let curl = curl(&["--max-time", &MOST.as_secs().to_string(), "-o", &file.to_string_lossy(), &url]);
        (Running::start(curl), accepted)
    };
    until.completes(attempt, |before| nginx.accepted() > *before);
    digest(&file)
}

fn upload(original: &Path, port: u16, sink: u16, until: &Until) -> String {
    let folder = TempDir::new().expect("a temporary folder");
    let file: PathBuf = folder.path().join("up");
    let listen = format!("TCP-LISTEN:{sink},bind=127.0.0.1,reuseaddr");
    let from = format!("OPEN:{},rdonly", original.display());
    let attempt = || {
        let server = Running::start(command("socat", ["-u", &listen, &format!("CREATE:{}", file.display())]));
        super::until("socat to listen", || listens(server.pid(), sink).then_some(()));
        (Running::start(command("socat", ["-u", &from, &format!("TCP:127.0.0.1:{port}")])), server)
    };
    // It takes one connection, and then listens no more.
    let mut server = until.completes(attempt, |server| !listens(server.pid(), sink));
    let status = until.ends(&mut server);
    server.ended_well(status);
    digest(&file)
}

/// The SHA-256 of a file.
#[track_caller]
pub fn digest(file: &Path) -> String {
    let digest = Run::of(command("sha256sum", [file])).ok();
    digest.split(' ').next().unwrap_or_default().to_owned()
}

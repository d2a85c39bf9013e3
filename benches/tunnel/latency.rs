//! How long a call of the workspace takes, on an idle tunnel and while bulk transfers fill it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nexus_proxy::service::call::client::call;
use nexus_proxy::session::framed::FramedStream;
use nexus_proxy::wire::{Open, StreamRequest};
use serde_json::Value;
use tokio::net::UnixStream;

use super::report::{Report, figure, median, percentile};
use super::rig::{Programs, Tunnel, Way};
use super::target::{self, Direction, saturate};

/// Calls before the first measurement.
const WARM_UP: usize = 200;

/// An idle tunnel and a saturated one are measured in turn, so often: what else the machine has to do changes within
/// seconds, and the median of pairs leaves it out.
const ROUNDS: usize = 7;

/// How long one measurement of a round goes on.
const ROUND: Duration = Duration::from_secs(3);

/// How long a loaded measurement goes on that is made once: long enough for the kernel's buffers to have grown as far as
/// they do.
pub const LOADED_TIME: Duration = Duration::from_secs(20);

/// How long a transfer takes to find out what its path holds; only then is the path saturated, and no more than that.
const SATURATED_AFTER: Duration = Duration::from_secs(2);

/// Calls after which a measurement looks at the clock.
const BATCH: usize = 50;

/// Between calls that come apart, which is how an agent makes most of them: long enough for the tunnel to give bulk all of its
/// room again.
const APART: Duration = Duration::from_millis(50);

/// How calls come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// Each at once after the answer to the one before.
    InARow,
    /// Each a while after that.
    Apart,
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Pattern::InARow => "in a row",
            Pattern::Apart => "50 ms apart",
        }
    }

    /// Seconds that some calls take.
    fn calls(self, socket: &Path) -> Result<Vec<f64>> {
        match self {
            Pattern::InARow => calls(socket, BATCH),
            Pattern::Apart => {
                std::thread::sleep(APART);
                calls(socket, 1)
            }
        }
    }
}

/// Idle and under load each way, in turn.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    let what = "`tool.list` from the workspace to the laptop and back; each call on a new connection.";
    report.title("latency", &format!("{what} Medians of {ROUNDS} rounds; times idle: of the p99 in the same round."));
    let target = target::serve()?;
    for (name, way) in [("", Way::Relay), (" directly", Way::Direct)] {
        let mut tunnel = Tunnel::start(programs, way)?;
        let port = tunnel.forward(target)?;
        let socket = tunnel.stub_socket();
        calls(&socket, WARM_UP)?;
        for pattern in [Pattern::InARow, Pattern::Apart] {
            let (mut idle, mut up, mut down) = (Rounds::default(), Rounds::default(), Rounds::default());
            for _ in 0..ROUNDS {
                let alone = idle.took(&repeated(ROUND, || pattern.calls(&socket))?, None);
                for (rounds, direction) in [(&mut up, Direction::Up), (&mut down, Direction::Down)] {
                    let took = loaded(port, direction, ROUND, || pattern.calls(&socket))?;
                    rounds.took(&took, Some(alone));
                }
            }
            let how = pattern.name();
            idle.show(report, &format!("tool.list{name}, {how}, idle tunnel"));
            for (rounds, what) in [(up, "up"), (down, "down")] {
                rounds.show(report, &format!("tool.list{name}, {how}, one stream saturates it {what}"));
                // Where calls come apart the processors are what they wait for: another tunnel's wait as long, below.
                if pattern == Pattern::InARow {
                    report.aim(
                        "latency",
                        "p99 at most twice that of an idle tunnel",
                        median(&rounds.times_idle) <= 2.0,
                    );
                }
            }
        }
    }
    beside(programs, report, target)
}

/// What several measurements of one thing gave.
#[derive(Default)]
struct Rounds {
    p50: Vec<f64>,
    p99: Vec<f64>,
    times_idle: Vec<f64>,
}

impl Rounds {
    /// Takes seconds of calls, and the p99 of an idle tunnel just before; returns the p99.
    fn took(&mut self, seconds: &[f64], idle: Option<f64>) -> f64 {
        let p99 = percentile(seconds, 99.0);
        self.p50.push(percentile(seconds, 50.0));
        self.p99.push(p99);
        self.times_idle.extend(idle.map(|idle| p99 / idle));
        p99
    }

    fn show(&self, report: &Report, what: &str) {
        let mut figures =
            vec![figure("µs p50", median(&self.p50) * 1e6, 0), figure("µs p99", median(&self.p99) * 1e6, 0)];
        if !self.times_idle.is_empty() {
            figures.push(figure("times idle", median(&self.times_idle), 2));
        }
        report.row("latency", what, &figures);
    }
}

/// The same of a second tunnel that has nothing else to do, while the first one is saturated: what of the time is for
/// the processors that both share, and not for the bytes in front.
fn beside(programs: &Programs, report: &Report, target: u16) -> Result<()> {
    let mut saturated = Tunnel::start(programs, Way::Relay)?;
    let aside = Tunnel::start(programs, Way::Relay)?;
    let (port, socket) = (saturated.forward(target)?, aside.stub_socket());
    calls(&socket, WARM_UP)?;
    for pattern in [Pattern::InARow, Pattern::Apart] {
        for (what, direction) in [("up", Direction::Up), ("down", Direction::Down)] {
            let took = loaded(port, direction, LOADED_TIME, || pattern.calls(&socket))?;
            let how = pattern.name();
            show(
                report,
                &format!("tool.list of another tunnel, {how}, one stream saturates its neighbour {what}"),
                &took,
            );
        }
    }
    Ok(())
}

/// Prints the percentiles of seconds.
pub fn show(report: &Report, what: &str, seconds: &[f64]) {
    let at = |percent| percentile(seconds, percent) * 1e6;
    report.row("latency", what, &[figure("µs p50", at(50.0), 0), figure("µs p99", at(99.0), 0)]);
}

/// What `measure` gives, again and again for so long, while one bulk transfer fills the tunnel.
pub fn loaded(
    port: u16,
    direction: Direction,
    time: Duration,
    measure: impl Fn() -> Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| saturate(port, direction, &stop));
        std::thread::sleep(SATURATED_AFTER);
        let measured = repeated(time, measure);
        stop.store(true, Relaxed);
        load.join().expect("a transfer does not panic").context("the load ended early")?;
        measured
    })
}

/// What `measure` gives, again and again for so long.
fn repeated(time: Duration, measure: impl Fn() -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let until = Instant::now() + time;
    let mut all = Vec::new();
    while Instant::now() < until {
        all.extend(measure()?);
    }
    Ok(all)
}

/// Seconds that each of `count` calls of `tool.list` takes, made at the stub's socket.
pub fn calls(socket: &Path, count: usize) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            let stream =
                FramedStream::open(UnixStream::connect(socket).await?, &Open::new(StreamRequest::Call {})).await?;
            let answer = call(stream, "tool.list", Value::Null, tokio::io::sink(), tokio::io::sink()).await;
            answer.map_err(|refusal| anyhow!("{refusal}"))?;
            took.push(began.elapsed().as_secs_f64());
        }
        Ok(took)
    })
}

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

use super::report::{Report, figure, percentile};
use super::rig::{Programs, Tunnel, Way};
use super::target::{self, Direction, saturate};

/// Calls of one measurement on an idle tunnel.
const CALLS: usize = 2_000;

/// Calls before it.
const WARM_UP: usize = 200;

/// How long a loaded measurement goes on: long enough for the kernel's buffers to have grown as far as they do.
const LOADED_TIME: Duration = Duration::from_secs(20);

/// How long a transfer takes to find out what its path holds; only then is the path saturated, and no more than that.
const SATURATED_AFTER: Duration = Duration::from_secs(2);

/// Calls after which a loaded measurement looks at the clock: one may take a tenth of a second.
const LOADED_BATCH: usize = 50;

/// Idle, then under load each way.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    report.title("latency", "`tool.list` from the workspace to the laptop and back; each call on a new connection.");
    let target = target::serve()?;
    for (name, way) in [("", Way::Relay), (" directly", Way::Direct)] {
        let mut tunnel = Tunnel::start(programs, way)?;
        let port = tunnel.forward(target)?;
        let socket = tunnel.stub_socket();
        calls(&socket, WARM_UP)?;
        let idle = calls(&socket, CALLS)?;
        show(report, &format!("tool.list{name}, idle tunnel"), &idle);
        for (what, direction) in
            [("one stream saturates it up", Direction::Up), ("one stream saturates it down", Direction::Down)]
        {
            let took = loaded(port, direction, || calls(&socket, LOADED_BATCH))?;
            show(report, &format!("tool.list{name}, {what}"), &took);
            let met = percentile(&took, 99.0) <= percentile(&idle, 99.0) * 2.0;
            report.aim("latency", "p99 at most twice that of an idle tunnel", met);
        }
    }
    beside(programs, report, target)
}

/// The same of a second tunnel that has nothing else to do, while the first one is saturated: what of the time is for
/// the processors that both share, and not for the bytes in front.
fn beside(programs: &Programs, report: &Report, target: u16) -> Result<()> {
    let mut saturated = Tunnel::start(programs, Way::Relay)?;
    let aside = Tunnel::start(programs, Way::Relay)?;
    let (port, socket) = (saturated.forward(target)?, aside.stub_socket());
    calls(&socket, WARM_UP)?;
    for (what, direction) in [("up", Direction::Up), ("down", Direction::Down)] {
        let took = loaded(port, direction, || calls(&socket, LOADED_BATCH))?;
        show(report, &format!("tool.list of another tunnel, one stream saturates its neighbour {what}"), &took);
    }
    Ok(())
}

/// Prints the percentiles of seconds.
pub fn show(report: &Report, what: &str, seconds: &[f64]) {
    let at = |percent| percentile(seconds, percent) * 1e6;
    report.row("latency", what, &[figure("µs p50", at(50.0), 0), figure("µs p99", at(99.0), 0)]);
}

/// What `measure` gives, again and again, while one bulk transfer fills the tunnel.
pub fn loaded(port: u16, direction: Direction, measure: impl Fn() -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| saturate(port, direction, &stop));
        std::thread::sleep(SATURATED_AFTER);
        let until = Instant::now() + LOADED_TIME;
        let mut all = Vec::new();
        let measured = loop {
            match measure() {
                Ok(some) => all.extend(some),
                Err(error) => break Err(error),
            }
            if Instant::now() > until {
                break Ok(all);
            }
        };
        stop.store(true, Relaxed);
        load.join().expect("a transfer does not panic").context("the load ended early")?;
        measured
    })
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

//! How long a call of the workspace takes, on an idle tunnel and while bulk transfers fill it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use nexus_proxy::service::call::client::call;
use nexus_proxy::session::framed::FramedStream;
use nexus_proxy::wire::{Open, StreamRequest};
use serde_json::Value;
use tokio::net::UnixStream;

use super::report::{Report, figure, percentile};
use super::rig::{Programs, Tunnel};
use super::target::{self, Direction, transfer};

/// Calls of one measurement.
const CALLS: usize = 2_000;

/// Calls before it.
const WARM_UP: usize = 200;

/// Bytes of one transfer of the load; the next follows at once.
const LOAD: usize = 400_000_000;

/// Bytes after which a loaded tunnel is taken to be at speed.
const RAMP: usize = 200_000_000;

/// Idle, then under load each way.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    report.title("latency", "`tool.list` from the workspace to the laptop and back; each call on a new connection.");
    let target = target::serve()?;
    let mut tunnel = Tunnel::start(programs)?;
    let port = tunnel.forward(target)?;
    let socket = tunnel.stub_socket();
    calls(&socket, WARM_UP)?;
    show(report, "tool.list, idle tunnel", &calls(&socket, CALLS)?);
    for (what, direction) in [
        ("tool.list, one stream saturates it up", Direction::Up),
        ("tool.list, one stream saturates it down", Direction::Down),
    ] {
        show(report, what, &loaded(port, direction, || calls(&socket, CALLS))?);
    }
    Ok(())
}

/// Prints the percentiles of seconds.
pub fn show(report: &Report, what: &str, seconds: &[f64]) {
    let at = |percent| percentile(seconds, percent) * 1e6;
    report.row("latency", what, &[figure("µs p50", at(50.0), 0), figure("µs p99", at(99.0), 0)]);
}

/// What `measure` gives while a bulk transfer fills the tunnel.
pub fn loaded<T>(port: u16, direction: Direction, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    transfer(port, direction, 1, RAMP)?;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            while !stop.load(Relaxed) {
                transfer(port, direction, 1, LOAD)?;
            }
            Ok(())
        });
        let measured = measure();
        stop.store(true, Relaxed);
        load.join().expect("a transfer does not panic").context("the load ended early")?;
        measured
    })
}

fn calls(socket: &Path, count: usize) -> Result<Vec<f64>> {
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

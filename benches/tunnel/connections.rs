//! New connections per second, and small requests on one that stays: what a browser and its server do all day.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::latency::{LOADED_TIME, loaded, show};
use super::peers::{self, Route};
use super::report::{Report, figure};
use super::rig::{Programs, Tunnel, Way, cpu_seconds};
use super::target::{self, Direction, requests, touch};

/// Clients that connect at the same time.
const CLIENTS: usize = 8;

/// How long they do.
const TIME: Duration = Duration::from_secs(5);

/// Small requests of one measurement.
const REQUESTS: usize = 10_000;

/// Small requests after which a loaded measurement looks at the clock.
const REQUESTS_LOADED: usize = 50;

/// No tunnel, ours, and peers.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    report.title(
        "connections",
        "New: 8 clients connect, send a byte, have it back, close. Requests: one client, keep-alive, 2 bytes of body.",
    );
    let target = target::serve()?;
    let mut tunnel = Tunnel::start(programs, Way::Relay)?;
    let mut direct = Tunnel::start(programs, Way::Direct)?;
    let mut routes = vec![
        Route::none(target),
        Route::ours("nexus-proxy", &mut tunnel, target)?,
        Route::ours("nexus-proxy directly", &mut direct, target)?,
    ];
    let started = peers::ALL.iter().filter_map(|(_, start)| start(target).ok().flatten());
    routes.extend(started);
    for route in &routes {
        connect(route.port, TIME / 5)?;
        let pids = [&route.near[..], &route.far[..]].concat();
        let before = cpu_seconds(&pids);
        let per_second = connect(route.port, TIME)?;
        let cost = (cpu_seconds(&pids) - before) / (per_second * TIME.as_secs_f64());
        let mut figures = vec![figure("new/s", per_second, 0)];
        if !pids.is_empty() {
            figures.push(figure("µs of processor time each", cost * 1e6, 0));
        }
        report.row("connections", &format!("new connections, {}", route.name), &figures);
    }
    for route in &routes {
        requests(route.port, REQUESTS / 10)?;
        show(report, &format!("small requests, {}", route.name), &requests(route.port, REQUESTS)?);
    }
    for route in &routes[1..] {
        let took = loaded(route.port, Direction::Down, LOADED_TIME, || requests(route.port, REQUESTS_LOADED))?;
        show(report, &format!("small requests under load, {}", route.name), &took);
    }
    Ok(())
}

/// Connections per second, from all clients together.
fn connect(port: u16, time: Duration) -> Result<f64> {
    let began = Instant::now();
    let one = || -> Result<u64> {
        let mut count = 0;
        while began.elapsed() < time {
            drop(touch(port)?);
            count += 1;
        }
        Ok(count)
    };
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).sum::<Result<u64>>()
    })?;
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

//! Bulk transfers: how fast, and how much processor time each gigabyte costs at both ends.

use anyhow::Result;

use super::peers::{self, Route};
use super::report::{Report, figure, median};
use super::rig::{Programs, Tunnel, Way, cpu_seconds};
use super::target::{self, Direction, transfer};

/// Bytes of one measurement, over all its streams.
const BYTES: usize = 1_500_000_000;

/// Bytes before the first measurement of a case, so that windows and memory have their size.
const WARM_UP: usize = 200_000_000;

/// Measurements of each case; the median is given.
const ROUNDS: usize = 3;

const CASES: [(&str, Direction, usize); 4] = [
    ("one stream up", Direction::Up, 1),
    ("one stream down", Direction::Down, 1),
    ("eight streams up", Direction::Up, 8),
    ("eight streams down", Direction::Down, 8),
];

#[derive(Debug, Default)]
struct Samples {
    speed: Vec<f64>,
    near: Vec<f64>,
    far: Vec<f64>,
}

/// Measures all ways round about, so that what else the machine does falls on each of them.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    report.title(
        "throughput",
        "Medians of three; s/GB: processor seconds per gigabyte at the client's end and at the server's.\n  \
         The client's end of nexus-proxy is `up` with the coordinator inside: two of three programs.",
    );
    let target = target::serve()?;
    let mut tunnel = Tunnel::start(programs, Way::Relay)?;
    let mut direct = Tunnel::start(programs, Way::Direct)?;
    let mut routes = vec![
        Route::none(target),
        Route::ours("nexus-proxy", &mut tunnel, target)?,
        Route::ours("nexus-proxy directly", &mut direct, target)?,
    ];
    let mut absent = Vec::new();
    for (name, start) in peers::ALL {
        match start(target) {
            Ok(Some(route)) => routes.push(route),
            Ok(None) => absent.push((name, "not installed".to_owned())),
            Err(error) => absent.push((name, format!("does not run: {error:#}"))),
        }
    }
    for (case, direction, streams) in CASES {
        let mut all: Vec<Samples> = routes.iter().map(|_| Samples::default()).collect();
        for round in 0..ROUNDS {
            for (route, samples) in routes.iter().zip(&mut all) {
                if round == 0 {
                    transfer(route.port, direction, streams, WARM_UP)?;
                }
                let before = (cpu_seconds(&route.near), cpu_seconds(&route.far));
                let took = transfer(route.port, direction, streams, BYTES)?.as_secs_f64();
                let per_gb = 1e9 / BYTES as f64;
                samples.speed.push(BYTES as f64 * 8.0 / took / 1e9);
                samples.near.push((cpu_seconds(&route.near) - before.0) * per_gb);
                samples.far.push((cpu_seconds(&route.far) - before.1) * per_gb);
            }
        }
        for (route, samples) in routes.iter().zip(&all) {
            let mut figures = vec![figure("Gbit/s", median(&samples.speed), 2)];
            if !route.near.is_empty() {
                let both: Vec<f64> = samples.near.iter().zip(&samples.far).map(|(near, far)| near + far).collect();
                figures.push(figure("s/GB", median(&both), 2));
                figures.push(figure("client", median(&samples.near), 2));
                figures.push(figure("server", median(&samples.far), 2));
            }
            report.row("throughput", &format!("{case}, {}", route.name), &figures);
        }
    }
    for (name, why) in absent {
        report.absent("throughput", name, &why);
    }
    Ok(())
}

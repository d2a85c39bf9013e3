//! From a command to a verified tunnel, and the size of what is shipped.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::report::{Report, figure, median};
use super::rig::{Home, Programs};

/// Starts of each kind; the median is given.
const STARTS: usize = 5;

/// With nothing there, with state there, and sizes.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    report.title("start", "From the start of `nexus-proxy up` to the line that says the tunnel is up.");
    let mut fresh = Vec::new();
    for _ in 0..STARTS {
        fresh.push(up(&Home::new(programs)?)?);
    }
    report.row("start", "up, from nothing", &[figure("ms", median(&fresh), 0)]);
    let home = Home::new(programs)?;
    up(&home)?;
    let mut again = Vec::new();
    for _ in 0..STARTS {
        again.push(up(&home)?);
    }
    report.row("start", "up, with its state from before", &[figure("ms", median(&again), 0)]);

    let built = Path::new(env!("CARGO_BIN_EXE_nexus-stub"));
    let size = |path: &Path| path.metadata().map(|m| figure("MB", m.len() as f64 / 1e6, 2));
    for name in ["nexus-stub", "nexus-proxy", "nexus-coordinator"] {
        report.row("start", &format!("{name}, size"), &[size(&programs.path(name))?]);
    }
    let target = format!("{}-unknown-linux-gnu/release/nexus-stub", std::env::consts::ARCH);
    let fixed = built.parent().and_then(Path::parent).map(|root| root.join(target));
    match fixed.map(|path| size(&path)) {
        Some(Ok(size)) => report.row("start", "nexus-stub alone, static, size", &[size]),
        _ => report.absent("start", "nexus-stub alone, static, size", "not built. hint: scripts/static-stub"),
    }
    Ok(())
}

/// Milliseconds.
fn up(home: &Home<'_>) -> Result<f64> {
    let began = Instant::now();
    let process = home.up()?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    drop(process);
    Ok(took)
}

//! Figures of the whole: real programs, real sockets on the loopback, and the same work without a tunnel and through
//! tunnels that others wrote. Prints, and says of what has an aim whether it was met; a busy machine misses some.
//!
//! ```console
//! $ cargo bench --bench tunnel                        # all sections but those that have to be asked for
//! $ cargo bench --bench tunnel -- throughput memory   # some
//! $ cargo bench --bench tunnel -- path-direct         # one that has to be: long paths, directly
//! $ cargo bench --bench tunnel -- --json              # one JSON object to a line
//! $ cargo bench --bench tunnel -- latency path --check  # fails when an aim is missed
//! ```

mod connections;
#[path = "../../tests/e2e/support/kernel.rs"]
#[allow(dead_code, reason = "the tests ask it for more")]
mod kernel;
mod latency;
// The tests' own: what they prove and what is measured here happens on the same wire.
mod distant;
#[path = "../../tests/e2e/support/link/mod.rs"]
#[allow(dead_code, reason = "the tests break it in more ways than are measured")]
mod link;
mod memory;
mod path;
mod peers;
mod report;
mod rig;
mod start;
mod target;
mod throughput;

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use report::{Processors, Report};
use rig::Programs;

type Section = fn(&Programs, &Report) -> Result<()>;

const SECTIONS: [(&str, Section); 7] = [
    ("throughput", throughput::run),
    ("latency", latency::run),
    ("path", path::run),
    (DIRECTLY, path::run_directly),
    ("connections", connections::run),
    ("memory", memory::run),
    ("start", start::run),
];

/// Takes as long as all others together, so it runs only when it is asked for.
const DIRECTLY: &str = "path-direct";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` says `--bench`; `cargo test --benches` and test runners only want to see that it starts.
    if arguments.iter().any(|a| a == "--test" || a == "--list") || !arguments.iter().any(|a| a == "--bench") {
        println!("tunnel: nothing to test. hint: cargo bench --bench tunnel");
        return Ok(());
    }
    let wanted: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    if let Some(unknown) = wanted.iter().find(|w| !SECTIONS.iter().any(|(name, _)| name == *w)) {
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        bail!("there is no section `{unknown}`. hint: {}", known.join(", "));
    }
    // Thousands of connections are held here and, by inheritance, in the programs under test.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;

    let report = Report::new(arguments.iter().any(|a| a == "--json"));
    report.machine();
    let programs = Programs::copied()?;
    for (name, section) in SECTIONS {
        if (wanted.is_empty() && name != DIRECTLY) || wanted.contains(&name) {
            let before = Processors::now();
            section(&programs, &report)?;
            report.disturbed(name, before);
        }
    }
    if arguments.iter().any(|a| a == "--check") && report.missed() > 0 {
        bail!("{} aims were missed. hint: what else runs on this machine?", report.missed());
    }
    Ok(())
}

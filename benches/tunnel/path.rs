//! Long paths: what one connection gets of a fast and distant wire, as a ratio to the same wire without a tunnel, and how
//! long a call takes there, on an idle path and beside a bulk transfer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::distant::Distant;
use super::latency::{calls, loaded};
use super::link::{Link, Wire};
use super::peers::find;
use super::report::{Report, figure, median, percentile};
use super::rig::{Process, Programs, Way, free_port};
use super::target::{self, Direction, requests};

/// Round trips of the paths.
const ROUND_TRIPS: [Duration; 2] = [Duration::from_millis(60), Duration::from_millis(150)];

/// Milliseconds of the only one that is measured, when this is set.
const ONLY: &str = "NEXUS_BENCH_ROUND_TRIP_MS";

/// Bit/s of each.
const BANDWIDTH: u64 = 1_000_000_000;

/// Seconds of one transfer: what iperf3 takes by itself.
const SECONDS: &str = "10";

/// Transfers of each kind, each over a tunnel that has just come up, and measurements of calls beside one; the median is
/// given.
const ROUNDS: usize = 3;

/// How long calls are measured beside one transfer: some dozens where the round trip is long.
const ROUND: Duration = Duration::from_secs(10);

/// Calls of one measurement on an idle path.
const CALLS: usize = 60;

/// How much longer than a round trip a call beside bulk may take; or than plain's, where that was longer.
const MOST_WAIT: Duration = Duration::from_millis(20);

/// Callers of a loaded measurement, each with one call at a time: where a round trip is long one alone makes too few calls for
/// a 99th of 100 to be more than the slowest of them.
const CALLERS: usize = 4;

/// Calls of each after which a loaded measurement looks at the clock.
const LOADED_BATCH: usize = 5;

const WAYS: [(&str, Direction); 2] = [("up", Direction::Up), ("down", Direction::Down)];

/// Both paths, through the coordinator.
pub fn run(programs: &Programs, report: &Report) -> Result<()> {
    Paths { programs, report, section: "path", way: Way::Relay }.run("coordinator")
}

/// Both paths, directly.
pub fn run_directly(programs: &Programs, report: &Report) -> Result<()> {
    Paths { programs, report, section: "path-direct", way: Way::Direct }.run("workspace")
}

/// What is measured, and where it is said.
#[derive(Clone, Copy)]
struct Paths<'a> {
    programs: &'a Programs,
    report: &'a Report,
    section: &'static str,
    way: Way,
}

impl Paths<'_> {
    fn run(self, end: &str) -> Result<()> {
        let note = format!(
            "A wire of 1 Gbit/s between laptop and {end}; plain is the same without a tunnel.\n  \
             Transfers: medians of three by iperf3, counted by the receiver. Calls: `tool.list`; plain is a request on \
             an open connection; medians of three rounds, by four callers where a stream fills the path."
        );
        self.report.title(self.section, &note);
        let iperf3 = find("iperf3");
        let only =
            std::env::var(ONLY).ok().map(|ms| ms.parse().map(Duration::from_millis)).transpose().context(ONLY)?;
        for round_trip in ROUND_TRIPS.into_iter().filter(|round_trip| only.is_none_or(|only| only == *round_trip)) {
            let wire = Wire::new(BANDWIDTH, round_trip / 2);
            match &iperf3 {
                Some(iperf3) => self.transfers(iperf3, wire)?,
                None => {
                    self.report.absent(self.section, &format!("one stream, {round_trip:?}"), "iperf3 is not installed");
                }
            }
            self.latencies(wire)?;
        }
        Ok(())
    }

    fn transfers(self, iperf3: &Path, wire: Wire) -> Result<()> {
        let Paths { programs, report, section, way: path } = self;
        for (way, direction) in WAYS {
            let (mut plain, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let port = free_port()?;
                let mut server = Command::new(iperf3);
                // In JSON, so that its report can be part of the client's.
                server.args(["-s", "-J", "-B", "127.0.0.1", "-p", &port.to_string()]);
                let _server = Process::listening(server, port)?;
                let link = Link::with(port, wire);
                plain.push(transfer(iperf3, link.port, direction)?);
                drop(link);
                let mut tunnel = Distant::start(programs, wire, path)?;
                ours.push(transfer(iperf3, tunnel.forward(port)?, direction)?);
            }
            let round_trip = wire.delay * 2;
            for (what, pick, least) in [
                ("all of it", (|received| received.total) as fn(&Received) -> f64, 0.95),
                ("first second", |received| received.first_second, 0.5),
            ] {
                let of = |all: &[Received]| median(&all.iter().map(pick).collect::<Vec<_>>());
                let (plain, ours) = (of(&plain), of(&ours));
                let figures = [
                    figure("of plain", ours / plain, 2),
                    figure("Mbit/s", ours / 1e6, 0),
                    figure("Mbit/s plain", plain / 1e6, 0),
                ];
                report.row(section, &format!("one stream {way}, {round_trip:?}, {what}"), &figures);
                report.aim(section, &format!("at least {least} of plain"), ours / plain >= least);
            }
        }
        Ok(())
    }

    fn latencies(self, wire: Wire) -> Result<()> {
        let target = target::serve()?;
        let plain = Link::with(target, wire);
        let mut tunnel = Distant::start(self.programs, wire, self.way)?;
        let (port, socket) = (tunnel.forward(target)?, tunnel.stub_socket());
        let round_trip = wire.delay * 2;
        let idle = Pairs { ours: vec![calls(&socket, CALLS)?], plain: vec![requests(plain.port, CALLS)?] };
        self.show(&idle, &format!("call, {round_trip:?}, idle"));
        for (way, direction) in WAYS {
            let mut pairs = Pairs::default();
            for _ in 0..ROUNDS {
                pairs.ours.push(loaded(port, direction, ROUND, || by_all(|| calls(&socket, LOADED_BATCH)))?);
                pairs
                    .plain
                    .push(loaded(plain.port, direction, ROUND, || by_all(|| requests(plain.port, LOADED_BATCH)))?);
            }
            self.show(&pairs, &format!("call, {round_trip:?}, one stream {way}"));
            // A machine that stands still makes plain's calls long, and nobody's shorter.
            let without = middle(&pairs.plain, 99.0).max(round_trip.as_secs_f64());
            let met = middle(&pairs.ours, 99.0) <= without + MOST_WAIT.as_secs_f64();
            let most = round_trip + MOST_WAIT;
            self.report.aim(self.section, &format!("p99 at most {most:?}, or {MOST_WAIT:?} more than plain's"), met);
        }
        Ok(())
    }

    fn show(self, pairs: &Pairs, what: &str) {
        let at = |percent| (middle(&pairs.ours, percent), middle(&pairs.plain, percent));
        let (p50, p99) = (at(50.0), at(99.0));
        let figures = [
            figure("of plain p50", p50.0 / p50.1, 2),
            figure("ms p50", p50.0 * 1e3, 1),
            figure("of plain p99", p99.0 / p99.1, 2),
            figure("ms p99", p99.0 * 1e3, 1),
        ];
        self.report.row(self.section, what, &figures);
    }
}

/// What a receiver counted, in bit/s.
#[derive(Debug, Clone, Copy)]
struct Received {
    first_second: f64,
    total: f64,
}

/// One transfer to the server behind `port`, or from it.
fn transfer(iperf3: &Path, port: u16, direction: Direction) -> Result<Received> {
    let mut client = Command::new(iperf3);
    client.args(["-J", "-c", "127.0.0.1", "-p", &port.to_string(), "-t", SECONDS, "--get-server-output"]);
    if direction == Direction::Down {
        client.arg("-R");
    }
    let output = client.output().context("cannot start iperf3")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3 says what is not JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let receiver = if direction == Direction::Down { &report } else { &report["server_output_json"] };
    let speed = |sum: &Value| sum["bits_per_second"].as_f64().context("iperf3 says no speed");
    Ok(Received {
        first_second: speed(&receiver["intervals"][0]["sum"])?,
        total: speed(&report["end"]["sum_received"])?,
    })
}

/// What all callers at once measure.
fn by_all(measure: impl Fn() -> Result<Vec<f64>> + Sync) -> Result<Vec<f64>> {
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(&measure)).collect();
        let took: Result<Vec<_>> =
            callers.into_iter().map(|caller| caller.join().expect("a caller does not panic")).collect();
        Ok(took?.concat())
    })
}

/// Seconds of each call, of each round.
#[derive(Default)]
struct Pairs {
    ours: Vec<Vec<f64>>,
    plain: Vec<Vec<f64>>,
}

/// The median of the rounds' percentiles.
fn middle(rounds: &[Vec<f64>], percent: f64) -> f64 {
    median(&rounds.iter().map(|round| percentile(round, percent)).collect::<Vec<_>>())
}

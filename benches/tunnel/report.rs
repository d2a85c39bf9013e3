//! What is printed: aligned rows for people, or one JSON object to a line; and whether aims were met.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Map, Value, json};

/// Where figures go.
#[derive(Debug)]
pub struct Report {
    json: bool,
    missed: AtomicUsize,
}

/// What became of the processors' time since the machine began, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Processors {
    all: u64,
    stolen: u64,
}

impl Processors {
    /// As of now.
    pub fn now() -> Processors {
        /// Where the kernel counts what it did not get.
        const STOLEN: usize = 7;
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        // What guests had is counted twice.
        let ticks: Vec<u64> = first.split_whitespace().skip(1).take(STOLEN + 1).flat_map(str::parse).collect();
        Processors { all: ticks.iter().sum(), stolen: ticks.get(STOLEN).copied().unwrap_or_default() }
    }
}

/// A figure with its unit and the decimals it deserves.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    name: &'static str,
    value: f64,
    decimals: usize,
}

/// `value`, named by what it is and its unit.
pub fn figure(name: &'static str, value: f64, decimals: usize) -> Figure {
    Figure { name, value, decimals }
}

impl Report {
    /// Text, or JSON lines.
    pub fn new(json: bool) -> Report {
        Report { json, missed: AtomicUsize::new(0) }
    }

    /// The machine that the figures are of.
    pub fn machine(&self) {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let (cpu, kernel, load) = (cpu.unwrap_or("unknown"), kernel.trim(), load.split(' ').next().unwrap_or_default());
        if self.json {
            println!("{}", json!({"cpu": cpu, "cores": cores, "kernel": kernel, "load_before": load}));
        } else {
            println!("{cpu}, {cores} cores, Linux {kernel}; load before the start {load}");
        }
    }

    /// What a hypervisor took of the processors while a section ran: figures of a disturbed machine are no one's.
    pub fn disturbed(&self, section: &str, before: Processors) {
        let Processors { all, stolen } = Processors::now();
        // A kernel takes back some of it now and then.
        let share = stolen.saturating_sub(before.stolen) as f64 * 100.0 / all.saturating_sub(before.all).max(1) as f64;
        self.row(section, "of the processors the hypervisor took", &[figure("%", share, 1)]);
    }

    /// The title of what follows, and what must be known to read it.
    pub fn title(&self, section: &str, note: &str) {
        if !self.json {
            println!("\n{section}\n  {note}");
        }
    }

    /// One row.
    pub fn row(&self, section: &str, what: &str, figures: &[Figure]) {
        if self.json {
            let mut row = Map::from_iter([("section".into(), section.into()), ("what".into(), what.into())]);
            row.extend(figures.iter().map(|f| (f.name.to_owned(), Value::from(f.value))));
            return println!("{}", Value::Object(row));
        }
        let cells = figures.iter().map(|f| format!("{:>9.*} {}", f.decimals, f.value, f.name));
        println!("  {what:<44}{}", cells.collect::<Vec<_>>().join("  "));
    }

    /// An aim of the row before, and whether it was met.
    pub fn aim(&self, section: &str, aim: &str, met: bool) {
        self.missed.fetch_add(usize::from(!met), Relaxed);
        let outcome = if met { "met" } else { "MISSED" };
        if self.json {
            println!("{}", json!({"section": section, "aim": aim, "met": met}));
        } else {
            println!("  {:<44}{outcome:>9}", format!("  {aim}"));
        }
    }

    /// How many aims were not met.
    pub fn missed(&self) -> usize {
        self.missed.load(Relaxed)
    }

    /// What could not be measured, and why.
    pub fn absent(&self, section: &str, what: &str, why: &str) {
        if self.json {
            println!("{}", json!({"section": section, "what": what, "absent": why}));
        } else {
            println!("  {what:<44}{why:>9}");
        }
    }
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The value that `percent` of all are not above.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len().saturating_sub(1) as f64 * percent / 100.0).round() as usize;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

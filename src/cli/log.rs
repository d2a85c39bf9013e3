//! Logs: to standard error, as text or as JSON lines, as much as `-v` asks for.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Machine-readable output: one JSON object, or one a line for commands that go on. Of `exec` and calls: a line for
    /// each piece of output, then one for how it ended.
    #[arg(long, global = true)]
    pub json: bool,
    /// More log: -v what happens, -vv in detail. NEXUS_LOG takes a filter such as `nexus_proxy=debug`.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// The shape of log lines on standard error.
    #[arg(long, global = true, value_enum, default_value = "text", env = "NEXUS_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Only the first call in a process counts.
pub fn start(common: &Common) {
    let level = match common.verbose {
        0 => "warn",
        1 => "warn,nexus_proxy=info,audit=info",
        _ => "info,nexus_proxy=debug,audit=info",
    };
    let filter = EnvFilter::try_from_env("NEXUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    let _ = match common.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

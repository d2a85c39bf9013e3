//! Logs: to standard error, as text or as JSON lines, as much as `-v` asks for.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::queue::{self, LogLines};
use crate::role::files;

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Machine-readable output: one JSON object, or one a line for commands that go on.
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

/// The audit log; made when there is something to write.
struct Audit {
    path: PathBuf,
    file: OnceLock<Option<File>>,
}

impl Audit {
    fn open(&self) -> Option<File> {
        let made = self.path.parent().map_or(Ok(()), files::private_dir);
        made.and_then(|()| files::log(&self.path))
            .map_err(|error| queue::say_error(format!("the audit log cannot be written: {error}\n").as_bytes()))
            .ok()
    }
}

impl<'a> MakeWriter<'a> for Audit {
    type Writer = Box<dyn Write + 'a>;

    fn make_writer(&'a self) -> Self::Writer {
        match self.file.get_or_init(|| self.open()) {
            Some(file) => Box::new(file),
            None => Box::new(std::io::sink()),
        }
    }
}

/// Starts logging. Only the first call in a process counts. What a workspace asked for goes to `audit` as well, at
/// every verbosity.
pub fn start(common: &Common, audit: Option<&Path>) {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let level = match common.verbose {
        // On a terminal the lines of the output say when the way goes and comes back.
        0 if terminal => "warn",
        0 => "warn,nexus_proxy::way=info",
        1 => "warn,nexus_proxy=info,audit=info",
        _ => "info,nexus_proxy=debug,audit=info",
    };
    let filter = EnvFilter::try_from_env("NEXUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let layer = tracing_subscriber::fmt::layer().with_ansi(terminal).with_writer(|| LogLines);
    let layer = match common.log_format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let audit = audit.map(|path| {
        let writer = Audit { path: path.to_owned(), file: OnceLock::new() };
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
        layer.with_filter(EnvFilter::new("off,audit=info"))
    });
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).with(audit).try_init();
}

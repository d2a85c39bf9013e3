//! What a person types: arguments, output, hints, signals. Composes the roles; decides nothing that a role decides.

#[cfg(feature = "coordinator")]
mod authority_command;
#[cfg(any(feature = "proxy", feature = "stub"))]
mod ca_file;
#[cfg(feature = "proxy")]
mod config_check;
#[cfg(feature = "coordinator")]
pub mod coordinator;
mod descriptors;
#[cfg(feature = "proxy")]
mod detach;
#[cfg(all(feature = "proxy", feature = "coordinator"))]
mod embedded;
#[cfg(feature = "proxy")]
mod exec;
mod failure;
mod fast_copies;
mod generate;
#[cfg(feature = "proxy")]
mod hand_over;
mod home;
#[cfg(any(feature = "proxy", feature = "stub"))]
mod json_lines;
#[cfg(feature = "proxy")]
mod lease;
mod log;
mod output;
#[cfg(feature = "proxy")]
pub mod proxy;
mod queue;
#[cfg(feature = "proxy")]
mod requests;
mod signals;
#[cfg(feature = "proxy")]
mod status;
#[cfg(feature = "stub")]
pub mod stub;
#[cfg(feature = "stub")]
mod stub_socket;
#[cfg(feature = "stub")]
mod stub_status;
#[cfg(feature = "proxy")]
mod tell;
#[cfg(feature = "proxy")]
mod up;
#[cfg(any(feature = "proxy", feature = "stub"))]
mod way;

use std::ffi::OsString;
use std::process::ExitCode;

/// The name under which this program was started: `nexus-stub` for a link to `nexus-proxy`, and the like.
#[cfg(feature = "proxy")]
fn called(arguments: &[OsString]) -> Option<&str> {
    std::path::Path::new(arguments.first()?).file_name()?.to_str()
}

/// `nexus-proxy`, or the program whose name it was started under.
#[cfg(feature = "proxy")]
pub fn proxy_main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match called(&arguments) {
        #[cfg(feature = "stub")]
        Some("nexus-stub") => stub::main(arguments),
        #[cfg(feature = "coordinator")]
        Some("nexus-coordinator") => coordinator::main(arguments),
        _ => proxy::main(arguments),
    }
}

/// `nexus-stub`.
#[cfg(feature = "stub")]
pub fn stub_main() -> ExitCode {
    stub::main(std::env::args_os().collect())
}

/// `nexus-coordinator`.
#[cfg(feature = "coordinator")]
pub fn coordinator_main() -> ExitCode {
    coordinator::main(std::env::args_os().collect())
}

/// Parses arguments, runs the command on a runtime, prints what failed, and gives the exit code. A program that `runs_on` is
/// held up by nobody who does not read what it says.
fn run<A, F>(
    arguments: Vec<OsString>,
    common: impl Fn(&A) -> &log::Common,
    audit: impl Fn(&A) -> Option<std::path::PathBuf>,
    runs_on: impl Fn(&A) -> bool,
    command: impl FnOnce(A) -> F,
) -> ExitCode
where
    A: clap::Parser,
    F: Future<Output = Result<u8, failure::Failure>>,
{
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    let original = arguments.clone();
    let parsed = match A::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            if error.use_stderr() && wants_json {
                return failure::Failure::new(failure::USAGE, error.to_string().trim()).report(true);
            }
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let json = common(&parsed).json;
    if runs_on(&parsed) {
        fast_copies::restart(&original);
        if let Err(error) = queue::start(common(&parsed)) {
            return failure::Failure::from(error).report(json);
        }
    }
    log::start(common(&parsed), audit(&parsed).as_deref());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::Failure::from(error).report(json),
    };
    let outcome = runtime.block_on(command(parsed));
    // A blocking read of standard input would hold a runtime that waits for its threads.
    runtime.shutdown_background();
    let code = match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(json),
    };
    queue::finish();
    code
}

//! `nexus-proxy exec`: a program in a workspace, with the streams, the signals and the exit code of this one.
//!
//! Decides what a signal means here: it belongs to the program, as long as somebody is there to take it.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::failure::{self, Failure};
use super::home::Home;
use super::json_lines::{self, Sinks};
use super::output::Output;
use crate::role::proxy::control;
use crate::service::process_run::run_process;
use crate::session::framed::FramedStream;
use crate::wire::name::WorkspaceName;
use crate::wire::open::ProcessRequest;
use crate::wire::{Open, RefusalCode, StreamRequest};

/// nexus-proxy itself failed, not the command.
const EXEC_FAILED: u8 = 125;
/// The program cannot be executed.
const EXEC_DENIED: u8 = 126;
/// There is no such program.
const EXEC_MISSING: u8 = 127;

/// 128 and a number is what shells say of a signal.
const SIGNALLED: u8 = 128;

/// Signals that wait to be passed on: more than are, since a later one ends the command.
const SIGNALS: usize = 8;

/// How long `up` may take to show that it is there, when a second signal may mean that the first went nowhere. It answers in
/// milliseconds, and whoever presses Ctrl-C again does not wait for longer.
const SHOWS: Duration = Duration::from_secs(1);

/// What to run, and where.
#[derive(Debug, Args)]
pub struct Exec {
    /// The workspace.
    workspace: WorkspaceName,
    /// Working directory there, relative to the workspace's own.
    #[arg(long)]
    cwd: Option<String>,
    /// KEY=VALUE for its environment. Repeatable.
    #[arg(long = "env", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// The program and its arguments; no shell reads them.
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

/// Runs it; gives the exit code.
pub async fn exec(args: Exec, output: Output) -> Result<u8, Failure> {
    let own = |failure: Failure| Failure { code: EXEC_FAILED, ..failure };
    let home = Home::find().map_err(|e| own(e.into()))?;
    let stream = control::connect_awake(&home.run, &args.workspace).await.map_err(|e| own(e.into()))?;
    let env = args.env.into_iter().collect();
    let request = StreamRequest::Process(ProcessRequest { argv: args.argv, cwd: args.cwd, env });
    let stream = FramedStream::open(stream, &Open::new(request)).await;
    let stream = stream.map_err(|e| own(e.into_refusal().into()))?;
    let (send, passed_on) = mpsc::channel(SIGNALS);
    let ended = async {
        let Some(next) = signals() else { return std::future::pending().await };
        pass_on(next, &send, async || is_deaf(&home.run, &args.workspace).await).await
    };
    let Sinks { stdout, stderr, unread } = json_lines::sinks(output.is_json());
    let run = run_process(stream, tokio::io::stdin(), stdout, stderr, passed_on);
    let exit = tokio::select! {
        exit = run => exit,
        // The stream ends here, which ends the program as well.
        ended = ended => return ended.into_code(),
    };
    match exit {
        Ok(exit) => {
            if output.is_json() {
                output.plain("", &json!({"exit_code": exit.code, "signal": exit.signal}));
            }
            Ok(u8::try_from(exit.shell_code()).unwrap_or(failure::FAILED))
        }
        Err(_) if unread.get() => Err(Failure::unread()),
        Err(refusal) => {
            let code = match refusal.code {
                RefusalCode::NotFound => EXEC_MISSING,
                RefusalCode::Denied => EXEC_DENIED,
                _ => EXEC_FAILED,
            };
            Err(Failure::new(code, refusal))
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

/// Why a signal ended this command, and not the program in the workspace.
#[derive(Debug, PartialEq)]
enum Ended {
    /// The program does not react.
    Insisted(i32),
    /// `up` does not.
    Deaf(i32),
}

impl Ended {
    fn into_code(self) -> Result<u8, Failure> {
        let code = |number| SIGNALLED.saturating_add(u8::try_from(number).unwrap_or_default());
        match self {
            Ended::Insisted(number) => Ok(code(number)),
            Ended::Deaf(number) => {
                let text = "`nexus-proxy up` does not answer; whether the program was told is not known. hint: it is stopped or stuck; when \
                            it goes on, the program ends";
                Err(Failure::new(code(number), text))
            }
        }
    }
}

/// The next signal that is meant for the program, each time; `None` where they cannot be had.
fn signals() -> Option<impl AsyncFnMut() -> i32> {
    let mut int = signal(SignalKind::interrupt()).ok()?;
    let mut term = signal(SignalKind::terminate()).ok()?;
    let mut hup = signal(SignalKind::hangup()).ok()?;
    Some(async move || {
        tokio::select! {
            _ = int.recv() => 2,
            _ = term.recv() => 15,
            _ = hup.recv() => 1,
        }
    })
}

/// Passes two signals on. The third ends the command; the second does when it turns out that nobody takes it: `is_deaf` returns
/// when `up` does not answer, and only then.
async fn pass_on(mut next: impl AsyncFnMut() -> i32, send: &mpsc::Sender<i32>, is_deaf: impl AsyncFnOnce()) -> Ended {
    let _ = send.try_send(next().await);
    let second = next().await;
    let _ = send.try_send(second);
    tokio::select! {
        third = next() => Ended::Insisted(third),
        () = is_deaf() => Ended::Deaf(second),
    }
}

/// Returns when the `up` of a workspace does not answer; never when it does, or is gone, which the stream tells.
async fn is_deaf(run_dir: &Path, workspace: &WorkspaceName) {
    let asked = async { control::ask::<Value>(control::connect(run_dir, workspace).await?, "status").await };
    match tokio::time::timeout(SHOWS, asked).await {
        Err(_) => {}
        Ok(Err(refusal)) if refusal.code == RefusalCode::Timeout => {}
        Ok(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who presses these one after the other.
    fn pressed(numbers: &'static [i32]) -> impl AsyncFnMut() -> i32 {
        let mut numbers = numbers.iter();
        async move || match numbers.next() {
            Some(number) => *number,
            None => std::future::pending().await,
        }
    }

    #[tokio::test]
    async fn signals_belong_to_the_program_until_the_third_or_where_nobody_takes_them() {
        let (send, mut taken) = mpsc::channel(SIGNALS);
        let mut one = std::pin::pin!(pass_on(pressed(&[2]), &send, async || {}));
        assert!(futures::poll!(&mut one).is_pending());
        assert_eq!(taken.try_recv(), Ok(2));
        let mut two = std::pin::pin!(pass_on(pressed(&[2, 15]), &send, async || std::future::pending().await));
        assert!(futures::poll!(&mut two).is_pending(), "it answers");
        assert_eq!((taken.try_recv(), taken.try_recv()), (Ok(2), Ok(15)));
        assert_eq!(pass_on(pressed(&[2, 15]), &send, async || {}).await, Ended::Deaf(15));
        assert_eq!(
            pass_on(pressed(&[2, 2, 15]), &send, async || std::future::pending().await).await,
            Ended::Insisted(15)
        );
        assert_eq!(Ended::Insisted(15).into_code().unwrap(), 143);
        assert_eq!(Ended::Deaf(2).into_code().unwrap_err().code, 130);
    }
}

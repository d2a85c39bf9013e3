//! Runs one program: output to the caller as it comes, within a time and a size, and nothing left behind.
//!
//! The program leads a process group of its own. However the call ends (exit, time, size, cancellation, a dropped
//! future), the group is gone afterwards. Refuses to keep what a caller does not read: the program waits.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::BufMut;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use crate::service::call::output::{Output, cancelled};
use crate::service::secret::Secret;
use crate::session::framed::DataBuffer;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Between SIGTERM and SIGKILL: time to remove a lock file, not to finish the work.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// How long output is awaited from what a finished program has left in the background.
const PIPE_GRACE: Duration = Duration::from_millis(500);

/// How often a group that was asked to stop is looked at.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// What to run, with everything decided.
#[derive(Debug)]
pub struct Invocation {
    /// Program and arguments; at least the program.
    pub argv: Vec<String>,
    /// Where it runs.
    pub cwd: PathBuf,
    /// The whole environment.
    pub env: BTreeMap<String, Secret>,
    /// Its standard input; none when absent.
    pub stdin: Option<Vec<u8>>,
    /// How long it may run, less the time for which the network kept its output.
    pub timeout: Duration,
    /// Bytes of output, both streams together.
    pub max_output: u64,
}

/// The process group of a child; killed when dropped.
#[derive(Debug)]
pub struct Group(Option<Pid>);

impl Group {
    /// The group that `child` leads, if it was started with `process_group(0)`.
    pub fn of(child: &Child) -> Group {
        Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// Sends a signal; whether there was anyone to receive it.
    fn signal(&self, signal: Option<Signal>) -> bool {
        self.0.is_some_and(|group| killpg(group, signal).is_ok())
    }

    /// Asks the group to stop, waits [`KILL_GRACE`], then kills it. Reaps the child.
    async fn stop(mut self, child: &mut Child) {
        self.signal(Some(Signal::SIGTERM));
        let gone = async {
            let _ = child.wait().await;
            while self.signal(None) {
                tokio::time::sleep(GROUP_POLL).await;
            }
        };
        if tokio::time::timeout(KILL_GRACE, gone).await.is_err() {
            self.signal(Some(Signal::SIGKILL));
            let _ = child.wait().await;
        }
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Some(Signal::SIGKILL));
    }
}

/// Runs it to its end. `name` is the tool's, for sentences.
pub async fn run(name: &str, invocation: Invocation, output: &Output) -> Result<Value, Refusal> {
    let started = Instant::now();
    let mut child = spawn(name, &invocation)?;
    let group = Group::of(&child);
    let ended = {
        let pump = Box::pin(pump(&mut child, &group, invocation.stdin, output, invocation.max_output));
        tokio::select! {
            ended = pump => ended,
            () = output.expired(invocation.timeout) => Err(Refusal::new(
                RefusalCode::Timeout,
                format!(
                    "tool `{name}` was stopped after {}. hint: ask for less, or its owner can raise `timeout`",
                    humantime::format_duration(invocation.timeout)
                ),
            )),
            () = output.cancelled() => Err(cancelled()),
        }
    };
    let ended = match ended {
        Ok(ended) if ended.status.is_some() => {
            drop(group);
            ended
        }
        Ok(ended) => {
            group.stop(&mut child).await;
            ended
        }
        Err(refusal) => {
            group.stop(&mut child).await;
            return Err(refusal);
        }
    };
    let status = ended.status.filter(|_| !ended.truncated);
    let mut result = json!({
        "exit_code": status.and_then(|s| s.code()),
        "signal": status.and_then(|s| std::os::unix::process::ExitStatusExt::signal(&s)),
        "stdout_bytes": ended.stdout,
        "stderr_bytes": ended.stderr,
        "duration_ms": started.elapsed().as_millis() as u64,
        "truncated": ended.truncated,
    });
    if ended.truncated {
        result["hint"] = Value::from(format!(
            "tool `{name}` was stopped because it printed more than {} bytes. hint: ask for less, or its owner can \
             raise `max_output`",
            invocation.max_output
        ));
    }
    Ok(result)
}

fn spawn(name: &str, invocation: &Invocation) -> Result<Child, Refusal> {
    let program = &invocation.argv[0];
    let mut command = Command::new(program);
    command
        .args(&invocation.argv[1..])
        .current_dir(&invocation.cwd)
        .env_clear()
        .envs(invocation.env.iter().map(|(k, v)| (k, v.expose())))
        .stdin(if invocation.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().map_err(|error| {
        if !invocation.cwd.is_dir() {
            let message = format!(
                "tool `{name}` cannot start: its directory is not there. hint: its owner can correct `cwd` in the \
                 laptop's configuration"
            );
            return Refusal::new(RefusalCode::NotFound, message);
        }
        match error.kind() {
            io::ErrorKind::NotFound => Refusal::new(
                RefusalCode::NotFound,
                format!(
                    "tool `{name}` cannot start: the program `{program}` is not on the laptop. hint: its owner can \
                     install it, or give its absolute path in argv"
                ),
            ),
            io::ErrorKind::ArgumentListTooLong => Refusal::new(
                RefusalCode::TooLarge,
                format!("tool `{name}` cannot start: its arguments are too long. hint: pass less"),
            ),
            _ => Refusal::new(
                RefusalCode::TargetRefused,
                format!("tool `{name}` cannot start: {error}. hint: its owner can check `{program}` on the laptop"),
            ),
        }
    })
}

/// How far it came. Without a status, it still runs.
struct Ended {
    status: Option<ExitStatus>,
    stdout: u64,
    stderr: u64,
    truncated: bool,
}

async fn pump(
    child: &mut Child,
    group: &Group,
    input: Option<Vec<u8>>,
    output: &Output,
    max: u64,
) -> Result<Ended, Refusal> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let mut feed = pin!(feed(child.stdin.take(), input));
    let mut fed = false;
    let (mut out, mut err) = (DataBuffer::new(), DataBuffer::new());
    let mut ended = Ended { status: None, stdout: 0, stderr: 0, truncated: false };
    let mut patience = Instant::now();
    let mut killed = false;
    while ended.status.is_none() || stdout.is_some() || stderr.is_some() {
        if ended.status.is_some() && !killed && Instant::now() >= patience {
            // Whoever still holds the pipes was left behind; what is already in them is still read.
            group.signal(Some(Signal::SIGKILL));
            killed = true;
            patience = Instant::now() + PIPE_GRACE;
        }
        // In this order: output that is there goes out before patience may end.
        let (kind, read) = tokio::select! {
            biased;
            read = read(&mut stdout, &mut out), if stdout.is_some() => (FrameKind::Data, read),
            read = read(&mut stderr, &mut err), if stderr.is_some() => (FrameKind::Stderr, read),
            status = child.wait(), if ended.status.is_none() => {
                ended.status = Some(status.map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))?);
                patience = Instant::now() + PIPE_GRACE;
                continue;
            }
            () = &mut feed, if !fed => {
                fed = true;
                continue;
            }
            () = tokio::time::sleep_until(patience), if ended.status.is_some() => {
                if killed {
                    break;
                }
                continue;
            }
        };
        let (pipe_closed, buffer, count) = match kind {
            FrameKind::Data => {
                let closed = read == 0;
                stdout = stdout.filter(|_| !closed);
                (closed, &mut out, &mut ended.stdout)
            }
            _ => {
                let closed = read == 0;
                stderr = stderr.filter(|_| !closed);
                (closed, &mut err, &mut ended.stderr)
            }
        };
        if pipe_closed {
            continue;
        }
        *count += read as u64;
        let over = (ended.stdout + ended.stderr).saturating_sub(max);
        if over > 0 {
            let kept = read.saturating_sub(usize::try_from(over).unwrap_or(usize::MAX));
            let mut last = DataBuffer::new();
            last.space().put_slice(&buffer.payload()[..kept]);
            let count = if kind == FrameKind::Data { &mut ended.stdout } else { &mut ended.stderr };
            *count -= over;
            ended.truncated = true;
            ended.status = None;
            if kept > 0 {
                output.send(kind, &mut last).await?;
            }
            return Ok(ended);
        }
        output.send(kind, buffer).await?;
    }
    Ok(ended)
}

/// Bytes read into the buffer; an error of a pipe is its end.
async fn read<R: tokio::io::AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut DataBuffer) -> usize {
    match pipe {
        Some(pipe) => pipe.read_buf(&mut buffer.space()).await.unwrap_or(0),
        None => 0,
    }
}

/// A program that does not want its input is free not to read it.
async fn feed(stdin: Option<ChildStdin>, input: Option<Vec<u8>>) {
    if let (Some(mut stdin), Some(input)) = (stdin, input) {
        let _ = stdin.write_all(&input).await;
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

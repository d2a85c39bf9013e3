//! The workspace's end of a `Process` stream: runs a program for the laptop.
//!
//! No shell reads the arguments, and nothing of this program's own environment reaches the child. The child leads a
//! process group; when the peer gives up or the stream is lost, or this future is dropped, the group ends. Output that
//! the peer does not read is left in the pipe, where it holds up the program as a terminal would.

use std::collections::{BTreeMap, VecDeque};
use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes};
use nix::sys::signal::{Signal as NixSignal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::session::framed::{DataBuffer, FrameReader, FrameWriter, FramedStream, Io, StreamError};
use crate::wire::open::{Accepted, Exit, ProcessRequest, Signal};
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// How long output is awaited after the program has ended, while a child of its own holds the pipe and is silent.
const DRAIN_QUIET: Duration = Duration::from_millis(500);

/// How long a group may take to end after SIGHUP and SIGTERM before it is killed.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How often a group that was asked to end is looked at: the kernel does not tell when the last member has gone.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// How often the stream is looked at while there is no output: input that waits for the program is not read, and what
/// happens behind it is not seen.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of standard input that wait for a program that does not read, so that a signal behind them gets through.
const STDIN_QUEUE: usize = 1024 * 1024;

/// What a program in the workspace finds when the request says nothing else.
#[derive(Debug, Clone)]
pub struct ProcessDefaults {
    /// The workspace's directory; relative directories of requests start here.
    pub cwd: PathBuf,
    /// The whole environment, `PATH` included; a request adds to it.
    pub env: BTreeMap<String, String>,
}

/// Runs what is asked for and carries its input, output and signals, until it has ended and said all it had to say.
/// An error is a refusal that was sent, or the reason why the program was ended.
pub async fn serve_process<S: Io>(
    mut stream: FramedStream<S>,
    request: ProcessRequest,
    defaults: &ProcessDefaults,
) -> Result<Exit, StreamError> {
    let (group, child, pipes) = match spawn(&request, defaults) {
        Ok(spawned) => spawned,
        Err(refusal) => {
            stream.refuse(&refusal).await;
            return Err(StreamError::Refused(refusal));
        }
    };
    let accepted = Accepted { pid: Some(group.pid.as_raw() as u32), ..Default::default() };
    // Dropping the group kills it.
    stream.accepted(&accepted).await?;
    carry(stream, group, child, pipes).await
}

struct Pipes {
    stdin: ChildStdin,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

fn spawn(request: &ProcessRequest, defaults: &ProcessDefaults) -> Result<(Group, Child, Pipes), Refusal> {
    let Some((program, arguments)) = request.argv.split_first() else {
        let message = "there is no program to run. hint: name one, as in `exec -- ls -l`";
        return Err(Refusal::new(RefusalCode::InvalidArguments, message));
    };
    let cwd = match &request.cwd {
        Some(cwd) => defaults.cwd.join(cwd),
        None => defaults.cwd.clone(),
    };
    if !cwd.is_dir() {
        let message = format!(
            "{} is no directory in the workspace. hint: check the path; relative ones start at {}",
            cwd.display(),
            defaults.cwd.display()
        );
        // Not `NotFound`, which is the program's: `exec` ends with 127 for that.
        return Err(Refusal::new(RefusalCode::InvalidArguments, message));
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&defaults.env)
        .envs(&request.env)
        .current_dir(&cwd)
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| spawn_refusal(&e, program, &cwd))?;
    let pid = child.id().ok_or_else(|| internal(&"it has no id"))?;
    let group = Group { pid: Pid::from_raw(pid as i32), over: false };
    match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => {
            let receiver = |fd: io::Result<_>| fd.and_then(pipe::Receiver::from_owned_fd).map_err(|e| internal(&e));
            let stdout = receiver(stdout.into_owned_fd())?;
            let stderr = receiver(stderr.into_owned_fd())?;
            Ok((group, child, Pipes { stdin, stdout, stderr }))
        }
        _ => Err(internal(&"it has no pipes")),
    }
}

fn internal(why: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Internal, format!("the program was started, but cannot be used: {why}"))
}

fn spawn_refusal(error: &io::Error, program: &str, cwd: &Path) -> Refusal {
    let (code, message) = match error.kind() {
        ErrorKind::NotFound => (
            RefusalCode::NotFound,
            format!(
                "there is no program {program} in the workspace. \
                 hint: check the spelling, install it, or give its path (relative to {})",
                cwd.display()
            ),
        ),
        ErrorKind::PermissionDenied => (
            RefusalCode::Denied,
            format!("{program} may not be executed. hint: chmod +x, or start its interpreter with it as argument"),
        ),
        ErrorKind::ArgumentListTooLong => (
            RefusalCode::TooLarge,
            "the arguments and the environment are too long. hint: pass long input on standard input".to_owned(),
        ),
        ErrorKind::InvalidInput => (
            RefusalCode::InvalidArguments,
            format!("{program} cannot be started: {error}. hint: arguments hold no NUL"),
        ),
        _ => (
            RefusalCode::Denied,
            format!("{program} cannot be started: {error}. hint: a script needs its #! line or its interpreter"),
        ),
    };
    Refusal::new(code, message)
}

async fn carry<S: Io>(
    stream: FramedStream<S>,
    mut group: Group,
    mut child: Child,
    pipes: Pipes,
) -> Result<Exit, StreamError> {
    let FramedStream { mut reader, mut writer } = stream;
    let Pipes { stdin, stdout, stderr } = pipes;
    let exited = CancellationToken::new();
    let ended = {
        let life = async {
            let status = child.wait().await;
            exited.cancel();
            Ok(status?)
        };
        let output = output(&mut writer, stdout, stderr, &exited);
        tokio::select! {
            done = async { tokio::try_join!(life, output) } => done.map(|(status, ())| status),
            lost = input(&mut reader, stdin, group.pid, &exited) => Err(lost),
        }
    };
    match ended {
        Ok(status) => {
            group.over = true;
            let exit = exit_of(status);
            writer.send_json(FrameKind::Exit, &exit).await?;
            writer.end().await?;
            writer.close().await?;
            Ok(exit)
        }
        Err(error) => {
            group.end(&mut child).await;
            Err(error)
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    Exit { code: status.code(), signal: status.signal() }
}

/// Takes frames from the peer; returns only when the peer gives up or is lost. Input waits in a queue while the
/// program does not read it, and is dropped when the program has closed its end.
async fn input<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    stdin: ChildStdin,
    pid: Pid,
    exited: &CancellationToken,
) -> StreamError {
    let mut stdin = Some(stdin);
    let mut queue: VecDeque<Bytes> = VecDeque::new();
    let mut queued = 0;
    let mut ended = false;
    loop {
        if ended && queue.is_empty() {
            stdin = None;
        }
        let write = async {
            match (&mut stdin, queue.front()) {
                (Some(stdin), Some(bytes)) => stdin.write(bytes).await,
                _ => pending().await,
            }
        };
        let frame = tokio::select! {
            written = write => {
                match written {
                    Ok(n) => {
                        queued -= n;
                        if let Some(front) = queue.front_mut() {
                            front.advance(n);
                        }
                        queue.pop_front_if(|front| front.is_empty());
                    }
                    Err(_) => {
                        stdin = None;
                        queue.clear();
                        queued = 0;
                    }
                }
                continue;
            }
            frame = reader.expect(), if queued < STDIN_QUEUE => frame,
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        match frame.kind {
            FrameKind::Data if !ended => {
                if stdin.is_some() && !frame.payload.is_empty() {
                    queued += frame.payload.len();
                    queue.push_back(frame.payload);
                }
            }
            FrameKind::End if !ended => ended = true,
            // After the exit its number may belong to another group.
            FrameKind::Signal if exited.is_cancelled() => {}
            FrameKind::Signal => match frame.json::<Signal>().map(|s| NixSignal::try_from(s.signal)) {
                Ok(Ok(signal)) => {
                    let _ = killpg(pid, signal);
                }
                // A number that is no signal here does nothing.
                Ok(Err(_)) => {}
                Err(refusal) => return StreamError::Refused(refusal),
            },
            FrameKind::Abort => return StreamError::Refused(frame.refusal()),
            kind => return StreamError::OutOfPlace(kind),
        }
    }
}

/// Sends output as it comes. Over when the program has exited and both pipes are, or whoever still holds them is silent;
/// or when the stream is cut.
async fn output<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    exited: &CancellationToken,
) -> Result<(), StreamError> {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    let mut buffer: Option<DataBuffer> = None;
    loop {
        let is_open = stdout.is_some() || stderr.is_some();
        let quiet = async {
            exited.cancelled().await;
            if is_open {
                sleep(DRAIN_QUIET).await;
            }
        };
        let ready = poll_fn(|cx| {
            for (kind, pipe) in [(FrameKind::Stderr, &stderr), (FrameKind::Data, &stdout)] {
                if let Some(pipe) = pipe
                    && let Poll::Ready(ready) = pipe.poll_read_ready(cx)
                {
                    return Poll::Ready(ready.map(|()| kind));
                }
            }
            buffer = None;
            Poll::Pending
        });
        let kind = tokio::select! {
            biased;
            kind = ready => kind?,
            () = quiet => return Ok(()),
            () = sleep(LOOK) => {
                writer.check().await?;
                continue;
            }
        };
        let source = if kind == FrameKind::Stderr { &mut stderr } else { &mut stdout };
        let Some(pipe) = source else { continue };
        let filling = buffer.get_or_insert_default();
        let read = pipe.try_read_buf(&mut filling.space());
        match read {
            Ok(0) => *source = None,
            Ok(_) => writer.send_buffer(kind, filling).await?,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The process group of the child. Killed when dropped before its time.
struct Group {
    pid: Pid,
    over: bool,
}

impl Group {
    /// Ends the group: asks, waits, kills.
    async fn end(mut self, child: &mut Child) {
        for signal in [NixSignal::SIGHUP, NixSignal::SIGTERM] {
            let _ = killpg(self.pid, signal);
        }
        let all_gone = async {
            let _ = child.wait().await;
            // Children of the child have the same time to end in order, and no one to wait for them.
            while killpg(self.pid, None).is_ok() {
                sleep(GROUP_POLL).await;
            }
        };
        if timeout(TERM_GRACE, all_gone).await.is_err() {
            let _ = killpg(self.pid, NixSignal::SIGKILL);
        }
        self.over = true;
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, pid = self.pid.as_raw(), "waiting for a process that was killed failed");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.over {
            let _ = killpg(self.pid, NixSignal::SIGKILL);
        }
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;

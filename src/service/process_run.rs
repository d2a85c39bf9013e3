//! The laptop's end of a `Process` stream: joins it to this program's own input, output and signals.
//!
//! Returns how the process ended, or a refusal; output that was cut is a refusal, never a success.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::session::framed::{DataBuffer, FrameReader, FrameWriter, FramedStream, Io, StreamError};
use crate::wire::open::{Exit, Signal};
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Carries a process on a stream that was opened with its request, before the answer is read. Does not wait for
/// `stdin` to end once the process has. A closed `signals` sends none. A signal before the answer ends this as it would have
/// ended the process: nobody can take it there, and nothing tells when somebody will.
pub async fn run_process<S: Io>(
    mut stream: FramedStream<S>,
    stdin: impl AsyncRead + Unpin,
    stdout: impl AsyncWrite + Unpin,
    stderr: impl AsyncWrite + Unpin,
    mut signals: mpsc::Receiver<i32>,
) -> Result<Exit, Refusal> {
    tokio::select! {
        biased;
        answer = stream.answer() => answer.map_err(StreamError::into_refusal)?,
        // A process that begins all the same ends with the stream.
        Some(signal) = signals.recv() => return Ok(Exit { code: None, signal: Some(signal) }),
    };
    let FramedStream { mut reader, mut writer } = stream;
    let exit = {
        let input = async {
            if let Err(error) = input(&mut writer, stdin, signals).await {
                // How the process ended may still be on its way.
                tracing::debug!(%error, "the process takes no more input");
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            exit = output(&mut reader, stdout, stderr) => exit?,
            () = input => unreachable!("pending"),
        }
    };
    let _ = writer.close().await;
    Ok(exit)
}

async fn input<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    mut stdin: impl AsyncRead + Unpin,
    mut signals: mpsc::Receiver<i32>,
) -> io::Result<()> {
    let mut buffer = DataBuffer::new();
    let mut ended = false;
    loop {
        let mut space = buffer.space();
        tokio::select! {
            Some(signal) = signals.recv() => writer.send_json(FrameKind::Signal, &Signal { signal }).await?,
            read = stdin.read_buf(&mut space), if !ended => {
                drop(space);
                // Input that fails is over: there will be no more of it.
                ended = read.unwrap_or(0) == 0;
                match ended {
                    true => writer.end().await?,
                    false => writer.send_buffer(FrameKind::Data, &mut buffer).await?,
                }
            }
            else => return Ok(()),
        }
    }
}

async fn output<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    mut stdout: impl AsyncWrite + Unpin,
    mut stderr: impl AsyncWrite + Unpin,
) -> Result<Exit, Refusal> {
    let mut exit = None;
    loop {
        let frame = reader.expect().await.map_err(cut)?;
        match frame.kind {
            FrameKind::Data => {
                let written = async { stdout.write_all(&frame.payload).await.and(stdout.flush().await) };
                written.await.map_err(|e| closed("output", &e))?;
            }
            FrameKind::Stderr => {
                let written = async { stderr.write_all(&frame.payload).await.and(stderr.flush().await) };
                written.await.map_err(|e| closed("error", &e))?;
            }
            FrameKind::Exit => exit = Some(frame.json::<Exit>()?),
            FrameKind::End => {
                return exit.ok_or_else(|| {
                    Refusal::new(RefusalCode::Malformed, "the workspace did not say how the process ended")
                });
            }
            FrameKind::Abort => return Err(frame.refusal()),
            kind => return Err(StreamError::OutOfPlace(kind).into_refusal()),
        }
    }
}

fn cut(error: StreamError) -> Refusal {
    match error {
        StreamError::Io(_) | StreamError::Truncated => Refusal::new(
            RefusalCode::Unavailable,
            "the connection to the process was lost; its output may be incomplete, and it is being ended. \
             hint: run it again when the session is back",
        ),
        error => error.into_refusal(),
    }
}

fn closed(which: &str, error: &io::Error) -> Refusal {
    Refusal::new(RefusalCode::Cancelled, format!("standard {which} cannot be written: {error}; the process is ended"))
}

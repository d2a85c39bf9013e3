//! Where a process's output goes: to this program's own as it is, or as JSON lines there: `{"stream":"stdout","text":"…"}`,
//! or `"base64"` for what is not UTF-8.

use std::cell::Cell;
use std::io::{self, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use serde_json::json;
use tokio::io::AsyncWrite;

/// Writes what it is given to standard output, each piece as a line.
#[derive(Debug)]
pub struct JsonLines {
    stream: &'static str,
}

impl JsonLines {
    /// Lines that name `stream`.
    pub fn new(stream: &'static str) -> JsonLines {
        JsonLines { stream }
    }
}

fn line(stream: &str, bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({"stream": stream, "text": text}),
        Err(_) => json!({"stream": stream, "base64": data_encoding::BASE64.encode(bytes)}),
    }
}

impl AsyncWrite for JsonLines {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !buf.is_empty() {
            writeln!(io::stdout(), "{}", line(self.stream, buf))?;
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(io::stdout().flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Where a process's output goes.
pub struct Sinks {
    /// What it writes to its standard output.
    pub stdout: Sink,
    /// What it writes to its standard error.
    pub stderr: Sink,
    /// Whether a reader of either has gone, as `head` does when it has enough.
    pub unread: Rc<Cell<bool>>,
}

/// As it is to standard output and standard error, or as JSON lines to standard output.
pub fn sinks(json: bool) -> Sinks {
    let unread = Rc::default();
    let sink = |to: Box<dyn AsyncWrite + Unpin>| Sink { to, unread: Rc::clone(&unread) };
    let (stdout, stderr) = if json {
        (sink(Box::new(JsonLines::new("stdout"))), sink(Box::new(JsonLines::new("stderr"))))
    } else {
        (sink(Box::new(tokio::io::stdout())), sink(Box::new(tokio::io::stderr())))
    };
    Sinks { stdout, stderr, unread }
}

/// Notes when its reader has gone.
pub struct Sink {
    to: Box<dyn AsyncWrite + Unpin>,
    unread: Rc<Cell<bool>>,
}

impl Sink {
    fn noted<T>(&self, outcome: io::Result<T>) -> Poll<io::Result<T>> {
        if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.unread.set(true);
        }
        Poll::Ready(outcome)
    }
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = ready!(Pin::new(&mut self.to).poll_write(cx, buf));
        self.noted(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = ready!(Pin::new(&mut self.to).poll_flush(cx));
        self.noted(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_the_rest_is_base64() {
        assert_eq!(line("stdout", b"h\xc3\xa9\n"), json!({"stream": "stdout", "text": "hé\n"}));
        assert_eq!(line("stderr", b"\xff\x00"), json!({"stream": "stderr", "base64": "/wA="}));
    }
}

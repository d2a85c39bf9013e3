//! A process's output as JSON lines: `{"stream":"stdout","text":"…"}`, or `"base64"` for what is not UTF-8.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

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

/// Where a process's output goes: as it is to standard output and standard error, or as JSON lines.
pub fn sinks(json: bool) -> (Box<dyn AsyncWrite + Unpin>, Box<dyn AsyncWrite + Unpin>) {
    if json {
        (Box::new(JsonLines::new("stdout")), Box::new(JsonLines::new("stderr")))
    } else {
        (Box::new(tokio::io::stdout()), Box::new(tokio::io::stderr()))
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

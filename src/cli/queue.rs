//! What a program that runs on says, on its way to standard output and standard error. A thread for each writes it, so that
//! a pipe which nobody reads, or a terminal that was stopped, holds up that thread and nothing else. What does not fit
//! meanwhile is lost, and how many lines that were is said in their place.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::log::{Common, LogFormat};

/// Bytes that wait for one of the two at most: some thousand lines.
const MOST: usize = 1 << 20;

/// How long what waits may take at the end of the program. Without a reader it never ends.
const LAST: Duration = Duration::from_secs(1);

/// For standard output and standard error.
static OUT: Queue = Queue::new();
static ERR: Queue = Queue::new();

/// Whether they have their threads. A program that answers and ends has none: whoever reads that slowly gets all of it.
static RUNS_ON: AtomicBool = AtomicBool::new(false);

/// Lines on their way.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    /// Lines that came after those and did not fit.
    lost: u64,
    writing: bool,
}

/// From here on this program's lines go by way of threads, which last as long as it does. For its beginning.
pub fn start(common: &Common) -> io::Result<()> {
    let (json, log_format) = (common.json, common.log_format);
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    thread("stdout").spawn(move || OUT.run(anstream::stdout(), |lost| lost_lines(json, lost)))?;
    thread("stderr").spawn(move || ERR.run(anstream::stderr(), |lost| lost_log(log_format, lost)))?;
    RUNS_ON.store(true, Ordering::Release);
    Ok(())
}

/// What is said on standard output: a line, or some. A reader that is gone is no error.
pub fn say(lines: &[u8]) {
    match RUNS_ON.load(Ordering::Acquire) {
        true => OUT.push(lines),
        false => at_once(anstream::stdout(), lines),
    }
}

/// The same on standard error.
pub fn say_error(lines: &[u8]) {
    match RUNS_ON.load(Ordering::Acquire) {
        true => ERR.push(lines),
        false => at_once(anstream::stderr(), lines),
    }
}

fn at_once(mut out: impl Write, lines: &[u8]) {
    let _ = out.write_all(lines).and_then(|()| out.flush());
}

/// The log's way to standard error: each write is a line.
#[derive(Debug)]
pub struct LogLines;

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        say_error(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until everything is written, as long as that may take. For the end of the program.
pub fn finish() {
    let deadline = Instant::now() + LAST;
    OUT.finish(deadline);
    ERR.finish(deadline);
}

fn lost_lines(json: bool, lost: u64) -> String {
    match json {
        true => format!("{}\n", json!({"event": "lost", "lines": lost})),
        false => format!("  {:<12} lines that are missing here, because nobody read them: {lost}\n", "lost"),
    }
}

fn lost_log(format: LogFormat, lost: u64) -> String {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let (message, target) = ("lines of the log are missing here, because nobody read them", module_path!());
    match format {
        LogFormat::Json => {
            let line = json!({"timestamp": now, "level": "WARN", "message": message, "lines": lost, "target": target});
            format!("{line}\n")
        }
        LogFormat::Text => format!("{now}  WARN {target}: {message} lines={lost}\n"),
    }
}

impl Queue {
    const fn new() -> Queue {
        let waiting = Waiting { bytes: Vec::new(), lost: 0, writing: false };
        Queue { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    fn push(&self, lines: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lost > 0 || waiting.bytes.len() + lines.len() > MOST {
            waiting.lost += 1;
        } else {
            waiting.bytes.extend_from_slice(lines);
        }
        drop(waiting);
        self.changed.notify_all();
    }

    fn run(&self, mut out: impl Write, lost_lines: impl Fn(u64) -> String) {
        loop {
            self.write_next(&mut out, &lost_lines);
        }
    }

    /// Waits until there is something to write, and writes it. A reader that is gone is no error.
    fn write_next(&self, out: &mut impl Write, lost_lines: impl Fn(u64) -> String) {
        let is_empty = |waiting: &mut Waiting| waiting.bytes.is_empty() && waiting.lost == 0;
        let mut waiting = self.changed.wait_while(self.lock(), is_empty).unwrap_or_else(PoisonError::into_inner);
        let (mut bytes, lost) = (std::mem::take(&mut waiting.bytes), std::mem::take(&mut waiting.lost));
        waiting.writing = true;
        drop(waiting);
        if lost > 0 {
            bytes.extend_from_slice(lost_lines(lost).as_bytes());
        }
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
        self.lock().writing = false;
        self.changed.notify_all();
    }

    fn finish(&self, deadline: Instant) {
        let is_left = |waiting: &mut Waiting| waiting.writing || waiting.lost > 0 || !waiting.bytes.is_empty();
        let time = deadline.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout_while(self.lock(), time, is_left));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A pipe that takes one write when it is read once.
    struct Unread(mpsc::Receiver<()>, Vec<u8>);

    impl Write for Unread {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_in_its_place() {
        let queue = Queue::new();
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<u8>>();
        for _ in 0..MOST / line.len() + 3 {
            queue.push(&line);
        }
        // Smaller ones do not overtake the gap.
        queue.push(b"y\n");
        let mut written = Vec::new();
        queue.write_next(&mut written, |lost| format!("lost {lost}\n"));
        let expected = [line.repeat(MOST / line.len()), b"lost 4\n".to_vec()].concat();
        assert!(written == expected, "{} bytes", written.len());
        queue.push(b"z\n");
        written.clear();
        queue.write_next(&mut written, |lost| format!("lost {lost}\n"));
        assert_eq!(written, b"z\n");
    }

    #[test]
    fn the_end_waits_for_what_is_written_and_not_for_ever() {
        let queue = Queue::new();
        let (read, reads) = mpsc::channel();
        queue.push(b"last\n");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut out = Unread(reads, Vec::new());
                queue.write_next(&mut out, |_| String::new());
                out.1
            });
            // Nobody reads.
            queue.finish(Instant::now() + Duration::from_millis(20));
            read.send(()).unwrap();
            queue.finish(Instant::now() + Duration::from_secs(3600));
            assert!(queue.lock().bytes.is_empty() && !queue.lock().writing);
            assert_eq!(writer.join().unwrap(), b"last\n");
        });
    }

    #[test]
    fn a_gap_is_said_as_everything_else_is() {
        for text in [lost_lines(true, 3), lost_log(LogFormat::Json, 3)] {
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["lines"], 3);
        }
        for text in [lost_lines(false, 3), lost_log(LogFormat::Text, 3)] {
            assert!(text.contains('3') && text.ends_with('\n'), "{text}");
        }
    }
}

//! Child processes: found, started, listened to, ended by their own id, and reaped.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use socket2::{Domain, Socket, Type};

use super::wait::{until, within};

/// Where Debian puts programs, beside what `PATH` names: an ordinary user's lacks the sbin folders.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How often a fixture tries another port when its own was taken in the meantime.
const ATTEMPTS: usize = 5;

/// How long a program has to end by itself after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// How long the last words of a program that has ended may be on their way to us. A process that it left behind may hold its
/// outputs open for longer.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The path of a program; a test without it fails.
#[track_caller]
pub fn find(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("`{name}` is not installed. hint: scripts/test installs what the tests need"))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("the kernel has a free port").port()
}

/// A port of the loopback that the kernel gives nobody else while this is: only who asks for it by its number can listen on it.
#[derive(Debug)]
pub struct HeldPort {
    /// Its number.
    pub number: u16,
    _held: Socket,
}

impl HeldPort {
    /// A free one.
    pub fn new() -> HeldPort {
        let hold = || {
            let held = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            // As those who will listen on it do.
            held.set_reuse_address(true)?;
            held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            let number = held.local_addr()?.as_socket().expect("an address of the internet").port();
            std::io::Result::Ok(HeldPort { number, _held: held })
        };
        hold().expect("the kernel has a free port")
    }
}

/// True for root, who may not run every program and has to lend some of them another user.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `command` as `user` when we are root; as we are otherwise.
pub fn as_user(user: &str, command: &Command) -> Command {
    if !is_root() {
        return copy(command);
    }
    let mut lent = Command::new(find("setpriv"));
    lent.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups", "--"]);
    lent.arg(command.get_program()).args(command.get_args());
    take_surroundings(&mut lent, command);
    lent
}

/// Gives `path` to `user` when we are root.
pub fn give(path: &Path, user: &str) {
    if is_root() {
        let found = User::from_name(user).ok().flatten();
        let found =
            found.unwrap_or_else(|| panic!("there is no user `{user}`. hint: scripts/test installs its package"));
        chown(path, Some(found.uid), Some(found.gid)).expect("root may give files away");
    }
}

fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    take_surroundings(&mut copy, command);
    copy
}

/// Environment and working directory of `from`.
pub fn take_surroundings(to: &mut Command, from: &Command) {
    for (key, value) in from.get_envs() {
        match value {
            Some(value) => to.env(key, value),
            None => to.env_remove(key),
        };
    }
    if let Some(folder) = from.get_current_dir() {
        to.current_dir(folder);
    }
}

/// A child process. Ended and reaped on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    output: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts `command`; collects its output and its errors line by line. Standard input is empty.
    #[track_caller]
    pub fn start(command: Command) -> Running {
        Running::start_with(command, Stdio::null()).0
    }

    /// As [`start`](Self::start), with another standard input: its other end, when it is a pipe.
    #[track_caller]
    pub fn start_with(mut command: Command, input: Stdio) -> (Running, Option<ChildStdin>) {
        let what = format!("{command:?}");
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        let input = child.stdin.take();
        let output = Arc::default();
        let readers = [
            child.stdout.take().map(|out| collect(out, &output)),
            child.stderr.take().map(|err| collect(err, &output)),
        ];
        (Running { child, what, output, readers: readers.into_iter().flatten().collect() }, input)
    }

    /// Starts `command`, both outputs of which go to one small pipe; listens until it says a line with `text`, and no more.
    #[track_caller]
    pub fn start_unread(mut command: Command, text: &str) -> (Running, Unread) {
        let what = format!("{command:?}");
        let (from, to) = std::io::pipe().expect("a pipe");
        fcntl(&to, FcntlArg::F_SETPIPE_SZ(UNREAD as i32)).expect("a pipe may be small");
        command.stdin(Stdio::null()).stderr(to.try_clone().expect("a descriptor")).stdout(to);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        // It keeps the ends that it writes to.
        drop(command);
        let running = Running { child, what, output: Arc::default(), readers: Vec::new() };
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let n = from.read_line(&mut line).expect("lines of text");
            assert!(n > 0, "{} ended without saying `{text}`", running.what);
        }
        (running, Unread(from))
    }

    /// Starts what `command` makes of a free port, until it listens there. Another port when that one was snatched away.
    #[track_caller]
    pub fn on_free_port(mut command: impl FnMut(u16) -> Command) -> (u16, Running) {
        let mut said = String::new();
        for _ in 0..ATTEMPTS {
            let port = free_port();
            let mut program = Running::start(command(port));
            let what = format!("port {port} of {}", program.what);
            let up = until(&what, || match program.has_ended() {
                Some(_) => Some(false),
                None => program.listens_on(port).then_some(true),
            });
            if up {
                return (port, program);
            }
            said = format!("{} ended before it listened:\n{}", program.what, program.output());
        }
        panic!("{said}");
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far.
    pub fn output(&self) -> String {
        self.lines().join("\n")
    }

    /// The lines it has said so far, on either output.
    pub fn lines(&self) -> Vec<String> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it says a line that contains `text`, and gives that line.
    #[track_caller]
    pub fn says(&mut self, text: &str) -> String {
        self.says_after(0, super::PATIENCE, text)
    }

    /// As [`says`](Self::says), no longer than `time`, and among what it says after its first `heard` lines.
    #[track_caller]
    pub fn says_after(&mut self, heard: usize, time: Duration, text: &str) -> String {
        let line = within(time, || {
            // In this order: once it has ended and its readers have, what it said is complete.
            let ended = self.has_ended().is_some() && self.readers.iter().all(JoinHandle::is_finished);
            let said = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            let line = said.iter().skip(heard).find(|line| line.contains(text)).cloned();
            if line.is_some() || ended { Some(line) } else { None }
        });
        line.flatten().unwrap_or_else(|| {
            let how = if self.has_ended().is_some() { "ended" } else { "went on" };
            panic!("{} {how} without saying `{text}`:\n{}", self.what, self.output())
        })
    }

    /// How many lines it has said so far.
    pub fn heard(&self) -> usize {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Asserts that it ended well, when it has: `status` is what [`has_ended`](Self::has_ended) gave.
    #[track_caller]
    pub fn ended_well(&self, status: Option<ExitStatus>) {
        if status.is_some() {
            self.hear_out();
        }
        let how = status.map_or("did not end in time".to_owned(), |status| status.to_string());
        assert!(status.is_some_and(|status| status.success()), "{} {how}:\n{}", self.what, self.output());
    }

    /// How it ended, when it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Waits until it ends by itself, and all that it said is heard.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.what);
        let status = until(&what, || self.has_ended());
        self.hear_out();
        status
    }

    /// Waits for what it said before it ended, which the kernel may still hold.
    fn hear_out(&self) {
        let _ = within(LAST_WORDS, || self.readers.iter().all(JoinHandle::is_finished).then_some(()));
    }

    /// Waits until it ends by itself, no longer than `time`, and well.
    #[track_caller]
    pub fn completes(mut self, time: Duration) {
        let status = within(time, || self.has_ended());
        self.ended_well(status);
    }

    /// Sends a signal to it, and only to it.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Whether something in its network namespace listens on this TCP port. Connects to nothing: some programs serve one client only.
    pub fn listens_on(&self, port: u16) -> bool {
        listens(self.child.id(), port)
    }

    /// Asks it to end, insists after a while, and hears all that it said.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        let status = self.end(signal);
        self.hear_out();
        status
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        if let Some(status) = self.has_ended() {
            return status;
        }
        self.signal(signal);
        within(GRACE, || self.has_ended()).unwrap_or_else(|| {
            let _ = self.child.kill();
            self.child.wait().expect("our own child can be waited for")
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Signal::SIGTERM);
    }
}

/// Bytes that a pipe holds which nobody reads: a page, which is the least.
const UNREAD: usize = 4096;

/// The end of a pipe that nobody reads.
#[derive(Debug)]
pub struct Unread(BufReader<PipeReader>);

impl Unread {
    /// Asserts that the program, which has ended, had more to say than the pipe takes.
    #[track_caller]
    pub fn was_full(mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("a pipe can be read");
        assert!(rest.len() > UNREAD / 2, "{} bytes: {}", rest.len(), String::from_utf8_lossy(&rest));
    }
}

fn collect(from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            into.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            line.clear();
        }
    })
}

/// Whether anything listens on `port` in the network namespace of process `pid`.
pub fn listens(pid: u32, port: u16) -> bool {
    const LISTEN: &str = "0A";
    ["tcp", "tcp6"].iter().any(|table| {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == LISTEN
        })
    })
}

/// A command that runs to its end.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, as text.
    pub stderr: String,
}

impl Run {
    /// Runs `command` to its end, no longer than [`PATIENCE`](super::PATIENCE), with `input` on standard input.
    #[track_caller]
    pub fn with_input(mut command: Command, input: &[u8]) -> Run {
        let what = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        let (mut stdin, mut out, mut err) = (
            child.stdin.take().expect("piped"),
            child.stdout.take().expect("piped"),
            child.stderr.take().expect("piped"),
        );
        let input = input.to_vec();
        // A program need not read its input: a broken pipe is no fault.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = std::thread::spawn(move || read_all(&mut out));
        let stderr = std::thread::spawn(move || read_all(&mut err));
        let status = within(super::PATIENCE, || child.try_wait().expect("our own child"));
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let status = status.unwrap_or_else(|| panic!("{what} did not end in {:?}", super::PATIENCE));
        drop(writer);
        let stdout = stdout.join().expect("the reader does not panic");
        let stderr = String::from_utf8_lossy(&stderr.join().expect("the reader does not panic")).into_owned();
        Run { status, stdout, stderr }
    }

    /// Runs `command` to its end, without input.
    #[track_caller]
    pub fn of(command: Command) -> Run {
        Run::with_input(command, b"")
    }

    /// What it wrote, as text, once it is certain that it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}{}", self.status, String::from_utf8_lossy(&self.stdout), self.stderr);
        self.text()
    }

    /// What it wrote to standard error, once it is certain that it failed.
    #[track_caller]
    pub fn err(self) -> String {
        assert!(!self.status.success(), "succeeded against expectation:\n{}", self.text());
        self.stderr
    }

    /// What it wrote, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    bytes
}

/// `program` with `args`, found by [`find`].
#[track_caller]
pub fn command<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(find(program));
    command.args(args);
    command
}

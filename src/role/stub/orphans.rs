//! Processes that the workspace's programs left in the background. They live on while the stub does, as a user's would,
//! and end with it: the stub adopts what loses its parent, and reaps what ends.
//!
//! On Linux; elsewhere nothing is adopted, and what detaches itself stays.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How often ended orphans are reaped. One is reaped when it was seen twice: a child that somebody waits for is gone
/// long before.
const REAP: Duration = Duration::from_secs(5);

/// How often it is looked whether any are left: nothing tells.
const LOOK: Duration = Duration::from_millis(500);

/// How long orphans have after SIGTERM.
const GRACE: Duration = Duration::from_millis(500);

/// From here on, orphans of this process's children become its own.
pub fn adopt() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!(%error, "processes that detach themselves will outlive the stub");
    }
}

/// Reaps orphans that have ended, for ever.
pub async fn reap() {
    let mut before = HashSet::new();
    loop {
        tokio::time::sleep(REAP).await;
        let ended: HashSet<i32> = children_of(own()).into_iter().filter(|p| p.ended).map(|p| p.pid).collect();
        for pid in ended.intersection(&before) {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        before = ended;
    }
}

/// Processes that are not ours to end, and what is below them: other stubs, which were started from the workspace.
pub type Spare = HashSet<i32>;

/// Returns when nothing runs below this process but what is to be spared, which is asked for anew each time.
pub async fn gone(spare: impl AsyncFn() -> Option<Spare>) {
    while are_left(spare().await.as_ref()) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether anything runs below this process but what is to be spared. While that is not known, anything may.
pub fn are_left(spare: Option<&Spare>) -> bool {
    spare.is_none_or(|spare| below(own(), spare).iter().any(|p| !p.ended))
}

/// Ends everything below this process but what is to be spared: politely, then not.
pub async fn end_all(spare: &Spare) {
    if send(Signal::SIGTERM, spare) == 0 {
        return;
    }
    let deadline = tokio::time::Instant::now() + GRACE;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if below(own(), spare).iter().all(|p| p.ended) {
            return;
        }
    }
    // A process that is killed can have started another just before.
    for _ in 0..3 {
        if send(Signal::SIGKILL, spare) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn own() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(i32::MAX)
}

/// Sends a signal to everything below this process that runs; gives how many that were.
fn send(signal: Signal, spare: &Spare) -> usize {
    let running: Vec<_> = below(own(), spare).into_iter().filter(|p| !p.ended).collect();
    for process in &running {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
    running.len()
}

/// What the kernel tells about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Whether it has ended, and waits to be reaped.
    pub ended: bool,
}

/// Reads `/proc/PID/stat`: the name in parentheses may hold anything, the rest is words.
pub fn parse(stat: &str) -> Option<Process> {
    let (before, after) = (stat.split_once(" (")?.0, stat.rsplit_once(") ")?.1);
    let mut words = after.split(' ');
    let ended = matches!(words.next()?, "Z" | "X");
    Some(Process { pid: before.parse().ok()?, parent: words.next()?.parse().ok()?, ended })
}

fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())))
        .filter_map(|entry| parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

fn children_of(parent: i32) -> Vec<Process> {
    all().into_iter().filter(|p| p.parent == parent).collect()
}

fn below(root: i32, spare: &Spare) -> Vec<Process> {
    let all = all();
    let parents: HashMap<i32, i32> = all.iter().map(|p| (p.pid, p.parent)).collect();
    // What started one that is spared, such as a shell that waits for it, is spared too.
    let started = spare.iter().flat_map(|pid| std::iter::successors(Some(*pid), |pid| parents.get(pid).copied()));
    let spared: HashSet<i32> = started.take(all.len() + spare.len()).collect();
    let mut by_parent: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all.into_iter().filter(|p| !spared.contains(&p.pid)) {
        by_parent.entry(process.parent).or_default().push(process);
    }
    let mut found = by_parent.remove(&root).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next).copied() {
        found.extend(by_parent.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = "42 (a ) Z 1 (b) S 7 42 42 0 -1 4194560";
        assert_eq!(parse(stat), Some(Process { pid: 42, parent: 7, ended: false }));
        assert_eq!(parse("42 (x) Z 7 1"), Some(Process { pid: 42, parent: 7, ended: true }));
        assert_eq!(parse("garbage"), None);
        assert_eq!(parse(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(below(own(), &Spare::new()).iter().any(|p| p.pid == pid && !p.ended));
        assert!(!below(own(), &Spare::from([pid])).iter().any(|p| p.pid == pid));
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60; :"]).spawn().unwrap();
        let started = i32::try_from(shell.id()).unwrap();
        let below_it = loop {
            if let Some(sleep) = children_of(started).first() {
                break sleep.pid;
            }
            std::thread::yield_now();
        };
        let left = below(own(), &Spare::from([below_it]));
        assert!(!left.iter().any(|p| [started, below_it].contains(&p.pid)), "who started it is spared, too: {left:?}");
        kill(Pid::from_raw(below_it), Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!below(own(), &Spare::new()).iter().any(|p| p.pid == pid));
    }
}

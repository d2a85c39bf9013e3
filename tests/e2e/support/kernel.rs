//! What the kernel tells about processes that are not children of ours.

use std::fs;

/// The children of process `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc is there").flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| stat(*id).is_some_and(|(_, parent)| parent == pid)).collect()
}

/// Whether process `pid` runs; one that has ended and waits to be reaped does not.
pub fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// Whether process `pid` was stopped, and has not been continued.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state == "T")
}

/// The ports from which process `pid` has TCP connections to `port` of another program.
pub fn ports_toward(pid: u32, port: u16) -> Vec<u16> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs, and is ours").flatten();
    let named = |file: fs::DirEntry| Some(fs::read_link(file.path()).ok()?.to_str()?.to_owned());
    let sockets: Vec<String> = files.filter_map(named).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let own = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, ..] = fields[..] else { return None };
        let ours =
            remote.ends_with(&format!(":{port:04X}")) && sockets.contains(&format!("socket:[{}]", fields.get(9)?));
        ours.then(|| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok())?
    };
    table.lines().skip(1).filter_map(own).collect()
}

/// What a process holds of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory in bytes.
    pub memory: u64,
    /// Its threads.
    pub threads: usize,
    /// Its open files and sockets.
    pub files: usize,
}

/// What process `pid` holds now.
#[track_caller]
pub fn footprint(pid: u32) -> Footprint {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs, and is ours").count();
    Footprint { memory: field(pid, "VmRSS") * 1024, threads: field(pid, "Threads") as usize, files }
}

/// The most resident memory in bytes that process `pid` has had since its start: nothing is too short to be seen.
#[track_caller]
pub fn peak(pid: u32) -> u64 {
    field(pid, "VmHWM") * 1024
}

/// A number that the kernel gives of process `pid`.
#[track_caller]
fn field(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no `{name}` in:\n{status}"))
}

/// Environment and command line of process `pid`, a line each.
pub fn surroundings(pid: u32) -> String {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).expect("the process runs, and is ours");
    let bytes = [read("environ"), read("cmdline")].concat();
    String::from_utf8_lossy(&bytes).replace('\0', "\n")
}

/// State and parent.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

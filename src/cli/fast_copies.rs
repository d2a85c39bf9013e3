//! Starts this program anew with a setting of the C library that makes large copies fast on AMD processors.
//!
//! glibc before 2.40 copies what is larger than about 2 KiB with `rep movsb`, which AMD processors execute at a third of the
//! speed of a loop when the target is not aligned (glibc bug 30994), and every layer's header leaves the next one's bytes
//! unaligned. The threshold can be set only in the environment, before a program starts. docs/performance.md has the figures.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

/// The C library's settings. A value that is there already is left alone.
pub const TUNABLES: &str = "GLIBC_TUNABLES";

/// Never `rep movsb`.
pub const VALUE: &str = "glibc.cpu.x86_rep_movsb_threshold=4611686018427387904";

/// Does so where it helps, for programs that move bytes; returns where it does not, or cannot. Keeps the process id, and the
/// name that the program was started under.
pub fn restart(arguments: &[OsString]) {
    let Some((name, rest)) = arguments.split_first() else { return };
    if std::env::var_os(TUNABLES).is_some() || !helps() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // Returns only when it failed; then this program goes on as it is.
        let _ = std::process::Command::new(program).arg0(name).args(rest).env(TUNABLES, VALUE).exec();
    }
}

fn helps() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))
        && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| cpus.contains("AuthenticAMD"))
}

//! Every connection is a file descriptor, and the usual allowance is a thousand of them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a laptop's or a workspace's program may hold open: thousands of forwarded connections. What it starts may as
/// well, which harms nothing that does not open as many.
#[cfg(any(feature = "proxy", feature = "stub"))]
pub const OF_A_TUNNEL: u64 = 64 * 1024;

/// Raises the allowance to `wanted`, as far as the system lets it.
pub fn raise(wanted: u64) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(wanted).max(soft), hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}

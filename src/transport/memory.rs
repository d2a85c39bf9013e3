//! A carrier in memory, for tests: two ends, bounded in between.

use tokio::io::DuplexStream;

/// Bytes that fit between the two ends.
pub const PIPE: usize = 256 * 1024;

/// Two ends of one carrier.
pub fn pair() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(PIPE)
}

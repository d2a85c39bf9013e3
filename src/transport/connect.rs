//! A TCP connection to the first of some addresses that answers (RFC 8305): each gets a short start before the next one
//! is tried beside it, and both families have their turn.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

/// The start that an address has before the next one is tried, as RFC 8305 advises.
const START: Duration = Duration::from_millis(250);

/// A connection that nothing comes over is asked for by the system after this time, in seconds.
const KEEP_ALIVE: u32 = 30;

/// Connects to the first address that answers; with `TCP_NODELAY` and keep-alive. How long that may take is for the caller
/// to say; dropping the future gives up.
pub async fn first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let stream = race(addresses).await?;
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    #[cfg(target_os = "linux")]
    let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &KEEP_ALIVE);
    #[cfg(target_vendor = "apple")]
    let _ = setsockopt(&stream, sockopt::TcpKeepAlive, &KEEP_ALIVE);
    Ok(stream)
}

async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut left = VecDeque::from(in_turns(addresses));
    let mut tries = FuturesUnordered::new();
    let mut failed = None;
    loop {
        match left.pop_front() {
            Some(address) => tries.push(TcpStream::connect(address)),
            None if tries.is_empty() => return Err(failed.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
            None => {}
        }
        tokio::select! {
            Some(outcome) = tries.next() => match outcome {
                Ok(stream) => return Ok(stream),
                // A machine that refuses says more than a network that is not there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => failed = Some(error),
                Err(error) => failed = failed.or(Some(error)),
            },
            () = tokio::time::sleep(START), if !left.is_empty() => {}
        }
    }
}

/// One family after the other, beginning with the first address's.
fn in_turns(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first = |address: &&SocketAddr| addresses.first().is_some_and(|first| first.is_ipv4() == address.is_ipv4());
    let (mut one, mut other) = (addresses.iter().filter(is_first), addresses.iter().filter(|a| !is_first(a)));
    let mut turns = Vec::with_capacity(addresses.len());
    while turns.len() < addresses.len() {
        turns.extend(one.next());
        turns.extend(other.next());
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns() {
        let [a, b, c, d] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "[::1]:1"].map(address);
        assert_eq!(in_turns(&[a, b, c, d]), [a, d, b, c]);
        assert_eq!(in_turns(&[d, a, b]), [d, a, b]);
        assert_eq!(in_turns(&[]), []);
    }

    #[tokio::test]
    async fn the_first_that_answers_is_taken_and_silence_is_passed_by() {
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (there_at, gone_at) = (there.local_addr().unwrap(), gone.local_addr().unwrap());
        drop(gone);
        assert_eq!(first(&[gone_at, there_at]).await.unwrap().peer_addr().unwrap(), there_at);
        // Nobody is at an address of documentation; a machine without a network says so at once.
        let silent = address("192.0.2.1:9");
        assert_eq!(first(&[silent, silent, there_at]).await.unwrap().peer_addr().unwrap(), there_at);
        assert_eq!(first(&[gone_at]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(first(&[]).await.is_err());
    }
}

//! What the tests of this layer share: an opener that hands out pipes, and sockets on ports that are free.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::session::opener::Opener;
use crate::session::way::Way;
use crate::wire::{Endpoint, Refusal, RefusalCode};

/// Bytes that a pipe holds before its writer waits.
pub(crate) const PIPE: usize = 64 * 1024;

/// Opens pipes; their other ends come out of the receiver.
#[derive(Clone, Debug)]
pub(crate) struct PipeOpener {
    ends: mpsc::UnboundedSender<DuplexStream>,
    /// How many more times it says that there is no session.
    pub(crate) unavailable: Arc<AtomicUsize>,
    /// The way that its pipes take.
    pub(crate) way: Way,
}

pub(crate) fn pipes() -> (PipeOpener, mpsc::UnboundedReceiver<DuplexStream>) {
    let (ends, other_ends) = mpsc::unbounded_channel();
    (PipeOpener { ends, unavailable: Arc::default(), way: Way::steady() }, other_ends)
}

impl Opener for PipeOpener {
    type Io = DuplexStream;

    async fn open(&self) -> Result<DuplexStream, Refusal> {
        let gone = || Refusal::new(RefusalCode::Unavailable, "no session");
        if self.unavailable.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(gone());
        }
        let (here, there) = tokio::io::duplex(PIPE);
        self.ends.send(there).map_err(|_| gone())?;
        Ok(here)
    }

    fn way(&self) -> Way {
        self.way.clone()
    }
}

/// Both ends of a TCP connection over loopback.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

/// A port that nothing listens on.
pub(crate) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

pub(crate) fn loopback(port: u16) -> Endpoint {
    Endpoint::Tcp { host: "127.0.0.1".into(), port }
}

pub(crate) fn port_of(endpoint: &Endpoint) -> u16 {
    match endpoint {
        Endpoint::Tcp { port, .. } | Endpoint::Udp { port, .. } => *port,
        Endpoint::Unix { path } => panic!("{path} has no port"),
    }
}

/// A service that sends back what it receives, once it has it all. Ends with the runtime of the test.
pub(crate) async fn echo_service() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                if socket.read_to_end(&mut all).await.is_ok() {
                    let _ = socket.write_all(&all).await;
                }
            });
        }
    });
    loopback(port)
}

/// Sends `bytes`, ends, and returns all that comes back.
pub(crate) async fn ask(port: u16, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut client = TcpStream::connect(("127.0.0.1", port)).await?;
    client.write_all(bytes).await?;
    client.shutdown().await?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A byte each way, and then the end each way.
pub(crate) async fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    one.write_all(b"x").await.unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'x');
    other.write_all(b"y").await.unwrap();
    assert_eq!(one.read_u8().await.unwrap(), b'y');
    one.shutdown().await.unwrap();
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
    other.shutdown().await.unwrap();
    assert_eq!(one.read(&mut [0]).await.unwrap(), 0);
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

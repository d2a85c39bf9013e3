//! `-D`: a SOCKS5 server on the laptop whose connections and datagrams leave from the workspace.
//!
//! Names go to the workspace as they are: nothing is looked up on the laptop. CONNECT waits for the workspace's
//! answer, so that the client gets the right reply code. Refuses BIND, authentication other than none, fragments,
//! and datagrams from anyone but the client of the association.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fast_socks5::server::{Socks5ServerProtocol, SocksServerError};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::service::copy::{Answer, Socket, relay_metered};
use crate::service::dial::Place;
use crate::service::forward::{accept_all, open_patiently};
use crate::service::listen::Listener;
use crate::service::stats::ForwardStats;
use crate::service::term::Term;
use crate::service::udp::{next_datagram, recv};
use crate::service::udp_address;
use crate::session::framed::{FramedStream, Io, StreamError};
use crate::session::opener::Opener;
use crate::wire::limits::{DIAL_TIMEOUT, MAX_DATAGRAM};
use crate::wire::{Endpoint, FrameKind, Open, Refusal, RefusalCode, StreamRequest};

/// How long a client may take to say what it wants.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long we wait for the workspace's answer: its own bound, twice over for resolving and dialling, and some way.
const ANSWER_TIMEOUT: Duration = DIAL_TIMEOUT.saturating_mul(2).saturating_add(Duration::from_secs(5));

/// How often a client that waits is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes read, and time spent, to let a client that speaks something else see an orderly close.
const DRAIN_BYTES: u64 = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The answer to a SOCKS4 client: request rejected.
const SOCKS4_REJECTED: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];

/// The reserved bytes and the fragment number in front of a datagram's address: none, and not a fragment.
const WHOLE: [u8; 3] = [0, 0, 0];

/// Where a reply says that it is bound, when it is bound in the workspace: nowhere the client could use.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A SOCKS5 server on the laptop.
#[derive(Debug)]
pub struct SocksForward<O> {
    listener: Listener,
    opener: O,
    stats: Arc<ForwardStats>,
}

impl<O: Opener> SocksForward<O> {
    /// Listens on `bind`, a TCP endpoint; port 0 picks one.
    pub async fn bind(opener: O, bind: &Endpoint) -> Result<SocksForward<O>, Refusal> {
        if !matches!(bind, Endpoint::Tcp { .. }) {
            let message = format!("SOCKS is served on a TCP port, and {bind} is none. hint: write -D 1080");
            return Err(Refusal::new(RefusalCode::InvalidArguments, message));
        }
        let listener = Listener::bind(bind, Path::new(""), Place::Laptop).await?;
        Ok(SocksForward { listener, opener, stats: Arc::default() })
    }

    /// Where it listens, with the port that was picked.
    pub fn bound(&self) -> &Endpoint {
        self.listener.bound()
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<ForwardStats> {
        self.stats.clone()
    }

    /// Counts in `stats` from here on.
    pub fn counted_in(self, stats: Arc<ForwardStats>) -> Self {
        Self { stats, ..self }
    }

    /// Serves for its term; connections that are open at its end are reset.
    pub async fn run(self, term: impl Into<Term>) {
        let SocksForward { listener, opener, stats } = self;
        let serve = |socket, _| {
            let (opener, stats) = (opener.clone(), stats.clone());
            async move {
                if let Socket::Tcp(client) = socket {
                    serve(client, opener, stats).await;
                }
            }
        };
        let accept = async |listener: &Listener, tasks: &mut JoinSet<()>| {
            accept_all(listener, tasks, &stats, serve).await;
        };
        term.into().serve(listener, accept).await;
    }
}

async fn serve<O: Opener>(mut client: TcpStream, opener: O, stats: Arc<ForwardStats>) {
    let _open = stats.begin();
    let _ = client.set_nodelay(true);
    let result = match timeout(HANDSHAKE_TIMEOUT, handshake(&mut client)).await {
        Ok(Ok(Asked::Connect(target))) => connect(client, target, &opener, &stats).await,
        Ok(Ok(Asked::Associate)) => associate(client, &opener, &stats).await,
        Ok(Err(error)) => {
            close_cleanly(client).await;
            Err(Refusal::new(RefusalCode::Malformed, format!("the client does not speak SOCKS5 as we do: {error}")))
        }
        Err(_) => Err(Refusal::new(RefusalCode::Timeout, "the SOCKS client did not say what it wants")),
    };
    if let Err(refusal) = result {
        tracing::debug!(%refusal, "a SOCKS connection failed");
        stats.failed(refusal);
    }
}

enum Asked {
    Connect(Endpoint),
    Associate,
}

/// Reads what the client wants. Afterwards it waits for a reply.
async fn handshake(client: &mut TcpStream) -> Result<Asked, SocksServerError> {
    let mut version = [0];
    if client.peek(&mut version).await.is_ok_and(|n| n == 1) && version == [4] {
        let _ = client.write_all(&SOCKS4_REJECTED).await;
    }
    let (protocol, command, target) = Socks5ServerProtocol::accept_no_auth(client).await?.read_command().await?;
    match command {
        Socks5Command::TCPConnect => {
            let (host, port) = TargetAddr::into_string_and_port(target);
            Ok(Asked::Connect(Endpoint::Tcp { host, port }))
        }
        Socks5Command::UDPAssociate => Ok(Asked::Associate),
        Socks5Command::TCPBind => {
            protocol.reply_error(&ReplyError::CommandNotSupported).await?;
            Err(SocksServerError::UnknownCommand(fast_socks5::consts::SOCKS5_CMD_TCP_BIND))
        }
    }
}

/// The reply to a command that was read. The library's states do not survive the loan of the socket; this is the
/// one that [`handshake`] left it in.
async fn reply(client: &mut TcpStream, reply: Result<SocketAddr, ReplyError>) -> io::Result<()> {
    let (code, bound) = match reply {
        Ok(bound) => (ReplyError::Succeeded, bound),
        Err(code) => (code, NOWHERE),
    };
    let mut bytes = vec![fast_socks5::consts::SOCKS5_VERSION, code.as_u8(), 0];
    udp_address::encode(bound, &mut bytes);
    client.write_all(&bytes).await
}

async fn connect<O: Opener>(
    client: TcpStream,
    target: Endpoint,
    opener: &O,
    stats: &ForwardStats,
) -> Result<(), Refusal> {
    let open = Open::new(StreamRequest::Connect { target });
    let (mut client, stream) = opened_for(client, opener, &open).await?;
    reply(&mut client, Ok(NOWHERE)).await.map_err(|e| went_away(&e.to_string()))?;
    relay_metered(client, stream, Answer::Given, &stats.meter).await.map_err(StreamError::into_refusal)
}

/// A stream that the workspace has accepted, for a client that is there until then; one that is there and has none is told why.
async fn opened_for<O: Opener>(
    mut client: TcpStream,
    opener: &O,
    open: &Open,
) -> Result<(TcpStream, FramedStream<O::Io>), Refusal> {
    let outcome = tokio::select! {
        outcome = opened(opener, open) => outcome,
        // On a way that is interrupted it could be waited for as long as the session lives.
        () = hung_up(&client) => return Err(went_away("it hung up before it had an answer")),
    };
    match outcome {
        Ok(stream) => Ok((client, stream)),
        Err(refusal) => {
            let _ = reply(&mut client, Err(reply_code(refusal.code))).await;
            close_cleanly(client).await;
            Err(refusal)
        }
    }
}

fn went_away(why: &str) -> Refusal {
    Refusal::new(RefusalCode::Cancelled, format!("the SOCKS client went away: {why}"))
}

/// Returns when a client is gone that waits for its reply. One that has only said all that it will say is given the time of an
/// answer. What it says too early stays where it is.
async fn hung_up(client: &TcpStream) {
    let is_done = async {
        while !client.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed()) {
            sleep(LOOK).await;
        }
        sleep(ANSWER_TIMEOUT).await;
    };
    let is_gone = async {
        // Also ready when the client is: that is no end.
        while !client.ready(Interest::WRITABLE).await.is_ok_and(|ready| ready.is_write_closed()) {
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = is_done => {}
        () = is_gone => {}
    }
}

/// A stream that the workspace has accepted.
async fn opened<O: Opener>(opener: &O, open: &Open) -> Result<FramedStream<O::Io>, Refusal> {
    let mut stream = open_patiently(opener, open).await?;
    match opener.way().timeout(ANSWER_TIMEOUT, stream.answer()).await {
        Ok(Ok(_)) => Ok(stream),
        Ok(Err(error)) => Err(error.into_refusal()),
        Err(_) => Err(Refusal::new(RefusalCode::Timeout, "the workspace did not answer in time")),
    }
}

fn reply_code(code: RefusalCode) -> ReplyError {
    match code {
        RefusalCode::TargetRefused => ReplyError::ConnectionRefused,
        RefusalCode::TargetUnreachable | RefusalCode::NotFound => ReplyError::HostUnreachable,
        RefusalCode::Timeout => ReplyError::TtlExpired,
        RefusalCode::Denied | RefusalCode::NotDeclared => ReplyError::ConnectionNotAllowed,
        RefusalCode::Unavailable => ReplyError::NetworkUnreachable,
        RefusalCode::Unsupported => ReplyError::CommandNotSupported,
        _ => ReplyError::GeneralFailure,
    }
}

async fn associate<O: Opener>(client: TcpStream, opener: &O, stats: &ForwardStats) -> Result<(), Refusal> {
    let internal = |e: io::Error| Refusal::new(RefusalCode::Internal, format!("the SOCKS association failed: {e}"));
    let (mut client, stream) = opened_for(client, opener, &Open::new(StreamRequest::UdpAssociate {})).await?;
    let client_ip = client.peer_addr().map_err(internal)?.ip();
    let socket = UdpSocket::bind((client.local_addr().map_err(internal)?.ip(), 0)).await.map_err(internal)?;
    reply(&mut client, Ok(socket.local_addr().map_err(internal)?)).await.map_err(internal)?;
    tokio::select! {
        result = exchange(&socket, client_ip, stream, stats) => result.map_err(StreamError::into_refusal),
        () = over(&mut client) => Ok(()),
    }
}

/// Datagrams both ways: the frame is the client's datagram without the first three bytes.
async fn exchange<S: Io>(
    socket: &UdpSocket,
    client_ip: IpAddr,
    stream: FramedStream<S>,
    stats: &ForwardStats,
) -> Result<(), StreamError> {
    let FramedStream { mut reader, mut writer } = stream;
    // The client's port is known from its first datagram on; answers before that have no place to go.
    let (learn, client) = tokio::sync::watch::channel(None);
    let outgoing = async {
        let mut buffer = Vec::new();
        loop {
            let from = recv(socket, &mut buffer).await?;
            let whole = buffer.strip_prefix(&WHOLE).filter(|rest| udp_address::parse(rest).is_some());
            match whole.filter(|rest| from.ip() == client_ip && rest.len() <= MAX_DATAGRAM) {
                Some(datagram) => {
                    learn.send_replace(Some(from));
                    stats.meter.add_sent(datagram.len());
                    writer.send(FrameKind::Datagram, datagram).await?;
                }
                None => stats.drop_one(),
            }
        }
    };
    let incoming = async {
        while let Some(datagram) = next_datagram(&mut reader).await? {
            let Some(client) = *client.borrow() else {
                stats.drop_one();
                continue;
            };
            let whole = [&WHOLE[..], &datagram].concat();
            match socket.send_to(&whole, client).await {
                Ok(_) => stats.meter.add_received(datagram.len()),
                Err(_) => stats.drop_one(),
            }
        }
        Ok(())
    };
    tokio::select! {
        result = outgoing => result,
        result = incoming => result,
    }
}

/// Returns when the connection that an association belongs to ends. What the client says on it means nothing.
async fn over(client: &mut TcpStream) {
    let mut ignored = [0; 64];
    while client.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
}

/// Closes without a reset, which would destroy a reply that the client has yet to read.
async fn close_cleanly(mut client: TcpStream) {
    let drain = async {
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(DRAIN_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(DRAIN_TIMEOUT, drain).await;
}

#[cfg(test)]
#[path = "socks_tests.rs"]
mod tests;

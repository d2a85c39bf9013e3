//! UDP: one stream is one flow, between one client address and one target; each datagram is one frame.
//!
//! What cannot be delivered is dropped and counted, as UDP does: a flow whose stream is slow holds up no other, and
//! queues are bounded in datagrams and in bytes. Nothing waits for a datagram for ever: an idle flow ends. It is not idle while
//! nothing can come: what a program has open outlives an interruption, however long that is.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::service::copy::Meter;
use crate::service::dial::{Place, resolve};
use crate::service::forward::open_patiently;
use crate::service::listen::bind_udp;
use crate::service::stats::ForwardStats;
use crate::service::term::Term;
use crate::session::framed::{FrameReader, FramedStream, Io, StreamError};
use crate::session::opener::Opener;
use crate::session::way::Way;
use crate::wire::limits::{MAX_DATAGRAM, MAX_UDP_FLOWS, UDP_IDLE};
use crate::wire::open::Accepted;
use crate::wire::{Endpoint, FrameKind, Open, Refusal, RefusalCode, StreamRequest};

/// Bytes of payload in the largest UDP datagram there is (over IPv6; over IPv4 it is 20 less).
pub(crate) const MAX_UDP: usize = 65_527;

/// Datagrams that wait for one flow's stream. More than a burst of a query or a call; beyond, late is worse than lost.
const FLOW_QUEUE: usize = 64;

/// Bytes that wait in all flows of one forward together.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// How long a client whose flow was refused is ignored, so that each of its datagrams does not ask again.
const COOL_DOWN: Duration = Duration::from_secs(1);

/// The workspace's end of a `Udp` stream, which came by `way`.
pub async fn serve_udp<S: Io>(stream: FramedStream<S>, way: &Way, target: &Endpoint) -> Result<(), StreamError> {
    serve_udp_at(stream, way, target, Place::Workspace, &Meter::default()).await
}

pub(crate) async fn serve_udp_at<S: Io>(
    mut stream: FramedStream<S>,
    way: &Way,
    target: &Endpoint,
    place: Place,
    meter: &Meter,
) -> Result<(), StreamError> {
    let socket = match connected(target, place).await {
        Ok(socket) => socket,
        Err(refusal) => {
            stream.refuse(&refusal).await;
            return Err(StreamError::Refused(refusal));
        }
    };
    stream.accepted(&Accepted::default()).await?;
    let activity = Activity::default();
    let FramedStream { mut reader, mut writer } = stream;
    reader.limit(MAX_DATAGRAM);
    let outgoing = async {
        let mut buffer = Vec::new();
        loop {
            recv(&socket, &mut buffer).await?;
            activity.touch();
            writer.send(FrameKind::Datagram, &buffer).await?;
            meter.add_sent(buffer.len());
        }
    };
    let incoming = async {
        while let Some(datagram) = next_datagram(&mut reader).await? {
            activity.touch();
            meter.add_received(datagram.len());
            // Too large for the path, or refused by the target a moment ago: a datagram is lost, and no more.
            let _ = socket.send(&datagram).await;
        }
        Ok(())
    };
    tokio::select! {
        result = outgoing => result,
        result = incoming => result,
        // Dropping the stream ends the flow: between datagrams there is nothing that could be cut.
        () = activity.idle(UDP_IDLE, way) => Ok(()),
    }
}

async fn connected(target: &Endpoint, place: Place) -> Result<UdpSocket, Refusal> {
    let Endpoint::Udp { host, port } = target else {
        let message = format!("{target} takes a connection, not datagrams. hint: forward it without /udp");
        return Err(Refusal::new(RefusalCode::InvalidArguments, message));
    };
    let addresses = resolve(host, *port, place).await?;
    let mut last = None;
    for address in addresses {
        match connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map_or_else(String::new, |error| format!(": {error}"));
    let message = format!("{target} cannot be reached {place}{why}. hint: check the address and the network there");
    Err(Refusal::new(RefusalCode::TargetUnreachable, message))
}

async fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// A UDP port each of whose clients gets a stream of its own.
#[derive(Debug)]
pub struct UdpForward<O> {
    socket: Arc<UdpSocket>,
    bound: Endpoint,
    purpose: Purpose,
    opener: O,
    stats: Arc<ForwardStats>,
    max_flows: usize,
    idle: Duration,
}

#[derive(Debug)]
enum Purpose {
    Target(Endpoint),
    Listener(u32),
}

impl<O: Opener> UdpForward<O> {
    /// `-L`: listens on `bind` on the laptop, for `target` in the workspace. Both are UDP.
    pub async fn bind(opener: O, bind: &Endpoint, target: Endpoint) -> Result<UdpForward<O>, Refusal> {
        UdpForward::new(opener, bind, Purpose::Target(target), Place::Laptop).await
    }

    /// `-R`: listens on `bind` in the workspace, for whatever the laptop has behind `listener`.
    pub(crate) async fn listen(opener: O, bind: &Endpoint, listener: u32) -> Result<UdpForward<O>, Refusal> {
        UdpForward::new(opener, bind, Purpose::Listener(listener), Place::Workspace).await
    }

    async fn new(opener: O, bind: &Endpoint, purpose: Purpose, place: Place) -> Result<UdpForward<O>, Refusal> {
        let Endpoint::Udp { host, port } = bind else {
            let message = format!("{bind} is no UDP port. hint: write /udp at the end of the forward");
            return Err(Refusal::new(RefusalCode::InvalidArguments, message));
        };
        let (socket, bound) = bind_udp(host, *port, place).await?;
        let stats = Arc::default();
        let socket = Arc::new(socket);
        Ok(UdpForward { socket, bound, purpose, opener, stats, max_flows: MAX_UDP_FLOWS, idle: UDP_IDLE })
    }

    /// Where it listens, with the port that was picked.
    pub fn bound(&self) -> &Endpoint {
        &self.bound
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<ForwardStats> {
        self.stats.clone()
    }

    /// Counts in `stats` from here on.
    pub fn counted_in(self, stats: Arc<ForwardStats>) -> Self {
        Self { stats, ..self }
    }

    /// Forwards until its port is closed: all its flows share that.
    pub async fn run(self, term: impl Into<Term>) {
        let Term { end, close, closed } = term.into();
        end.run_until_cancelled(close.run_until_cancelled(self.forward_all())).await;
        closed.cancel();
    }

    pub(crate) async fn forward_all(self) {
        let queue_bytes = Arc::new(Semaphore::new(QUEUE_BYTES));
        let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
        let mut tasks = JoinSet::new();
        let mut buffer = Vec::new();
        loop {
            let client = tokio::select! {
                client = recv(&self.socket, &mut buffer) => client,
                Some(ended) = tasks.join_next_with_id() => {
                    let id = match ended { Ok((id, ())) => id, Err(error) => error.id() };
                    flows.retain(|_, flow| flow.task.id() != id);
                    continue;
                }
            };
            let client = match client {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(%error, bound = %self.bound, "receiving a datagram failed");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let permit = queue_bytes.clone().try_acquire_many_owned(buffer.len() as u32);
            let Ok(permit) = permit else {
                self.stats.drop_one();
                continue;
            };
            if !flows.contains_key(&client) {
                if flows.len() >= self.max_flows {
                    evict_oldest(&mut flows);
                }
                flows.insert(client, self.begin(client, &mut tasks));
            }
            let Some(flow) = flows.get(&client) else { continue };
            flow.activity.touch();
            let datagram = Queued { bytes: Bytes::copy_from_slice(&buffer), _room: permit };
            if flow.queue.try_send(datagram).is_err() {
                self.stats.drop_one();
            }
        }
    }

    fn begin(&self, client: SocketAddr, tasks: &mut JoinSet<()>) -> Flow {
        let request = match &self.purpose {
            Purpose::Target(target) => StreamRequest::Udp { target: target.clone() },
            Purpose::Listener(listener) => {
                StreamRequest::Accepted { listener: *listener, peer: format!("{client}/udp") }
            }
        };
        let activity = Arc::new(Activity::default());
        let (queue, queued) = mpsc::channel(FLOW_QUEUE);
        let task = FlowTask {
            socket: self.socket.clone(),
            client,
            queued,
            activity: activity.clone(),
            idle: self.idle,
            stats: self.stats.clone(),
        };
        let task = tasks.spawn(task.run(self.opener.clone(), Open::new(request)));
        Flow { queue, activity, task }
    }
}

fn evict_oldest(flows: &mut HashMap<SocketAddr, Flow>) {
    let oldest = flows.iter().min_by_key(|(_, flow)| flow.activity.last()).map(|(client, _)| *client);
    if let Some(flow) = oldest.and_then(|client| flows.remove(&client)) {
        flow.task.abort();
    }
}

struct Flow {
    queue: mpsc::Sender<Queued>,
    activity: Arc<Activity>,
    task: AbortHandle,
}

struct Queued {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

struct FlowTask {
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    queued: mpsc::Receiver<Queued>,
    activity: Arc<Activity>,
    idle: Duration,
    stats: Arc<ForwardStats>,
}

impl FlowTask {
    async fn run<O: Opener>(mut self, opener: O, open: Open) {
        let _open = self.stats.begin();
        if let Err(error) = self.carry(opener, open).await {
            let refusal = error.into_refusal();
            tracing::debug!(client = %self.client, %refusal, "a UDP flow failed");
            self.stats.failed(refusal);
            self.queued.close();
            while self.queued.try_recv().is_ok() {
                self.stats.drop_one();
            }
            sleep(COOL_DOWN).await;
        }
    }

    async fn carry<O: Opener>(&mut self, opener: O, open: Open) -> Result<(), StreamError> {
        let stream = open_patiently(&opener, &open).await.map_err(StreamError::Refused)?;
        let way = opener.way();
        let FramedStream { mut reader, mut writer } = stream;
        let outgoing = async {
            while let Some(datagram) = self.queued.recv().await {
                writer.send(FrameKind::Datagram, &datagram.bytes).await?;
                self.stats.meter.add_sent(datagram.bytes.len());
            }
            Ok(())
        };
        let incoming = async {
            let first = reader.expect().await?;
            match first.kind {
                FrameKind::Accept => self.stats.meter.add_got_through(),
                FrameKind::Refuse | FrameKind::Abort => return Err(StreamError::Refused(first.refusal())),
                kind => return Err(StreamError::OutOfPlace(kind)),
            }
            while let Some(datagram) = next_datagram(&mut reader).await? {
                self.activity.touch();
                match self.socket.send_to(&datagram, self.client).await {
                    Ok(n) => self.stats.meter.add_received(n),
                    Err(_) => self.stats.drop_one(),
                }
            }
            Ok(())
        };
        tokio::select! {
            result = outgoing => result,
            result = incoming => result,
            () = self.activity.idle(self.idle, &way) => Ok(()),
        }
    }
}

/// The next datagram; `None` when the flow is over, however it ended.
pub(crate) async fn next_datagram<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
) -> Result<Option<Bytes>, StreamError> {
    match reader.next().await? {
        Some(frame) => match frame.kind {
            FrameKind::Datagram => Ok(Some(frame.payload)),
            FrameKind::End => Ok(None),
            FrameKind::Abort => Err(StreamError::Refused(frame.refusal())),
            kind => Err(StreamError::OutOfPlace(kind)),
        },
        None => Ok(None),
    }
}

/// One datagram into `buffer`, which is freed while there is none. Reports of ICMP about earlier ones are skipped.
/// Safe to cancel. One caller per socket at a time.
pub(crate) async fn recv(socket: &UdpSocket, buffer: &mut Vec<u8>) -> io::Result<SocketAddr> {
    loop {
        let ready = poll_fn(|cx| {
            let ready = socket.poll_recv_ready(cx);
            if ready.is_pending() {
                *buffer = Vec::new();
            }
            ready
        });
        ready.await?;
        buffer.clear();
        buffer.reserve_exact(MAX_UDP);
        match socket.try_recv_buf_from(buffer) {
            Ok((_, from)) => return Ok(from),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock
                        | ErrorKind::Interrupted
                        | ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                ) => {}
            Err(e) => return Err(e),
        }
    }
}

/// When something last happened.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    nanos: AtomicU64,
}

impl Default for Activity {
    fn default() -> Activity {
        Activity { start: Instant::now(), nanos: AtomicU64::new(0) }
    }
}

impl Activity {
    pub(crate) fn touch(&self) {
        self.nanos.store(self.start.elapsed().as_nanos() as u64, Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_nanos(self.nanos.load(Relaxed))
    }

    /// Returns when nothing has happened for `time`, in which there was a way for it to happen.
    pub(crate) async fn idle(&self, time: Duration, way: &Way) {
        let mut seen = self.last();
        let happened = || {
            let last = self.last();
            std::mem::replace(&mut seen, last) != last
        };
        way.idle(time, happened).await;
    }
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;

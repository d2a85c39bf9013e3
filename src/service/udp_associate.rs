//! The workspace's end of a SOCKS association: datagrams that each carry their own address, both ways.
//!
//! Names are resolved here, a bounded number at a time, and remembered for a short while; a slow name server holds
//! up no datagram but those for its names. What cannot be sent is dropped, as UDP does.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{UdpSocket, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::service::udp::{Activity, MAX_UDP, next_datagram, recv};
use crate::service::udp_address::{self, Address, MAX_ADDRESS};
use crate::session::framed::{FramedStream, Io, StreamError};
use crate::session::way::Way;
use crate::wire::limits::{MAX_DATAGRAM, UDP_IDLE};
use crate::wire::open::Accepted;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Names that one association remembers.
const MAX_NAMES: usize = 256;

/// How long a name is believed: short against a change of address, long against a query per datagram.
const NAME_LIFE: Duration = Duration::from_secs(60);

/// Lookups that one association has under way; datagrams for further names are dropped meanwhile.
const MAX_LOOKUPS: usize = 32;

/// How long one lookup may take; a resolver of the system tries two servers in this time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one association, whose stream came by `way`, until the peer ends it or it has been idle for [`UDP_IDLE`].
pub async fn serve_udp_associate<S: Io>(mut stream: FramedStream<S>, way: &Way) -> Result<(), StreamError> {
    let sockets = match Sockets::bind().await {
        Ok(sockets) => sockets,
        Err(error) => {
            let message = format!("no UDP socket can be had in the workspace: {error}. hint: try again later");
            let refusal = Refusal::new(RefusalCode::Internal, message);
            stream.refuse(&refusal).await;
            return Err(StreamError::Refused(refusal));
        }
    };
    stream.accepted(&Accepted::default()).await?;
    let FramedStream { mut reader, mut writer } = stream;
    let activity = Activity::default();
    let outgoing = async {
        let (mut buffers, mut frame) = (<(Vec<u8>, Vec<u8>)>::default(), Vec::new());
        loop {
            let (from, payload) = sockets.recv(&mut buffers).await?;
            activity.touch();
            frame.reserve(MAX_ADDRESS + payload.len());
            udp_address::encode(from, &mut frame);
            frame.extend_from_slice(payload);
            if frame.len() <= MAX_DATAGRAM {
                writer.send(FrameKind::Datagram, &frame).await?;
            }
            frame = Vec::new();
        }
    };
    let incoming = async {
        let mut names = Names::default();
        loop {
            let datagram = tokio::select! {
                datagram = next_datagram(&mut reader) => datagram?,
                Some(found) = names.lookups.join_next() => {
                    if let Ok(found) = found && let Some((to, payload)) = names.learn(found) {
                        sockets.send(&payload, to).await;
                    }
                    continue;
                }
            };
            let Some(datagram) = datagram else { return Ok(()) };
            activity.touch();
            match udp_address::parse(&datagram) {
                Some((Address::Ip(to), payload)) => sockets.send(payload, to).await,
                Some((Address::Name(name, port), payload)) => match names.known(&name) {
                    Some(ip) => sockets.send(payload, (ip, port).into()).await,
                    None => names.look_up(name, port, datagram.slice_ref(payload)),
                },
                None => {}
            }
        }
    };
    tokio::select! {
        result = outgoing => result,
        result = incoming => result,
        () = activity.idle(UDP_IDLE, way) => Ok(()),
    }
}

/// One socket per family; a machine without IPv6 has one only.
struct Sockets {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Sockets {
    async fn bind() -> io::Result<Sockets> {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok();
        Ok(Sockets { v4, v6 })
    }

    async fn send(&self, payload: &[u8], to: SocketAddr) {
        let socket = match (to, &self.v6) {
            (SocketAddr::V4(_), _) => &self.v4,
            (SocketAddr::V6(_), Some(v6)) => v6,
            (SocketAddr::V6(_), None) => return,
        };
        if payload.len() <= MAX_UDP {
            // What the network refuses is lost, as any datagram may be.
            let _ = socket.send_to(payload, to).await;
        }
    }

    async fn recv<'a>(&self, (v4, v6): &'a mut (Vec<u8>, Vec<u8>)) -> io::Result<(SocketAddr, &'a [u8])> {
        let from_v6 = async {
            match &self.v6 {
                Some(socket) => recv(socket, v6).await,
                None => std::future::pending().await,
            }
        };
        let (from, of_v4) = tokio::select! {
            from = recv(&self.v4, v4) => (from?, true),
            from = from_v6 => (from?, false),
        };
        Ok((from, if of_v4 { v4 } else { v6 }))
    }
}

/// A name that was looked up, with the datagram that asked.
struct Found {
    name: String,
    port: u16,
    payload: Bytes,
    ip: Option<IpAddr>,
}

#[derive(Default)]
struct Names {
    known: HashMap<String, (IpAddr, Instant)>,
    lookups: JoinSet<Found>,
}

impl Names {
    fn known(&self, name: &str) -> Option<IpAddr> {
        self.known.get(name).filter(|(_, since)| since.elapsed() < NAME_LIFE).map(|(ip, _)| *ip)
    }

    fn look_up(&mut self, name: String, port: u16, payload: Bytes) {
        if self.lookups.len() >= MAX_LOOKUPS {
            return;
        }
        self.lookups.spawn(async move {
            let found = timeout(LOOKUP_TIMEOUT, lookup_host((name.as_str(), port))).await;
            let mut ips = found.into_iter().flatten().flatten().map(|address| address.ip()).collect::<Vec<_>>();
            // IPv4 first: an association has it for certain.
            ips.sort_by_key(IpAddr::is_ipv6);
            Found { ip: ips.first().copied(), name, port, payload }
        });
    }

    fn learn(&mut self, found: Found) -> Option<(SocketAddr, Bytes)> {
        let ip = found.ip?;
        if self.known.len() >= MAX_NAMES {
            self.known.retain(|_, (_, since)| since.elapsed() < NAME_LIFE);
        }
        if self.known.len() >= MAX_NAMES {
            self.known.clear();
        }
        self.known.insert(found.name, (ip, Instant::now()));
        Some(((ip, found.port).into(), found.payload))
    }
}

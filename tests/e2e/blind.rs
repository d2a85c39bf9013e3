//! What the coordinator can see: one connection of each side, and ciphertext. Each proof has a control that shows the
//! same instrument finding the same marker where it is in the clear.

use std::fs;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nexus_proxy::identity::verify::{ClientAuth, Expect, server_config};
use nexus_proxy::identity::{PeerCertificate, Role};
use nexus_proxy::role::coordinator::authority;
use nexus_proxy::role::coordinator::drain::{Drain, RELAYS};
use nexus_proxy::role::coordinator::rendezvous::Rendezvous;
use nexus_proxy::transport::carrier::{Carrier, Side, websocket};
use nexus_proxy::transport::client::ALPN;
use nexus_proxy::transport::http::{MASKING, MASKING_NONE};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use crate::support::capture::{connections, contains};
use crate::support::laptop::port_in;
use crate::support::program::command;
use crate::support::*;

/// Stands in everything that goes through the tunnel.
const MARKER: &str = "the-owl-flies-at-midnight";

/// Stands in what goes beside it, in the clear.
const CONTROL: &str = "the-lark-sings-at-noon";

/// A megabyte of markers: wherever a packet or a message is cut, many stay whole.
fn page(marker: &str) -> String {
    format!("{marker}\n").repeat((1 << 20) / (marker.len() + 1))
}

fn curl(url: &str) -> std::process::Command {
    command("curl", ["-q", "-sS", "-k", "--noproxy", "*", "--max-time", "20", url])
}

/// Sends the marker through the tunnel in every direction.
#[track_caller]
fn talk(laptop: &Laptop, at_laptop: &Place, at_workspace: &Place) {
    let nginx = Nginx::start_at(at_workspace);
    fs::write(nginx.root.join("page"), page(MARKER)).expect("a file of ours");
    let (line, _forward) = laptop.forward("box", &["-L", &format!("0:127.0.0.1:{}", nginx.addr.port())], "forward");
    let url = format!("http://127.0.0.1:{}/page?{MARKER}", port_in(&line));
    assert_eq!(Run::of(at_laptop.run(curl(&url))).ok(), page(MARKER));
    assert_eq!(laptop.exec_with_input("box", &["cat"], page(MARKER).as_bytes()).ok(), page(MARKER));
}

#[test]
fn a_capture_at_the_coordinator_shows_one_connection_of_each_side_and_no_plaintext() {
    let hosts = Hosts::new();
    let coordinator = Coordinator::start_at(&hosts.coordinator, &[]);
    let capture = Capture::start_at(&hosts.coordinator);
    let laptop = Laptop::at(&hosts.laptop);
    let url = coordinator.url(Hosts::COORDINATOR_FOR_LAPTOP);
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&hosts.workspace, &coordinator.url(Hosts::COORDINATOR_FOR_WORKSPACE));
    let _stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let _up = laptop.up(&["box", "--no-direct", "--coordinator", &url]);

    let count =
        || [Hosts::LAPTOP, Hosts::WORKSPACE].map(|peer| connections(coordinator.program.pid(), coordinator.port, peer));
    // The laptop's one; the workspace's one, and the one it keeps parked for the next laptop.
    until("the next connection to be parked", || (count() == [1, 2]).then_some(()));
    let sleep = ["exec", "box", "--", "sh", "-c", "echo began; sleep 600"];
    let mut streams: Vec<Running> = (0..8).map(|_| Running::start(hosts.laptop.run(laptop.command(&sleep)))).collect();
    streams.iter_mut().for_each(|stream| drop(stream.says("began")));
    talk(&laptop, &hosts.laptop, &hosts.workspace);
    assert_eq!(count(), [1, 2], "many streams, and still one connection of each side");
    drop(streams);

    let nginx = Nginx::start_at(&hosts.coordinator);
    fs::write(nginx.root.join("page"), page(CONTROL)).unwrap();
    let url = format!("http://{}:{}/page", Hosts::COORDINATOR_FOR_LAPTOP, nginx.addr.port());
    Run::of(hosts.laptop.run(curl(&url))).ok();

    let packets = capture.packets();
    assert!(packets.len() > 6 << 20, "three megabytes came, left again, and are all in it: {}", packets.len());
    assert!(contains(&packets, CONTROL), "the instrument finds what is in the clear");
    assert!(!contains(&packets, MARKER));
}

/// A stream whose bytes are written down, both ways.
struct Tap<T> {
    io: T,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl<T> Tap<T> {
    fn hear(&self, bytes: &[u8]) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tap<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.hear(&buf.filled()[before..]);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tap<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = written {
            self.hear(&buf[..n]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Tapped = Tap<TlsStream<TcpStream>>;

/// A coordinator that joins as the real one does, holds its authority's key, and writes down all it can decrypt.
async fn curious(listener: TcpListener, acceptor: TlsAcceptor, heard: Arc<Mutex<Vec<u8>>>) {
    let (_revoked, nobody) = tokio::sync::watch::channel(Arc::default());
    let (steps, drain) = (tokio::sync::watch::channel(0).1, Drain::new(CancellationToken::new(), RELAYS));
    let rendezvous = Arc::new(Rendezvous::new(nobody, steps, drain));
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, heard, rendezvous) = (acceptor.clone(), heard.clone(), rendezvous.clone());
        connections.spawn(async move {
            let tls = acceptor.accept(tcp).await.ok()?;
            let peer = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
            let io = upgrade(Tap { io: tls, heard }).await?;
            let carrier = Carrier::new(websocket(io, Bytes::new(), Side::Unmasked).await);
            let peer = PeerCertificate::parse(&peer?).ok()?;
            match peer.identity.role {
                Role::Workspace(name) => rendezvous.park(name, peer.pin, carrier).await,
                Role::Device(device) => rendezvous.connect("box".parse().ok()?, device, carrier).await,
                _ => {}
            }
            Some(())
        });
    }
}

/// Agrees to a WebSocket without masks, which would hide even plaintext from a search.
async fn upgrade(mut io: Tapped) -> Option<Tapped> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let field = |name: &str| {
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    assert!(field("sec-websocket-key").is_none() || field(MASKING) == Some(MASKING_NONE));
    let accept = derive_accept_key(field("sec-websocket-key")?.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: nexus.v2\r\n{MASKING}: {MASKING_NONE}\r\n\r\n"
    );
    io.write_all(answer.as_bytes()).await.ok()?;
    io.flush().await.ok()?;
    Some(io)
}

#[test]
fn a_coordinator_that_dumps_everything_sees_only_ciphertext() {
    let mut coordinator = Coordinator::start();
    let url = coordinator.url("127.0.0.1");
    let laptop = Laptop::new();
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&Place::Here, &url);
    drop(machine.stub(Some(&coordinator.add_workspace("box"))));
    coordinator.kill();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let authority = authority::load_or_create(coordinator.data(), SystemTime::now());
    let authority = runtime.block_on(authority).unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    let own = authority::server_credential(&authority, week, SystemTime::now(), &[]).unwrap();
    let tls = server_config(authority.trust(), &own, ClientAuth::Optional(Expect::AnyClient), ALPN).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", coordinator.port))).unwrap();
    runtime.spawn(curious(listener, TlsAcceptor::from(tls), heard.clone()));

    let _stub = machine.stub(None);
    let _up = laptop.up(&["box", "--no-direct", "--coordinator", &url]);
    talk(&laptop, &Place::Here, &Place::Here);
    // The same instrument, and a secret that has no second TLS around it.
    Run::of(curl(&format!("{url}/{CONTROL}"))).err();

    let heard = heard.lock().unwrap();
    assert!(heard.len() > 6 << 20, "three megabytes came and left, and are all in it: {}", heard.len());
    assert!(
        contains(&heard, "GET /v1/connect/box") && contains(&heard, r#"{"type":"join""#),
        "it reads the outer layer"
    );
    assert!(contains(&heard, CONTROL), "the instrument finds what is in the clear");
    assert!(!contains(&heard, MARKER));
}

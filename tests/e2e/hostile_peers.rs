//! Within a session: a workspace that wants more of the laptop than it may have, a device that wants more of the
//! workspace, and both of them breaking the protocol. Each stream is refused by itself; the session and the others live.

use std::io::ErrorKind::WouldBlock;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use nexus_proxy::identity::verify::{ClientAuth, Expect, client_config, server_config};
use nexus_proxy::identity::{Authority, Credential, Identity, PrivateKey, Role};
use nexus_proxy::lifeline::{Route, first_attach};
use nexus_proxy::role::proxy::profile::{self, Profile};
use nexus_proxy::role::stub::state::StubState;
use nexus_proxy::service::call::client;
use nexus_proxy::session::establish::{self, Session, SessionError};
use nexus_proxy::session::framed::{Frame, FrameReader, FramedStream, StreamError};
use nexus_proxy::session::mux::{MuxOpener, MuxStream};
use nexus_proxy::transport::address::CoordinatorUrl;
use nexus_proxy::transport::carrier::Arrival;
use nexus_proxy::transport::client::{CoordinatorCarrier, CoordinatorClient};
use nexus_proxy::transport::relay::RELAY_BUFFERS;
use nexus_proxy::wire::call::{Request, Response};
use nexus_proxy::wire::control::Control;
use nexus_proxy::wire::limits::MAX_CARRIER_MESSAGE;
use nexus_proxy::wire::name::WorkspaceName;
use nexus_proxy::wire::open::{Accepted, ProcessRequest};
use nexus_proxy::wire::{Endpoint, FrameKind, Open, Refusal, RefusalCode, StreamRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::support::kernel::{footprint, peak};
use crate::support::laptop::{Up, port_in};
use crate::support::*;

/// Bytes that may be on their way to a peer that does not read: buffers of sockets, pipes and windows together.
const ON_THE_WAY: usize = 64 << 20;

/// Bytes of memory that a program may have in all of this.
const MEMORY: u64 = 200 << 20;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}

async fn joined(mut carrier: CoordinatorCarrier) -> CoordinatorCarrier {
    loop {
        match in_time("a join", carrier.arrival()).await.expect("the coordinator goes on") {
            Some(Arrival::Control(Control::Join { .. })) => return carrier,
            Some(Arrival::Control(Control::Parked {})) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Opens a stream; its answer.
async fn ask(opener: &MuxOpener, request: StreamRequest) -> Result<FramedStream<MuxStream>, Refusal> {
    let io = opener.open().await?;
    let mut stream = FramedStream::open(io, &Open::new(request)).await.map_err(StreamError::into_refusal)?;
    in_time("an answer", stream.answer()).await.map_err(StreamError::into_refusal)?;
    Ok(stream)
}

async fn refusal(opener: &MuxOpener, request: StreamRequest) -> Refusal {
    let name = request.name();
    ask(opener, request).await.err().unwrap_or_else(|| panic!("`{name}` was accepted"))
}

/// Opens a stream that begins with these bytes; the frame that answers them.
async fn answer_to(opener: &MuxOpener, bytes: &[u8]) -> Frame {
    let mut io = opener.open().await.expect("a stream");
    io.write_all(bytes).await.expect("it is taken");
    io.flush().await.expect("it leaves");
    let frame = in_time("an answer", FrameReader::new(io).next()).await;
    frame.expect("an answer").expect("an answer and not an end")
}

/// What breaks the protocol on either end of a session is refused, stream by stream.
async fn breaks_the_protocol(opener: &MuxOpener) {
    let cases: [(&[u8], RefusalCode, &str); 6] = [
        (&[0xee, 0, 0, 0], RefusalCode::Malformed, "unknown kind 0xee"),
        (&[0x01, 0xff, 0xff, 0xff], RefusalCode::Malformed, "16777215 bytes"),
        (&[0x10, 0, 0, 0], RefusalCode::Malformed, "out of place"),
        (&[0x01, 0, 0, 1, b'{'], RefusalCode::Malformed, "does not parse"),
        (b"\x01\x00\x00\x13{\"kind\":\"teleport\"}", RefusalCode::Unsupported, "does not serve streams"),
        // The head of an open frame, and then nothing: its time ends.
        (&[0x01, 0, 0, 9, b'{'], RefusalCode::Timeout, "in time"),
    ];
    let answers = cases.map(|(bytes, code, text)| async move {
        let frame = answer_to(opener, bytes).await;
        assert_eq!(frame.kind, FrameKind::Refuse, "{bytes:?}");
        let refusal = frame.refusal();
        assert_eq!(refusal.code, code, "{bytes:?}: {refusal}");
        assert!(refusal.message.contains(text), "{bytes:?}: {refusal}");
    });
    futures::future::join_all(answers).await;
    assert!(!opener.is_closed(), "the session lives");
}

#[track_caller]
fn memory_is_bounded(pid: u32) {
    let most = peak(pid);
    assert!(most < MEMORY, "{most} bytes");
}

/// `tool.list`, which the laptop answers whatever else goes on.
async fn calls(opener: &MuxOpener) {
    let mut stream = ask(opener, StreamRequest::Call {}).await.expect("calls are served");
    stream.writer.send_json(FrameKind::Message, &Request::new("tool.list", Value::Null)).await.expect("it leaves");
    let frame = in_time("an answer", stream.reader.expect()).await.expect("an answer");
    let response: Response = frame.json().expect("a response");
    assert_eq!(response.outcome().expect("a list"), json!({"tools": []}));
}

/// A coordinator, and a laptop `anna` that is paired with it.
struct World {
    laptop: Laptop,
    coordinator: Coordinator,
    url: CoordinatorUrl,
    runtime: Runtime,
}

impl World {
    #[track_caller]
    fn new() -> World {
        let coordinator = Coordinator::start();
        let url = coordinator.url("127.0.0.1");
        let laptop = Laptop::new();
        laptop.pair(&url, &coordinator.invite(), "anna").ok();
        World { laptop, coordinator, url: url.parse().expect("an address"), runtime: runtime() }
    }

    /// The laptop's `up`, and its session with a workspace that is this program.
    fn up_with_us(&self) -> (Up<'_>, Session) {
        let dir = TempDir::new().expect("a temporary folder");
        let (url, code) = (self.url.clone(), self.coordinator.add_workspace("box"));
        let workspace = self.runtime.spawn(async move {
            let state = StubState::enroll(dir.path(), &url, &code).await.expect("it enrols");
            let client = CoordinatorClient::new(url, state.trust.clone(), state.credential.clone());
            let mut carrier = joined(client.park().await.expect("it parks")).await;
            let attach = first_attach(&mut carrier).await.expect("a beginning");
            let anybody = ClientAuth::Required(Expect::Device(Arc::new(|_| Ok(()))));
            let tls = server_config(&state.trust, &state.credential, anybody, &[]).expect("a configuration");
            let mut session =
                establish::accept(Box::new(carrier), Route::Relay, &attach, tls).await.expect("a session");
            let hello = session.acceptor.accept().await.expect("a first stream");
            let (_, mut hello) = FramedStream::accept(hello).await.expect("it opens");
            hello.accepted(&Accepted { version: Some("0".into()), ..Accepted::default() }).await.expect("it is told");
            session
        });
        let up = self.laptop.up(&["box", "--no-direct", "--coordinator", &self.url.to_string()]);
        (up, self.runtime.block_on(workspace).expect("a session"))
    }

    /// What the laptop keeps.
    fn profile(&self) -> Profile {
        let dir = profile::directory(&self.laptop.home().join("data/coordinators"), &self.url);
        self.runtime.block_on(Profile::load(&dir, &self.url)).expect("it is paired")
    }

    /// A session of ours with the workspace `box`, as the device `anna`, showing `inner` inside.
    fn connect(&self, inner: Option<&Credential>) -> Result<Session, SessionError> {
        let profile = self.profile();
        let name: WorkspaceName = "box".parse().expect("a name");
        let client = CoordinatorClient::new(self.url.clone(), profile.trust.clone(), profile.credential.clone());
        let expect = Expect::Workspace { name: name.clone(), pin: None };
        let tls = client_config(&profile.trust, expect, inner, &[]).expect("a configuration");
        self.runtime.block_on(async {
            let carrier = joined(client.connect(&name).await.expect("the outer one is in order")).await;
            let session = Box::pin(establish::connect(Box::new(carrier), Route::Relay, tls, "test"));
            in_time("a session", session).await.map(|(session, _)| session)
        })
    }
}

fn tcp(port: u16) -> Endpoint {
    Endpoint::Tcp { host: "127.0.0.1".into(), port }
}

fn process(argv: &[&str]) -> StreamRequest {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    StreamRequest::Process(ProcessRequest { argv, ..ProcessRequest::default() })
}

#[test]
fn a_workspace_gets_no_more_of_the_laptop_than_it_may() {
    let world = World::new();
    let (up, session) = world.up_with_us();
    let Session { opener, .. } = &session;
    let secret = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    secret.set_nonblocking(true).unwrap();
    let port = secret.local_addr().unwrap().port();
    let proof = world.laptop.home().join("proof");
    world.runtime.block_on(async {
        let wishes = [
            StreamRequest::Connect { target: tcp(port) },
            process(&["touch", &proof.to_string_lossy()]),
            StreamRequest::Listen { bind: tcp(0), listener: 1 },
            StreamRequest::Udp { target: Endpoint::Udp { host: "127.0.0.1".into(), port } },
            StreamRequest::UdpAssociate {},
            StreamRequest::Hello { version: "0".into(), instance: "x".into() },
        ];
        for wish in wishes {
            let refused = refusal(opener, wish).await;
            assert_eq!(refused.code, RefusalCode::Unsupported, "{refused}");
            assert!(refused.message.contains("a laptop does not serve"), "{refused}");
        }
        let refused = refusal(opener, StreamRequest::Accepted { listener: 4711, peer: "x".into() }).await;
        assert_eq!(refused.code, RefusalCode::NotDeclared, "{refused}");
        tokio::join!(breaks_the_protocol(opener), calls(opener));
        calls(opener).await;
    });
    assert!(secret.accept().is_err(), "nobody came to the laptop's port");
    assert!(!proof.exists(), "nothing ran on the laptop");
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    memory_is_bounded(up.program.pid());
}

#[test]
fn a_workspace_that_stops_reading_stops_that_stream_alone() {
    let world = World::new();
    let (up, mut session) = world.up_with_us();
    let (line, _forward) = world.laptop.forward("box", &["-L", "0:127.0.0.1:80"], "forward");
    let mut local = TcpStream::connect(("127.0.0.1", port_in(&line))).unwrap();
    let held = world.runtime.block_on(async {
        let stream = in_time("the forward's stream", session.acceptor.accept()).await.expect("a stream");
        let (open, mut stream) = FramedStream::accept(stream).await.expect("it opens");
        assert_eq!(open.request, StreamRequest::Connect { target: tcp(80) });
        stream.accepted(&Accepted::default()).await.expect("it is told");
        stream
    });
    local.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut taken = 0;
    while let Ok(n) = local.write(&[7; 65536]) {
        taken += n;
        assert!(taken < ON_THE_WAY, "somebody takes it all, and nobody reads it");
    }
    assert!(taken > 0);
    world.runtime.block_on(async {
        for _ in 0..100 {
            calls(&session.opener).await;
        }
    });
    memory_is_bounded(up.program.pid());

    // What is behind the cut never arrives, and the laptop's program hears of it.
    drop(held);
    until("the local connection to break", || local.write(&[7; 65536]).err().filter(|e| e.kind() != WouldBlock));
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
}

#[test]
fn a_stream_of_one_byte_at_a_time_holds_nobody_up() {
    let world = World::new();
    let (_up, session) = world.up_with_us();
    world.runtime.block_on(async {
        let mut slow = session.opener.open().await.expect("a stream");
        for byte in b"\x01\x00\x00\x0f{\"kind\":\"call\"}" {
            slow.write_all(&[*byte]).await.expect("it is taken");
            slow.flush().await.expect("it leaves");
            // A whole call passes it between any two of its bytes.
            calls(&session.opener).await;
        }
        let answer = in_time("an answer", FrameReader::new(slow).next()).await;
        assert_eq!(answer.expect("an answer").expect("a frame").kind, FrameKind::Accept);
    });
}

#[test]
fn a_device_gets_no_more_of_the_workspace_than_it_may() {
    let world = World::new();
    let other = Laptop::new();
    other.pair(&world.url.to_string(), &world.coordinator.invite(), "bert").ok();
    let machine = Machine::at(&Place::Here, &world.url.to_string());
    let stub = machine.stub(Some(&world.coordinator.add_workspace("box")));
    let up = other.up(&["box", "--coordinator", &world.url.to_string()]);

    let ours = world.profile().credential;
    let session = world.connect(Some(&ours)).expect("a session");
    world.runtime.block_on(async {
        let opener = &session.opener;
        let refused = refusal(opener, StreamRequest::Accepted { listener: 1, peer: "x".into() }).await;
        assert_eq!(refused.code, RefusalCode::Unsupported, "{refused}");
        // Calls to a workspace are about its list of devices, and nothing else.
        let io = opener.open().await.expect("a stream");
        let stream = FramedStream::open(io, &Open::new(StreamRequest::Call {})).await.expect("it opens");
        let sinks = (tokio::io::sink(), tokio::io::sink());
        let call = client::call(stream, "tool.list", serde_json::Value::Null, sinks.0, sinks.1);
        let refused = in_time("an answer", call).await.expect_err("no tools are there");
        assert_eq!(refused.code, RefusalCode::Unsupported, "{refused}");
        let nothing = refusal(opener, process(&[])).await;
        assert_eq!(nothing.code, RefusalCode::InvalidArguments, "{nothing}");
        breaks_the_protocol(opener).await;
        let mut echo = ask(opener, process(&["echo", "hi"])).await.expect("the session lives");
        let said = in_time("what it says", echo.reader.expect()).await.expect("a frame");
        assert_eq!((said.kind, &said.payload[..]), (FrameKind::Data, &b"hi\n"[..]));
    });
    assert_eq!(other.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert_eq!(up.tunnels(), 1, "{}", up.program.output());
    memory_is_bounded(stub.pid());
}

#[test]
fn the_inner_certificate_is_looked_at_whatever_the_outer_one_was() {
    let world = World::new();
    let machine = Machine::at(&Place::Here, &world.url.to_string());
    let _stub = machine.stub(Some(&world.coordinator.add_workspace("box")));
    let profile = world.profile();
    let now = SystemTime::now();
    // Another authority that calls itself the same, for the key that is admitted; and for a key of its own.
    let forger = Authority::create(profile.trust.domain.clone(), now).unwrap();
    let forged = |key: PrivateKey| {
        let identity = Identity::new(profile.trust.domain.clone(), Role::Device("anna".parse().unwrap()));
        let chain = forger.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(3600), now, &[]).unwrap();
        Credential::new(chain, key).unwrap()
    };
    for inner in [None, Some(forged(profile.credential.key.clone())), Some(forged(PrivateKey::generate().unwrap()))] {
        let refused = world.connect(inner.as_ref()).expect_err("it is not let in");
        assert!(refused.is_identity() && refused.to_string().contains("hint:"), "{refused}");
    }
    // The right authority, which a coordinator gone bad could ask, and a key that the workspace was not made for.
    let own = nexus_proxy::role::coordinator::authority::load_or_create(world.coordinator.data(), now);
    let own = runtime().block_on(own).unwrap();
    let identity = profile.credential.identity().clone();
    let key = PrivateKey::generate().unwrap();
    let chain = own.issue(&key.csr_der().unwrap(), &identity, Duration::from_secs(3600), now, &[]).unwrap();
    let refused = world.connect(Some(&Credential::new(chain, key).unwrap())).expect_err("it is not let in");
    assert!(refused.is_identity() && refused.to_string().contains("does not admit this device"), "{refused}");

    world.connect(Some(&profile.credential)).expect("the right one is let in");
}

/// Pairs of connections that are joined at once.
const PAIRS: usize = 16;

/// Bytes that TLS holds for each direction of one connection: what it has read ahead, or what the socket does not take.
const TLS_BUFFER: usize = 64 << 10;

/// Bytes that the coordinator may hold for all of them (docs/reliability.md, Bounds), and what the allocator keeps.
const RELAYED: u64 = (PAIRS * (RELAY_BUFFERS + 4 * TLS_BUFFER) + (16 << 20)) as u64;

/// Messages that have to arrive at each end once everybody reads.
const ENOUGH: usize = 32;

/// What all ends together have said and heard, in bytes and in messages.
#[derive(Default)]
struct Noise {
    said: AtomicUsize,
    heard: AtomicUsize,
}

/// One end of a pair that says as much as it can, in messages as large as they may be. It reads nothing until `reads`,
/// and nothing any more when it has heard enough.
async fn shouts(carrier: CoordinatorCarrier, noise: Arc<Noise>, mut reads: watch::Receiver<bool>) {
    let (mut out, mut incoming) = carrier.into_websocket().split();
    let shout = async {
        let message = Bytes::from(vec![7; MAX_CARRIER_MESSAGE]);
        while out.send(Message::Binary(message.clone())).await.is_ok() {
            noise.said.fetch_add(message.len(), Relaxed);
        }
    };
    let listen = async {
        reads.wait_for(|reads| *reads).await.expect("the story goes on");
        for _ in 0..ENOUGH {
            let message = incoming.next().await.expect("it goes on").expect("a message");
            assert!(matches!(message, Message::Binary(bytes) if bytes.len() == MAX_CARRIER_MESSAGE));
            noise.heard.fetch_add(1, Relaxed);
        }
    };
    tokio::join!(shout, listen);
}

#[test]
fn pairs_that_shout_and_do_not_read_cost_the_coordinator_its_buffers_and_no_more() {
    let world = World::new();
    let pid = world.coordinator.program.pid();
    let profile = world.profile();
    let (stub, laptop) = world.runtime.block_on(async {
        let dir = TempDir::new().expect("a temporary folder");
        let code = world.coordinator.add_workspace("box");
        let state = StubState::enroll(dir.path(), &world.url, &code).await.expect("it enrols");
        let client = |trust, credential| CoordinatorClient::new(world.url.clone(), trust, credential);
        (client(state.trust.clone(), state.credential.clone()), client(profile.trust, profile.credential))
    });
    let name: WorkspaceName = "box".parse().expect("a name");
    let pair = async || {
        let parked = stub.park().await.expect("it parks");
        let connected = laptop.connect(&name).await.expect("it is let in");
        tokio::join!(joined(parked), joined(connected))
    };
    // The first one pays for what is there once.
    drop(world.runtime.block_on(pair()));
    let before = footprint(pid).memory;
    let (noise, reads) = (Arc::new(Noise::default()), watch::Sender::new(false));
    let mut ends = JoinSet::new();
    for _ in 0..PAIRS {
        let (near, far) = world.runtime.block_on(pair());
        for end in [near, far] {
            ends.spawn_on(shouts(end, noise.clone(), reads.subscribe()), world.runtime.handle());
        }
    }
    let mut most = 0;
    let mut look = || {
        most = footprint(pid).memory.max(most);
        noise.said.load(Relaxed)
    };
    let all_are_stuck = |look: &mut dyn FnMut() -> usize| {
        const LOOKS: usize = 10;
        let (mut said, mut same) = (0, 0);
        until("everybody to be stopped", || {
            let now = look();
            assert!(now < 2 * PAIRS * ON_THE_WAY, "somebody takes it all, and nobody reads it: {now} bytes");
            same = if now == said { same + 1 } else { 0 };
            said = now;
            (same == LOOKS).then_some(())
        });
        said
    };
    let stuck = all_are_stuck(&mut look);
    reads.send_replace(true);
    until("everybody to have heard enough", || {
        look();
        (noise.heard.load(Relaxed) == 2 * PAIRS * ENOUGH).then_some(())
    });
    let stuck_again = all_are_stuck(&mut look);
    let mb = |bytes: u64| bytes / 1_000_000;
    println!("{PAIRS} pairs said {} and then {} MB", mb(stuck as u64), mb(stuck_again as u64));
    println!("the coordinator had {} MB before and {} at most, of {} more", mb(before), mb(most), mb(RELAYED));
    assert!(most < before + RELAYED, "{most} bytes, {before} before");
    assert!(ends.try_join_next().is_none(), "a connection broke: {}", world.coordinator.program.output());
}

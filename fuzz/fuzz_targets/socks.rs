//! What a program may say to a SOCKS5 port of the laptop: any bytes, and genuine requests with edits. The first byte selects
//! which.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex};

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::service::socks::SocksForward;
use nexus_proxy::session::framed::FramedStream;
use nexus_proxy::session::opener::Opener;
use nexus_proxy::session::way::Way;
use nexus_proxy::wire::{Endpoint, Refusal, RefusalCode, StreamRequest};
use nexus_proxy_fuzz::edited;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Bytes that the stream to the workspace holds: more than an open frame has.
const STREAM: usize = 64 * 1024;

/// A workspace that refuses everything, and remembers what it was asked for.
#[derive(Clone, Default)]
struct Workspace(Arc<Mutex<Vec<StreamRequest>>>);

impl Opener for Workspace {
    type Io = DuplexStream;

    async fn open(&self) -> Result<DuplexStream, Refusal> {
        let (here, there) = tokio::io::duplex(STREAM);
        let asked = self.0.clone();
        tokio::spawn(async move {
            let (open, stream) = FramedStream::accept(there).await.expect("an open frame");
            asked.lock().expect("nothing panicked").push(open.request);
            stream.refuse(&Refusal::new(RefusalCode::TargetRefused, "nobody listens there")).await;
        });
        Ok(here)
    }

    fn way(&self) -> Way {
        Way::steady()
    }
}

struct World {
    runtime: Runtime,
    port: u16,
    workspace: Workspace,
    client: u32,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let workspace = Workspace::default();
    let port = runtime.block_on(async {
        let bind = Endpoint::Tcp { host: "127.0.0.1".into(), port: 0 };
        let forward = SocksForward::bind(workspace.clone(), &bind).await.expect("a port");
        let Endpoint::Tcp { port, .. } = *forward.bound() else { panic!("{:?}", forward.bound()) };
        tokio::spawn(forward.run(CancellationToken::new()));
        port
    });
    Mutex::new(World { runtime, port, workspace, client: 0 })
});

/// No authentication, then a command with an address of each kind.
const REQUESTS: [&[u8]; 5] = [
    b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x1f\x90",
    b"\x05\x02\x00\x02\x05\x01\x00\x03\x07example\x01\xbb",
    b"\x05\x01\x00\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50",
    b"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x05\x01\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00",
];

/// To a greeting: no authentication.
const GREETED: &[u8] = &[5, 0];

/// The reply to a command, which is bound to an IPv4 address wherever it says so.
const REPLY: usize = 10;

/// To a client of SOCKS4: request rejected.
const REJECTED: [u8; 2] = [0, 0x5b];

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    match bytes.arbitrary()? {
        true => ask(bytes.bytes(bytes.len())?, false),
        false => {
            let (said, changed) = edited(*bytes.choose(&REQUESTS)?, bytes)?;
            ask(&said, !changed);
        }
    }
    Ok(())
}

/// Says it, and holds what comes back: a stream is asked for once at most, for the address that was said, and nobody is
/// told that it is there when it is not.
fn ask(said: &[u8], genuine: bool) {
    let world = &mut *WORLD.lock().expect("nothing panicked");
    world.client = world.client.wrapping_add(1);
    // The ports of one address would run out.
    let [_, a, b, c] = Ipv4Addr::from(world.client).octets();
    let from = SocketAddr::new(Ipv4Addr::new(127, a | 1, b, c | 1).into(), 0);
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), world.port);
    let answer = world.runtime.block_on(async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(from).expect("a port");
        let mut client = socket.connect(to).await.expect("it listens");
        // It may have had enough before it has heard all.
        let _ = client.write_all(said).await;
        let _ = client.shutdown().await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        answer
    });
    let asked = std::mem::take(&mut *world.workspace.0.lock().expect("nothing panicked"));
    assert!(asked.len() <= 1, "{asked:?}");
    match asked.first() {
        Some(StreamRequest::Connect { target: Endpoint::Tcp { host, port } }) => {
            // The name of a place may be empty, and leads nowhere then.
            let is_said = |part: &[u8]| part.is_empty() || said.windows(part.len()).any(|window| window == part);
            assert!(is_said(&port.to_be_bytes()), "{port} is not in {said:?}");
            let is_address = host.parse::<std::net::IpAddr>().is_ok();
            assert!(is_address || is_said(host.as_bytes()), "{host} is not in {said:?}");
        }
        Some(StreamRequest::UdpAssociate {}) | None => {}
        Some(other) => panic!("{other:?}"),
    }
    let told = answer.strip_prefix(GREETED).unwrap_or(&answer);
    assert!(!genuine || told.len() == REPLY && answer.len() == GREETED.len() + REPLY, "{answer:?}");
    if let Some(code) = told.get(1).filter(|_| told.len() == REPLY) {
        assert!(told[0] == 5 && *code != 0, "{answer:?}");
    }
    assert!(said.first() != Some(&4) || answer.is_empty() || answer.starts_with(&REJECTED), "{answer:?}");
}

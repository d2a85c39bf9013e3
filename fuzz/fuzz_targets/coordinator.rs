//! What a coordinator hears behind a load balancer: requests of its API and upgrades, with edits at the places that a client
//! chooses, and any bytes. The first byte selects which.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::assertion::{Purpose, assert as sign};
use nexus_proxy::identity::{Authority, Credential, PeerCertificate, PrivateKey};
use nexus_proxy::role::coordinator::balancer::Balancer;
use nexus_proxy::role::coordinator::drain::{Drain, RELAYS};
use nexus_proxy::role::coordinator::registry::{AddWorkspace, LEAF_LIFETIME, PAIR_TTL};
use nexus_proxy::role::coordinator::server::{self, CONNECT_PATH, Listeners, PARK_PATH};
use nexus_proxy::role::coordinator::{Registry, Store};
use nexus_proxy::wire::onboarding::{
    AUTHORITIES_PATH, Authorities, CodeText, ENROLL_PATH, EnrollRequest, HEALTH_PATH, Health, PAIR_PATH, PairRequest,
    RENEW_PATH, RenewAnswer, RenewRequest,
};
use nexus_proxy::wire::{Refusal, RefusalCode};
use nexus_proxy_fuzz::{directory, edited};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// As clients know the coordinator.
const AUDIENCE: &str = "nexus.example:443";

/// Bytes of all answers on one connection: an input has room for some hundred requests.
const MOST_ANSWERS: usize = 1024 * 1024;

/// Members of each kind: the assertions of one are bounded.
const MEMBERS: usize = 8;

/// For how long a coordinator has the same members: then others, since their certificates run out.
const GENERATION: Duration = LEAF_LIFETIME.checked_div(24).expect("a part of it");

struct World {
    /// Dropped first: it holds the connections to the coordinator.
    runtime: Runtime,
    coordinator: Coordinator,
    made: SystemTime,
    generation: u32,
    /// Each request is another client's, or the bound on requests would hide the rest.
    client: u32,
}

struct Coordinator {
    address: SocketAddr,
    devices: Vec<Credential>,
    stubs: Vec<Credential>,
    /// Bodies for the three requests of the API, by the first members. Their codes were used.
    bodies: [(&'static str, Vec<u8>); 3],
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new(0, 0)));

impl World {
    fn new(generation: u32, client: u32) -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let coordinator = runtime.block_on(coordinator(&format!("coordinator-{generation}")));
        World { runtime, coordinator, made: SystemTime::now(), generation, client }
    }

    /// Whether the certificates of its members are good for a while, by the clock as it is: it may have been set.
    fn is_young(&self) -> bool {
        self.made.elapsed().is_ok_and(|age| age < GENERATION)
    }
}

/// A coordinator with its members, whose directory has that name.
async fn coordinator(folder: &str) -> Coordinator {
    let now = SystemTime::now();
    let store = Store::open(&directory(folder)).await.expect("a database of ours");
    let authority = Authority::create(name("d"), now).expect("an authority");
    let registry = Registry::new(store, authority.into());
    let trust = registry.authorities().trust().clone();
    let (mut devices, mut stubs, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    for member in 0..MEMBERS {
        let code = registry.invite(PAIR_TTL, now).await.expect("a code");
        let code = CodeText::new(code.reveal().as_str());
        let key = PrivateKey::generate().expect("a key");
        let csr = key.csr_pem().expect("a request");
        let pair = PairRequest { code, device: name(&format!("laptop-{member}")), csr: csr.clone() };
        let paired = registry.pair(&pair, now).await.expect("a device");
        devices.push(Credential::from_pem(&paired.chain, key).expect("a certificate"));

        let workspace = name(&format!("box-{member}"));
        let code = registry.add_workspace(&workspace, &AddWorkspace::default(), now).await.expect("a code");
        let code = CodeText::new(code.reveal().as_str());
        let key = PrivateKey::generate().expect("a key");
        let enroll = EnrollRequest { code, csr: key.csr_pem().expect("a request") };
        let enrolled = registry.enroll(&enroll, now).await.expect("a workspace");
        stubs.push(Credential::from_pem(&enrolled.chain, key).expect("a certificate"));
        asked.push((pair, enroll, RenewRequest { csr, trusts: Some(trust.ca_pin().to_string()) }));
    }
    let (pair, enroll, renew) = &asked[0];
    let bodies = [
        (PAIR_PATH, serde_json::to_vec(pair).expect("JSON")),
        (ENROLL_PATH, serde_json::to_vec(enroll).expect("JSON")),
        (RENEW_PATH, serde_json::to_vec(renew).expect("JSON")),
    ];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let url = format!("https+balancer://{AUDIENCE}").parse().expect("an address");
    let balancer = Balancer::new(&trust, &url, Vec::new(), now).expect("a balancer");
    let listeners = Listeners { plain: Some((listener, balancer)), ..Listeners::default() };
    let drain = Drain::new(CancellationToken::new(), RELAYS);
    tokio::spawn(async move {
        let served = server::run(listeners, registry, Vec::new(), drain).await;
        panic!("the coordinator ended: {served:?}");
    });
    Coordinator { address, devices, stubs, bodies }
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let world = &mut *WORLD.lock().expect("nothing panicked");
    if !world.is_young() {
        *world = World::new(world.generation + 1, world.client);
    }
    world.client = world.client.wrapping_add(1);
    let client = Ipv4Addr::from(world.client);
    match bytes.int_in_range(0..=4)? {
        0 => {
            // Whoever says no more than that is not waited for, and may not hear what comes of it.
            let said = bytes.bytes(bytes.len())?;
            let _ = ask(world, said, true);
        }
        1 | 2 => api(world, client, bytes)?,
        3 => {
            let path = *bytes.choose(&[AUTHORITIES_PATH, HEALTH_PATH])?;
            let (path, changed) = edited(path.as_bytes(), bytes)?;
            let path = visible(&path);
            let answer = request(world, "GET", &path, client, &[], b"");
            if changed {
                return Ok(());
            }
            let is_read = match path.as_str() {
                AUTHORITIES_PATH => Authorities::parse(&answer.body).is_ok(),
                _ => Health::parse(&answer.body).is_ok(),
            };
            assert!(answer.status == 200 && is_read, "{} at {path}", answer.status);
        }
        _ => upgrade(world, client, bytes)?,
    }
    Ok(())
}

/// Used codes make nobody a member, and a certificate is renewed for its own key alone.
fn api(world: &World, client: Ipv4Addr, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let at = bytes.choose_index(world.coordinator.bodies.len())?;
    let (path, genuine) = &world.coordinator.bodies[at];
    let (body, changed) =
        if bytes.ratio(1, 8)? { (bytes.bytes(bytes.len())?.to_vec(), true) } else { edited(genuine, bytes)? };
    let answer = request(world, "POST", path, client, &[], &body);
    if *path == RENEW_PATH && answer.status == 200 {
        let renewed = RenewAnswer::parse(&answer.body).expect("an answer in the format");
        let renewed = Credential::from_pem(&renewed.chain, world.coordinator.devices[0].key.clone())
            .expect("for the key that asked");
        let [leaf, own] =
            [&renewed, &world.coordinator.devices[0]].map(|of| PeerCertificate::parse(&of.chain[0]).expect("a leaf"));
        assert_eq!((leaf.identity, leaf.pin), (own.identity, own.pin));
        return Ok(());
    }
    assert!(changed || *path != RENEW_PATH, "{}: {:?}", answer.status, Refusal::from_bytes(&answer.body));
    refused(&answer);
    Ok(())
}

/// Only who proves to be a member, for this very request, is let in.
fn upgrade(world: &World, client: Ipv4Addr, bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let coordinator = &world.coordinator;
    let (members, genuine) = match bytes.arbitrary()? {
        true => (&coordinator.devices, format!("{CONNECT_PATH}box-0")),
        false => (&coordinator.stubs, PARK_PATH.to_owned()),
    };
    let member = &members[world.client as usize % MEMBERS];
    let purpose = Purpose { method: "GET", path: &genuine, audience: AUDIENCE };
    let assertion = sign(member, &purpose, SystemTime::now()).expect("an assertion");
    let (path, other_path) = edited(genuine.as_bytes(), bytes)?;
    let (proof, other_proof) = edited(assertion.as_bytes(), bytes)?;
    let (path, proof) = (visible(&path), visible(&proof));
    let mut headers = vec![("Nexus-Assertion", proof.clone())];
    let mut other_head = false;
    for (name, value) in [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "nexus.v2"),
    ] {
        let (value, changed) =
            if bytes.ratio(1, 4)? { edited(value.as_bytes(), bytes)? } else { (value.into(), false) };
        other_head |= changed;
        headers.push((name, visible(&value)));
    }
    let answer = request(world, "GET", &path, client, &headers, b"");
    if answer.status == 101 {
        assert_eq!(proof.split('.').next(), assertion.split('.').next());
        // It may stand behind a host, and before a fragment.
        let asked = path.split('#').next();
        assert!(asked.is_some_and(|asked| asked.ends_with(&genuine)), "{path} is not what was signed");
        return Ok(());
    }
    let is_busy = Refusal::from_bytes(&answer.body).code == RefusalCode::Busy;
    let is_other = other_path || other_proof || other_head;
    assert!(is_other || is_busy, "{}", String::from_utf8_lossy(&answer.body));
    if path.starts_with(PARK_PATH) || path.starts_with(CONNECT_PATH) {
        assert_ne!(answer.status, 200);
    }
    Ok(())
}

/// What can stand in a head without ending a part of it.
fn visible(text: &[u8]) -> String {
    text.iter().filter(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect()
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

fn request(
    world: &World,
    method: &str,
    path: &str,
    client: Ipv4Addr,
    headers: &[(&str, String)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {AUDIENCE}\r\nX-Forwarded-For: {client}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    ask(world, &[head.as_bytes(), body].concat(), false).expect("what is whole is answered")
}

/// Says it, and reads the answer to its end: by its length, unless what was said is not a whole request.
fn ask(world: &World, said: &[u8], then_ends: bool) -> Option<Answer> {
    let answer = world.runtime.block_on(async {
        let mut stream = dial(world).await;
        // It may have had enough before it has heard all.
        let _ = stream.write_all(said).await;
        if then_ends {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        while stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {
            assert!(answer.len() < MOST_ANSWERS, "an answer without end");
            if !then_ends && whole(&answer).is_some() {
                break;
            }
        }
        answer
    });
    let answer = whole(&answer);
    if let Some(answer) = answer.as_ref().filter(|answer| answer.status >= 400) {
        refused(answer);
    }
    answer
}

/// A connection from some loopback address: the ports of one would run out.
async fn dial(world: &World) -> TcpStream {
    let [_, a, b, c] = Ipv4Addr::from(world.client).octets();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(Ipv4Addr::new(127, a | 1, b, c | 1).into(), 0)).expect("a port");
    socket.connect(world.coordinator.address).await.expect("the coordinator listens")
}

/// The answer, once it is there as a whole.
fn whole(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).expect("a head of text").to_ascii_lowercase();
    let status = head.strip_prefix("http/1.").and_then(|rest| rest.get(2..5)).expect("a status").parse();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let body = bytes[end..].get(..length.unwrap_or(0))?.to_vec();
    Some(Answer { status: status.expect("a number"), body })
}

/// A refusal of ours in the format, or a head that could not be read. Nothing that a client says makes a fault (500).
fn refused(answer: &Answer) {
    assert!(
        (400..=503).contains(&answer.status) && answer.status != 500,
        "{}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    assert!(answer.body.is_empty() || serde_json::from_slice::<Refusal>(&answer.body).is_ok());
}

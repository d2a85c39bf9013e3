//! What programs of the same machine say to one another, and what the kernel says about them: requests of a stub's
//! successor, changes of the list of devices, forwards that are asked for at the control socket, `/proc/PID/stat`, the tables of
//! routes. The first byte selects which.

#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex};

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::{KeyPin, Role};
use nexus_proxy::role::files;
use nexus_proxy::role::proxy::forwards::ForwardRequest;
use nexus_proxy::role::routes::Routes;
use nexus_proxy::role::stub::earlier::Earlier;
use nexus_proxy::role::stub::kin::{self, Kin};
use nexus_proxy::role::stub::laptops::Laptops;
use nexus_proxy::role::stub::orphans::{Process, parse};
use nexus_proxy::role::stub::sessions::Sessions;
use nexus_proxy::role::stub::state::StubState;
use nexus_proxy::role::stub::{devices, link};
use nexus_proxy::session::framed::FramedStream;
use nexus_proxy::session::way::Way;
use nexus_proxy::wire::call::{Request, Response};
use nexus_proxy::wire::limits::{FRAME_HEADER, MAX_CONTROL, MAX_DEVICES};
use nexus_proxy::wire::{FrameHeader, FrameKind};
use nexus_proxy_fuzz::{Pipe, become_member, comes_back, directory, edited};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Who asks for changes of the list.
fn caller() -> KeyPin {
    KeyPin::from_bytes([1; 32])
}

const PIN: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What a successor must have.
static KIN: LazyLock<Kin> = LazyLock::new(|| Kin::load_or_make(&directory("kin")).expect("a file of ours"));

static STATE: LazyLock<Mutex<StubState>> = LazyLock::new(|| {
    let dir = directory("local");
    become_member(&dir, Role::Workspace("box".parse().expect("a name")));
    let stub = format!(r#"{{"workspace":"box","devices":["{}"],"trust_first_device":false}}"#, caller());
    files::write(&dir.join("stub.json"), stub.as_bytes()).expect("a file of ours");
    Mutex::new(StubState::load(&dir).expect("it was written by ourselves"))
});

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    match bytes.int_in_range(0..=6)? {
        0 => successor(bytes.bytes(bytes.len())?),
        1 => match (request(bytes, &REQUESTS)?, bytes.arbitrary()?) {
            (said, false) => successor(&framed(&said)),
            (said, true) => kin(&said),
        },
        2 => list(bytes.bytes(bytes.len())?),
        3 => list(&framed(&request(bytes, &CHANGES)?)),
        4 => {
            let genuine =
                br#"{"kind":"local","spec":"8080:127.0.0.1:3000","at":{"net":"tcp","host":"127.0.0.1","port":8080}}"#;
            let (json, _) = edited(genuine, bytes)?;
            if let Ok(asked) = serde_json::from_slice::<ForwardRequest>(&json) {
                let again = serde_json::to_vec(&asked).expect("plain values");
                comes_back(&asked, serde_json::from_slice(&again));
            }
        }
        5 => routes(bytes)?,
        _ => process(bytes)?,
    }
    Ok(())
}

const REQUESTS: [&str; 3] = [
    r#"{"jsonrpc":"2.0","id":1,"method":"resume","params":{"lifeline":"000102030405060708090a0b0c0d0e0f","route":"relay"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"end_devices","params":{"pins":["PIN"],"refusal":{"code":"denied","message":"gone"}}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"end","params":{}}"#,
];

const CHANGES: [&str; 3] = [
    r#"{"jsonrpc":"2.0","id":1,"method":"device.list"}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"device.add","params":{"pin":"PIN"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"device.remove","params":{"pin":"PIN"}}"#,
];

fn request(bytes: &mut Unstructured<'_>, genuine: &[&str]) -> arbitrary::Result<Vec<u8>> {
    let genuine = bytes.choose(genuine)?.replace("PIN", PIN);
    Ok(edited(genuine.as_bytes(), bytes)?.0)
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&FrameHeader::new(FrameKind::Message, payload.len()).encode()[..], payload].concat()
}

/// The message that bytes begin with, when there is one as a whole.
fn message(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER>()?;
    let header = FrameHeader::decode(*header).ok()?;
    (header.kind == FrameKind::Message).then(|| rest.get(..header.len))?
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Whoever asks and has proven nothing: there is an answer in the format or none, and nothing is ended.
fn successor(said: &[u8]) {
    let asked = message(said).filter(|payload| payload.len() <= MAX_CONTROL).and_then(|p| Request::parse(p).ok());
    let end = CancellationToken::new();
    let answer = runtime().block_on(async {
        let (stream, mut other) = UnixStream::pair().expect("a pair of sockets");
        let mut answer = Vec::new();
        let laptops = Laptops::default();
        let talk = async {
            // It may have had enough before it has heard all.
            let _ = other.write_all(said).await;
            let _ = other.shutdown().await;
            let _ = other.read_to_end(&mut answer).await;
        };
        let (_, served) = tokio::join!(talk, link::serve(stream, &KIN, &laptops, &end));
        assert!(served.is_err(), "something was served that nobody may ask for");
        answer
    });
    assert!(!end.is_cancelled(), "a stranger ended it");
    assert_eq!(answer.is_empty(), asked.is_none(), "{answer:?} for {asked:?}");
    if let Some(asked) = asked {
        let response =
            message(&answer).map(serde_json::from_slice::<Response>).expect("one message").expect("a response");
        assert!(response.error.is_some() || asked.method == kin::METHOD, "a stranger was served");
    }
}

/// Kin asks: no session is found, and only `end` ends.
fn kin(said: &[u8]) {
    // With its proof it has to fit.
    let Some(asked) = Request::parse(said).ok().filter(|_| said.len() <= MAX_CONTROL / 2) else { return };
    let end = CancellationToken::new();
    let answer = runtime().block_on(async {
        let (stream, other) = UnixStream::pair().expect("a pair of sockets");
        let laptops = Laptops::default();
        let ask = KIN.call::<serde_json::Value>(other, &asked.method, &asked.params);
        tokio::join!(ask, link::serve(stream, &KIN, &laptops, &end)).0
    });
    assert_eq!(end.is_cancelled(), asked.method == link::END);
    assert!(answer.is_err() || asked.method != link::RESUME, "a session that is nowhere");
}

/// The list changes by what was asked for and nothing else, and its caller stays on it.
fn list(said: &[u8]) {
    let before = STATE.lock().expect("nothing panicked").devices().clone();
    let sessions = Arc::new(Sessions::new(Earlier::new(&directory("nobody"), KIN.clone()), CancellationToken::new()));
    let pipe = Pipe::default();
    pipe.with(|ends| (ends.inward, ends.ended, ends.room) = (said.to_vec(), true, usize::MAX));
    let way = Way::steady();
    let serve = devices::serve(FramedStream::new(pipe), &way, caller(), &STATE, &sessions);
    let _ = runtime().block_on(serve);
    let after = STATE.lock().expect("nothing panicked").devices().clone();
    assert!(after.contains(&caller()) && after.len() <= MAX_DEVICES);
    let changed: Vec<&KeyPin> = before.symmetric_difference(&after).collect();
    let asked = message(said).and_then(|payload| Request::parse(payload).ok());
    let method = asked.as_ref().map(|asked| asked.method.as_str());
    match changed[..] {
        [] => {}
        [pin] => {
            assert_eq!(method, Some(if after.contains(pin) { "device.add" } else { "device.remove" }));
        }
        _ => panic!("more than one changed"),
    }
}

/// A name may hold anything, and what is read is what the kernel meant.
fn process(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (pid, parent) = (bytes.arbitrary::<u16>()?.into(), bytes.arbitrary::<u16>()?.into());
    let ended = bytes.arbitrary()?;
    let text = String::from_utf8_lossy(bytes.bytes(bytes.len())?).into_owned();
    let stat = format!("{pid} ({text}) {} {parent} 0 -1 4194560", if ended { "Z" } else { "S" });
    assert_eq!(parse(&stat), Some(Process { pid, parent, ended }), "{stat:?}");
    let _ = parse(&text);
    Ok(())
}

const ROUTES_V4: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
    eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
    eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";

const ROUTES_V6: &str = "20010db8000000000000000000000000 20 00000000000000000000000000000000 00 \
    fe800000000000000000000000000001 00000400 00000001 00000000 00000003 wlan0\n";

/// Whatever the tables hold: what goes somewhere takes a route of its family, or none; and with none in the tables, none.
fn routes(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut table =
        |genuine: &str| edited(genuine.as_bytes(), bytes).map(|(text, _)| String::from_utf8_lossy(&text).into_owned());
    let (v4, v6) = (table(ROUTES_V4)?, table(ROUTES_V6)?);
    let routes = Routes::parse(&v4, &v6);
    let targets: [IpAddr; 2] = [bytes.arbitrary::<[u8; 4]>()?.into(), bytes.arbitrary::<[u8; 16]>()?.into()];
    for (target, table) in targets.into_iter().zip([v4, v6]) {
        if let Some(route) = routes.toward(target) {
            assert_eq!(route.next.is_ipv4(), target.is_ipv4(), "{route:?} to {target}");
            assert!(table.contains(&route.interface), "{route:?} is in no table");
        }
    }
    Ok(())
}

//! A coordinator among people who mean it no good: it cuts them off, says why where there is somebody to read it, and
//! serves the others meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt, StreamExt};
use nexus_proxy::identity::Trust;
use nexus_proxy::identity::verify::{Expect, client_config};
use nexus_proxy::role::coordinator::rendezvous::MAX_PARKED;
use nexus_proxy::role::stub::state::StubState;
use nexus_proxy::transport::carrier::Arrival;
use nexus_proxy::transport::client::{ALPN, CoordinatorClient};
use nexus_proxy::transport::dial::dial;
use nexus_proxy::wire::control::Control;
use nexus_proxy::wire::limits::MAX_CARRIER_MESSAGE;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::capture::connections;
use crate::support::program::command;
use crate::support::*;

const LOCALHOST: std::net::Ipv4Addr = std::net::Ipv4Addr::LOCALHOST;

/// Connections of one attack.
const CROWD: usize = 300;

/// KiB that one connection may cost the coordinator while it is not let in.
const KIB_EACH: u64 = 100;

/// A handshake that was cut in the middle of its first record: 512 bytes are announced.
const BEGINNING_OF_TLS: [u8; 6] = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01];

fn connect(coordinator: &Coordinator) -> TcpStream {
    let stream = TcpStream::connect((LOCALHOST, coordinator.port)).expect("it takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time to wait");
    stream
}

fn curl(words: &[&str]) -> Run {
    Run::of(command("curl", [&["-q", "-sS", "-k", "--noproxy", "*", "--max-time", "10"], words].concat()))
}

#[track_caller]
fn is_healthy(coordinator: &Coordinator) {
    let health = curl(&["--fail", &format!("{}/health", coordinator.url(LOCALHOST))]).ok();
    assert!(health.contains(r#""status":"ok""#), "{health}");
}

/// Resident memory in KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("our own child");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Reads until the other side ends the connection, one way or another; what it said before.
#[track_caller]
fn until_cut(mut stream: &TcpStream) -> Vec<u8> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return said,
            Ok(n) => said.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return said,
            Err(error) => panic!("it was not cut: {error}"),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A workspace `flood`, enrolled by a program of ours.
fn enrolled(coordinator: &Coordinator, runtime: &tokio::runtime::Runtime, dir: &TempDir) -> CoordinatorClient {
    let url = coordinator.url(LOCALHOST).parse().expect("an address");
    let code = coordinator.add_workspace("flood");
    let state = runtime.block_on(StubState::enroll(dir.path(), &url, &code)).expect("it enrols");
    CoordinatorClient::new(url, state.trust.clone(), state.credential.clone())
}

#[test]
fn tls_that_is_never_finished_is_cut_and_holds_nobody_up() {
    // Fewer files than there are connections: it has to ask for more.
    let coordinator = Coordinator::start_with_open_files(CROWD as u32 / 2);
    is_healthy(&coordinator);
    let before = memory(coordinator.program.pid());
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|n| {
            let mut stream = connect(&coordinator);
            // Half of them say nothing at all.
            stream.write_all(&BEGINNING_OF_TLS[..n % 2 * BEGINNING_OF_TLS.len()]).expect("it is read");
            stream
        })
        .collect();
    until("the crowd to be let in", || {
        (connections(coordinator.program.pid(), coordinator.port, LOCALHOST) >= CROWD).then_some(())
    });
    is_healthy(&coordinator);
    let grown = memory(coordinator.program.pid()).saturating_sub(before);
    assert!(grown < CROWD as u64 * KIB_EACH, "{grown} KiB for {CROWD} connections");

    // One byte at a time: each is progress, and the whole has its time all the same.
    let mut slow = connect(&coordinator);
    slow.write_all(&BEGINNING_OF_TLS).expect("it is read");
    slow.set_read_timeout(Some(Duration::from_secs(1))).expect("a time to wait");
    let deadline = Instant::now() + PATIENCE;
    let cut = loop {
        assert!(Instant::now() < deadline, "it is read for ever");
        match slow.read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            other => break other,
        }
        if slow.write_all(&[0]).is_err() {
            break Ok(0);
        }
    };
    assert!(!matches!(cut, Ok(1)), "{cut:?}");
    crowd.iter().for_each(|stream| drop(until_cut(stream)));
    is_healthy(&coordinator);
}

#[test]
fn what_is_not_tls_is_cut() {
    let coordinator = Coordinator::start();
    let garbage: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
    for bytes in [&garbage[..], b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"] {
        let mut stream = connect(&coordinator);
        // It may be cut before all of it is written.
        let _ = stream.write_all(bytes);
        let said = until_cut(&stream);
        assert!(said.len() < 100 && !said.starts_with(b"HTTP"), "{said:?}");
    }
    is_healthy(&coordinator);
}

#[test]
fn a_head_that_is_huge_or_slow_is_refused() {
    let coordinator = Coordinator::start();
    let huge = format!("X-Filler: {}", "x".repeat(60_000));
    let answer = curl(&["-i", "-H", &huge, &format!("{}/health", coordinator.url(LOCALHOST))]);
    assert!(!answer.text().contains(r#""status":"ok""#), "{}", answer.text());

    let trust = Trust::from_pem(&fs::read_to_string(coordinator.data().join("ca.pem")).unwrap()).unwrap();
    let tls = client_config(&trust, Expect::Coordinator, None, ALPN).unwrap();
    let url = coordinator.url(LOCALHOST).parse().unwrap();
    runtime().block_on(async {
        let ends = async |bytes: Vec<u8>| {
            let mut door = dial(&url, tls.clone()).await.unwrap();
            // It may be cut before all of it is written.
            let _ = door.write_all(&bytes).await;
            let mut said = Vec::new();
            let read = tokio::time::timeout(PATIENCE, door.read_to_end(&mut said)).await;
            assert!(read.is_ok(), "it was not cut");
            String::from_utf8_lossy(&said).into_owned()
        };
        // A head that never ends: it is over its bound after 16 KiB, and over its time after a while.
        let endless = format!("GET /health HTTP/1.1\r\n{}", "A: b\r\n".repeat(500_000)).into_bytes();
        let (endless, slow) = tokio::join!(ends(endless), ends(b"GET /heal".to_vec()));
        assert!(!endless.contains("200 OK") && !slow.contains("200 OK"), "{endless}{slow}");
    });
    is_healthy(&coordinator);
}

#[test]
fn an_upgrade_says_who_may_and_how() {
    let coordinator = Coordinator::start();
    let url = coordinator.url(LOCALHOST);
    let laptop = Laptop::new();
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let code = coordinator.add_workspace("box");
    let profile = laptop.home().join("data/coordinators").join(format!("127.0.0.1_{}", coordinator.port));
    let (chain, key) = (profile.join("chain.pem"), profile.join("key.pem"));
    let (chain, key) = (chain.to_string_lossy(), key.to_string_lossy());
    let known = ["--cert", &*chain, "--key", &*key];
    let upgrade = [
        "--http1.1",
        "-HConnection: Upgrade",
        "-HUpgrade: websocket",
        "-HSec-WebSocket-Version: 13",
        "-HSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ];
    let version = ["-HSec-WebSocket-Protocol: nexus.v2"];
    let other = ["-HSec-WebSocket-Protocol: nexus.v999"];
    type Case<'a> = (&'a str, &'a [&'a [&'a str]], &'a str, &'a str, &'a str);
    let cases: [Case<'_>; 6] = [
        ("/v1/connect/box", &[&upgrade, &version], "401", "denied", "client certificate. hint: pair"),
        ("/v1/park", &[&upgrade, &version], "401", "denied", "client certificate. hint: pair"),
        ("/v1/park", &[&known, &upgrade, &version], "403", "denied", "a stub parks and a device connects"),
        ("/v1/connect/box", &[&known], "426", "malformed", "WebSocket upgrades only"),
        ("/v1/connect/box", &[&known, &upgrade, &other], "400", "unsupported", "nexus.v2. hint: bring both"),
        ("/v1/connect/nosuch", &[&known, &upgrade, &version], "403", "not_found", "no workspace `nosuch`. hint:"),
    ];
    for (path, words, status, code, sentence) in cases {
        let address = format!("{url}{path}");
        let answer = curl(&[&words.concat()[..], &["-w", "\n%{http_code}", &address]].concat()).ok();
        let (body, found) = answer.rsplit_once('\n').expect("a body and a status");
        assert_eq!(found, status, "{path}: {body}");
        let refusal: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
        assert_eq!(refusal["code"], code, "{path}: {body}");
        assert!(refusal["message"].as_str().is_some_and(|text| text.contains(sentence)), "{path}: {body}");
    }
    let unknown = laptop.run(&["up", "nosuch", "--coordinator", &url]);
    assert_eq!(unknown.status.code(), Some(4), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("no workspace `nosuch`") && unknown.stderr.contains("hint:"), "{}", unknown.stderr);
    Machine::at(&Place::Here, &url).stub(Some(&code));
}

#[test]
fn a_parked_connection_that_breaks_the_protocol_is_cut_alone() {
    let coordinator = Coordinator::start();
    let url = coordinator.url(LOCALHOST);
    let laptop = Laptop::new();
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&Place::Here, &url);
    let _stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let up = laptop.up(&["box", "--coordinator", &url]);

    let (runtime, dir) = (runtime(), TempDir::new().unwrap());
    let client = enrolled(&coordinator, &runtime, &dir);
    let cases = [
        Message::text("hello?"),
        Message::text("x".repeat(MAX_CARRIER_MESSAGE)),
        Message::binary(vec![0; 1000]),
        Message::binary(vec![0; MAX_CARRIER_MESSAGE + 1]),
    ];
    for message in cases {
        runtime.block_on(async {
            let mut carrier = client.park().await.unwrap();
            let parked = carrier.arrival().await.unwrap();
            assert!(matches!(parked, Some(Arrival::Control(Control::Parked {}))), "{parked:?}");
            let mut ws = carrier.into_websocket();
            let _ = ws.send(message).await;
            let end = tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = ws.next().await {} }).await;
            assert!(end.is_ok(), "it was not cut");
        });
    }
    assert_eq!(laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert_eq!(up.tunnels(), 1);
}

#[test]
fn a_workspace_parks_a_few_connections_and_a_stub_that_never_answers_is_told_of() {
    const PARKED: usize = 500;
    let coordinator = Coordinator::start();
    let url = coordinator.url(LOCALHOST);
    let laptop = Laptop::new();
    laptop.pair(&url, &coordinator.invite(), "anna").ok();
    let machine = Machine::at(&Place::Here, &url);
    let _stub = machine.stub(Some(&coordinator.add_workspace("box")));
    let up = laptop.up(&["box", "--coordinator", &url]);
    let established = || connections(coordinator.program.pid(), coordinator.port, LOCALHOST);
    until("the next connection to be parked", || (established() == 3).then_some(()));

    let (runtime, dir) = (runtime(), TempDir::new().unwrap());
    let client = enrolled(&coordinator, &runtime, &dir);
    let before = memory(coordinator.program.pid());
    let mut parked = Vec::new();
    for _ in 0..PARKED / 50 {
        let some = runtime.block_on(join_all((0..50).map(|_| client.park())));
        parked.extend(some.into_iter().map(|carrier| carrier.expect("it parks")));
    }
    until("all but a few to be cut", || (established() <= 3 + MAX_PARKED).then_some(()));
    let grown = memory(coordinator.program.pid()).saturating_sub(before);
    assert!(grown < PARKED as u64 * KIB_EACH, "{grown} KiB for {PARKED} connections");

    // Those that are left never say a word.
    let waiting = laptop.command(&["up", "flood", "--coordinator", &url]);
    let mut waiting = Running::start(waiting);
    let line = waiting.says("down:");
    assert!(line.contains("did not answer within"), "{line}");
    assert!(waiting.has_ended().is_none(), "it goes on trying");
    drop(parked);
    assert_eq!(laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    assert_eq!(up.tunnels(), 1);
}

//! Holds `proxy-protocol.md` and `src/wire` together: what one of them says, the other says too.
//!
//! Tables are compared as whole sets, so that nothing is missing on either side. Examples are fenced as
//! ```` ```json NAME ````, where `NAME` is the message they are an example of; each must be read by the code, completely.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, UNIX_EPOCH};

use nexus_proxy::identity::Trust;
use nexus_proxy::identity::assertion::Judge;
use nexus_proxy::lifeline::key::{LABEL, ResumeKey, SECRET};
use nexus_proxy::lifeline::{core, path, replay};
use nexus_proxy::transport::{carrier, relay};
use nexus_proxy::wire::call::{CallError, METHODS, Request, Response, WORKSPACE_METHODS};
use nexus_proxy::wire::control::Control;
use nexus_proxy::wire::lifeline::{Attach, AttachMode, Attached, ID, LifelineId, LifelineMessage, TAG};
use nexus_proxy::wire::open::{Accepted, Exit, ProcessRequest, Signal};
use nexus_proxy::wire::version::Version;
use nexus_proxy::wire::{Endpoint, FrameKind, Open, Refusal, RefusalCode, StreamRequest, limits, name};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../proxy-protocol.md");

/// The text below a heading, up to the next heading of its level or above.
fn section(heading: &str) -> &'static str {
    let level = heading.find(' ').expect("a heading begins with its signs");
    let start = DOCUMENT.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no section `{heading}`"));
    let body = &DOCUMENT[start + heading.len() + 2..];
    let is_next = |line: &str| {
        let signs = line.len() - line.trim_start_matches('#').len();
        (1..=level).contains(&signs)
    };
    let mut end = 0;
    for line in body.split_inclusive('\n') {
        if is_next(line) {
            break;
        }
        end += line.len();
    }
    &body[..end]
}

/// The rows of the table in `section` whose first heading is `first`; cells without their back-ticks.
fn table(section: &str, first: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = section
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {first} |")))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    assert!(!rows.is_empty(), "no table whose first column is `{first}`");
    rows
}

/// Compares without regard to order, and says what differs.
#[track_caller]
fn same<T: Ord + Debug>(mut document: Vec<T>, mut code: Vec<T>) {
    document.sort();
    code.sort();
    assert_eq!(document, code, "left: proxy-protocol.md, right: src/wire");
}

fn wire_name(value: impl Serialize) -> String {
    serde_json::to_value(value).expect("serializes").as_str().expect("is a text").to_owned()
}

#[test]
fn frames() {
    let document = table(section("## Frames"), "number")
        .iter()
        .map(|row| (row[0].clone(), row[1].clone(), row[2].parse::<usize>().expect("a number of bytes")))
        .collect();
    let code = FrameKind::ALL.map(|k| (format!("{:#04x}", k as u8), format!("{k:?}"), k.max_payload())).to_vec();
    same(document, code);
}

#[test]
fn versions() {
    let rows = table(section("## Versions"), "version");
    let document = rows.iter().map(|row| (row[1].clone(), row[2].clone())).collect();
    let spoken = Version::ALL.map(|version| (version.subprotocol().to_owned(), "yes".to_owned()));
    let retired = Version::RETIRED.map(|version| (version.subprotocol().to_owned(), "no longer".to_owned()));
    same(document, spoken.into_iter().chain(retired).collect());
    let newest = Version::ALL[0].subprotocol().trim_start_matches("nexus.v");
    assert!(DOCUMENT.starts_with(&format!("# The nexus protocol, version {newest}\n")));
    assert!(DOCUMENT.contains(&format!("\nSec-WebSocket-Protocol: {}\n", Version::ALL[0].subprotocol())));
}

#[test]
fn methods() {
    let document: Vec<&str> = section("## Calls").lines().filter_map(|line| line.strip_prefix("### ")).collect();
    same(document, METHODS.to_vec());
    let rows = table(section("## Device list"), "method");
    same(rows.iter().map(|row| row[0].as_str()).collect(), WORKSPACE_METHODS.to_vec());
    for block in examples("request") {
        let request = Request::parse(block.as_bytes()).expect("the example is a request");
        assert!(METHODS.contains(&request.method.as_str()), "{} is no method", request.method);
    }
}

#[test]
fn limits_and_their_values() {
    macro_rules! values {
        ($($name:ident),* $(,)?) => { BTreeMap::from([$((stringify!($name).to_owned(), limits::$name.number())),*]) };
    }
    let mut code = values![
        FRAME_HEADER,
        MAX_DATA,
        MAX_OPEN,
        MAX_ANSWER,
        MAX_MESSAGE,
        MAX_DATAGRAM,
        MAX_CONTROL,
        MAX_REVOKED,
        MAX_DIRECT,
        MAX_DRAINING,
        MAX_ONBOARDING,
        MAX_ONBOARDING_ANSWER,
        MAX_DEVICES,
        MAX_CARRIER_MESSAGE,
        MAX_AUTHORITIES,
        MAX_CROSSED,
        MAX_SENTENCE,
        MAX_STREAMS,
        MAX_CALLS,
        MAX_LISTENERS,
        MAX_UDP_FLOWS,
        MAX_RECONNECT,
        OPEN_TIMEOUT,
        DIAL_TIMEOUT,
        HANDSHAKE_TIMEOUT,
        UDP_IDLE,
        MAX_ASSERTION,
        ASSERTION_LIFETIME,
        ASSERTION_SKEW,
    ];
    for line in include_str!("../src/wire/limits.rs").lines() {
        if let Some(rest) = line.strip_prefix("pub const ") {
            let name = rest.split(':').next().expect("a constant has a type");
            assert!(code.contains_key(name), "limits::{name} is missing in this test, and in the document's table");
        }
    }
    code.insert("MAX_NAME".to_owned(), name::MAX_NAME as u64);
    let document = table(section("## Limits"), "name");
    for row in &document {
        assert!(row.len() == 4 && row.iter().all(|cell| !cell.is_empty()), "{row:?} lacks its unit or its reason");
    }
    same(
        document.into_iter().map(|row| (row[0].clone(), row[1].parse::<u64>().expect("a number"))).collect(),
        code.into_iter().collect(),
    );
}

trait Number {
    fn number(self) -> u64;
}

impl Number for usize {
    fn number(self) -> u64 {
        self as u64
    }
}

impl Number for std::time::Duration {
    fn number(self) -> u64 {
        assert_eq!(self.subsec_nanos(), 0, "the document gives whole seconds");
        self.as_secs()
    }
}

/// Every kind of lifeline message, with its name in the document.
fn lifeline_messages() -> Vec<(&'static str, LifelineMessage)> {
    let id = LifelineId([0; ID]);
    let attach = Attach { id, sequence: 0, mode: AttachMode::Begin, received: 0, tag: [0; TAG] };
    let data = |ack_now| LifelineMessage::Data { offset: 0, ack: 0, ack_now, payload: "x".into() };
    let all = vec![
        ("attach", LifelineMessage::Attach(attach)),
        ("attached", LifelineMessage::Attached(Attached { sequence: 0, received: 0, tag: [0; TAG] })),
        ("end", LifelineMessage::End { offset: 0, refusal: None }),
        ("data", data(false)),
        ("data, acknowledge at once", data(true)),
        ("ack", LifelineMessage::Ack { ack: 0, at: 0 }),
        ("ping", LifelineMessage::Ping { nonce: 0, ack: 0 }),
        ("pong", LifelineMessage::Pong { nonce: 0, ack: 0 }),
    ];
    for (_, message) in &all {
        // A new kind does not compile here until it has its place in `all`.
        match message {
            LifelineMessage::Attach(_)
            | LifelineMessage::Attached(_)
            | LifelineMessage::End { .. }
            | LifelineMessage::Data { .. }
            | LifelineMessage::Ack { .. }
            | LifelineMessage::Ping { .. }
            | LifelineMessage::Pong { .. } => {}
        }
    }
    all
}

#[test]
fn kinds_of_lifeline_messages() {
    let rows = table(section("### Lifeline messages"), "number");
    let document = rows.iter().map(|row| {
        // `id 16` is a field of sixteen bytes; one without a length is as long as the message is.
        let lengths = row[3].split(", ").filter_map(|field| field.split_once(' '));
        let bytes: usize = lengths.map(|(_, length)| length.parse::<usize>().expect("a length in bytes")).sum();
        let open_ended = row[3].split(", ").any(|field| !field.contains(' '));
        (row[0].clone(), row[1].clone(), 1 + bytes, open_ended)
    });
    let code = lifeline_messages().into_iter().map(|(name, message)| {
        let bytes = message.encode();
        let payload = if let LifelineMessage::Data { payload, .. } = &message { payload.len() } else { 0 };
        let open_ended = matches!(message, LifelineMessage::Data { .. } | LifelineMessage::End { .. });
        (format!("{:#04x}", bytes[0]), name.to_owned(), bytes.len() - payload, open_ended)
    });
    same(document.collect(), code.collect());
    // Nothing that the table leaves out is a message.
    for kind in (0..=u8::MAX).filter(|kind| !rows.iter().any(|row| row[0] == format!("{kind:#04x}"))) {
        for length in 1..64 {
            assert!(LifelineMessage::parse(vec![kind; length].into()).is_err(), "{kind:#04x} is a message");
        }
    }

    let modes = table(section("### Begin, move, stand by"), "mode");
    let code = [(AttachMode::Begin, "begin"), (AttachMode::Move, "move"), (AttachMode::Standby, "standby")];
    let code = code.map(|(mode, name)| {
        match mode {
            AttachMode::Begin | AttachMode::Move | AttachMode::Standby => {}
        }
        let attach = Attach { id: LifelineId([0; ID]), sequence: 0, mode, received: 0, tag: [0; TAG] };
        (attach.signed()[1 + ID + 8].to_string(), name.to_owned())
    });
    same(modes.iter().map(|row| (row[0].clone(), row[1].clone())).collect(), code.to_vec());
}

#[test]
fn the_lifelines_worked_bytes_are_right() {
    let section = section("## Lifeline");
    let key = ResumeKey::new(&std::array::from_fn::<u8, SECRET, _>(|i| i as u8));
    let id = LifelineId(std::array::from_fn(|i| 0xa0 + i as u8));
    let attach = Attach { id, sequence: 3, mode: AttachMode::Move, received: 4096, tag: [0; TAG] };
    let answer = Attached { sequence: 3, received: 1500, tag: [0; TAG] };
    let worked = [
        ("attach", LifelineMessage::Attach(key.sign_attach(attach))),
        ("attached", LifelineMessage::Attached(key.sign_attached(answer))),
        ("data", LifelineMessage::Data { offset: 1500, ack: 4096, ack_now: true, payload: "hello".into() }),
        ("ack", LifelineMessage::Ack { ack: 1505, at: 2_000_000 }),
        ("end", LifelineMessage::End { offset: 1505, refusal: None }),
    ];
    assert_eq!(section.matches("```hex ").count(), worked.len(), "an example of nothing");
    for (name, message) in worked {
        let text = fenced(section, &format!("hex {name}"));
        let bytes: Vec<u8> =
            text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
        assert_eq!(message.encode(), bytes, "{name}");
        assert_eq!(LifelineMessage::parse(bytes.into()), Ok(message), "{name}");
    }
    let label = std::str::from_utf8(LABEL).expect("ASCII");
    assert!(section.contains(&format!("\n`{label}`")), "the exporter's label is {label}");
    for what in [format!("take {SECRET} bytes"), format!("first {TAG} bytes of HMAC-SHA256")] {
        assert!(section.contains(&what), "the text does not say: {what}");
    }
}

#[test]
fn times_and_bounds_of_lifeline_and_carrier() {
    let rows = |heading: &str| {
        let rows = table(section(heading), "name");
        assert!(rows.iter().all(|row| row.len() == 4 && row.iter().all(|cell| !cell.is_empty())), "{rows:?}");
        rows.into_iter().map(|row| (row[0].clone(), row[1].parse::<u64>().expect("a number"))).collect()
    };
    let named = |(name, value): (&str, u64)| (name.to_owned(), value);
    let millis = |time: Duration| time.as_millis() as u64;
    let lifeline = [
        ("PAYLOAD", replay::PAYLOAD as u64),
        ("FIRST_WINDOW", path::FIRST_WINDOW),
        ("LEAST_WINDOW", path::LEAST_WINDOW),
        ("MOST_WINDOW", path::MOST_WINDOW),
        ("SLACK", core::SLACK),
        ("MAX_CARRIERS", core::MAX_CARRIERS as u64),
        ("MAX_GAPS", core::MAX_GAPS.into()),
        ("ACK_DELAY", millis(core::ACK_DELAY)),
        ("LEAST_PATIENCE", millis(core::LEAST_PATIENCE)),
        ("QUIET", millis(core::QUIET)),
        ("QUIET_PATIENCE", millis(core::QUIET_PATIENCE)),
        ("UNANSWERED", core::UNANSWERED.into()),
        ("ALERT_PATIENCE", millis(core::ALERT_PATIENCE)),
        ("ALERT", millis(core::ALERT)),
        ("HEARTBEAT", millis(core::HEARTBEAT)),
        ("ATTACH_PATIENCE", millis(core::ATTACH_PATIENCE)),
        ("RETENTION", millis(core::RETENTION)),
    ];
    same(rows("### Times and bounds of the lifeline"), lifeline.map(named).to_vec());
    let heartbeats = [
        ("PING", carrier::PING),
        ("PONG", carrier::PONG),
        ("PARKED_PING", carrier::PARKED_PING),
        ("PARKED_PONG", carrier::PARKED_PONG),
        ("SILENCE", relay::SILENCE),
    ];
    same(rows("### Heartbeats"), heartbeats.map(|(name, time)| named((name, time.number()))).to_vec());
}

#[test]
fn limits_that_the_text_names_exist() {
    let tables = ["## Limits", "### Times and bounds of the lifeline"].map(|heading| table(section(heading), "name"));
    let known: Vec<String> = tables.into_iter().flatten().map(|row| row[0].clone()).collect();
    for quoted in DOCUMENT.split('`').skip(1).step_by(2) {
        if quoted.starts_with("MAX_") || quoted.ends_with("_TIMEOUT") {
            assert!(known.iter().any(|k| k == quoted), "`{quoted}` is named, but is not in the table of limits");
        }
    }
}

#[test]
fn kinds_of_streams() {
    let endpoint = || Endpoint::Unix { path: "s".into() };
    let all = [
        StreamRequest::Hello { version: "1".into(), instance: "a".into() },
        StreamRequest::Connect { target: endpoint() },
        StreamRequest::Udp { target: endpoint() },
        StreamRequest::UdpAssociate {},
        StreamRequest::Listen { bind: endpoint(), listener: 1 },
        StreamRequest::Accepted { listener: 1, peer: "p".into() },
        StreamRequest::Process(ProcessRequest::default()),
        StreamRequest::Call {},
    ];
    for request in &all {
        // A new kind does not compile here until it has its place in `all`.
        match request {
            StreamRequest::Hello { .. }
            | StreamRequest::Connect { .. }
            | StreamRequest::Udp { .. }
            | StreamRequest::UdpAssociate {}
            | StreamRequest::Listen { .. }
            | StreamRequest::Accepted { .. }
            | StreamRequest::Process(_)
            | StreamRequest::Call {}
            | StreamRequest::Unknown => {}
        }
        let json = serde_json::to_value(Open::new(request.clone())).expect("serializes");
        assert_eq!(json["kind"], request.name());
    }
    let document = table(section("## Streams"), "kind").iter().map(|row| row[0].clone()).collect();
    same(document, all.iter().map(|request| request.name().to_owned()).collect());
    let exemplified: Vec<String> = examples("open").map(|block| parsed::<Value>(block)["kind"].to_string()).collect();
    for request in &all {
        assert!(exemplified.contains(&format!("\"{}\"", request.name())), "{} has no example", request.name());
    }
}

#[test]
fn control_messages() {
    let all = [
        Control::Parked {},
        Control::Join { session: "s".into(), device: None },
        Control::Refused(Refusal::new(RefusalCode::Other, "")),
        Control::Drain { reconnect_after_ms: 1 },
        Control::Revoked { pins: Vec::new() },
        Control::Authorities {},
        Control::Waiting { message: String::new() },
    ];
    for control in &all {
        match control {
            Control::Parked {}
            | Control::Join { .. }
            | Control::Refused(_)
            | Control::Drain { .. }
            | Control::Revoked { .. }
            | Control::Authorities {}
            | Control::Waiting { .. }
            | Control::Unknown => {}
        }
    }
    let document = table(section("## Control messages"), "type").iter().map(|row| row[0].clone()).collect();
    let code = all.iter().map(|control| parsed::<Value>(&control.to_text())["type"].as_str().unwrap_or("").to_owned());
    same(document, code.collect());
}

#[test]
fn refusal_codes() {
    let all = [
        RefusalCode::Unsupported,
        RefusalCode::Malformed,
        RefusalCode::TooLarge,
        RefusalCode::InvalidArguments,
        RefusalCode::NotDeclared,
        RefusalCode::Denied,
        RefusalCode::NotFound,
        RefusalCode::TargetRefused,
        RefusalCode::TargetUnreachable,
        RefusalCode::Timeout,
        RefusalCode::AddressInUse,
        RefusalCode::Busy,
        RefusalCode::Unavailable,
        RefusalCode::TakenOver,
        RefusalCode::Cancelled,
        RefusalCode::Misdirected,
        RefusalCode::Internal,
        RefusalCode::Other,
    ];
    for code in all {
        match code {
            RefusalCode::Unsupported
            | RefusalCode::Malformed
            | RefusalCode::TooLarge
            | RefusalCode::InvalidArguments
            | RefusalCode::NotDeclared
            | RefusalCode::Denied
            | RefusalCode::NotFound
            | RefusalCode::TargetRefused
            | RefusalCode::TargetUnreachable
            | RefusalCode::Timeout
            | RefusalCode::AddressInUse
            | RefusalCode::Busy
            | RefusalCode::Unavailable
            | RefusalCode::TakenOver
            | RefusalCode::Cancelled
            | RefusalCode::Misdirected
            | RefusalCode::Internal
            | RefusalCode::Other => {}
        }
    }
    let rows = table(section("## Refusals"), "code");
    let document = rows.iter().map(|row| (row[0].clone(), row[1].parse::<i64>().expect("a number"))).collect();
    let code = all.map(|code| (wire_name(code), CallError::from(Refusal::new(code, "")).code)).to_vec();
    same(document, code);
    // A code in the running text is one of the table.
    let known: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    for after in DOCUMENT.split("efused with `").skip(1).chain(DOCUMENT.split("refuses with `").skip(1)) {
        let code = after.split('`').next().unwrap_or("");
        assert!(known.contains(&code), "refused with `{code}`, which is no code");
    }
}

#[test]
fn every_example_is_read_completely() {
    each::<Open>("open", |open| assert_ne!(open.request, StreamRequest::Unknown));
    each::<Control>("control", |control| assert_ne!(*control, Control::Unknown));
    each::<Accepted>("accept", |_| {});
    each::<Exit>("exit", |_| {});
    each::<Signal>("signal", |_| {});
    each::<Refusal>("refusal", |refusal| assert_ne!(refusal.code, RefusalCode::Other));
    each::<Request>("request", |_| {});
    each::<Response>("response", |_| {});
    let fences = DOCUMENT.lines().filter(|line| line.starts_with("```json"));
    let known = ["open", "control", "accept", "exit", "signal", "refusal", "request", "response"];
    for fence in fences {
        let name = fence.trim_start_matches("```json").trim();
        assert!(known.contains(&name), "`{fence}` is an example of nothing");
    }
}

#[test]
fn the_worked_bytes_are_right() {
    let hello = nexus_proxy::wire::FrameHeader::new(FrameKind::Data, 5).encode();
    let mut bytes: Vec<String> = hello.iter().chain(b"hello").map(|b| format!("{b:02x}")).collect();
    assert!(DOCUMENT.contains(&format!("`Data` of 5 bytes, \"hello\": `{}`", bytes.join(" "))));
    bytes = nexus_proxy::wire::FrameHeader::new(FrameKind::End, 0).encode().map(|b| format!("{b:02x}")).to_vec();
    assert!(DOCUMENT.contains(&format!("`End`: `{}`", bytes.join(" "))));
}

/// The body of the one fence of `name` in `section`.
fn fenced<'a>(section: &'a str, name: &str) -> &'a str {
    let fence = format!("```{name}\n");
    let mut bodies = section.split(fence.as_str()).skip(1);
    let (Some(body), None) = (bodies.next(), bodies.next()) else { panic!("one fence of `{name}`") };
    body.split("\n```").next().expect("the first of any")
}

#[test]
fn the_assertion_is_right() {
    let section = section("### Behind a load balancer");
    let (text, pem) = (fenced(section, "text"), fenced(section, "pem"));
    let header: String = fenced(section, "header").split_whitespace().collect();
    let signed = data_encoding::BASE64URL_NOPAD.decode(header.split('.').next().expect("a part").as_bytes());
    assert_eq!(String::from_utf8(signed.expect("base64url")).expect("UTF-8"), text);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(table(section, "line").len(), lines.len());

    let trust = Trust::from_pem(&format!("{pem}\n")).expect("an authority");
    let judge = Judge::new(&trust, lines[3].to_owned()).expect("a judge");
    let second = |n| UNIX_EPOCH + Duration::from_secs(n);
    let proved = judge.judge(header.as_bytes(), lines[1], lines[2], second(2_000_000_000)).expect("it is accepted");
    assert_eq!(proved.certificate.identity.to_string(), "spiffe://d/workspace/web");
    let skew = limits::ASSERTION_SKEW.as_secs();
    let at = |n| judge.judge(header.as_bytes(), lines[1], lines[2], second(n));
    assert!(at(2_000_000_060 + skew - 1).is_ok() && at(2_000_000_060 + skew).is_err());
    assert!(at(2_000_000_000 - skew).is_ok() && at(2_000_000_000 - skew - 1).is_err());
}

#[test]
fn the_comparison_sees_differences() {
    let rows = table("| a | b |\n|---|---|\n| `x` | 1 |\n\n| y | 2 |", "a");
    assert_eq!(rows, [["x", "1"]]);
    assert!(std::panic::catch_unwind(|| same(vec![1], vec![1, 2])).is_err());
    assert!(std::panic::catch_unwind(|| table("| a |\n|---|\n", "b")).is_err());
    assert!(std::panic::catch_unwind(|| complete::<Exit>(r#"{"code":0,"kode":1}"#)).is_err());
    assert_eq!(complete::<Exit>(r#"{"code":0}"#).code, Some(0));
}

/// The bodies of the fences of `name`.
fn examples(name: &str) -> impl Iterator<Item = &'static str> {
    let fence = format!("```json {name}\n");
    let bodies: Vec<&str> = DOCUMENT.split(fence.as_str()).skip(1).collect();
    assert!(!bodies.is_empty(), "no example of `{name}`");
    bodies.into_iter().map(|body| body.split("\n```").next().unwrap_or(""))
}

fn each<T: DeserializeOwned + Serialize>(name: &str, also: impl Fn(&T)) {
    for body in examples(name) {
        also(&complete::<T>(body));
    }
}

/// Reads, and requires that nothing of the text was ignored.
#[track_caller]
fn complete<T: DeserializeOwned + Serialize>(text: &str) -> T {
    let value: T = parsed(text);
    let again = json!(value);
    assert_eq!(again, parsed::<Value>(text), "part of the example is not known to the code");
    value
}

#[track_caller]
fn parsed<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}\ndoes not parse: {e}"))
}

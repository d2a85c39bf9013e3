//! Holds `proxy-protocol.md` and `src/wire` together: what one of them says, the other says too.
//!
//! Tables are compared as whole sets, so that nothing is missing on either side. Examples are fenced as
//! ```` ```json NAME ````, where `NAME` is the message they are an example of; each must be read by the code, completely.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, UNIX_EPOCH};

use nexus_proxy::identity::Trust;
use nexus_proxy::identity::assertion::Judge;
use nexus_proxy::wire::call::{CallError, METHODS, Request, Response, WORKSPACE_METHODS};
use nexus_proxy::wire::control::Control;
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
    let document = table(section("## Versions"), "version").iter().map(|row| row[1].clone()).collect();
    same(document, Version::ALL.map(|v| v.subprotocol().to_owned()).to_vec());
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
        MAX_ONBOARDING,
        MAX_ONBOARDING_ANSWER,
        MAX_DEVICES,
        MAX_CARRIER_MESSAGE,
        MAX_SENTENCE,
        MAX_STREAMS,
        MAX_CALLS,
        MAX_LISTENERS,
        MAX_UDP_FLOWS,
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

#[test]
fn limits_that_the_text_names_exist() {
    let known: Vec<String> = table(section("## Limits"), "name").into_iter().map(|row| row[0].clone()).collect();
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
    ];
    for control in &all {
        match control {
            Control::Parked {}
            | Control::Join { .. }
            | Control::Refused(_)
            | Control::Drain { .. }
            | Control::Revoked { .. }
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

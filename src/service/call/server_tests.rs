//! Whole calls, with the real client on the other end of a pipe, and with callers that misbehave.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::service::call::client::call;
use crate::service::config_value::{ConfigEntry, ConfigValues};
use crate::service::file::FileRoot;
use crate::service::keychain::Keychain;
use crate::service::laptop::MAX_TOOLS;
use crate::service::token::{DEFAULT_LIFETIME, Token, TokenSource, TokenSpec};
use crate::service::tool::{Tool, ToolSpec};
use crate::session::way::tests::way;
use crate::wire::limits::MAX_CALLS;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, DuplexStream};

fn workspace() -> WorkspaceName {
    "work".parse().unwrap()
}

fn laptop(dir: &tempfile::TempDir) -> Arc<Laptop> {
    let mut laptop = Laptop::new(dir.path(), "~/.nexus/config.yaml", Keychain::file_only(dir.path()));
    let tool = |name: &str, script: &str| {
        let argv = ["sh", "-c", script].map(|s| s.replace('{', "{{").replace('}', "}}")).to_vec();
        (name.to_owned(), Arc::new(Tool::new(ToolSpec { stdin: true, ..ToolSpec::new(name, argv) }).unwrap()))
    };
    laptop.tools = [
        tool("greet", "echo hello; echo oops >&2; exit 3"),
        tool("cat", "cat"),
        tool("hang", "echo $$; exec sleep 1000"),
        tool("flood", "yes"),
    ]
    .into();
    std::fs::write(dir.path().join("t"), "hunter2").unwrap();
    std::fs::write(dir.path().join("note"), "content").unwrap();
    let spec = TokenSpec {
        service: "github".into(),
        source: TokenSource::File(dir.path().join("t")),
        lifetime: DEFAULT_LIFETIME,
        expose: true,
    };
    laptop.tokens = [("github".into(), Arc::new(Token::new(spec)))].into();
    let large = ConfigEntry::Value(json!({"part": "x", "rest": "y".repeat(MAX_MESSAGE)}));
    laptop.config = ConfigValues::new([("large".into(), large)].into());
    laptop.files = vec![FileRoot { path: dir.path().join("note"), max_size: 100 }];
    Arc::new(laptop)
}

fn connect(laptop: &Arc<Laptop>) -> (FramedStream<DuplexStream>, tokio::task::JoinHandle<()>) {
    connect_by(Way::steady(), laptop)
}

fn connect_by(way: Way, laptop: &Arc<Laptop>) -> (FramedStream<DuplexStream>, tokio::task::JoinHandle<()>) {
    let (a, b) = tokio::io::duplex(4096);
    let laptop = Arc::clone(laptop);
    let served = tokio::spawn(async move { serve(FramedStream::new(b), &way, &laptop, &workspace()).await });
    (FramedStream::new(a), served)
}

async fn ask(laptop: &Arc<Laptop>, method: &str, params: Value) -> (Result<Value, Refusal>, Vec<u8>, Vec<u8>) {
    let (stream, served) = connect(laptop);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let outcome = call(stream, method, params, &mut out, &mut err).await;
    served.await.unwrap();
    (outcome, out, err)
}

/// A tool may run for a second; what it printed waits for the network for longer.
#[tokio::test]
async fn an_interruption_is_not_counted_against_a_tool() {
    const LIMIT: Duration = Duration::from_secs(1);
    let dir = tempfile::tempdir().unwrap();
    let mut laptop = laptop(&dir);
    let argv = ["sh", "-c", "head -c 500000 /dev/zero"].map(str::to_owned).to_vec();
    let print = Tool::new(ToolSpec { timeout: LIMIT, ..ToolSpec::new("print", argv) }).unwrap();
    Arc::get_mut(&mut laptop).unwrap().tools.insert("print".into(), Arc::new(print));
    for interrupted in [true, false] {
        let (way, set) = way();
        set(!interrupted);
        let (stream, served) = connect_by(way, &laptop);
        // Nothing is read beyond the first bytes, until later.
        let (out, mut printed) = tokio::io::duplex(1000);
        let call = tokio::spawn(call(stream, "tool.execute", json!({"name": "print"}), out, tokio::io::sink()));
        tokio::time::sleep(LIMIT * 3).await;
        set(true);
        let mut all = Vec::new();
        printed.read_to_end(&mut all).await.unwrap();
        let answer = call.await.unwrap();
        served.await.unwrap();
        match interrupted {
            true => assert_eq!((answer.unwrap()["exit_code"].as_u64(), all.len()), (Some(0), 500_000)),
            false => assert_eq!(answer.unwrap_err().code, RefusalCode::Timeout, "a caller that does not read"),
        }
    }
}

#[tokio::test]
async fn every_method_answers() {
    let dir = tempfile::tempdir().unwrap();
    let laptop = laptop(&dir);
    let (list, ..) = ask(&laptop, "tool.list", Value::Null).await;
    assert_eq!(list.unwrap()["tools"].as_array().unwrap().len(), 4);
    let (result, out, err) = ask(&laptop, "tool.execute", json!({"name": "greet"})).await;
    assert_eq!(result.unwrap()["exit_code"], 3);
    assert_eq!((&out[..], &err[..]), (&b"hello\n"[..], &b"oops\n"[..]));
    let input = json!({"name": "cat", "arguments": {}, "stdin": "x".repeat(200_000)});
    assert_eq!(ask(&laptop, "tool.execute", input).await.1.len(), 200_000);
    let (token, ..) = ask(&laptop, "auth.getToken", json!({"service": "github"})).await;
    assert_eq!(token.unwrap()["token"], "hunter2");
    let (value, ..) = ask(&laptop, "config.get", json!({"key": "large.part"})).await;
    assert_eq!(value.unwrap()["value"], "x");
    let (keys, ..) = ask(&laptop, "config.get", Value::Null).await;
    assert_eq!(keys.unwrap(), json!({"keys": ["large"]}));
    let (read, out, _) = ask(&laptop, "file.read", json!({"path": "~/note"})).await;
    assert_eq!((read.unwrap()["bytes"].as_u64(), &out[..]), (Some(7), &b"content"[..]));
}

#[tokio::test]
async fn what_is_not_declared_is_refused_with_the_lines_to_add() {
    let dir = tempfile::tempdir().unwrap();
    let laptop = laptop(&dir);
    for (method, params, lines) in [
        ("tool.execute", json!({"name": "rm"}), "tools:\n  \"rm\":"),
        ("auth.getToken", json!({"service": "aws"}), "tokens:\n  \"aws\":"),
        ("config.get", json!({"key": "other"}), "config:\n  values:\n    \"other\":"),
        ("file.read", json!({"path": "/etc/passwd"}), "files:\n  - path: \"/etc/passwd\""),
    ] {
        let refusal = ask(&laptop, method, params).await.0.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotDeclared);
        assert!(refusal.message.contains(lines) && refusal.message.contains("~/.nexus/config.yaml"), "{refusal}");
    }
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let laptop = laptop(&dir);
    for (method, params, code) in [
        ("tool.erase", Value::Null, RefusalCode::Unsupported),
        ("tool.execute", Value::Null, RefusalCode::InvalidArguments),
        ("tool.execute", json!({"name": 5}), RefusalCode::InvalidArguments),
        ("tool.execute", json!({"name": "greet", "arguments": {"x": 1}}), RefusalCode::InvalidArguments),
        ("auth.getToken", json!([]), RefusalCode::InvalidArguments),
        ("file.read", json!({"path": "~/note", "offset": -1}), RefusalCode::InvalidArguments),
        ("config.get", json!({"key": "large"}), RefusalCode::TooLarge),
    ] {
        assert_eq!(ask(&laptop, method, params).await.0.unwrap_err().code, code, "{method}");
    }
    for (kind, payload) in
        [(FrameKind::Message, &b"{"[..]), (FrameKind::Message, b"\xff"), (FrameKind::Data, b"x"), (FrameKind::End, b"")]
    {
        let (mut stream, served) = connect(&laptop);
        stream.answer().await.unwrap();
        stream.writer.send(kind, payload).await.unwrap();
        assert_eq!(stream.reader.expect().await.unwrap().kind, FrameKind::Abort);
        served.await.unwrap();
    }
}

async fn hanging(laptop: &Arc<Laptop>) -> (FramedStream<DuplexStream>, tokio::task::JoinHandle<()>, i32) {
    let (mut stream, served) = connect(laptop);
    stream.answer().await.unwrap();
    let request = Request::new("tool.execute", json!({"name": "hang"}));
    stream.writer.send_json(FrameKind::Message, &request).await.unwrap();
    let frame = stream.reader.expect().await.unwrap();
    let pid = std::str::from_utf8(&frame.payload).unwrap().trim().parse().unwrap();
    (stream, served, pid)
}

fn alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

#[tokio::test]
async fn an_abort_or_a_dropped_stream_stops_the_tool() {
    let dir = tempfile::tempdir().unwrap();
    let laptop = laptop(&dir);
    let (mut stream, served, pid) = hanging(&laptop).await;
    assert!(alive(pid));
    stream.writer.abort(&Refusal::new(RefusalCode::Cancelled, "enough")).await;
    served.await.unwrap();
    assert!(!alive(pid));

    let (stream, served, pid) = hanging(&laptop).await;
    drop(stream);
    served.await.unwrap();
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_still_heard_when_it_gives_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stream, served) = connect(&laptop(&dir));
    stream.answer().await.unwrap();
    let request = Request::new("tool.execute", json!({"name": "flood"}));
    stream.writer.send_json(FrameKind::Message, &request).await.unwrap();
    stream.reader.expect().await.unwrap();
    stream.writer.abort(&Refusal::new(RefusalCode::Cancelled, "enough")).await;
    served.await.unwrap();
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_and_others_served_later() {
    let dir = tempfile::tempdir().unwrap();
    let laptop = laptop(&dir);
    let permits: Vec<_> = (0..MAX_CALLS).map(|_| laptop.permit(&workspace()).unwrap()).collect();
    assert_eq!(ask(&laptop, "tool.list", Value::Null).await.0.unwrap_err().code, RefusalCode::Busy);
    assert!(laptop.permit(&"other".parse().unwrap()).is_ok());
    drop(permits);
    assert!(ask(&laptop, "tool.list", Value::Null).await.0.is_ok());
}

#[tokio::test]
async fn tools_beyond_their_bound_are_refused_and_other_calls_served() {
    let dir = tempfile::tempdir().unwrap();
    let laptop = laptop(&dir);
    let mut held = Vec::new();
    for _ in 0..MAX_TOOLS {
        held.push(hanging(&laptop).await);
    }
    let greet = || ask(&laptop, "tool.execute", json!({"name": "greet"}));
    assert_eq!(greet().await.0.unwrap_err().code, RefusalCode::Busy);
    assert!(ask(&laptop, "tool.list", Value::Null).await.0.is_ok());
    let (stream, served, _) = held.pop().unwrap();
    drop(stream);
    served.await.unwrap();
    assert!(greet().await.0.is_ok());
}

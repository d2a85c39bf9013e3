//! What a workspace may say on a call to the laptop: genuine requests with edits, and any bytes, against a laptop on which a
//! little is declared. The first byte selects which.

#![no_main]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::role::files;
use nexus_proxy::service::call::server::serve;
use nexus_proxy::service::config_value::{ConfigEntry, ConfigValues};
use nexus_proxy::service::file::FileRoot;
use nexus_proxy::service::keychain::Keychain;
use nexus_proxy::service::laptop::Laptop;
use nexus_proxy::service::token::{Token, TokenSource, TokenSpec};
use nexus_proxy::service::tool::{Tool, ToolSpec};
use nexus_proxy::session::framed::FramedStream;
use nexus_proxy::session::way::Way;
use nexus_proxy::wire::call::{METHODS, Request, Response};
use nexus_proxy::wire::limits::FRAME_HEADER;
use nexus_proxy::wire::open::Accepted;
use nexus_proxy::wire::refusal::printable;
use nexus_proxy::wire::{FrameHeader, FrameKind, Refusal};
use nexus_proxy_fuzz::{Pipe, directory, edited, runtime};
use serde_json::json;

/// In every file and token that a workspace may not have.
const CLOSED: &str = "what-stays-on-the-laptop-2f1c7f4e";

/// What a workspace may read, in files.
const OPEN: [&str; 2] = ["the first of the files that are declared\n", "the second one"];

static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    let home = directory("calls");
    for name in ["open", "open/below", "closed"] {
        files::private_dir(&home.join(name)).expect("a directory of ours");
    }
    let contents = [
        ("open/first", OPEN[0]),
        ("open/below/second", OPEN[1]),
        ("closed/secret", CLOSED),
        ("opened", CLOSED),
        ("first", CLOSED),
    ];
    for (name, content) in contents {
        files::write(&home.join(name), content.as_bytes()).expect("a file of ours");
    }
    for (link, to) in [("open/link", "../closed/secret"), ("open/out", "../closed")] {
        std::os::unix::fs::symlink(to, home.join(link)).expect("a link of ours");
    }
    home
});

static LAPTOP: LazyLock<Laptop> = LazyLock::new(|| {
    let mut laptop = Laptop::new(&HOME, "config.yaml", Keychain::file_only(&HOME));
    let mut tool = ToolSpec::new("grep", vec!["/nowhere/grep".into(), "{pattern}".into(), "--count={count?}".into()]);
    tool.schema = json!({
        "type": "object",
        "properties": {"pattern": {"type": "string"}, "count": {"type": "integer", "minimum": 1}},
        "required": ["pattern"],
    });
    tool.stdin = true;
    laptop.tools.insert("grep".into(), Arc::new(Tool::new(tool).expect("a tool")));
    for (service, file, expose) in [("open", "open/first", true), ("closed", "closed/secret", false)] {
        let spec = TokenSpec {
            service: service.into(),
            source: TokenSource::File(HOME.join(file)),
            lifetime: Duration::from_secs(300),
            expose,
        };
        laptop.tokens.insert(service.into(), Arc::new(Token::new(spec)));
    }
    let value = json!({"theme": "dark", "list": [1, {"a.b": true}], "a": {"b": null}});
    laptop.config = ConfigValues::new(BTreeMap::from([("editor".to_owned(), ConfigEntry::Value(value))]));
    laptop.files = vec![FileRoot { path: HOME.join("open"), max_size: 1024 }];
    laptop
});

const REQUESTS: [&str; 8] = [
    r#"{"jsonrpc":"2.0","id":1,"method":"tool.list"}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tool.execute","params":{"name":"grep","arguments":{"pattern":"x","count":2},"stdin":"x"}}"#,
    r#"{"jsonrpc":"2.0","id":"a","method":"config.get"}"#,
    r#"{"jsonrpc":"2.0","id":null,"method":"config.get","params":{"key":"editor.list.1.a.b"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"auth.getToken","params":{"service":"open"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"auth.getToken","params":{"service":"closed"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"file.read","params":{"path":"~/open/below/second","offset":1,"length":4}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"file.read","params":{"path":"~/open/out/secret"}}"#,
];

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let said = match bytes.int_in_range(0..=3)? {
        0 => bytes.bytes(bytes.len())?.to_vec(),
        1 => {
            let (request, _) = edited(bytes.choose(&REQUESTS)?.as_bytes(), bytes)?;
            [framed(&request), bytes.bytes(bytes.len())?.to_vec()].concat()
        }
        2 => framed(&edited(bytes.choose(&REQUESTS)?.as_bytes(), bytes)?.0),
        // Parameters alone.
        _ => {
            let method = *bytes.choose(&METHODS)?;
            let params = serde_json::from_slice(bytes.bytes(bytes.len())?).unwrap_or_default();
            framed(&serde_json::to_vec(&Request::new(method, params)).expect("JSON"))
        }
    };
    call(&said);
    Ok(())
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&FrameHeader::new(FrameKind::Message, payload.len()).encode()[..], payload].concat()
}

/// The first frame of `bytes`, and what follows it.
fn frame(bytes: &[u8]) -> Option<(FrameKind, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER>()?;
    let header = FrameHeader::decode(*header).ok()?;
    let (payload, rest) = rest.split_at_checked(header.len)?;
    Some((header.kind, payload, rest))
}

/// Serves one call. There is one answer to who asks, in the format, and nothing in it that is not declared.
fn call(said: &[u8]) {
    let pipe = Pipe::default();
    // Who says nothing more is still there to hear the answer.
    pipe.with(|ends| (ends.inward, ends.room) = (said.to_vec(), usize::MAX));
    let workspace = "box".parse().expect("a name");
    runtime().block_on(serve(FramedStream::new(pipe.clone()), &Way::steady(), &LAPTOP, &workspace));
    let answered = pipe.with(|ends| std::mem::take(&mut ends.outward));
    let asked = frame(said).filter(|(kind, ..)| *kind == FrameKind::Message);
    let more = asked.is_some_and(|(.., rest)| !rest.is_empty());
    let asked = asked.and_then(|(_, payload, _)| Request::parse(payload).ok());

    let Some((FrameKind::Accept, payload, mut rest)) = frame(&answered) else { panic!("{answered:?}") };
    assert!(serde_json::from_slice::<Accepted>(payload).is_ok());
    let mut content = Vec::new();
    let mut response = None;
    while !rest.is_empty() {
        assert!(response.is_none(), "something follows the answer");
        let Some((kind, payload, after)) = frame(rest) else { panic!("{answered:?} is not of frames") };
        match kind {
            FrameKind::Data => content.extend_from_slice(payload),
            FrameKind::Message => {
                response = Some(Some(serde_json::from_slice::<Response>(payload).expect("a response")));
            }
            FrameKind::Abort => {
                clean(&Refusal::from_bytes(payload));
                response = Some(None);
            }
            kind => panic!("a call has no {kind:?}"),
        }
        rest = after;
    }
    assert!(OPEN.iter().any(|open| part_of(open.as_bytes(), &content)), "{content:?} is nothing that is declared");
    assert!(!part_of(&answered, CLOSED.as_bytes()) || part_of(said, CLOSED.as_bytes()), "{asked:?} got it");
    let Some(Some(response)) = response else {
        // Who says more than one request, or nothing that can be read, is not answered.
        assert!(asked.is_none() || more);
        return;
    };
    let asked = asked.expect("who asked nothing is not answered");
    // A fraction may lose its last digit on its way through text.
    assert!(response.id == asked.id || asked.id.is_f64());
    match response.outcome() {
        Ok(_) => assert!(METHODS.contains(&asked.method.as_str()) && asked.method != "tool.execute"),
        Err(refusal) => {
            clean(&refusal);
            assert!(content.is_empty() || asked.method == "file.read");
        }
    }
}

fn clean(refusal: &Refusal) {
    assert!(!refusal.message.is_empty());
    assert_eq!(refusal.message, printable(&refusal.message));
}

fn part_of(whole: &[u8], part: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}

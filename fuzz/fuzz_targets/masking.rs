//! `config.get`: what looks like a secret is not in the answer, wherever in a file it stands.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::service::config_value::{ConfigFile, Format};
use serde_json::{Map, Value};

/// What must not come out.
const SECRET: &str = "S3CRETS3CRET";

/// How it may look.
const LOOKS: [&str; 4] =
    ["ghp_S3CRETS3CRET", "sk-S3CRETS3CRET", "AKIAS3CRETS3CRET", "postgres://user:S3CRETS3CRET@host/db"];

/// What may announce it.
const KEYS: [&str; 6] =
    ["TOKEN=", "export API_KEY=", "password: ", "\"secret\" : ", "login me password ", "_authToken="];

/// Levels of a document that is made here.
const DEPTH: usize = 6;

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    match bytes.int_in_range(0..=4)? {
        0 => {
            let (look, around) = (*bytes.choose(&LOOKS)?, *bytes.choose(&[" ", "\n", "\t"])?);
            let (before, after) = (bytes.arbitrary::<&str>()?, bytes.arbitrary::<&str>()?);
            innocent(&[before, after])?;
            hidden(Format::Text, format!("{before}{around}{look}{around}{after}"));
        }
        1 => {
            let (key, line) = (*bytes.choose(&KEYS)?, bytes.arbitrary::<&str>()?);
            let after = bytes.arbitrary::<&str>()?;
            innocent(&[line, after])?;
            hidden(Format::Text, format!("{line} {key}{SECRET}{after}"));
        }
        2 => {
            let value = value(bytes, DEPTH, false)?;
            hidden(Format::Json, value.to_string());
        }
        3 => {
            let value = value(bytes, DEPTH, false)?;
            // JSON is YAML.
            hidden(Format::Yaml, value.to_string());
        }
        _ => {
            let format = *bytes.choose(&[Format::Json, Format::Yaml, Format::Text])?;
            let file = ConfigFile { path: "f".into(), format, mask: Vec::new(), mask_defaults: bytes.arbitrary()? };
            let rest = bytes.bytes(bytes.len())?;
            match file.content("f", rest.to_vec()) {
                Ok(Value::String(text)) if format == Format::Text => {
                    assert_eq!(text.lines().count(), String::from_utf8_lossy(rest).lines().count());
                }
                Ok(_) => {}
                Err(refusal) => assert!(refusal.message.contains("hint:")),
            }
        }
    }
    Ok(())
}

/// The fuzzer learns the secret and says it itself, where nothing announces it.
fn innocent(texts: &[&str]) -> arbitrary::Result<()> {
    if texts.iter().any(|text| text.contains(SECRET)) { Err(arbitrary::Error::IncorrectFormat) } else { Ok(()) }
}

fn hidden(format: Format, text: String) {
    let file = ConfigFile { path: "f".into(), format, mask: Vec::new(), mask_defaults: true };
    if let Ok(answer) = file.content("f", text.clone().into_bytes()) {
        assert!(!answer.to_string().contains(SECRET), "{text:?} became {answer}");
    }
}

/// A document with secrets in it: under keys that announce them, and by their look under any.
fn value(bytes: &mut Unstructured<'_>, depth: usize, announced: bool) -> arbitrary::Result<Value> {
    Ok(match bytes.int_in_range(0..=if depth == 0 { 3 } else { 6 })? {
        0 => Value::from(*bytes.choose(&LOOKS)?),
        1 if announced => Value::from(format!("{}{SECRET}", bytes.arbitrary::<&str>()?)),
        1 => Value::from(format!("{}{SECRET}", bytes.choose(&["--password=", "API_KEY=", "Bearer sk-", "  ghp_"])?)),
        2 => Value::from(bytes.arbitrary::<i64>()?),
        3 => Value::Bool(bytes.arbitrary()?),
        4 => (0..bytes.int_in_range(0..=3)?).map(|_| value(bytes, depth - 1, announced)).collect::<Result<_, _>>()?,
        _ => {
            let mut map = Map::new();
            for _ in 0..bytes.int_in_range(0..=3)? {
                let announces = bytes.arbitrary()?;
                let keys = ["password", "DB_PASSWORD", "githubToken", "api-key", "x.authorization", "credentials"];
                let key = if announces { (*bytes.choose(&keys)?).to_owned() } else { bytes.arbitrary()? };
                innocent(&[&key])?;
                map.insert(key, value(bytes, depth - 1, announced || announces)?);
            }
            Value::Object(map)
        }
    })
}

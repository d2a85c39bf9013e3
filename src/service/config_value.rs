//! `config.get`: declared values and files, with what looks like a secret masked.
//!
//! Refuses keys that were not declared, files over [`MAX_FILE`], and content that does not parse as its declared
//! format: what cannot be understood cannot be masked.

mod mask;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::service::plain_file::{self, PlainFileError};
use crate::service::yaml;
use crate::wire::{Refusal, RefusalCode};
pub use mask::{MASK, Pattern};

/// Bytes of a configuration file.
pub const MAX_FILE: usize = 1024 * 1024;

/// Bytes of a key that is asked for. Finding a place costs the square of its depth.
pub const MAX_KEY: usize = 1024;

/// Keys on the way to a place.
const MAX_DEPTH: usize = 64;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Parsed; answered as a value.
    Json,
    /// Parsed; answered as a value.
    Yaml,
    /// Answered as it is, one text; lines like `KEY=value` are masked by their key.
    Text,
}

/// A declared file.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Where it is. Symbolic links are followed: the owner chose the path.
    pub path: PathBuf,
    /// How it is read.
    pub format: Format,
    /// What is masked in it.
    pub mask: Vec<Pattern>,
    /// Whether what looks like a secret is masked as well.
    pub mask_defaults: bool,
}

/// What a key stands for.
#[derive(Clone)]
pub enum ConfigEntry {
    /// A value, answered as it is declared.
    Value(Value),
    /// A file, read when it is asked for.
    File(ConfigFile),
}

/// Everything that `config.get` may answer.
#[derive(Clone, Default)]
pub struct ConfigValues {
    entries: BTreeMap<String, ConfigEntry>,
}

impl ConfigValues {
    /// These entries, by key.
    pub fn new(entries: BTreeMap<String, ConfigEntry>) -> ConfigValues {
        ConfigValues { entries }
    }

    /// Whether what is under `key` is read from a file.
    pub fn is_file(&self, key: &str) -> bool {
        matches!(self.entries.get(key), Some(ConfigEntry::File(_)))
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The value of `key`, or of a place inside it: `opencode.provider.x`. Without a key, the keys there are.
    /// `config` names the configuration file in sentences.
    pub async fn answer(&self, key: &str, config: &str) -> Result<Value, Refusal> {
        if key.is_empty() {
            return Ok(json!({"keys": self.keys().collect::<Vec<_>>()}));
        }
        if key.len() > MAX_KEY || key.split('.').count() > MAX_DEPTH {
            let message =
                format!("a key has at most {MAX_KEY} bytes and {MAX_DEPTH} parts. hint: ask for a part above");
            return Err(Refusal::new(RefusalCode::InvalidArguments, message));
        }
        let inside = |entry: &str| key.strip_prefix(entry).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        let nearest = self.entries.iter().filter(|(entry, _)| inside(entry)).max_by_key(|(entry, _)| entry.len());
        let (name, entry) = nearest.ok_or_else(|| {
            let message = format!(
                "no configuration value {key:?} is declared on the laptop. hint: `config.get` without a key lists what \
                 there is; its owner can add a value to {config}:\nconfig:\n  values:\n    {key:?}: …"
            );
            Refusal::new(RefusalCode::NotDeclared, message)
        })?;
        let value = match entry {
            ConfigEntry::Value(value) => value.clone(),
            ConfigEntry::File(file) => {
                let (file, name) = (file.clone(), name.clone());
                let read = tokio::task::spawn_blocking(move || file.read(&name)).await;
                read.map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))??
            }
        };
        let place: Vec<&str> = key[name.len()..].split('.').skip(1).collect();
        let value = select(&value, &place).ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("`{name}` has nothing at {:?}. hint: ask for `{name}` and look", place.join(".")),
            )
        })?;
        Ok(json!({"key": key, "value": value}))
    }
}

/// The value at a place. A key may itself contain dots, so the longest key that fits is tried first.
fn select<'a>(value: &'a Value, place: &[&str]) -> Option<&'a Value> {
    if place.is_empty() {
        return Some(value);
    }
    match value {
        Value::Object(map) => {
            (1..=place.len()).rev().find_map(|n| select(map.get(&place[..n].join("."))?, &place[n..]))
        }
        Value::Array(list) => select(list.get(place[0].parse::<usize>().ok()?)?, &place[1..]),
        _ => None,
    }
}

impl ConfigFile {
    /// The masked content. Blocks. Sentences never quote it.
    fn read(&self, name: &str) -> Result<Value, Refusal> {
        let bytes = plain_file::read(&self.path, MAX_FILE).map_err(|error| {
            let code = match error {
                PlainFileError::TooLarge(_) => RefusalCode::TooLarge,
                _ => RefusalCode::NotFound,
            };
            Refusal::new(
                code,
                format!(
                    "the file of `{name}` cannot be given: {error}. hint: its owner can check `config.files.{name}.path`"
                ),
            )
        })?;
        self.content(name, bytes)
    }

    /// What is answered for a file of these bytes: masked. `name` is for sentences, which never quote the content.
    pub fn content(&self, name: &str, bytes: Vec<u8>) -> Result<Value, Refusal> {
        let refuse = |what: &str| {
            let message = format!(
                "the file of `{name}` does not parse as {what}. hint: its owner can correct it, or `format` of \
                 `config.files.{name}`"
            );
            Refusal::new(RefusalCode::Unavailable, message)
        };
        let text = String::from_utf8(bytes).map_err(|_| refuse("UTF-8"))?;
        let mut value = match self.format {
            Format::Text if self.mask_defaults => return Ok(Value::String(mask::text(&text))),
            Format::Text => return Ok(Value::String(text)),
            Format::Json => serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|_| refuse("JSON"))?,
            Format::Yaml => yaml::parse(&text).map_err(|_| refuse("YAML"))?.to_json(),
        };
        mask::apply(&mut value, &self.mask, self.mask_defaults);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        values: ConfigValues,
    }

    fn fixture(content: &str, format: Format, mask: &[&str], mask_defaults: bool) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, content).unwrap();
        let mask = mask.iter().map(|p| Pattern::parse(p).unwrap()).collect();
        let file = ConfigEntry::File(ConfigFile { path, format, mask, mask_defaults });
        let value = ConfigEntry::Value(json!({"a.b": {"c": [1, 2]}, "d": null}));
        let entries = [("file".into(), file), ("v".into(), value), ("v.x".into(), ConfigEntry::Value(json!(7)))];
        Fixture { dir, values: ConfigValues::new(entries.into()) }
    }

    impl Fixture {
        async fn ask(&self, key: &str) -> Result<Value, RefusalCode> {
            self.values.answer(key, "config.yaml").await.map(|v| v["value"].clone()).map_err(|r| r.code)
        }
    }

    const JSON: &str = r#"{"model": "m", "provider": {"x": {"apiKey": "hunter2", "url": "u"}}, "maxTokens": 5}"#;

    #[tokio::test]
    async fn values_and_places_inside() {
        let f = fixture(JSON, Format::Json, &[], true);
        assert_eq!(f.values.answer("", "").await.unwrap(), json!({"keys": ["file", "v", "v.x"]}));
        assert_eq!(f.ask("v.a.b.c.1").await, Ok(json!(2)));
        assert_eq!(f.ask("v.d").await, Ok(Value::Null));
        assert_eq!(f.ask("v.x").await, Ok(json!(7)));
        assert_eq!(f.ask("file.provider.x.url").await, Ok(json!("u")));
        assert_eq!(f.ask("file.provider.x.apiKey").await, Ok(json!("***")));
        assert_eq!(f.ask("file.maxTokens").await, Ok(json!(5)));
        assert_eq!(f.ask("v.a.b.c.9").await, Err(RefusalCode::NotFound));
        assert_eq!(f.ask("v..").await, Err(RefusalCode::NotFound));
        for key in ["w", "vx", ".", "../file", "files"] {
            assert_eq!(f.ask(key).await, Err(RefusalCode::NotDeclared), "{key}");
        }
    }

    #[tokio::test]
    async fn a_key_without_end_costs_nothing() {
        let f = fixture(JSON, Format::Json, &[], true);
        for key in ["v".to_owned() + &".a".repeat(400_000), "v.".to_owned() + &"x".repeat(MAX_KEY)] {
            assert_eq!(f.ask(&key).await, Err(RefusalCode::InvalidArguments));
        }
    }

    #[tokio::test]
    async fn masks_are_applied_in_every_format() {
        let f = fixture(JSON, Format::Json, &["provider.*.url"], false);
        assert_eq!(f.ask("file.provider.x").await, Ok(json!({"apiKey": "hunter2", "url": "***"})));
        let f = fixture("a: 1\ntoken: hunter2\n", Format::Yaml, &["a"], true);
        assert_eq!(f.ask("file").await, Ok(json!({"a": "***", "token": "***"})));
        let f = fixture("A=1\nexport API_KEY=hunter2\n", Format::Text, &[], true);
        assert_eq!(f.ask("file").await, Ok(json!("A=1\nexport API_KEY=***\n")));
        let f = fixture("API_KEY=x", Format::Text, &[], false);
        assert_eq!(f.ask("file").await, Ok(json!("API_KEY=x")));
    }

    #[tokio::test]
    async fn unusable_files_are_refused_without_their_content() {
        for (content, format) in [("{\"hunter2\"", Format::Json), ("a: [hunter2", Format::Yaml)] {
            let refusal = fixture(content, format, &[], true).values.answer("file", "").await.unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Unavailable);
            assert!(!refusal.message.contains("hunter2"));
        }
        let f = fixture(&"x".repeat(MAX_FILE + 1), Format::Text, &[], true);
        assert_eq!(f.ask("file").await, Err(RefusalCode::TooLarge));
        std::fs::write(f.dir.path().join("f"), b"\xff").unwrap();
        assert_eq!(f.ask("file").await, Err(RefusalCode::Unavailable));
        std::fs::remove_file(f.dir.path().join("f")).unwrap();
        assert_eq!(f.ask("file").await, Err(RefusalCode::NotFound));
    }
}

//! YAML into a tree that knows its lines, within bounds. The one place that names the parser's crate.
//!
//! Refuses documents over [`MAX_YAML`], deep nesting, alias bombs and duplicate keys.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// Bytes of a document. Configuration is written by hand; a megabyte is far beyond that.
pub const MAX_YAML: usize = 1024 * 1024;

/// Levels of nesting: a schema inside a tool needs about ten.
const MAX_DEPTH: usize = 64;

/// Nodes of a document, aliases expanded.
const MAX_NODES: usize = 100_000;

/// Events that aliases may add; enough for a few shared blocks.
const MAX_REPLAYED: usize = 20_000;

/// A value and the line it stands on. Has no `Debug`: it may hold secrets.
#[derive(Clone)]
pub struct Node {
    /// From 1; 0 when unknown.
    pub line: u64,
    /// What stands there.
    pub value: Yaml,
}

/// What a node can be.
#[derive(Clone)]
pub enum Yaml {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the document.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone)]
pub struct Key {
    /// The key.
    pub text: String,
    /// The line it stands on.
    pub line: u64,
}

/// Why a document does not parse.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Where, if the parser knows.
    pub line: Option<u64>,
    /// What is wrong. May quote the document.
    pub message: String,
}

/// Parses one document. An empty one is `Null`.
pub fn parse(text: &str) -> Result<Node, YamlError> {
    if text.len() > MAX_YAML {
        return Err(YamlError { line: None, message: format!("the document is larger than {MAX_YAML} bytes") });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 256,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or("it does not parse").to_owned();
        let message = match message.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split_once(',')) {
            Some((key, _)) => format!("the key `{key}` is there twice"),
            None => message,
        };
        YamlError { line: error.location().map(|l| l.line()), message }
    })
}

impl Node {
    /// The same without lines. A repeated key cannot occur.
    pub fn to_json(&self) -> Value {
        match &self.value {
            Yaml::Null => Value::Null,
            Yaml::Bool(b) => Value::Bool(*b),
            Yaml::Number(n) => Value::Number(n.clone()),
            Yaml::Text(t) => Value::String(t.clone()),
            Yaml::List(list) => list.iter().map(Node::to_json).collect(),
            Yaml::Map(map) => Value::Object(map.iter().map(|(k, v)| (k.text.clone(), v.to_json())).collect()),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        let spanned = Spanned::<Yaml>::deserialize(deserializer)?;
        Ok(Node { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Yaml, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        Yaml::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Yaml, E> {
        Number::from_f64(value).map(Yaml::Number).ok_or_else(|| E::custom("the number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Yaml, E> {
        Ok(Yaml::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Yaml::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            map.push((Key { text: key.value, line }, access.next_value()?));
        }
        Ok(Yaml::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_and_lines() {
        let node = parse("# comment\na: 1\nb:\n  - x\n  - {c: null, d: -2.5}\n  - 'on'\n8080: true\n").unwrap();
        assert_eq!(node.to_json(), json!({"a": 1, "b": ["x", {"c": null, "d": -2.5}, "on"], "8080": true}));
        let Yaml::Map(map) = &node.value else { panic!() };
        assert_eq!(map.iter().map(|(k, _)| k.line).collect::<Vec<_>>(), [2, 3, 7]);
        let Yaml::List(list) = &map[1].1.value else { panic!() };
        assert_eq!(list[1].line, 5);
        assert!(matches!(parse("").map(|n| n.value), Ok(Yaml::Null)));
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let before = format!("*a{}", i - 1);
            laughs += &format!("a{i}: &a{i} [{}]\n", vec![before; 10].join(", "));
        }
        let deep = "[".repeat(10_000);
        let large = format!("a: {}", "x".repeat(MAX_YAML));
        let merge = format!("{}: 1\na: 2\na: 3\n", "b");
        for bad in [&laughs, &deep, &large, &merge, "a: [1", "a: 1\n---\nb: 2\n", "\t- a: b: c", "a: *nowhere"] {
            assert!(parse(bad).is_err(), "{}", bad.chars().take(30).collect::<String>());
        }
        assert_eq!(parse("a: 1\nb: 2\na: 3\n").err().unwrap().line, Some(3));
    }
}

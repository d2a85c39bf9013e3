//! Reading typed values out of a tree of YAML, with a place and a line for everything that is wrong.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::service::yaml::{Node, Yaml};

/// How far a key may be from a known one to be taken for a slip (0 to 1, Jaro–Winkler).
const SIMILAR: f64 = 0.7;

/// What is wrong, before it is known in which file.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) line: Option<u64>,
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Wrong {
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Wrong {
        self.hint = Some(hint.into());
        self
    }
}

type Read<T> = Result<T, Wrong>;

/// A node and its place.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    home: &'a Path,
    place: String,
    line: u64,
}

/// A mapping whose keys are all known.
pub(super) struct Table<'a> {
    at: At<'a>,
}

impl<'a> At<'a> {
    pub(super) fn root(node: &'a Node, home: &'a Path) -> At<'a> {
        At { node, home, place: String::new(), line: node.line }
    }

    fn child(&self, key: &str, line: u64, node: &'a Node) -> At<'a> {
        let place = if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) };
        At { node, home: self.home, place, line }
    }

    /// Something wrong here.
    pub(super) fn wrong(&self, what: impl Into<String>) -> Wrong {
        let what = what.into();
        let what = if self.place.is_empty() { what } else { format!("{what} at {}", self.place) };
        Wrong { line: Some(self.line).filter(|l| *l > 0), what, hint: None }
    }

    /// Something wrong here, in a sentence that may carry its own hint.
    pub(super) fn split(&self, sentence: String) -> Wrong {
        match sentence.split_once(". hint: ") {
            Some((what, hint)) => self.wrong(what).hint(hint),
            None => self.wrong(sentence),
        }
    }

    fn expected(&self, what: &str) -> Wrong {
        let found = match self.node.value {
            Yaml::Null => "nothing",
            Yaml::Bool(_) => "true or false",
            Yaml::Number(_) => "a number",
            Yaml::Text(_) => "a text",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a mapping",
        };
        self.wrong(format!("expected {what}, found {found}"))
    }

    /// A mapping with keys of the owner's choice. Nothing is an empty one.
    pub(super) fn entries(&self) -> Read<Vec<(String, At<'a>)>> {
        match &self.node.value {
            Yaml::Null => Ok(Vec::new()),
            Yaml::Map(map) => {
                Ok(map.iter().map(|(key, node)| (key.text.clone(), self.child(&key.text, key.line, node))).collect())
            }
            _ => Err(self.expected("a mapping")),
        }
    }

    /// A mapping with these keys and no other.
    pub(super) fn table(&self, known: &[&str]) -> Read<Table<'a>> {
        for (key, at) in self.entries()? {
            if known.contains(&key.as_str()) {
                continue;
            }
            let near = known.iter().map(|k| (strsim::jaro_winkler(k, &key), k)).max_by(|a, b| a.0.total_cmp(&b.0));
            let hint = match near {
                Some((score, near)) if score >= SIMILAR => format!("did you mean `{near}`?"),
                _ => format!("known here: {}", known.join(", ")),
            };
            let mut wrong = self.wrong(format!("unknown key `{key}`")).hint(hint);
            wrong.line = Some(at.line);
            return Err(wrong);
        }
        Ok(Table { at: self.clone() })
    }

    /// A list. Nothing is an empty one.
    pub(super) fn items(&self) -> Read<Vec<At<'a>>> {
        match &self.node.value {
            Yaml::Null => Ok(Vec::new()),
            Yaml::List(list) => {
                Ok(list.iter().enumerate().map(|(i, node)| self.child(&i.to_string(), node.line, node)).collect())
            }
            _ => Err(self.expected("a list")),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Read<Vec<String>> {
        self.items()?.iter().map(At::text).collect()
    }

    /// A text, or a number written as one.
    pub(super) fn text(&self) -> Read<String> {
        let text = match &self.node.value {
            Yaml::Text(text) => text.clone(),
            Yaml::Number(number) if !number.is_f64() => number.to_string(),
            _ => return Err(self.expected("a text").hint("put it in quotes")),
        };
        if text.contains('\0') {
            return Err(self.wrong("a NUL byte has no place in a text"));
        }
        Ok(text)
    }

    /// True or false.
    pub(super) fn flag(&self) -> Read<bool> {
        match self.node.value {
            Yaml::Bool(flag) => Ok(flag),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A number from 0.
    pub(super) fn whole(&self) -> Read<u64> {
        match &self.node.value {
            Yaml::Number(number) => number.as_u64().ok_or_else(|| self.expected("a whole number from 0")),
            _ => Err(self.expected("a whole number from 0")),
        }
    }

    /// A time with its unit.
    pub(super) fn duration(&self) -> Read<Duration> {
        let hint = "write a number and a unit, like 30s, 5m or 1h";
        let Yaml::Text(text) = &self.node.value else { return Err(self.expected("a time").hint(hint)) };
        humantime::parse_duration(text).map_err(|_| self.wrong(format!("`{text}` is not a time")).hint(hint))
    }

    /// A number of bytes, with or without a unit.
    pub(super) fn size(&self) -> Read<u64> {
        let hint = "write a number and a unit, like 512KiB, 10MiB or 1GiB";
        let text = self.text().map_err(|wrong| wrong.hint(hint))?;
        size(&text).ok_or_else(|| self.wrong(format!("`{text}` is not a size")).hint(hint))
    }

    /// An absolute path, after expansion, without `..`.
    pub(super) fn path(&self) -> Read<PathBuf> {
        self.expand(&self.text()?)
    }

    /// As [`path`](Self::path), of a text that stands here.
    pub(super) fn expand(&self, text: &str) -> Read<PathBuf> {
        let after = ["~", "${HOME}", "$HOME"].into_iter().find_map(|home| text.strip_prefix(home));
        let path = match after {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => self.home.join(rest.trim_start_matches('/')),
            _ => PathBuf::from(text),
        };
        if !path.is_absolute() {
            let hint = "begin with `/`, `~/` or `$HOME/`";
            return Err(self.wrong(format!("`{text}` is not an absolute path")).hint(hint));
        }
        if path.components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(self.wrong(format!("`{text}` contains `..`")).hint("name the path directly"));
        }
        Ok(path.components().collect())
    }
}

impl<'a> Table<'a> {
    /// The value of a key, unless it is absent or nothing.
    pub(super) fn optional(&self, key: &str) -> Option<At<'a>> {
        let Yaml::Map(map) = &self.at.node.value else { return None };
        let (key, node) = map.iter().find(|(k, _)| k.text == key)?;
        (!matches!(node.value, Yaml::Null)).then(|| self.at.child(&key.text, key.line, node))
    }

    /// The value of a key that must be there.
    pub(super) fn required(&self, key: &str, hint: &str) -> Read<At<'a>> {
        self.optional(key).ok_or_else(|| self.at.wrong(format!("`{key}` is missing")).hint(hint))
    }
}

fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match text[unit..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    text[..unit].parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("12", 12), ("1KiB", 1024), ("10 MiB", 10 << 20), ("2GB", 2_000_000_000)] {
            assert_eq!(size(text), Some(bytes));
        }
        for bad in ["", "MiB", "-1", "1.5MiB", "1 mib", "99999999999GiB", "1MiBs"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}

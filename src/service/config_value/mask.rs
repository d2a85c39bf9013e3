//! Masking: by place, by the name of a key, by the look of a value. Errs on the side of hiding.

use serde_json::Value;

/// What stands in for what is hidden.
pub const MASK: &str = "***";

/// Parts of key names that announce a secret, in lower case without separators.
const SECRET_PARTS: [&str; 15] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "authorization",
    "credential",
    "bearer",
    "cookie",
    "connectionstring",
];

/// Whole key names that announce a secret: as parts they occur in harmless words.
const SECRET_NAMES: [&str; 9] = ["key", "auth", "pat", "refresh", "access", "jwt", "pass", "session", "sessionid"];

/// Beginnings of values that are secrets under any key.
const SECRET_STARTS: [&str; 22] = [
    "sk-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "npm_",
    "pypi-",
    "hf_",
    "dop_v1_",
    "github_pat_",
    "glpat-",
    "xox",
    "AKIA",
    "ASIA",
    "AIza",
    "eyJhbGci",
    "eyJ0eXAi",
    "-----BEGIN",
];

/// What may stand around a secret within a word.
const AROUND: [char; 17] = ['"', '\'', '`', ',', ';', '(', ')', '[', ']', '{', '}', '<', '>', '=', ':', '|', '&'];

/// A place in a document: components between dots, `*` for any one, `**` for any number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// Parses a dotted path.
    ///
    /// # Errors
    /// A sentence, when a component is empty.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) {
            return Err(format!("`{text}` is not a place. hint: write keys between dots, like `provider.*.apiKey`"));
        }
        Ok(Pattern(parts))
    }

    fn matches(&self, place: &[String]) -> bool {
        fn fits(pattern: &[String], place: &[String]) -> bool {
            match (pattern.split_first(), place.split_first()) {
                (None, None) => true,
                (Some((p, rest)), _) if p == "**" => {
                    fits(rest, place) || place.split_first().is_some_and(|(_, after)| fits(pattern, after))
                }
                (Some((p, rest)), Some((here, after))) => (p == "*" || p == here) && fits(rest, after),
                _ => false,
            }
        }
        fits(&self.0, place)
    }
}

/// Replaces what matches a pattern and, with `defaults`, what looks like a secret.
pub(super) fn apply(value: &mut Value, patterns: &[Pattern], defaults: bool) {
    walk(value, &mut Vec::new(), patterns, defaults);
}

fn walk(value: &mut Value, place: &mut Vec<String>, patterns: &[Pattern], defaults: bool) {
    if !place.is_empty() && patterns.iter().any(|p| p.matches(place)) {
        *value = Value::from(MASK);
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if defaults && announces_secret(key) {
                    hide(value, !counts(key));
                }
                place.push(key.clone());
                walk(value, place, patterns, defaults);
                place.pop();
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                place.push(index.to_string());
                walk(value, place, patterns, defaults);
                place.pop();
            }
        }
        Value::String(text) if defaults && (looks_secret(text) || assigns_secret(text)) => *value = Value::from(MASK),
        _ => {}
    }
}

/// Hides every text in a value, and its `numbers`. Booleans stay: they choose, they do not open.
fn hide(value: &mut Value, numbers: bool) {
    match value {
        Value::String(_) => *value = Value::from(MASK),
        Value::Number(_) if numbers => *value = Value::from(MASK),
        Value::Array(list) => list.iter_mut().for_each(|value| hide(value, numbers)),
        Value::Object(map) => map.values_mut().for_each(|value| hide(value, numbers)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether a number under this key is a count: `max_tokens: 4096` is no secret, `password: 4096` is one.
fn counts(key: &str) -> bool {
    let key = plain(key);
    key.contains("token") && !SECRET_PARTS.iter().any(|part| *part != "token" && key.contains(part))
}

/// `PASSWORD=hunter2` and `--password=hunter2`, in a list of variables or arguments.
fn assigns_secret(text: &str) -> bool {
    text.split_once('=')
        .is_some_and(|(key, value)| !value.is_empty() && !key.contains(char::is_whitespace) && announces_secret(key))
}

fn plain(key: &str) -> String {
    key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn announces_secret(key: &str) -> bool {
    let key = plain(key);
    SECRET_NAMES.contains(&key.as_str()) || SECRET_PARTS.iter().any(|part| key.contains(part))
}

fn looks_secret(text: &str) -> bool {
    let text = text.trim_start();
    let text = text.strip_prefix("Bearer ").or_else(|| text.strip_prefix("Basic ")).unwrap_or(text);
    let password_in_url = text
        .split_once("://")
        .and_then(|(_, rest)| rest.split('/').next())
        .is_some_and(|authority| authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')));
    password_in_url || SECRET_STARTS.iter().any(|start| text.starts_with(start))
}

/// Masks line by line: what follows a key that announces a secret, and values that look like one. A block that begins
/// with `-----BEGIN` is hidden to its end.
pub(super) fn text(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut in_block = false;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches(['\r', '\n']);
        let end = &line[content.len()..];
        if in_block || content.contains("-----BEGIN") {
            in_block = !content.contains("-----END");
            masked.push_str(MASK);
        } else {
            masked.push_str(&masked_line(content));
        }
        masked.push_str(end);
    }
    masked
}

fn masked_line(line: &str) -> String {
    let cut = assigned_at(line).into_iter().chain(named_at(line)).min();
    let (before, value) = line.split_at(cut.unwrap_or(line.len()));
    if shows_secret(before) {
        return MASK.to_owned();
    }
    let space: String = value.chars().take_while(|c| c.is_whitespace()).collect();
    if cut.is_some() { format!("{before}{space}{MASK}") } else { line.to_owned() }
}

/// Where the value of `KEY=value` or `key: value` begins, when the key announces a secret or the value looks like one.
fn assigned_at(line: &str) -> Option<usize> {
    // Every separator: `//registry.example/:_authToken=…` has its key after the first.
    line.match_indices(['=', ':']).map(|(at, _)| at).find_map(|at| {
        let key = line[..at].rsplit(|c: char| c.is_whitespace()).find(|k| !k.is_empty()).unwrap_or("");
        let last = key.rsplit(['=', ':', '/']).next().unwrap_or(key);
        let key = if key[..key.len() - last.len()].contains(['=', ':']) { last } else { key };
        let value = line[at + 1..].trim_start_matches([' ', '\t', '"', '\'']);
        (!value.is_empty() && (announces_secret(key) || looks_secret(value))).then_some(at + 1)
    })
}

/// Where the password of `machine example login me password …` begins, as in a netrc.
fn named_at(line: &str) -> Option<usize> {
    let mut words = line.split_whitespace();
    let word = words.by_ref().find(|word| matches!(*word, "password" | "passwd" | "secret" | "token"))?;
    // With a separator next it is a key.
    words.next().filter(|next| !next.starts_with(['=', ':']))?;
    Some(line.find(word)? + word.len())
}

/// Whether a word looks like a secret, or a part of one that stands in brackets, quotes or a list.
fn shows_secret(text: &str) -> bool {
    text.split_whitespace().any(|word| looks_secret(word) || word.split(AROUND).any(looks_secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places() {
        let mut value = json!({"a": {"b": 1, "c": [{"d": 2}, {"d": 3}]}, "x": {"y": {"d": 4}}});
        let patterns = ["a.b", "a.c.*.d", "x.**.d"].map(|p| Pattern::parse(p).unwrap());
        apply(&mut value, &patterns, false);
        assert_eq!(value, json!({"a": {"b": "***", "c": [{"d": "***"}, {"d": "***"}]}, "x": {"y": {"d": "***"}}}));
        assert!(Pattern::parse("a..b").is_err() && Pattern::parse("").is_err());
    }

    #[test]
    fn names_and_looks() {
        let mut value = json!({
            "API-Key": "x", "OPENAI_API_KEY": "x", "key": "x", "refresh": "x", "github_token": "x", "tokens": ["x"],
            "credentials": {"user": "x", "deep": [{"more": "x"}]}, "headers": {"Authorization": "x"},
            "plain": ["sk-abc", "Bearer eyJhbGciOi", "postgres://u:p@h/d", "https://h/a@b:c"],
            "max_tokens": 5, "keyboard": "x", "author": "x", "pattern": "x", "url": "https://example.org",
            "password": 12345678, "db": {"secret_pin": [1, true]}, "args": ["--api-key=x", "DB_PASSWORD=x", "A=b", "k=v w"],
        });
        apply(&mut value, &[], true);
        assert_eq!(
            value,
            json!({
                "API-Key": "***", "OPENAI_API_KEY": "***", "key": "***", "refresh": "***", "github_token": "***",
                "tokens": ["***"], "credentials": {"user": "***", "deep": [{"more": "***"}]},
                "headers": {"Authorization": "***"}, "plain": ["***", "***", "***", "https://h/a@b:c"],
                "max_tokens": 5, "keyboard": "x", "author": "x", "pattern": "x", "url": "https://example.org",
                "password": "***", "db": {"secret_pin": ["***", true]}, "args": ["***", "***", "A=b", "k=v w"],
            })
        );
    }

    #[test]
    fn lines() {
        let before = "name = x\r\nexport TOKEN=\"abc\"\n  password: hunter2\nurl=postgres://u:p@h\nuse ghp_abc here\n\
                      -----BEGIN KEY-----\nabc\n-----END KEY-----\nlast";
        let after = "name = x\r\nexport TOKEN=***\n  password: ***\nurl=***\n***\n***\n***\n***\nlast";
        assert_eq!(text(before), after);
        let before = "//registry.example/:_authToken=abc\nmachine h login me password hunter2\nurl: http://h:80/x=y";
        let after = "//registry.example/:_authToken=***\nmachine h login me password ***\nurl: http://h:80/x=y";
        assert_eq!(text(before), after);
    }

    #[test]
    fn a_secret_before_another_is_hidden_as_well() {
        for line in [
            "curl ghp_hunter2 --token=x",
            "https://user:hunter2@host/?token=x",
            "ghp_hunter2 password x",
            "login me password hunter2 url: npm_x",
            "tokens [ghp_hunter2]",
            "a,ghp_hunter2 token: x",
            "run {'x':'ghp_hunter2'}",
        ] {
            assert!(!text(line).contains("hunter2"), "{line} became {}", text(line));
        }
    }
}

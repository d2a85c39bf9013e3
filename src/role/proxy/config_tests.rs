//! The example, the document, and every mistake that an owner can make.

use super::*;
use crate::wire::RefusalCode;
use serde_json::json;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/home/ada/.nexus/config.yaml"), Path::new("/home/ada"))
}

const EXAMPLE: &str = include_str!("../../../examples/config.yaml");

#[test]
fn the_example_is_read_whole() {
    let config = parse(EXAMPLE).unwrap();
    let laptop = config.declared();
    assert_eq!(laptop.tools.keys().collect::<Vec<_>>(), ["git-log", "open-issue"]);
    let log = &laptop.tools["git-log"];
    assert_eq!(log.argv(json!({"path": "-x"})).unwrap()[1..], ["log", "--oneline", "-n20", "--", "-x"]);
    assert_eq!(log.spec().cwd.as_deref(), Some(Path::new("/home/ada/projects/app")));
    assert_eq!((log.spec().timeout, log.spec().max_output), (Duration::from_secs(10), 1 << 20));
    let issue = &laptop.tools["open-issue"];
    assert_eq!(issue.argv(json!({"title": "-rf {x}"})).unwrap()[3..], ["--title=-rf {x}", "--body-file", "-"]);
    assert!(issue.spec().stdin);
    assert_eq!(laptop.tokens["from-a-file"].spec().source, TokenSource::File("/home/ada/.config/some/token".into()));
    assert!(laptop.tokens["registry"].spec().expose && !laptop.tokens["openai"].spec().expose);
    assert_eq!(laptop.tokens["openai"].spec().lifetime, Duration::from_secs(60));
    assert_eq!(laptop.config.keys().collect::<Vec<_>>(), ["editor", "gitconfig", "opencode"]);
    assert_eq!(laptop.files[0], FileRoot { path: "/home/ada/notes/todo.md".into(), max_size: 1 << 20 });
    assert_eq!(laptop.files[1].max_size, 4 << 20);
    assert_eq!(config.forwards.local, ["8080:127.0.0.1:3000"]);
    assert_eq!(laptop.config_path, "~/.nexus/config.yaml");
}

#[test]
fn every_key_is_documented_and_in_the_example() {
    let document = include_str!("../../../docs/configuration.md");
    let code = include_str!("config.rs");
    let code = &code[..code.find("#[cfg(test)]").unwrap()];
    let mut keys = BTreeSet::new();
    let lists = code.split(".table(&[").skip(1).chain(code.split("let known = [").skip(1));
    for list in lists {
        let list = &list[..list.find(']').unwrap()];
        keys.extend(list.split(',').map(|k| k.trim().trim_matches('"')).filter(|k| !k.is_empty()));
    }
    assert!(keys.len() > 25, "{keys:?}");
    for key in keys {
        assert!(document.contains(&format!("`{key}`")), "docs/configuration.md does not name `{key}`");
        assert!(EXAMPLE.contains(&format!("{key}:")), "examples/config.yaml does not show `{key}`");
    }
}

#[test]
fn nothing_written_is_nothing_declared() {
    for text in ["", "# only a comment\n", "version: 1\n", "version: 1\ntools:\ntokens: ~\nfiles: []\nconfig: {}\n"] {
        let laptop = parse(text).unwrap().declared();
        assert!(laptop.tools.is_empty() && laptop.tokens.is_empty() && laptop.files.is_empty(), "{text}");
    }
}

#[test]
fn errors_print_like_a_compilers() {
    let text = "version: 1\ntools:\n  git-log:\n    description: x\n    argv: [git]\n    cwd: ~\n    timout: 5s\n";
    assert_eq!(
        parse(text).unwrap_err().to_string(),
        "/home/ada/.nexus/config.yaml:7: unknown key `timout` at tools.git-log\nhint: did you mean `timeout`?"
    );
}

/// A tool, a token, a configuration file with one more line.
fn with(section: &str, line: &str) -> String {
    let head = match section {
        "tool" => "tools:\n  t:\n    argv: [x]\n    ",
        "token" => "tokens:\n  t:\n    env: X\n    ",
        "config" => "config:\n  files:\n    f:\n      path: /x.json\n      ",
        _ => "",
    };
    format!("version: 1\n{head}{line}\n")
}

#[test]
fn mistakes_are_told_with_their_line() {
    for (section, line, at, says) in [
        ("", "tols: {}", 2, "`tools`"),
        ("", "zzz: {}", 2, "known here"),
        ("", "tools: []", 2, "expected a mapping, found a list"),
        ("", "tools: {t: 5}", 2, "expected a mapping"),
        ("", "tools: {t: {}}", 2, "`argv` is missing"),
        ("", "tools: {t: {argv: []}}", 2, "empty"),
        ("", "tools: {t: {argv: x}}", 2, "expected a list"),
        ("", "tools: {t: {argv: [true]}}", 2, "quotes"),
        ("", "tools: {t: {argv: [\"{x}\"]}}", 2, "no property"),
        ("", "tools: {\"a b\": {argv: [x]}}", 2, "name"),
        ("", "tools: {t: {argv: [x]}, t: {argv: [y]}}", 2, "twice"),
        ("tool", "schema: {properties: {a: {type: object}}}", 3, "never used"),
        ("tool", "schema: 5", 3, "mapping"),
        ("tool", "timeout: 5", 5, "30s"),
        ("tool", "timeout: soon", 5, "not a time"),
        ("tool", "timeout: 0s", 5, "at most a day"),
        ("tool", "timeout: 2days", 5, "at most a day"),
        ("tool", "max_output: 10 potatoes", 5, "not a size"),
        ("tool", "cwd: relative", 5, "absolute"),
        ("tool", "cwd: ~/../x", 5, ".."),
        ("tool", "cwd: ~other", 5, "absolute"),
        ("tool", "stdin: \"yes\"", 5, "true or false"),
        ("tool", "env: {\"A=B\": x}", 5, "environment"),
        ("token", "file: /x", 3, "one source"),
        ("token", "timeout: 5s", 5, "command"),
        ("token", "expse: true", 5, "`expose`"),
        ("", "tokens: {t: {expose: true}}", 2, "one source"),
        ("", "tokens: {t: {command: []}}", 2, "empty"),
        ("", "tokens: {t: {keychain: {service: x}}}", 2, "`account` is missing"),
        ("config", "format: toml", 6, "json, yaml or text"),
        ("config", "mask: [a..b]", 6, "not a place"),
        ("", "config: {files: {f: {path: /x, format: text, mask: [a]}}}", 2, "no places"),
        ("", "config: {values: {a: 1}, files: {a: {path: /x}}}", 2, "both"),
        ("", "files: [relative]", 2, "absolute"),
        ("", "files: [{path: /x, max: 1}]", 2, "`max_size`"),
        ("", "forwards: {local: 8080}", 2, "expected a list"),
        ("", "forwards: {lokal: []}", 2, "`local`"),
    ] {
        let error = parse(&with(section, line)).map(|_| panic!("{line} was accepted")).unwrap_or_else(|e| e);
        assert!(error.to_string().contains(says), "{line}: {error}");
        assert_eq!(error.line, Some(at), "{line}: {error}");
    }
    for (text, says) in
        [("tools: {}\n", "version: 1"), ("version: 2\n", "version 1"), ("version: x\n", "whole"), ("[]", "mapping")]
    {
        assert!(parse(text).unwrap_err().to_string().contains(says), "{text}");
    }
    assert!(parse(&format!("version: 1\ntools: {}", "[".repeat(10_000))).is_err());
}

#[test]
fn values_of_the_environment_do_not_print() {
    let config = parse(&with("tool", "env: {API_KEY: hunter2}")).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    assert!(Config::load(&path).unwrap().declared().tools.is_empty());
    std::fs::write(&path, "version: 1\n").unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for (file, directory, good) in [
        (0o600, 0o700, true),
        (0o644, 0o1777, true),
        (0o620, 0o700, false),
        (0o602, 0o700, false),
        (0o600, 0o707, false),
    ] {
        mode(&path, file);
        mode(dir.path(), directory);
        let outcome = Config::load(&path);
        assert_eq!(outcome.is_ok(), good, "{file:o} {directory:o}");
        if let Err(error) = outcome {
            assert!(error.hint.unwrap().starts_with("chmod"));
        }
    }
    mode(dir.path(), 0o700);
    mode(&path, 0o600);
    std::fs::write(&path, b"\xff").unwrap();
    assert!(Config::load(&path).is_err());
    std::fs::write(&path, vec![b'#'; MAX_YAML + 1]).unwrap();
    assert!(Config::load(&path).is_err());
    assert!(Config::load(dir.path()).is_err());
}

#[tokio::test]
async fn what_a_file_declares_is_served() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.json"), r#"{"token": "hunter2", "a": 1}"#).unwrap();
    let text = "version: 1\nconfig: {files: {c: {path: ~/c.json}}}\ntokens: {t: {env: PATH}}\n";
    let laptop = Config::parse(text, &dir.path().join("config.yaml"), dir.path()).unwrap().declared();
    let value = laptop.config.answer("c", "").await.unwrap();
    assert_eq!(value["value"], json!({"token": "***", "a": 1}));
    let refusal = laptop.tokens["t"].answer(&laptop.keychain, &laptop.config_path).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Denied);
}

//! The workspace's window to the laptop: what its owner declares is there, what is not declared is refused with a
//! sentence that says how to declare it, and a mistake in the declaration is told before anything starts.

use std::fs;

use serde_json::{Value, json};

use crate::support::*;

#[test]
fn nothing_is_declared_at_first() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    assert!(laptop.stub(&["tool", "list"]).ok().contains("no tools are declared"));
    let config = laptop.config().display().to_string();
    for (words, section) in [
        (&["tool", "call", "git-log"][..], "tools:\n  \"git-log\":\n    argv:"),
        (&["token", "github"], "tokens:\n  \"github\":\n    env: NAME_OF_VARIABLE"),
        (&["config", "get", "editor"], "config:\n  values:\n    \"editor\":"),
        (&["file", "read", "/etc/hostname"], "files:\n  - path: \"/etc/hostname\""),
    ] {
        let run = laptop.stub(words);
        assert_eq!(run.status.code(), Some(4), "{words:?}: {}", run.stderr);
        assert_eq!(run.stdout, b"", "{words:?}");
        let said = run.err();
        assert!(said.contains("declared on the laptop") && said.contains(&config), "{words:?}: {said}");
        assert!(said.contains("hint:") && said.contains(section), "{words:?}: {said}");
    }
    let keys: Value = serde_json::from_str(&laptop.stub(&["config", "get"]).ok()).unwrap();
    assert_eq!(keys, json!({"keys": []}));
}

#[test]
fn what_a_refusal_suggests_is_a_configuration() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let mut text = String::from("version: 1\n");
    for words in [&["tool", "call", "greet"][..], &["token", "github"], &["config", "get", "editor"]] {
        let said = laptop.stub(words).err();
        let lines = said.split_once(".yaml:\n").unwrap_or_else(|| panic!("no configuration in: {said}")).1;
        text += lines.trim_end();
        text.push('\n');
    }
    up.ctrl_c();
    laptop.configure(&text.replace("\"program\", \"argument\"", "\"echo\", \"hello\"").replace('…', "vi"));
    let _up = laptop.up(&[]);
    assert_eq!(laptop.stub(&["tool", "call", "greet"]).ok(), "hello\n");
    assert_eq!(laptop.stub(&["config", "get", "editor"]).ok(), "vi\n");
    assert!(laptop.stub(&["token", "github"]).err().contains("its environment variable is not set"));
}

#[test]
fn configuration_is_given_and_its_secrets_are_masked() {
    let laptop = Laptop::new();
    let (json_file, text_file) = (laptop.home().join("opencode.json"), laptop.home().join("settings"));
    let content = json!({
        "theme": "dark",
        "provider": {"one": {"apiKey": "sk-canary-1", "url": "https://one.example"}, "pin": "canary-2"},
        "list": ["plain", "ghp_canary3"],
    });
    fs::write(&json_file, content.to_string()).unwrap();
    fs::write(&text_file, "colour=blue\npassword=canary-4\n").unwrap();
    laptop.configure(&format!(
        "version: 1\n\
         config:\n  \
           values:\n    editor: vi\n    limits: {{depth: 3, names: [a, b]}}\n  \
           files:\n    \
             opencode: {{path: {}, mask: [provider.pin]}}\n    \
             settings: {{path: {}}}\n    \
             absent: {{path: {}/absent.json}}\n",
        json_file.display(),
        text_file.display(),
        laptop.home().display(),
    ));
    let _up = laptop.up(&[]);
    let get = |key: &str| laptop.stub(&["config", "get", key]).ok();
    assert_eq!(get("editor"), "vi\n");
    assert_eq!(get("limits.names.1"), "b\n");
    assert_eq!(get("opencode.theme"), "dark\n");
    let whole: Value = serde_json::from_str(&get("opencode")).unwrap();
    assert_eq!(whole["provider"], json!({"one": {"apiKey": "***", "url": "https://one.example"}, "pin": "***"}));
    assert_eq!(whole["list"], json!(["plain", "***"]));
    assert_eq!(get("opencode.provider.one.apiKey"), "***\n");
    assert_eq!(get("settings"), "colour=blue\npassword=***\n\n");
    let answer: Value = serde_json::from_str(&laptop.stub(&["--json", "config", "get", "limits.depth"]).ok()).unwrap();
    assert_eq!(answer, json!({"key": "limits.depth", "value": 3}));
    let keys: Value = serde_json::from_str(&laptop.stub(&["config", "get"]).ok()).unwrap();
    assert_eq!(keys, json!({"keys": ["absent", "editor", "limits", "opencode", "settings"]}));

    // Read when it is asked for: a change is seen at once.
    fs::write(&json_file, json!({"theme": "light"}).to_string()).unwrap();
    assert_eq!(get("opencode.theme"), "light\n");
    for (key, what) in [("opencode.absent", "nothing at"), ("absent", "cannot be given"), ("editors", "declared")] {
        let said = laptop.stub(&["config", "get", key]).err();
        assert!(said.contains(what) && said.contains("hint:"), "{key}: {said}");
    }
    fs::write(&json_file, "{\"apiKey\": \"sk-canary-1\",").unwrap();
    let broken = laptop.stub(&["config", "get", "opencode"]).err();
    assert!(broken.contains("does not parse") && !broken.contains("canary"), "{broken}");
}

#[test]
fn a_mistake_in_the_configuration_is_told_before_anything_starts() {
    let laptop = Laptop::new();
    for (text, line, what, hint) in [
        ("version: 1\ntools:\n  log:\n    argv: [git]\n    timout: 5s\n", 5, "unknown key `timout`", "`timeout`"),
        ("version: 1\n\ntoken: {}\n", 3, "unknown key `token`", "did you mean `tokens`?"),
        ("version: 1\ntools:\n  log:\n    argv: [git, \"{path}\"]\n", 3, "`{path}` in argv", "schema.properties"),
        ("version: 2\n", 1, "version is not known", "version 1"),
        ("version: 1\ntokens:\n  t: {}\n", 3, "needs one source", "keychain"),
        ("version: 1\nfiles:\n  - relative/path\n", 3, "not an absolute path", "begin with"),
        ("version: 1\ntools: [\n", 0, "", ""),
    ] {
        laptop.configure(text);
        for words in [&["up"][..], &["config", "check"]] {
            let run = laptop.run(words);
            assert_eq!(run.status.code(), Some(2), "{words:?} {text}: {}", run.stderr);
            assert_eq!(run.stdout, b"", "{words:?} {text}");
            let place = if line > 0 { format!("config.yaml:{line}: ") } else { "config.yaml:".into() };
            let said = run.err();
            assert!(said.contains(&place) && said.contains(what) && said.contains(hint), "{words:?} {text}: {said}");
        }
    }
    assert!(!laptop.home().join("data").exists(), "nothing was made for a start that was refused");

    laptop.configure("version: 1\n");
    assert!(laptop.run(&["config", "check"]).ok().contains("in order"));
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(laptop.config(), open).unwrap();
    let said = laptop.run(&["up"]).err();
    assert!(said.contains("other users can write it") && said.contains("chmod go-w"), "{said}");
}

#[test]
fn forwards_may_stand_in_the_configuration() {
    let laptop = Laptop::new();
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    laptop.configure(&format!("version: 1\nforwards:\n  local: [\"0:{0}\"]\n  remote: [\"0:{0}\"]\n", nginx.addr));
    let _up = laptop.up(&[]);
    let status = laptop.workspace_status();
    let [local, remote] = [0, 1].map(|n| format!("http://{}/hello", status["forwards"][n]["listen"].as_str().unwrap()));
    assert_eq!(Run::of(curl(&[&local])).ok(), "hello\n");
    assert_eq!(laptop.exec("default", &["curl", "-sS", &remote]).ok(), "hello\n");
}

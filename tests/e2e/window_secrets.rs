//! Tokens: from each source, only when their owner says so, and nowhere but where they were asked for.

use std::fs;
use std::path::Path;

use nexus_proxy::service::keychain::Keychain;
use nexus_proxy::service::secret::Secret;
use serde_json::Value;

use crate::support::laptop::Up;
use crate::support::*;

/// Where the tokens of the tests come from. Each source is there twice: exposed, and kept on the laptop.
const SOURCES: [&str; 4] = ["env", "file", "command", "keychain"];

/// What the exposed token of a source holds; all of the secrets contain `canary`.
fn exposed(source: &str) -> String {
    format!("canary-exposed-{source}")
}

/// A laptop with a token of every source, a tool that has a secret of its own, and a configuration file with another.
fn laptop_with_secrets() -> Laptop {
    let laptop = Laptop::new();
    let home = laptop.home().display().to_string();
    let mut text = String::from("version: 1\ntokens:\n");
    for kept in [false, true] {
        let (prefix, expose) = if kept { ("kept-", "") } else { ("", ", expose: true") };
        let secret = |source: &str| if kept { format!("canary-kept-{source}") } else { exposed(source) };
        fs::write(laptop.home().join(format!("{prefix}token")), format!("{}\n", secret("file")))
            .expect("a file of ours");
        fs::write(laptop.home().join(format!("{prefix}printed")), secret("command")).expect("a file of ours");
        in_keychain(laptop.home(), &format!("{prefix}account"), &secret("keychain"));
        text += &format!(
            "  {prefix}env: {{env: {}{expose}}}\n  {prefix}file: {{file: {home}/{prefix}token{expose}}}\n  \
             {prefix}command: {{command: [cat, {home}/{prefix}printed]{expose}}}\n  \
             {prefix}keychain: {{keychain: {{service: tests, account: {prefix}account}}{expose}}}\n",
            if kept { "KEPT_TOKEN" } else { "EXPOSED_TOKEN" },
        );
    }
    fs::write(laptop.home().join("settings.json"), r#"{"theme": "dark", "apiKey": "canary-config"}"#)
        .expect("a file of ours");
    text += "tools:\n  use: {argv: [sh, -c, 'printf %s \"$PASSWORD\" | wc -c'], env: {PASSWORD: canary-tool}}\n";
    text += &format!("config:\n  files:\n    settings: {{path: {home}/settings.json}}\n");
    laptop.configure(&text);
    laptop
}

/// Stores a secret in the encrypted file that serves where the system has no keychain.
fn in_keychain(dir: &Path, account: &str, secret: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let secret = Secret::new(secret.to_owned());
    runtime.block_on(Keychain::file_only(dir).set("tests", account, &secret)).expect("a file of ours");
}

fn up(laptop: &Laptop) -> Up<'_> {
    let mut command = laptop.command(&["up", "-vv"]);
    command.env("EXPOSED_TOKEN", exposed("env")).env("KEPT_TOKEN", "canary-kept-env").env("NEXUS_KEYCHAIN", "file");
    laptop.up_as(command)
}

#[test]
fn a_token_is_had_from_every_source_when_it_is_exposed() {
    let laptop = laptop_with_secrets();
    let _up = up(&laptop);
    for source in SOURCES {
        let token = laptop.stub(&["token", source]);
        assert_eq!(token.ok(), exposed(source) + "\n", "alone on a line, for a shell to take");
        let kept = laptop.stub(&["token", &format!("kept-{source}")]);
        assert_eq!(kept.status.code(), Some(4), "{source}: {}", kept.stderr);
        assert_eq!(kept.stdout, b"");
        let said = kept.err();
        assert!(said.contains("expose: true") && said.contains(&format!("tokens.kept-{source}")), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
    let answer: Value = serde_json::from_str(&laptop.stub(&["--json", "token", "env"]).ok()).unwrap();
    assert_eq!(answer["service"], "env");
    assert!(answer["expires_at"].as_str().is_some_and(|at| at.starts_with("20")), "{answer}");
}

#[test]
fn a_source_that_fails_says_so_without_what_it_said() {
    let laptop = Laptop::new();
    let home = laptop.home().display().to_string();
    laptop.configure(&format!(
        "version: 1\ntokens:\n  \
           env: {{env: NOT_SET_ANYWHERE, expose: true}}\n  \
           file: {{file: {home}/absent, expose: true}}\n  \
           command: {{command: [sh, -c, 'echo canary; echo canary >&2; exit 3'], expose: true}}\n  \
           hangs: {{command: [sleep, 600], timeout: 1s, expose: true}}\n  \
           keychain: {{keychain: {{service: tests, account: absent}}, expose: true}}\n"
    ));
    let mut command = laptop.command(&["up", "-vv"]);
    command.env("NEXUS_KEYCHAIN", "file");
    let up = laptop.up_as(command);
    for (service, why) in [
        ("env", "variable is not set"),
        ("file", "unusable"),
        ("command", "exit status: 3"),
        ("hangs", "longer than 1s"),
        ("keychain", "no such entry"),
    ] {
        let run = laptop.stub(&["token", service]);
        assert_eq!(run.stdout, b"", "{service}");
        let said = run.err();
        assert!(said.contains(why) && said.contains("hint:"), "{service}: {said}");
        assert!(!said.contains("canary"), "{service}: {said}");
    }
    assert!(!up.program.output().contains("canary"), "{}", up.program.output());
}

#[test]
fn a_token_is_kept_for_its_lifetime_only() {
    let laptop = Laptop::new();
    let count = laptop.home().join("count");
    let script = format!("echo x >> {0}; wc -l < {0}", count.display());
    laptop.configure(&format!(
        "version: 1\ntokens:\n  kept: {{command: [sh, -c, '{script}'], expose: true}}\n  \
           brief: {{command: [sh, -c, '{script}'], expose: true, lifetime: 1ms}}\n"
    ));
    let _up = laptop.up(&[]);
    let token = |service: &str| laptop.stub(&["token", service]).ok().trim().parse::<u32>().unwrap();
    assert_eq!([token("kept"), token("kept")], [1, 1]);
    assert_eq!([token("brief"), token("brief")], [2, 3]);
}

#[test]
fn secrets_stay_where_they_are() {
    let laptop = laptop_with_secrets();
    let up = up(&laptop);
    for source in SOURCES {
        assert!(laptop.stub(&["token", source]).ok().contains("canary"));
        laptop.stub(&["token", &format!("kept-{source}")]).err();
    }
    assert_eq!(laptop.stub(&["tool", "call", "use"]).ok(), "11\n", "the tool has its secret");
    let config = laptop.stub(&["config", "get", "settings"]).ok();
    assert!(config.contains("dark") && config.contains("***") && !config.contains("canary"), "{config}");
    for words in [&["tool", "list"][..], &["--json", "tool", "list"], &["config", "get"]] {
        assert!(!laptop.stub(words).ok().contains("canary"), "{words:?}");
    }
    assert!(!laptop.exec("default", &["env"]).ok().contains("canary"));

    let [stub] = kernel::children(up.program.pid())[..] else { panic!("the stub is the only child") };
    let surroundings = kernel::surroundings(stub);
    assert!(surroundings.contains("--exit-with-stdin") && !surroundings.contains("canary"), "{surroundings}");
    let log = up.program.output();
    assert!(log.contains("auth.getToken") && !log.contains("canary"), "calls are logged, secrets are not:\n{log}");

    // Workspace, stub, coordinator, logs: everything that was written.
    let data = laptop.home().join("data");
    let found = files_with(&data, b"canary");
    assert_eq!(found, [""; 0]);
    // The search finds what is there.
    fs::write(laptop.workspace().join("token"), "a canary").unwrap();
    assert_eq!(files_with(&data, b"canary").len(), 1);
}

#[test]
fn every_call_leaves_one_line_in_the_audit_log() {
    let laptop = laptop_with_secrets();
    let _up = up(&laptop);
    laptop.stub(&["token", "env"]).ok();
    laptop.stub(&["tool", "call", "x\n2026 forged", r#"{"password": "hunter2"}"#]).err();
    laptop.stub(&["token", &"long".repeat(60)]).err();
    let path = laptop.home().join("data/audit.log");
    let calls = until("three calls in the audit log", || {
        // A call is answered before its line is written.
        let text = fs::read_to_string(&path).ok()?;
        let lines = text.lines().map(|line| serde_json::from_str(line).expect(line));
        let calls: Vec<Value> = lines.filter(|line: &Value| line["message"] == "call").collect();
        (calls.len() == 3).then_some(calls)
    });
    let fields = |call: &Value| {
        ["workspace", "method", "resource", "outcome"].map(|name| call[name].as_str().expect("a string").to_owned())
    };
    assert_eq!(fields(&calls[0]), ["default", "auth.getToken", "env", "ok"]);
    assert_eq!(fields(&calls[1]), ["default", "tool.execute", "x\n2026 forged", "NotDeclared"]);
    let cut = "long".repeat(50);
    assert_eq!(fields(&calls[2]), ["default", "auth.getToken", &cut, "NotDeclared"]);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("canary"), "{text}");
}

/// The regular files below `folder` that contain `bytes`.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a file of ours").flatten() {
        let (kind, path) = (entry.file_type().expect("a file of ours"), entry.path());
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file() {
            let content = fs::read(&path).expect("a file of ours");
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

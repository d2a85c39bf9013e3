//! Tools of the laptop, called from the workspace.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::*;

/// A laptop whose configuration declares these tools. `$HERE` stands for its home.
fn with_tools(tools: &str) -> Laptop {
    let laptop = Laptop::new();
    let tools = tools.replace("$HERE", &laptop.home().display().to_string());
    let indented: String = tools.lines().map(|line| format!("  {line}\n")).collect();
    laptop.configure(&format!("version: 1\ntools:\n{indented}"));
    laptop
}

#[test]
fn git_shows_the_log_of_a_repository_on_the_laptop() {
    let laptop = Laptop::new();
    let repository = laptop.home().join("project");
    Run::of(git::git(&["init", "-q", "-b", "main", &repository.to_string_lossy()])).ok();
    for subject in ["First", "Second", "Third"] {
        let mut commit = git::git(&["commit", "-q", "--allow-empty", "-m", subject]);
        commit.current_dir(&repository);
        Run::of(commit).ok();
    }
    laptop.configure(&format!(
        "version: 1\n\
         tools:\n  git-log:\n    description: The last commits\n    cwd: {}\n    \
             argv: [git, log, --format=%s, \"-n{{count}}\", \"{{branch}}\", --]\n    \
             schema:\n      type: object\n      required: [branch]\n      properties:\n        \
               count: {{type: integer, minimum: 1, maximum: 100, default: 20}}\n        branch: {{type: string}}\n",
        repository.display()
    ));
    let _up = laptop.up(&[]);
    let list = laptop.stub(&["tool", "list"]).ok();
    assert!(list.contains("git-log  The last commits  (branch, count)"), "{list}");
    let list: Value = serde_json::from_str(&laptop.stub(&["--json", "tool", "list"]).ok()).unwrap();
    assert_eq!(list["tools"][0]["inputSchema"]["properties"]["count"]["maximum"], 100);

    let call = |arguments: Value| laptop.stub(&["tool", "call", "git-log", &arguments.to_string()]);
    assert_eq!(call(json!({"branch": "main"})).ok(), "Third\nSecond\nFirst\n");
    assert_eq!(call(json!({"branch": "main", "count": 1})).ok(), "Third\n");
    let absent = call(json!({"branch": "absent"}));
    assert_eq!(absent.status.code(), Some(128), "git's own exit code: {}", absent.stderr);
    assert!(absent.stderr.contains("bad revision"), "git's own words: {}", absent.stderr);

    let before = fs::read_dir(&repository).unwrap().count();
    for (arguments, why) in [
        (json!({"branch": "main", "count": 0}), "less than the minimum"),
        (json!({"branch": "main", "count": "3; touch x"}), "integer"),
        (json!({}), "required"),
        (json!({"branch": "main", "more": true}), "more"),
        (json!(["main"]), "by name"),
        (json!({"branch": "--output=stolen"}), "may not begin with `-`"),
        (json!({"branch": "-p"}), "may not begin with `-`"),
        (json!({"branch": "a\0b"}), "NUL"),
    ] {
        let run = call(arguments.clone());
        assert_eq!(run.status.code(), Some(2), "{arguments}: {}", run.stderr);
        assert_eq!(run.stdout, b"", "{arguments}");
        assert!(run.stderr.contains(why), "{arguments}: {}", run.stderr);
    }
    // No shell reads an argument: this is the name of a branch that is not there.
    let shell = call(json!({"branch": "main; touch stolen $(touch stolen) `touch stolen`"}));
    assert_eq!(shell.status.code(), Some(128), "{}", shell.stderr);
    assert_eq!(fs::read_dir(&repository).unwrap().count(), before, "nothing was written");

    let quoted = laptop.stub(&["tool", "call", "git-log", "{branch: main}"]);
    assert_eq!(quoted.status.code(), Some(2));
    assert!(quoted.err().contains("not JSON"));
}

#[test]
fn output_streams_and_the_end_is_passed_on() {
    let laptop = with_tools(
        "wait: {argv: [sh, -c, \"echo first; echo aside >&2; while ! [ -e go ]; do sleep 0.05; done; exit 9\"], cwd: $HERE}\n\
         killed: {argv: [sh, -c, \"kill -KILL $$\"]}\n\
         absent: {argv: [no-such-program]}\n",
    );
    let _up = laptop.up(&[]);
    let mut call = Running::start(laptop.command(&["exec", "default", "--", "nexus-stub", "tool", "call", "wait"]));
    call.says("first");
    call.says("aside");
    assert!(call.has_ended().is_none(), "it came while the tool ran");
    fs::write(laptop.home().join("go"), "").unwrap();
    assert_eq!(call.ends().code(), Some(9), "{}", call.output());

    let killed = laptop.stub(&["tool", "call", "killed"]);
    assert_eq!(killed.status.code(), Some(137), "{}", killed.stderr);
    let absent = laptop.stub(&["tool", "call", "absent"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(absent.err().contains("the program `no-such-program` is not on the laptop"));
}

#[test]
fn a_tool_has_the_environment_that_is_declared_and_no_other() {
    let laptop = with_tools("env: {argv: [env], env: {OWN: declared}, inherit_env: [PASSED]}");
    let mut command = laptop.command(&["up"]);
    command.env("PASSED", "passed").env("SECRET_OF_THE_SHELL", "canary");
    let _up = laptop.up_as(command);
    let env = laptop.stub(&["tool", "call", "env"]).ok();
    assert!(env.contains("OWN=declared\n") && env.contains("PASSED=passed\n") && env.contains("PATH="), "{env}");
    assert!(!env.contains("canary") && !env.contains("NEXUS_HOME"), "{env}");
}

#[test]
fn bytes_stay_bytes() {
    let laptop = with_tools(
        "odd: {argv: [sh, -c, 'cat; printf \"\\377\\000\\376\"'], stdin: true}\n\
         closed: {argv: [cat]}\n\
         noise: {argv: [cat, $HERE/noise]}\n",
    );
    let noise: Vec<u8> = rand::random_iter().take(5_000_000).collect();
    fs::write(laptop.home().join("noise"), &noise).unwrap();
    let _up = laptop.up(&[]);
    let run = laptop.stub(&["tool", "call", "odd", "--stdin", "grüße\n"]);
    assert_eq!(run.stdout, ["grüße\n".as_bytes(), b"\xff\x00\xfe"].concat(), "{}", run.stderr);
    assert_eq!(laptop.stub(&["tool", "call", "closed"]).ok(), "", "without any, standard input is empty");
    let refused = laptop.stub(&["tool", "call", "closed", "--stdin", "x"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.err().contains("stdin: true"));
    let run = laptop.stub(&["tool", "call", "noise"]);
    assert!(run.status.success() && run.stdout == noise, "{} bytes: {}", run.stdout.len(), run.stderr);
}

#[test]
fn too_much_output_is_cut_and_said_to_be() {
    const CAP: usize = 10 * 1024 * 1024;
    let laptop = with_tools(
        "flood: {argv: [sh, -c, 'echo $$ > $HERE/pid; exec head -c 50000000 /dev/zero']}\n\
         large: {argv: [head, -c, 50000000, /dev/zero], max_output: 50MB}\n",
    );
    let _up = laptop.up(&[]);
    let flood = laptop.stub(&["tool", "call", "flood"]);
    assert_eq!((flood.status.code(), flood.stdout.len()), (Some(1), CAP), "{}", flood.stderr);
    let said = &flood.stderr;
    assert!(said.contains("more than 10485760 bytes") && said.contains("`max_output`"), "{said}");
    is_gone(&laptop.home().join("pid"));
    let large = laptop.stub(&["tool", "call", "large"]);
    assert!(large.status.success() && large.stdout.len() == 50_000_000, "{} {}", large.stdout.len(), large.stderr);
}

/// The process whose id a tool wrote down has ended.
#[track_caller]
fn is_gone(pid_file: &Path) {
    let text = fs::read_to_string(pid_file).expect("the tool wrote it");
    let pid: u32 = text.trim().parse().expect("a process id");
    until("the end of a tool", || (!kernel::runs(pid)).then_some(()));
}

/// A tool that never ends, with a child that does not either; it notes both ids.
const ENDLESS: &str = "argv: [sh, -c, 'sleep 600 & echo $! > child; echo $$ > parent; echo running; wait'], cwd: $HERE";

#[test]
fn a_tool_that_hangs_is_stopped() {
    let laptop = with_tools(&format!("hang: {{{ENDLESS}, timeout: 1s}}"));
    let _up = laptop.up(&[]);
    let run = laptop.stub(&["tool", "call", "hang"]);
    assert_eq!(run.text(), "running\n", "what it said before is kept");
    assert_eq!(run.status.code(), Some(1), "the laptop was reached: {}", run.stderr);
    let said = run.err();
    assert!(said.contains("tool `hang` was stopped after 1s") && said.contains("`timeout`"), "{said}");
    is_gone(&laptop.home().join("parent"));
    is_gone(&laptop.home().join("child"));
}

#[test]
fn a_call_that_is_given_up_ends_the_tool() {
    let laptop = with_tools(&format!("hang: {{{ENDLESS}}}"));
    let _up = laptop.up(&[]);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let script = "echo pid $$; exec nexus-stub tool call hang";
        let mut call = Running::start(laptop.command(&["exec", "default", "--", "sh", "-c", script]));
        let client: i32 = call.says("pid ").trim_start_matches("pid ").parse().unwrap();
        call.says("running");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(client), signal).unwrap();
        assert_eq!(call.ends().code(), Some(128 + signal as i32), "{}", call.output());
        is_gone(&laptop.home().join("parent"));
        is_gone(&laptop.home().join("child"));
    }
    // Nor does a tool outlive the tunnel that it answers through.
    let mut call = Running::start(laptop.command(&["exec", "default", "--", "nexus-stub", "tool", "call", "hang"]));
    call.says("running");
    laptop.down().ok();
    call.ends();
    is_gone(&laptop.home().join("parent"));
    is_gone(&laptop.home().join("child"));
}

//! Programs that end well, badly, late or not at all, and callers that do not read.

use super::*;
use crate::service::call::output::{Frames, channel};
use tokio_util::sync::CancellationToken;

fn shell(script: &str) -> Invocation {
    let path = std::env::var("PATH").unwrap();
    Invocation {
        argv: ["sh", "-c", script].map(String::from).to_vec(),
        cwd: "/".into(),
        env: BTreeMap::from([("PATH".to_owned(), Secret::new(path))]),
        stdin: None,
        timeout: Duration::from_secs(30),
        max_output: 1 << 20,
    }
}

async fn collect(mut frames: Frames) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some((kind, buffer)) = frames.next().await {
        if kind == FrameKind::Data { &mut out } else { &mut err }.extend_from_slice(buffer.payload());
    }
    (out, err)
}

async fn run_all(invocation: Invocation) -> (Result<Value, Refusal>, Vec<u8>, Vec<u8>) {
    let (output, frames) = channel(CancellationToken::new());
    let work = async move { run("t", invocation, &output).await };
    let (outcome, (out, err)) = tokio::join!(work, collect(frames));
    (outcome, out, err)
}

fn alive(pid: &[u8]) -> bool {
    let pid = std::str::from_utf8(pid).unwrap().trim().parse().unwrap();
    // A zombie that nobody has reaped yet is not alive.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    nix::sys::signal::kill(Pid::from_raw(pid), None).is_ok() && !stat.contains(") Z ")
}

async fn until_dead(pid: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while alive(pid) {
        assert!(Instant::now() < deadline, "the process outlived its call");
        tokio::time::sleep(GROUP_POLL).await;
    }
}

#[tokio::test]
async fn output_code_and_bytes_that_are_not_text() {
    let (outcome, out, err) = run_all(shell(r"printf 'a\377\376'; printf oops >&2; exit 3")).await;
    let result = outcome.unwrap();
    assert_eq!((out, err), (b"a\xff\xfe".to_vec(), b"oops".to_vec()));
    assert_eq!((&result["exit_code"], &result["signal"]), (&json!(3), &Value::Null));
    assert_eq!((&result["stdout_bytes"], &result["stderr_bytes"]), (&json!(3), &json!(4)));
    assert_eq!(result["truncated"], false);
}

#[tokio::test]
async fn death_by_signal_is_told() {
    let result = run_all(shell("kill -9 $$")).await.0.unwrap();
    assert_eq!((&result["exit_code"], &result["signal"]), (&Value::Null, &json!(9)));
}

#[tokio::test]
async fn the_environment_is_only_what_was_given() {
    let mut invocation = shell("env");
    invocation.env.insert("GIVEN".into(), Secret::new("yes".into()));
    let out = String::from_utf8(run_all(invocation).await.1).unwrap();
    assert!(out.contains("GIVEN=yes"));
    assert!(!out.contains("CARGO"), "{out}");
}

#[tokio::test]
async fn input_is_fed_or_empty() {
    let mut invocation = shell("cat");
    invocation.stdin = Some(vec![b'x'; 300_000]);
    assert_eq!(run_all(invocation).await.1.len(), 300_000);
    assert!(run_all(shell("cat")).await.1.is_empty());
    let mut unread = shell("exit 0");
    unread.stdin = Some(vec![b'x'; 1_000_000]);
    assert_eq!(run_all(unread).await.0.unwrap()["exit_code"], 0);
}

#[tokio::test]
async fn output_without_end_is_capped() {
    let (outcome, out, _) = run_all(shell("yes | head -c 1000000000")).await;
    let result = outcome.unwrap();
    assert_eq!(out.len(), 1 << 20);
    assert_eq!(result["truncated"], true);
    assert_eq!(result["stdout_bytes"], 1 << 20);
    assert_eq!(result["exit_code"], Value::Null);
    assert!(result["hint"].as_str().unwrap().contains("max_output"));
    let mut exact = shell("head -c 1000 /dev/zero; head -c 24 /dev/zero >&2");
    exact.max_output = 1024;
    assert_eq!(run_all(exact).await.0.unwrap()["truncated"], false);
}

#[tokio::test]
async fn a_program_that_hangs_is_stopped_in_time() {
    let mut invocation = shell("echo $$; sleep 1000");
    invocation.timeout = Duration::from_millis(300);
    let (outcome, out, _) = run_all(invocation).await;
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Timeout);
    assert!(refusal.message.contains("hint:"));
    until_dead(&out).await;
}

#[tokio::test]
async fn a_program_that_ignores_the_request_is_killed() {
    let mut invocation = shell("trap '' TERM; echo $$; while :; do sleep 1; done");
    invocation.timeout = Duration::from_millis(300);
    let started = Instant::now();
    let (_, out, _) = run_all(invocation).await;
    assert!(started.elapsed() >= KILL_GRACE);
    until_dead(&out).await;
}

#[tokio::test]
async fn what_is_left_in_the_background_neither_hangs_the_call_nor_survives() {
    let (outcome, out, _) = run_all(shell("sleep 1000 & echo $!")).await;
    assert_eq!(outcome.unwrap()["exit_code"], 0);
    until_dead(&out).await;
    let (outcome, out, _) = run_all(shell("(sleep 1000 >/dev/null 2>&1 & echo $!)")).await;
    assert_eq!(outcome.unwrap()["exit_code"], 0);
    until_dead(&out).await;
}

#[tokio::test]
async fn one_that_left_the_group_does_not_hang_the_call() {
    let (outcome, out, _) = run_all(shell("setsid sleep 20 & echo $!")).await;
    assert_eq!(outcome.unwrap()["exit_code"], 0);
    assert!(!out.is_empty());
}

#[tokio::test]
async fn a_caller_that_does_not_read_holds_the_program_back_and_loses_nothing() {
    let (output, mut frames) = channel(CancellationToken::new());
    let work = tokio::spawn(async move { run("t", shell("head -c 900000 /dev/zero"), &output).await });
    let mut total = frames.next().await.unwrap().1.payload_len();
    assert!(!work.is_finished());
    while let Some((_, buffer)) = frames.next().await {
        total += buffer.payload_len();
    }
    assert_eq!(total, 900_000);
    assert_eq!(work.await.unwrap().unwrap()["exit_code"], 0);
}

#[tokio::test]
async fn a_caller_that_never_reads_runs_into_the_time_limit() {
    let (output, frames) = channel(CancellationToken::new());
    let mut invocation = shell("yes");
    invocation.timeout = Duration::from_millis(500);
    assert_eq!(run("t", invocation, &output).await.unwrap_err().code, RefusalCode::Timeout);
    drop(frames);
}

#[tokio::test]
async fn cancellation_and_a_dropped_future_leave_nothing() {
    let cancel = CancellationToken::new();
    let (output, mut frames) = channel(cancel.clone());
    let work = tokio::spawn(async move { run("t", shell("sleep 1000 & echo $!; wait"), &output).await });
    let pid = frames.next().await.unwrap().1.payload().to_vec();
    assert!(alive(&pid));
    cancel.cancel();
    assert_eq!(work.await.unwrap().unwrap_err().code, RefusalCode::Cancelled);
    until_dead(&pid).await;

    let (output, mut frames) = channel(CancellationToken::new());
    let work = tokio::spawn(async move { run("t", shell("sleep 1000 & echo $!; wait"), &output).await });
    let pid = frames.next().await.unwrap().1.payload().to_vec();
    work.abort();
    let _ = work.await;
    until_dead(&pid).await;
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let mut missing = shell("");
    missing.argv = vec!["no-such-program-anywhere".into()];
    let refusal = run_all(missing).await.0.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
    assert!(refusal.message.contains("hint:") && refusal.message.contains("program"));
    let mut nowhere = shell("");
    nowhere.cwd = "/no/such/directory".into();
    assert!(run_all(nowhere).await.0.unwrap_err().message.contains("cwd"));
    let mut not_executable = shell("");
    not_executable.argv = vec!["/etc/passwd".into()];
    assert_eq!(run_all(not_executable).await.0.unwrap_err().code, RefusalCode::TargetRefused);
}

//! Programs that others wrote, through TCP forwards: to a service in the workspace (`-L`), from the workspace to a
//! service of the laptop (`-R`), and by SOCKS5 (`-D`). Both ends are on this host; the bytes take the whole way.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::program::free_port;
use crate::support::*;

/// Enough that every window on the way fills many times.
const LARGE: usize = 100_000_000;

/// Writes `LARGE` bytes that no compression helps with.
fn large_file(path: &Path) {
    fs::write(path, rand::random_iter::<u8>().take(LARGE).collect::<Vec<_>>()).expect("a file of ours");
}

#[track_caller]
fn digest(path: &Path) -> String {
    let digest = Run::of(command("sha256sum", [path])).ok();
    digest.split(' ').next().unwrap_or_default().to_owned()
}

/// `command` as the workspace runs it: its own words, and the environment it asks for.
#[track_caller]
fn in_workspace(laptop: &Laptop, command: &Command) -> Run {
    let environment = command.get_envs().filter_map(|(key, value)| {
        Some(["--env".to_owned(), format!("{}={}", key.to_string_lossy(), value?.to_string_lossy())])
    });
    let mut words = vec!["exec".to_owned(), "default".to_owned()];
    words.extend(environment.flatten());
    words.push("--".to_owned());
    words.extend([command.get_program()].into_iter().chain(command.get_args()).map(|w| w.to_string_lossy().into()));
    laptop.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn curl_downloads_and_uploads_a_large_file() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = Nginx::start();
    let folder = TempDir::new().unwrap();
    let (original, down) = (nginx.root.join("original"), folder.path().join("down"));
    large_file(&original);
    let expected = digest(&original);
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:{}", nginx.addr));
    let url = |file: &str| format!("http://127.0.0.1:{port}/{file}");

    Run::of(curl(&["-o", &down.to_string_lossy(), &url("original")])).ok();
    assert_eq!(digest(&down), expected);
    Run::of(curl(&["-T", &down.to_string_lossy(), &url("uploaded")])).ok();
    assert_eq!(digest(&nginx.root.join("uploaded")), expected);

    let status = laptop.workspace_status();
    let moved = |way: &str| status["forwards"][0][way].as_u64().unwrap();
    assert!(moved("sent") > LARGE as u64 && moved("received") > LARGE as u64, "{status}");
}

#[test]
fn one_direction_may_end_before_the_other() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    large_file(&file);
    // Answers only once its input has ended.
    let (target, _server) = Running::on_free_port(|port| {
        command("socat", [&format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"), "EXEC:sha256sum"])
    });
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{target}"));
    let mut sum = command("sh", ["-c", "exec socat -t25 - \"TCP:127.0.0.1:$1\" < \"$2\"", "sh", &port.to_string()]);
    sum.arg(&file);
    assert_eq!(Run::of(sum).ok(), format!("{}  -\n", digest(&file)));

    // The other way round, from the workspace: its client ends first as well.
    let (port, _forward) = laptop.forward_on_free_port("-R", &format!("0:127.0.0.1:{target}"));
    let client = format!("TCP:127.0.0.1:{port}");
    let sum = laptop.exec_with_input("default", &["socat", "-t25", "-", &client], b"to the laptop");
    let here = Run::with_input(command("sha256sum", [""; 0]), b"to the laptop");
    assert_eq!(sum.ok(), here.ok());
}

#[test]
fn iperf3_runs_up_and_down() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let server = Iperf3::start();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{}", server.port));
    for more in [&[][..], &["-R"], &["-P", "4"]] {
        let report = Run::of(Iperf3::client(port, "200M", more)).ok();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["error"].is_null(), "{more:?}: {report}");
        // What a sender hands over last, several megabytes a stream, may be on its way when the test ends.
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(received > 100_000_000, "{more:?}: {received} bytes: {report}");
    }
}

#[test]
fn psql_asks_the_laptops_database_and_the_workspaces() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let postgres = Postgres::start();
    let target = format!("0:127.0.0.1:{}", postgres.port);
    let (in_the_workspace, _remote) = laptop.forward_on_free_port("-R", &target);
    let (here, _local) = laptop.forward_on_free_port("-L", &target);

    let make = "create table t as select n, repeat(md5(n::text), 30) as text from generate_series(1, 10000) n";
    in_workspace(&laptop, &Postgres::client(in_the_workspace, make)).ok();
    let ask = "select count(*), sum(length(text)), md5(string_agg(text, '' order by n)) from t";
    let direct = postgres.psql(postgres.port, ask).ok();
    assert!(direct.starts_with("10000|9600000|"), "{direct}");
    assert_eq!(in_workspace(&laptop, &Postgres::client(in_the_workspace, ask)).ok(), direct);
    assert_eq!(postgres.psql(here, ask).ok(), direct);

    let all = "copy t to stdout";
    let direct = postgres.psql(postgres.port, all).ok();
    assert_eq!(direct.len(), 10_000 * 962 + 38_894);
    assert!(in_workspace(&laptop, &Postgres::client(in_the_workspace, all)).ok() == direct);
    assert!(postgres.psql(here, all).ok() == direct);

    let mut stranger = Postgres::client(in_the_workspace, "select 1");
    stranger.env("PGPASSWORD", "wrong");
    assert!(in_workspace(&laptop, &stranger).err().contains("authentication failed"));
}

#[test]
fn redis_is_reached_both_ways() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let redis = Redis::start();
    let target = format!("0:127.0.0.1:{}", redis.port);
    let (in_the_workspace, _remote) = laptop.forward_on_free_port("-R", &target);
    let (here, _local) = laptop.forward_on_free_port("-L", &target);
    assert_eq!(in_workspace(&laptop, &Redis::client(in_the_workspace, &["set", "who", "workspace"])).ok(), "OK\n");
    assert_eq!(Run::of(Redis::client(here, &["get", "who"])).ok(), "workspace\n");
    // Many small questions on one connection.
    let questions = "incr n\n".repeat(2000);
    let answers = Run::with_input(Redis::client(here, &[]), questions.as_bytes()).ok();
    assert_eq!(answers.lines().next_back(), Some("2000"));
    assert_eq!(in_workspace(&laptop, &Redis::client(in_the_workspace, &["get", "n"])).ok(), "2000\n");
}

#[test]
fn ssh_and_scp_reach_the_workspace() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let sshd = Sshd::start();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{}", sshd.port));
    let run = Run::with_input(sshd.client(port, &["there", "cat; echo err >&2; exit 7"]), b"through\0and back");
    assert_eq!((run.status.code(), run.stdout.as_slice()), (Some(7), &b"through\0and back"[..]), "{}", run.stderr);
    assert_eq!(run.stderr, "err\n");

    let folder = TempDir::new().unwrap();
    let [original, there, back] = ["original", "there", "back"].map(|name| folder.path().join(name));
    fs::write(&original, rand::random_iter::<u8>().take(10_000_000).collect::<Vec<_>>()).unwrap();
    let remote = format!("there:{}", there.display());
    Run::of(sshd.copy(port, &[&original.to_string_lossy(), &remote])).ok();
    Run::of(sshd.copy(port, &[&remote, &back.to_string_lossy()])).ok();
    assert_eq!([digest(&there), digest(&back)], [digest(&original), digest(&original)]);
}

#[test]
fn git_clones_and_pushes_over_a_forward() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let daemon = GitDaemon::start();
    let (here, _local) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{}", daemon.port));
    let folder = TempDir::new().unwrap();
    let clone = folder.path().join("clone");
    Run::of(git::git(&["clone", "-q", &GitDaemon::url(here), &clone.to_string_lossy()])).ok();
    assert_eq!(fs::read_to_string(clone.join("README")).unwrap(), GitDaemon::README);
    for words in [&["commit", "-q", "--allow-empty", "-m", "Second"][..], &["push", "-q", "origin", "main"]] {
        let mut git = git::git(words);
        git.current_dir(&clone);
        Run::of(git).ok();
    }
    let (there, _remote) = laptop.forward_on_free_port("-R", &format!("0:127.0.0.1:{}", daemon.port));
    in_workspace(&laptop, &git::git(&["clone", "-q", &GitDaemon::url(there), "in-the-workspace"])).ok();
    let log = in_workspace(&laptop, &git::git(&["-C", "in-the-workspace", "log", "-1", "--format=%s"]));
    assert_eq!(log.ok(), "Second\n");
}

#[test]
fn curl_uses_the_workspaces_network_by_socks5() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    let (port, _forward) = laptop.forward_on_free_port("-D", "0");
    let proxy = format!("127.0.0.1:{port}");
    let by_name = format!("http://localhost:{}/hello", nginx.addr.port());
    assert_eq!(Run::of(curl(&["--socks5-hostname", &proxy, &by_name])).ok(), "hello\n");
    assert_eq!(Run::of(curl(&["--socks5", &proxy, &nginx.url("hello")])).ok(), "hello\n");
    let environment = format!("socks5h://{proxy}");
    let mut by_environment = curl(&[&by_name]);
    by_environment.env("ALL_PROXY", &environment);
    assert_eq!(Run::of(by_environment).ok(), "hello\n");

    let before = laptop.workspace_status()["forwards"][0]["total"].clone();
    assert_eq!(before, 3, "all of them went through the workspace");
    let closed = format!("http://127.0.0.1:{}/", free_port());
    for (url, why) in
        [(closed.as_str(), "nothing listens on"), ("http://no-such-host.invalid/", "no-such-host.invalid")]
    {
        let run = Run::of(curl(&["--socks5-hostname", &proxy, url]));
        // 97: the proxy says that it cannot; 7: no connection.
        assert!(matches!(run.status.code(), Some(97 | 7)), "{url}: {:?} {}", run.status, run.stderr);
        let error = laptop.workspace_status()["forwards"][0]["error"].clone();
        assert!(error.as_str().is_some_and(|error| error.contains(why)), "{url}: {error}");
    }
}

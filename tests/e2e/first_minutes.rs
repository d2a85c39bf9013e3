//! A new user's first minutes: one command brings everything up, and the others use it. Nothing is configured.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::support::linked::Frozen;
use crate::support::program::{command, listens};
use crate::support::*;

#[test]
fn up_prints_three_lines() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let lines = up.program.lines();
    let [coordinator, workspace, tunnel] = &lines[..] else { panic!("not three lines:\n{}", up.program.output()) };
    let port = coordinator.strip_prefix("  coordinator  embedded, 127.0.0.1:").expect(coordinator);
    assert!(port.parse::<u16>().is_ok_and(|port| up.program.listens_on(port)), "{coordinator}");
    assert_eq!(workspace, "  workspace    default (process driver, no isolation)");
    let took =
        tunnel.strip_prefix("  tunnel       up in ").and_then(|rest| rest.strip_suffix(" ms, end-to-end verified"));
    assert!(took.is_some_and(|ms| ms.parse::<u64>().is_ok()), "{tunnel}");
}

#[test]
fn a_proxy_of_the_network_is_not_asked_for_this_host() {
    let laptop = Laptop::new();
    let mut command = laptop.command(&["up"]);
    // Nobody is there.
    for variable in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env(variable, format!("http://127.0.0.1:{}", program::free_port()));
    }
    let _up = laptop.up_as(command);
    assert_eq!(laptop.exec("default", &["echo", "hi"]).ok(), "hi\n");
}

#[test]
fn exec_runs_in_the_workspace() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let workspace = fs::canonicalize(laptop.workspace()).unwrap();
    let hi = laptop.exec("default", &["sh", "-c", "echo hi from $(pwd)"]);
    assert_eq!(hi.stderr, "");
    assert_eq!(hi.ok(), format!("hi from {}\n", workspace.display()));

    let apart = laptop.exec("default", &["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((apart.text().as_str(), apart.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(apart.status.code(), Some(42));

    fs::create_dir(workspace.join("inner")).unwrap();
    let words = ["exec", "default", "--cwd", "inner", "--env", "A=1=2", "--env", "B=", "--"];
    let script = "echo $(basename $(pwd)) $A ${B-unset} $1";
    let there = laptop.run(&[&words[..], &["sh", "-c", script, "sh", "$HOME; *"]].concat());
    assert_eq!(there.ok(), "inner 1=2 $HOME; *\n", "no shell reads the arguments");
    laptop.exec("default", &["sh", "-c", "command -v nexus-stub"]).ok();
}

#[test]
fn exec_says_how_the_program_ended() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    fs::write(laptop.workspace().join("plain"), "no program").unwrap();
    for (argv, code, hint) in [
        (&["sh", "-c", "kill -TERM $$"][..], 143, ""),
        (&["sh", "-c", "kill -KILL $$"], 137, ""),
        (&["no-such-program"], 127, "hint: check the spelling"),
        (&["./plain"], 126, "hint: chmod +x"),
    ] {
        let run = laptop.exec("default", argv);
        assert_eq!(run.status.code(), Some(code), "{argv:?}: {}", run.stderr);
        assert!(run.stderr.contains(hint), "{argv:?}: {}", run.stderr);
    }
    // Not 127: the program may well be there.
    let nowhere = laptop.run(&["exec", "default", "--cwd", "absent", "--", "true"]);
    assert_eq!(nowhere.status.code(), Some(125), "{}", nowhere.stderr);
    assert!(nowhere.err().contains("no directory in the workspace"));
}

#[test]
fn exec_is_binary_both_ways() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let bytes: Vec<u8> = rand::random_iter().take(5_000_000).collect();
    let cat = laptop.exec_with_input("default", &["cat"], &bytes);
    assert!(cat.status.success() && cat.stdout == bytes, "{} bytes came back: {}", cat.stdout.len(), cat.stderr);
    let digest = Run::with_input(command("sha256sum", [""; 0]), &bytes).ok();
    assert_eq!(laptop.exec_with_input("default", &["sha256sum"], &bytes).ok(), digest);
    // A program that takes none of it must not hold anything up.
    laptop.exec_with_input("default", &["true"], &bytes).ok();
}

#[test]
fn the_end_of_exec_ends_the_program() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let start = |script: &str| {
        let mut exec = Running::start(laptop.command(&["exec", "default", "--", "sh", "-c", script]));
        let line = exec.says("pid");
        let pid: u32 = line.trim_start_matches("pid ").parse().expect(&line);
        assert!(kernel::runs(pid));
        (exec, pid)
    };
    let forever = "echo pid $$; exec sleep 600";
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let (mut exec, pid) = start(forever);
        exec.signal(signal);
        assert_eq!(exec.ends().code(), Some(code), "{}", exec.output());
        assert!(!kernel::runs(pid), "{signal} ends the program");
    }
    // A program decides what a signal means to it.
    let (mut exec, _) = start("trap 'echo caught; exit 5' INT; echo pid $$; while :; do sleep 0.1; done");
    exec.signal(Signal::SIGINT);
    assert_eq!(exec.ends().code(), Some(5), "{}", exec.output());
    assert!(exec.output().contains("caught"));
    // Nobody is left to pass a signal on.
    let (mut exec, pid) = start(forever);
    exec.signal(Signal::SIGKILL);
    exec.ends();
    until("the end of a program whose exec was killed", || (!kernel::runs(pid)).then_some(()));
}

/// Whether process `pid` does something of its own at this signal.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|caught| u64::from_str_radix(caught.trim(), 16).ok());
    caught.is_some_and(|caught| caught & (1 << (signal as u32 - 1)) != 0)
}

#[test]
fn a_signal_that_no_program_can_take_yet_ends_exec() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let [stub] = kernel::children(up.program.pid())[..] else { panic!("the stub is the only child") };
    let frozen = Frozen::new(stub);
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut exec = Running::start(laptop.command(&["exec", "default", "--", "sleep", "600"]));
        // The last that it sets up, once it has asked for the program.
        until("exec to see to signals", || catches(exec.pid(), Signal::SIGHUP).then_some(()));
        exec.signal(signal);
        assert_eq!(exec.ends().code(), Some(code), "{}", exec.output());
    }
    drop(frozen);
    laptop.exec("default", &["true"]).ok();
    until("the end of programs whose exec is gone", || kernel::children(stub).is_empty().then_some(()));
}

/// What is passed on to an `up` that was stopped goes nowhere: nobody has to press Ctrl-C a third time for that.
#[test]
fn the_second_signal_ends_exec_where_up_stands_still() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let mut exec =
        Running::start(laptop.command(&["exec", "default", "--", "sh", "-c", "echo pid $$; exec sleep 600"]));
    let line = exec.says("pid");
    let pid: u32 = line.trim_start_matches("pid ").parse().expect(&line);
    let frozen = Frozen::new(up.program.pid());
    // Two of a kind that come together are one, and of two kinds either may be seen first.
    exec.signal(Signal::SIGINT);
    exec.signal(Signal::SIGTERM);
    assert!(matches!(exec.ends().code(), Some(130 | 143)), "{}", exec.output());
    assert!(exec.output().contains("does not answer"), "{}", exec.output());
    assert!(kernel::runs(pid), "nobody could tell it");
    drop(frozen);
    until("the end of a program whose exec is gone", || (!kernel::runs(pid)).then_some(()));
    laptop.exec("default", &["true"]).ok();
}

#[test]
fn a_program_that_takes_no_input_ends_with_its_exec() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let script = "trap '' INT; echo pid $$; while :; do sleep 1; done";
        let exec = laptop.command(&["exec", "default", "--", "sh", "-c", script]);
        let (mut exec, input) = Running::start_with(exec, Stdio::piped());
        let line = exec.says("pid");
        let pid: u32 = line.trim_start_matches("pid ").parse().expect(&line);
        let _open = fill(input.expect("a pipe").into());
        // Ctrl-C again and again ends exec itself: what it passes on stands behind the input.
        until("the end of exec", || {
            exec.signal(signal);
            exec.has_ended()
        });
        until("the end of a program whose exec is gone", || (!kernel::runs(pid)).then_some(()));
    }
}

/// Writes until nothing has been taken for a while; the pipe stays open for as long as what it returns.
fn fill(pipe: OwnedFd) -> fs::File {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe of ours");
    let mut pipe = fs::File::from(pipe);
    let mut written = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(1) {
        match pipe.write(&[b'y'; 4096]) {
            Ok(n) => (written, last) = (written + n, Instant::now()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    assert!(written > 1_000_000, "{written} bytes were taken");
    pipe
}

#[test]
fn nobody_left_to_read_ends_the_program() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nexus = laptop.command(&[]);
    let script = "\"$0\" exec default -- sh -c 'echo $$; exec yes' | head -n1; echo ${PIPESTATUS[0]}";
    let mut pipe = command("bash", ["-c", script]);
    pipe.arg(nexus.get_program()).env("NEXUS_HOME", laptop.home());
    let pipe = Run::of(pipe);
    assert_eq!(pipe.stderr, "", "whoever has read enough is no fault");
    let said = pipe.ok();
    let (pid, code) = said.trim().split_once('\n').expect("the process, and how `exec` ended");
    assert_eq!(code, "141", "as of a program that SIGPIPE ends");
    let pid: u32 = pid.parse().unwrap();
    until("the end of a program that nobody reads", || (!kernel::runs(pid)).then_some(()));
}

/// Lets a process open one more file, and none after that.
fn leave_one_descriptor(pid: u32) {
    let open: BTreeSet<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process of ours")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    allow_descriptors(pid, (0..).find(|number| !open.contains(number)).expect("numbers do not end") + 1);
}

fn allow_descriptors(pid: u32, number: u64) {
    Run::of(command("prlimit", ["--pid", &pid.to_string(), &format!("--nofile={number}:")])).ok();
}

#[test]
fn a_program_is_refused_with_a_reason_where_no_descriptor_is_left() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let pid = up.program.pid();
    let mark = laptop.workspace().join("mark");
    // Something else may let go of a descriptor just then.
    let said = until("a program to be refused", || {
        let _ = fs::remove_file(&mark);
        leave_one_descriptor(pid);
        let mut exec = Running::start(laptop.command(&["exec", "default", "--", "touch", "mark"]));
        let code = until("it to end", || {
            leave_one_descriptor(pid);
            exec.has_ended()
        });
        exec.ends();
        (code.code() != Some(0)).then(|| exec.output())
    });
    allow_descriptors(pid, 1000);
    assert!(said.contains("no descriptor left") && said.contains("ulimit"), "{said}");
    assert!(!mark.exists(), "it was not begun");
    assert_eq!(laptop.exec("default", &["echo", "hi"]).ok(), "hi\n");
}

#[test]
fn many_programs_run_at_once() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let start = |n: usize| {
        let script = format!("echo ready; while ! [ -e go ]; do sleep 0.05; done; echo {n}; exit {n}");
        Running::start(laptop.command(&["exec", "default", "--", "sh", "-c", &script]))
    };
    let mut all: Vec<Running> = (0..30).map(start).collect();
    for exec in &mut all {
        exec.says("ready");
    }
    fs::write(laptop.workspace().join("go"), "").unwrap();
    for (n, exec) in all.iter_mut().enumerate() {
        assert_eq!(exec.ends().code(), Some(n as i32));
        exec.says(&n.to_string());
    }
}

#[test]
fn forwards_lead_both_ways_and_end_with_their_command() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    let target = nginx.addr.port();
    for (flag, text) in [("-L", "here → 127.0.0.1:{} in the workspace"), ("-R", "in the workspace → 127.0.0.1:{} here")]
    {
        let (line, mut forward) = laptop.forward("default", &[flag, &format!("0:127.0.0.1:{target}")], "forward");
        assert!(line.contains(&text.replace("{}", &target.to_string())), "{line}");
        let port = laptop::port_in(&line);
        let url = format!("http://127.0.0.1:{port}/hello");
        let fetched =
            if flag == "-L" { Run::of(curl(&[&url])) } else { laptop.exec("default", &["curl", "-sS", &url]) };
        assert_eq!(fetched.ok(), "hello\n");
        forward.signal(Signal::SIGINT);
        assert_eq!(forward.ends().code(), Some(0));
        until("the port to be given back", || (!listens(std::process::id(), port)).then_some(()));
    }
    let (line, _forward) = laptop.forward("default", &["-D", "0"], "forward");
    assert!(line.contains("(SOCKS5)"), "{line}");
    let proxy = format!("127.0.0.1:{}", laptop::port_in(&line));
    assert_eq!(Run::of(curl(&["--socks5-hostname", &proxy, &nginx.url("hello")])).ok(), "hello\n");
}

#[test]
fn the_end_of_forward_ends_its_connections_however_it_ends() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("0:{}", service.local_addr().unwrap());
    for (flag, signal) in
        [("-L", Signal::SIGINT), ("-L", Signal::SIGKILL), ("-R", Signal::SIGINT), ("-R", Signal::SIGKILL)]
    {
        let (port, mut forward) = laptop.forward_on_free_port(flag, &target);
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut served, _) = service.accept().unwrap();
        client.write_all(b"there").unwrap();
        served.read_exact(&mut [0; 5]).unwrap();
        forward.signal(signal);
        forward.ends();
        for end in [&mut client, &mut served] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            let ended = end.read(&mut [0; 1]);
            let over = ended.as_ref().map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |n| *n == 0);
            assert!(over, "{flag} {signal}: {ended:?}");
        }
        until("the port to be given back", || (!listens(std::process::id(), port)).then_some(()));
        assert_eq!(laptop.workspace_status()["forwards"], serde_json::json!([]), "{flag} {signal}");
    }
}

#[test]
fn forward_speaks_json() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    for flag in ["-L", "-R"] {
        let mut forward = Running::start(laptop.command(&["--json", "forward", "default", flag, "0:127.0.0.1:9"]));
        let line: serde_json::Value = serde_json::from_str(&forward.says("forward")).unwrap();
        let listen = line["forward"]["listen"].as_str().unwrap().to_owned();
        let port: u16 = listen.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
        assert!(listens(std::process::id(), port), "{line}");
        assert_eq!((&line["event"], &line["forward"]["target"]), (&"forward".into(), &"127.0.0.1:9".into()));
    }
}

#[test]
fn up_takes_forwards_and_status_counts_them() {
    let laptop = Laptop::new();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("0:{}", service.local_addr().unwrap());
    let up = laptop.up(&["-L", &target, "-R", &target, "-D", "0"]);
    let lines: Vec<String> = up.program.lines().into_iter().filter(|line| line.contains("forward ")).collect();
    assert_eq!(lines.len(), 3, "{}", up.program.output());

    let mut client = TcpStream::connect(("127.0.0.1", laptop::port_in(&lines[0]))).unwrap();
    client.write_all(b"to the workspace").unwrap();
    let (mut served, _) = service.accept().unwrap();
    served.write_all(b"and back").unwrap();
    client.read_exact(&mut [0; 8]).unwrap();
    served.read_exact(&mut [0; 16]).unwrap();
    let status = until("the bytes to be counted", || {
        let status = laptop.workspace_status();
        let forward = &status["forwards"][0];
        (forward["sent"] == 16 && forward["received"] == 8).then_some(status)
    });
    assert_eq!(status["tunnel"]["state"], "up", "{status}");
    assert_eq!((&status["workspace"], &status["pid"]), (&"default".into(), &up.program.pid().into()));
    let forwards = status["forwards"].as_array().unwrap();
    let kinds: Vec<_> = forwards.iter().map(|f| f["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["local", "dynamic", "remote"], "those that listen here begin first");
    assert!(forwards.iter().all(|f| f["ready"] == true && f["error"].is_null()), "{status}");
    assert_eq!((&forwards[0]["open"], &forwards[0]["total"]), (&1.into(), &1.into()), "{status}");
    assert_eq!(forwards[1]["total"], 0);

    let text = laptop.run(&["status"]).ok();
    for word in ["default (process", "up since", "-L 127.0.0.1:", "1 open, 1 so far, 16 B up, 8 B down", "SOCKS5"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    drop((client, served));
    until("the connection to be counted as closed", || {
        (laptop.workspace_status()["forwards"][0]["open"] == 0).then_some(())
    });
}

#[test]
fn commands_say_that_nothing_is_up() {
    let laptop = Laptop::new();
    let start = "hint: run `nexus-proxy up";
    let remote =
        "hint: run `nexus-proxy up default` in another terminal, with --coordinator URL for a remote workspace";
    for (words, code, hint) in [
        (&["status"][..], 3, start),
        (&["status", "other"], 3, start),
        (&["down"], 3, "hint: `nexus-proxy status` shows what is up"),
        (&["forward", "default", "-L", "0:127.0.0.1:80"], 3, remote),
        (&["exec", "default", "--", "true"], 125, remote),
    ] {
        let run = laptop.run(words);
        assert_eq!(run.status.code(), Some(code), "{words:?}");
        assert!(run.stderr.contains("error: ") && run.stderr.contains(hint), "{}", run.stderr);
        let run = laptop.run(&[&["--json"], words].concat());
        assert_eq!(run.status.code(), Some(code), "--json {words:?}");
        let said = if run.stdout.is_empty() { run.stderr.as_bytes() } else { &run.stdout[..] };
        serde_json::from_slice::<serde_json::Value>(said).unwrap_or_else(|e| panic!("{words:?}: {e}: {}", run.stderr));
    }
    let help = laptop.run(&["--help"]).ok();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("2 wrong usage or configuration, 3 not up or not reachable, 4 refused"), "{help}");
}

#[test]
fn the_exit_code_stands_where_the_message_cannot_be_written() {
    let laptop = Laptop::new();
    for (words, code) in [(&["exec", "nope", "--", "true"][..], 125), (&["--json", "status"], 3), (&["no-such"], 2)] {
        let full = || fs::File::options().write(true).open("/dev/full").expect("a file that takes nothing");
        let status = laptop.command(words).stdout(full()).stderr(full()).status().expect("a program of ours");
        assert_eq!(status.code(), Some(code), "{words:?}");
    }
}

#[test]
fn a_disk_that_takes_no_more_is_thought_of_and_named() {
    for blocks in ["0", "8", "64", "180"] {
        let laptop = Laptop::new();
        let up = laptop.command(&["up"]);
        // As on a full disk, the first file that would grow past this cannot.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut limited = command("sh", ["-c", &script]);
        limited.arg(up.get_program()).args(up.get_args());
        program::take_surroundings(&mut limited, &up);
        let up = Run::of(limited);
        assert_eq!(up.status.code(), Some(1), "{blocks}: {}", up.stderr);
        let (data, last) = (laptop.home().join("data/local/default/coordinator"), up.stderr.lines().next_back());
        assert!(last.is_some_and(|hint| hint.starts_with("hint: is the disk full?")), "{blocks}: {}", up.stderr);
        assert!(up.stderr.contains(&data.display().to_string()), "{blocks}: {}", up.stderr);
    }
}

#[test]
fn wrong_usage_is_told() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    for words in [
        &["forward", "default"][..],
        &["forward", "default", "-L", "1:2:3:4:5"],
        &["forward", "default", "-L", "0:127.0.0.1:70000"],
        &["forward", "default", "-D", "127.0.0.1"],
        &["exec", "default"],
        &["exec", "default", "--env", "=x", "--", "true"],
        &["exec", "Not A Name", "--", "true"],
        &["up", "--no-such-flag"],
        &["no-such-command"],
    ] {
        let run = laptop.run(words);
        assert_eq!(run.status.code(), Some(2), "{words:?}: {}", run.stderr);
        assert!(!run.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn completions_and_man_pages_are_for_all_three_programs() {
    let programs = [
        ("nexus-proxy", env!("CARGO_BIN_EXE_nexus-proxy")),
        ("nexus-stub", env!("CARGO_BIN_EXE_nexus-stub")),
        ("nexus-coordinator", env!("CARGO_BIN_EXE_nexus-coordinator")),
    ];
    let folder = tempfile::TempDir::new().unwrap();
    for (name, path) in programs {
        let generate = |words: &[&str]| {
            let mut program = std::process::Command::new(path);
            program.arg("generate").args(words);
            Run::of(program).ok()
        };
        let script = folder.path().join(name);
        fs::write(&script, generate(&["completions", "bash"])).unwrap();
        let ask = format!("source '{}' && complete -p {name}", script.display());
        assert!(Run::of(command("bash", ["--norc", "-c", &ask])).ok().contains(name), "bash completes {name}");
        assert!(generate(&["completions", "zsh"]).starts_with(&format!("#compdef {name}\n")));
        assert!(generate(&["completions", "fish"]).contains(&format!("complete -c {name} ")));

        let man = folder.path().join("man").join(name);
        generate(&["man", &man.to_string_lossy()]);
        let page = fs::read_to_string(man.join(format!("{name}.1"))).expect(name);
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        assert!(fs::read_dir(&man).unwrap().count() > 3, "a page a command");
    }
}

#[test]
fn nothing_listens_beyond_this_machine() {
    let laptop = Laptop::new();
    let up = laptop.up(&[]);
    let mut pids = kernel::children(up.program.pid());
    pids.push(up.program.pid());
    let listening = Run::of(command("ss", ["-Hltnp"])).ok();
    let ours: Vec<&str> =
        listening.lines().filter(|line| pids.iter().any(|pid| line.contains(&format!("pid={pid},")))).collect();
    assert!(ours.len() >= 2, "the coordinator's port and the workspace's direct one: {ours:?}\n{listening}");
    for line in ours {
        let address = line.split_whitespace().nth(3).expect("an address");
        assert!(address.starts_with("127.0.0.1:"), "{line}");
    }
}

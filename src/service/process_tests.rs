//! Tests of processes: output, input, signals, and that none is left behind.

use super::*;
use crate::service::process_run::run_process;
use crate::service::testing::PIPE;
use nix::sys::signal::kill;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::mpsc;

fn defaults() -> ProcessDefaults {
    let path = "/usr/local/bin:/usr/bin:/bin".to_owned();
    ProcessDefaults { cwd: "/".into(), env: BTreeMap::from([("PATH".to_owned(), path)]) }
}

fn argv(arguments: &[&str]) -> ProcessRequest {
    ProcessRequest { argv: arguments.iter().map(|a| (*a).to_owned()).collect(), ..Default::default() }
}

fn shell(script: &str) -> ProcessRequest {
    argv(&["sh", "-c", script])
}

/// Serves `request`; returns the laptop's end.
fn serve(request: ProcessRequest) -> (FramedStream<DuplexStream>, tokio::task::JoinHandle<Result<Exit, StreamError>>) {
    let (here, there) = tokio::io::duplex(PIPE);
    let serving = tokio::spawn(async move { serve_process(FramedStream::new(there), request, &defaults()).await });
    (FramedStream::new(here), serving)
}

struct Ran {
    exit: Result<Exit, Refusal>,
    out: Vec<u8>,
    err: Vec<u8>,
}

async fn run(request: ProcessRequest, input: &[u8]) -> Ran {
    let (stream, _serving) = serve(request);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run_process(stream, input, &mut out, &mut err, mpsc::channel(1).1).await;
    Ran { exit, out, err }
}

fn code(code: i32) -> Exit {
    Exit { code: Some(code), signal: None }
}

async fn gone(pid: Pid) {
    let left = async {
        while kill(pid, None).is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), left).await.expect("the process is gone");
}

#[tokio::test]
async fn input_output_error_and_code() {
    let ran = run(shell("cat; echo oops >&2; exit 3"), b"to and fro").await;
    assert_eq!(ran.exit, Ok(code(3)));
    assert_eq!((&ran.out[..], &ran.err[..]), (&b"to and fro"[..], &b"oops\n"[..]));
}

#[tokio::test]
async fn bytes_pass_as_they_are() {
    let bytes = [0xff, 0, 0xc3, b'\n', 0x80];
    assert_eq!(run(argv(&["cat"]), &bytes).await.out, bytes);
    let large = crate::service::testing::pattern(5_000_000);
    assert!(run(argv(&["cat"]), &large).await.out == large);
}

#[tokio::test]
async fn no_shell_reads_the_arguments_and_the_environment_is_the_given_one() {
    assert_eq!(run(argv(&["echo", "$HOME; *"]), b"").await.out, b"$HOME; *\n");
    let mut request = argv(&["env"]);
    request.env.insert("GREETING".into(), "hello".into());
    let out = String::from_utf8(run(request, b"").await.out).unwrap();
    let mut names: Vec<_> = out.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["GREETING", "PATH"]);
    let mut request = argv(&["pwd"]);
    request.cwd = Some("usr".into());
    assert_eq!(run(request, b"").await.out, b"/usr\n");
}

#[tokio::test]
async fn what_cannot_run_is_explained() {
    let mut nowhere = argv(&["true"]);
    nowhere.cwd = Some("/no/such".into());
    for (request, expected) in [
        (argv(&[]), RefusalCode::InvalidArguments),
        (argv(&["no-such-program"]), RefusalCode::NotFound),
        (argv(&["/etc/passwd"]), RefusalCode::Denied),
        (argv(&["echo", "a\0b"]), RefusalCode::InvalidArguments),
        (nowhere, RefusalCode::InvalidArguments),
    ] {
        let refusal = run(request, b"").await.exit.unwrap_err();
        assert_eq!(refusal.code, expected, "{refusal}");
        assert!(refusal.message.contains("hint:"), "{refusal}");
    }
}

#[tokio::test]
async fn an_exit_does_not_wait_for_input() {
    let (stream, _serving) = serve(argv(&["true"]));
    let (_open, stdin) = tokio::io::duplex(10);
    let exit = run_process(stream, stdin, Vec::new(), Vec::new(), mpsc::channel(1).1).await;
    assert_eq!(exit, Ok(code(0)));
}

#[tokio::test]
async fn input_that_nobody_reads_is_no_error() {
    assert_eq!(run(shell("exec <&-; exit 0"), &vec![0; 5_000_000]).await.exit, Ok(code(0)));
}

#[tokio::test]
async fn signals_reach_the_group_even_behind_unread_input() {
    let (stream, _serving) = serve(shell("trap 'exit 9' TERM; sleep 20 & echo ready; wait"));
    let (mut stdout, ready) = tokio::io::duplex(100);
    let (send, signals) = mpsc::channel(1);
    let input = vec![0; 500_000];
    let running = run_process(stream, &input[..], ready, Vec::new(), signals);
    let signalling = async {
        let mut line = [0; 6];
        stdout.read_exact(&mut line).await.unwrap();
        send.send(15).await.unwrap();
    };
    let (exit, ()) = tokio::join!(running, signalling);
    assert_eq!(exit, Ok(code(9)));
    let killed = run(shell("kill -9 $$"), b"").await.exit.unwrap();
    assert_eq!((killed.signal, killed.shell_code()), (Some(9), 137));
}

#[tokio::test]
async fn a_signal_before_the_answer_is_taken_here_and_the_stream_ends() {
    let (here, mut silent) = tokio::io::duplex(PIPE);
    let (send, signals) = mpsc::channel(1);
    send.send(15).await.unwrap();
    let exit = run_process(FramedStream::new(here), &b"input"[..], Vec::new(), Vec::new(), signals).await;
    assert_eq!(exit, Ok(Exit { code: None, signal: Some(15) }));
    let mut said = Vec::new();
    silent.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"", "nothing is said to a process that is not there");
}

#[tokio::test]
async fn much_output_is_streamed() {
    let (mut stream, _serving) = serve(argv(&["head", "-c", "200000000", "/dev/zero"]));
    stream.answer().await.unwrap();
    let mut total = 0;
    loop {
        let frame = stream.reader.expect().await.unwrap();
        match frame.kind {
            FrameKind::Data => total += frame.payload.len(),
            kind => break assert_eq!(kind, FrameKind::Exit),
        }
    }
    assert_eq!(total, 200_000_000);
    assert_eq!(stream.reader.expect().await.unwrap().kind, FrameKind::End);
}

#[tokio::test]
async fn a_silent_child_that_holds_the_pipe_does_not_hold_up_the_end() {
    let ran = run(shell("sleep 1000 & echo $!"), b"").await;
    assert_eq!(ran.exit, Ok(code(0)));
    let pid: i32 = String::from_utf8(ran.out).unwrap().trim().parse().unwrap();
    // It was left alone, as a program in the background should be.
    kill(Pid::from_raw(pid), NixSignal::SIGKILL).unwrap();
}

#[tokio::test]
async fn output_of_a_child_that_goes_on_is_complete() {
    let mut said = Vec::new();
    // A machine that stands still for half a second makes a child seem silent; it does not each time.
    for _ in 0..5 {
        let ran = run(shell("(for i in 1 2 3 4; do sleep 0.2; echo $i; done) & exit 0"), b"").await;
        assert_eq!(ran.exit, Ok(code(0)));
        said = ran.out;
        if said == b"1\n2\n3\n4\n" {
            return;
        }
    }
    panic!("{}", String::from_utf8_lossy(&said));
}

/// The id of a child of the shell, which ignores what asks it to end.
async fn stubborn() -> (FramedStream<DuplexStream>, tokio::task::JoinHandle<Result<Exit, StreamError>>, Pid, Pid) {
    let (mut stream, serving) = serve(shell("trap '' HUP TERM; sleep 1000 & echo $!; wait; wait; cat"));
    let leader = stream.answer().await.unwrap().pid.unwrap();
    let child = stream.reader.expect().await.unwrap().payload;
    let child: i32 = std::str::from_utf8(&child).unwrap().trim().parse().unwrap();
    (stream, serving, Pid::from_raw(leader as i32), Pid::from_raw(child))
}

#[tokio::test]
async fn no_process_outlives_the_future() {
    let (_stream, serving, leader, child) = stubborn().await;
    serving.abort();
    gone(leader).await;
    gone(child).await;
}

#[tokio::test]
async fn a_lost_stream_ends_the_group() {
    let (stream, serving, leader, child) = stubborn().await;
    drop(stream);
    assert!(matches!(serving.await.unwrap(), Err(StreamError::Truncated)));
    gone(leader).await;
    gone(child).await;
}

#[tokio::test]
async fn an_abort_hangs_up_first() {
    let (mut stream, serving) = serve(shell("trap 'exit 0' HUP; sleep 1000 & echo; wait"));
    stream.answer().await.unwrap();
    stream.reader.expect().await.unwrap();
    stream.writer.abort(&Refusal::new(RefusalCode::Cancelled, "enough")).await;
    assert!(matches!(serving.await.unwrap(), Err(StreamError::Refused(r)) if r.message == "enough"));
}

#[tokio::test]
async fn cut_output_is_an_error() {
    let (here, there) = tokio::io::duplex(PIPE);
    let mut workspace = FramedStream::new(there);
    workspace.accepted(&Accepted::default()).await.unwrap();
    workspace.writer.send_data(b"half").await.unwrap();
    drop(workspace);
    let exit = run_process(FramedStream::new(here), &b""[..], Vec::new(), Vec::new(), mpsc::channel(1).1).await;
    assert_eq!(exit.unwrap_err().code, RefusalCode::Unavailable);
}

#[tokio::test]
async fn children_of_the_child_may_end_in_order() {
    let dir = tempfile::tempdir().unwrap();
    // It ignores the signals that end the leader, and takes its time after the end of its input.
    let child = "trap '' HUP TERM; echo; cat; sleep 0.1; : > done";
    let mut request = argv(&["sh", "-c", "exec 3<&0; sh -c \"$0\" <&3 & wait", child]);
    request.cwd = Some(dir.path().to_str().unwrap().into());
    let (mut stream, serving) = serve(request);
    stream.answer().await.unwrap();
    stream.reader.expect().await.unwrap();
    drop(stream);
    assert!(serving.await.unwrap().is_err());
    assert!(dir.path().join("done").exists());
}

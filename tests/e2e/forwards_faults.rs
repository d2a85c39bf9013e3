//! Forwards when things go wrong: what a person sees, and that nothing else suffers.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::program::free_port;
use crate::support::transfers::RECOVERY;
use crate::support::*;

#[test]
fn a_target_that_refuses_resets_and_status_says_why() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let target = format!("127.0.0.1:{}", free_port());
    for flag in ["-L", "-R"] {
        let (port, _forward) = laptop.forward_on_free_port(flag, &format!("0:{target}"));
        // The reset may come before the connection is noticed to be there.
        let ended = TcpStream::connect(("127.0.0.1", port)).and_then(|mut client| {
            client.set_read_timeout(Some(PATIENCE))?;
            client.read(&mut [0; 1])
        });
        let ended = ended.expect_err("an end in good order would be a lie");
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{flag}");
        let status = laptop.workspace_status();
        let error = status["forwards"][0]["error"].as_str().unwrap_or_default();
        assert!(error.contains(&format!("nothing listens on {target}")), "{flag}: {status}");
        let run = Run::of(curl(&[&format!("http://127.0.0.1:{port}/")]));
        assert!(matches!(run.status.code(), Some(7 | 55 | 56)), "{flag}: {:?} {}", run.status, run.stderr);
        assert!(laptop.run(&["status"]).ok().contains("nothing listens on"));
    }
}

#[test]
fn a_port_in_use_is_named() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (flag, spec) in
        [("-L", format!("{port}:127.0.0.1:9")), ("-R", format!("{port}:127.0.0.1:9")), ("-D", port.to_string())]
    {
        let run = laptop.run(&["forward", "default", flag, &spec]);
        assert_eq!(run.status.code(), Some(1), "{flag}: {}", run.stderr);
        let said = run.err();
        assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("in use"), "{flag}: {said}");
        assert!(said.contains("hint:") && said.contains("port 0"), "{flag}: {said}");
    }
    assert_eq!(laptop.workspace_status()["forwards"], serde_json::json!([]));

    let other = Laptop::new();
    let run = other.run(&["up", "-L", &format!("{port}:127.0.0.1:9")]);
    assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
    assert!(run.err().contains("in use"));
    laptop.exec("default", &["true"]).ok();
}

#[test]
fn before_the_first_session_a_forward_listens_and_says_that_nothing_is_behind_it() {
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    let mut world = Linked::new();
    world.stub.stop(Signal::SIGTERM);
    let (near, target) = (world.near.url(), format!("0:{}", nginx.addr));
    let words = ["up", "box", "--no-direct", "--coordinator", &near, "-L", &target, "-R", &target];
    let mut up = Running::start(world.laptop.command(&words));
    let url = format!("http://127.0.0.1:{}/hello", laptop::port_in(&up.says("forward")));
    let early = Run::of(curl(&[&url]));
    assert!(matches!(early.status.code(), Some(55 | 56)), "{:?} {}", early.status, early.stderr);
    let status = world.laptop.workspace_status();
    let forwards = status["forwards"].as_array().expect("a list");
    assert_eq!((forwards.len(), &forwards[0]["ready"]), (1, &false.into()), "{status}");
    assert_eq!(forwards[0]["error"], "the tunnel is down");
    world.stub = world.machine.stub(None);
    up.says_after(0, RECOVERY, "end-to-end verified");
    assert_eq!(Run::of(curl(&[&url])).ok(), "hello\n");
    let forwards = world.laptop.workspace_status()["forwards"].take();
    assert_eq!((&forwards[0]["ready"], &forwards[1]["ready"]), (&true.into(), &true.into()), "{forwards}");
}

#[test]
fn two_hundred_downloads_at_once() {
    const FILES: usize = 200;
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = Nginx::start();
    let folder = TempDir::new().unwrap();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:{}", nginx.addr));
    let mut list = String::new();
    for n in 0..FILES {
        fs::write(nginx.root.join(n.to_string()), vec![n as u8; 50_000 + n]).unwrap();
        list += &format!("url = \"http://127.0.0.1:{port}/{n}\"\noutput = \"{n}\"\n");
    }
    fs::write(folder.path().join("list"), list).unwrap();
    let mut all = curl(&["--parallel", "--parallel-immediate", "--parallel-max", "200", "-K", "list"]);
    all.current_dir(folder.path());
    Run::of(all).ok();
    for n in 0..FILES {
        let got = fs::read(folder.path().join(n.to_string())).unwrap();
        assert!(got == vec![n as u8; 50_000 + n], "file {n} has {} bytes", got.len());
    }
    let status = until("every connection to be over", || {
        let status = laptop.workspace_status();
        (status["forwards"][0]["open"] == 0).then_some(status)
    });
    assert!(status["forwards"][0]["total"].as_u64().unwrap() >= 100, "{status}");
}

/// A server for one request: part of an answer of 10 MB whose length it has (or has not) promised, then it dies.
fn dying_server(promise: &str, death: &str) -> (u16, Running) {
    let script = format!(
        "import os, signal, socket, struct\n\
         s = socket.socket()\n\
         s.bind(('127.0.0.1', 0))\n\
         s.listen()\n\
         print('port', s.getsockname()[1])\n\
         c, _ = s.accept()\n\
         c.recv(65536)\n\
         c.sendall(b'HTTP/1.1 200 OK\\r\\n{promise}\\r\\n\\r\\n' + b'x' * 3000000)\n\
         {death}\n"
    );
    let mut program = Running::start(command("python3", ["-u", "-c", &script]));
    let port = program.says("port ").trim_start_matches("port ").parse().expect("the script prints a number");
    (port, program)
}

#[test]
fn a_server_that_dies_is_no_complete_download() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    // Without a promised length, only the way the connection ends tells a whole answer from a part.
    let reset = "c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()";
    let killed = "os.kill(os.getpid(), signal.SIGKILL)";
    for (promise, death, codes) in [
        ("Content-Length: 10000000", killed, [18, 18]),
        ("Content-Length: 10000000", reset, [18, 56]),
        ("Connection: close", reset, [56, 56]),
    ] {
        for flag in ["-L", "-R"] {
            let (target, _server) = dying_server(promise, death);
            let (port, _forward) = laptop.forward_on_free_port(flag, &format!("0:127.0.0.1:{target}"));
            let run = Run::of(curl(&["-o", "/dev/null", &format!("http://127.0.0.1:{port}/")]));
            let code = run.status.code().unwrap_or_default();
            assert!(codes.contains(&code), "{flag}, {promise}, {death}: {code} {}", run.stderr);
        }
    }
    // What ends in good order is complete.
    let (target, _server) = dying_server("Connection: close", "c.close()");
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:127.0.0.1:{target}"));
    let run = Run::of(curl(&[&format!("http://127.0.0.1:{port}/")]));
    assert!(run.status.success() && run.stdout.len() == 3_000_000, "{} {}", run.stdout.len(), run.stderr);
}

#[test]
fn a_client_that_gives_up_lets_the_server_know() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:{}", service.local_addr().unwrap()));
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut served, _) = service.accept().unwrap();
    served.set_write_timeout(Some(PATIENCE)).unwrap();
    drop(client);
    let chunk = vec![0; 1 << 20];
    until("a write to fail", || served.write_all(&chunk).is_err().then_some(()));
}

#[test]
fn a_stub_that_is_killed_is_no_complete_download_and_is_told_of() {
    for way in [Way::Relay, Way::Direct] {
        let mut world = World::by(way);
        let url = world.url();
        let laptop = world.linked.laptop.twin();
        let mut up = laptop.up(&["box", "--coordinator", &url]);
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let (line, _forward) =
            laptop.forward("box", &["-L", &format!("0:{}", service.local_addr().unwrap())], "forward");
        let download = format!("http://127.0.0.1:{}/", laptop::port_in(&line));
        let mut curl = Running::start(curl(&["-v", "-o", "/dev/null", &download]));
        let (mut served, _) = service.accept().unwrap();
        assert_ne!(served.read(&mut [0; 4096]).unwrap(), 0, "the request");
        served.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart of it").unwrap();
        curl.says("200 OK");
        world.linked.stub.stop(Signal::SIGKILL);
        world.linked.stub = world.linked.machine.stub(None);
        // What the session was is gone with the process; the next one knows that, and says so.
        up.program.says("its stub was restarted; a new session begins");
        let status = curl.ends();
        assert!(!status.success(), "{status}: {}", curl.output());
        until("the next session", || (up.tunnels() == 2).then_some(()));
        assert_eq!(laptop.exec("box", &["echo", "hi"]).ok(), "hi\n");
    }
}

#[test]
fn an_up_that_is_killed_is_no_complete_download() {
    let laptop = Laptop::new();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    for by in [Signal::SIGKILL, Signal::SIGINT] {
        let mut up = laptop.up(&["-L", &format!("0:{}", service.local_addr().unwrap())]);
        let port = laptop::port_in(&up.program.says("forward"));
        let mut curl = Running::start(curl(&["-v", "-o", "/dev/null", &format!("http://127.0.0.1:{port}/")]));
        let (mut served, _) = service.accept().unwrap();
        assert_ne!(served.read(&mut [0; 4096]).unwrap(), 0, "the request");
        served.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart of it").unwrap();
        curl.says("200 OK");
        up.program.signal(by);
        up.program.ends();
        // Its end is all that tells whether the answer was complete.
        assert_eq!(curl.ends().code(), Some(56), "{by}: {}", curl.output());
    }
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").unwrap();
    fs::write(nginx.root.join("large"), vec![b'x'; 50_000_000]).unwrap();
    let (port, _forward) = laptop.forward_on_free_port("-L", &format!("0:{}", nginx.addr));
    let received = || laptop.workspace_status()["forwards"][0]["received"].as_u64().unwrap();
    let mut stuck: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    for client in &mut stuck {
        client.write_all(b"GET /large HTTP/1.0\r\n\r\n").unwrap();
    }
    // Until the buffers on the way are full: two answers in a row that are the same, and not nothing.
    let mut before = 0;
    until("everything to stand still", || {
        let now = received();
        let still = now > 1_000_000 && now == before;
        before = now;
        still.then_some(())
    });
    let page = Run::of(curl(&[&format!("http://127.0.0.1:{port}/hello")]));
    assert_eq!(page.ok(), "hello\n");
    laptop.exec("default", &["true"]).ok();
    // They were only waiting.
    for mut client in stuck {
        let mut answer = Vec::new();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_to_end(&mut answer).unwrap();
        assert!(answer.len() > 50_000_000, "{} bytes", answer.len());
    }
}

//! Unix sockets as ends of a forward, at either side, as for a Docker socket.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::*;

/// nginx with one page, on a port and on a Unix socket.
fn nginx() -> Nginx {
    let nginx = Nginx::start();
    fs::write(nginx.root.join("hello"), "hello\n").expect("a file of ours");
    nginx
}

#[test]
fn a_port_leads_to_a_socket() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = nginx();
    let target = format!("0:{}", nginx.socket.display());
    let (here, _local) = laptop.forward_on_free_port("-L", &target);
    assert_eq!(Run::of(curl(&[&format!("http://127.0.0.1:{here}/hello")])).ok(), "hello\n");
    let (there, _remote) = laptop.forward_on_free_port("-R", &target);
    let url = format!("http://127.0.0.1:{there}/hello");
    assert_eq!(laptop.exec("default", &["curl", "-sS", &url]).ok(), "hello\n");
}

#[test]
fn a_socket_leads_to_a_port_and_to_another_socket() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = nginx();
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("here.sock");
    let path = socket.to_string_lossy().into_owned();
    for target in [nginx.addr.to_string(), nginx.socket.display().to_string()] {
        for flag in ["-L", "-R"] {
            let (line, mut forward) = laptop.forward("default", &[flag, &format!("{path}:{target}")], "forward");
            assert!(line.contains(&path) && line.contains(&target), "{line}");
            let metadata = fs::metadata(&socket).unwrap();
            assert!(metadata.file_type().is_socket());
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "only its owner may use it");
            let page = Run::of(curl(&["--unix-socket", &path, "http://localhost/hello"]));
            assert_eq!(page.ok(), "hello\n", "{flag} {target}");
            forward.signal(Signal::SIGINT);
            assert_eq!(forward.ends().code(), Some(0));
            until("the socket's file to be gone", || (!socket.exists()).then_some(()));
        }
    }
}

/// Whoever types a relative path means the directory they are in, and not that of the `up` that listens and connects.
#[test]
fn a_relative_path_on_the_laptop_begins_where_it_was_typed() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = nginx();
    let folder = nginx.socket.parent().expect("a folder");
    let typed = |words: &[&str]| {
        let mut command = laptop.command(&[&["forward", "default"], words].concat());
        command.current_dir(folder);
        command
    };
    let mut local = Running::start(typed(&["-L", &format!("./here.sock:{}", nginx.addr)]));
    let socket = folder.join("here.sock").display().to_string();
    assert!(local.says("forward").contains(&socket), "{}", local.output());
    assert_eq!(Run::of(curl(&["--unix-socket", &socket, "http://localhost/hello"])).ok(), "hello\n");
    assert_eq!(laptop.workspace_status()["forwards"][0]["listen"], socket.as_str());
    let mut remote = Running::start(typed(&["-R", "0:./http.sock"]));
    let url = format!("http://127.0.0.1:{}/hello", laptop::port_in(&remote.says("forward")));
    assert_eq!(laptop.exec("default", &["curl", "-sS", &url]).ok(), "hello\n");

    // In the workspace it begins in the workspace's directory.
    std::os::unix::fs::symlink(&nginx.socket, laptop.workspace().join("there.sock")).expect("a link of ours");
    let mut local = Running::start(typed(&["-L", "0:./there.sock"]));
    let url = format!("http://127.0.0.1:{}/hello", laptop::port_in(&local.says("forward")));
    assert_eq!(Run::of(curl(&[&url])).ok(), "hello\n");
    let mut remote = Running::start(typed(&["-R", &format!("./back.sock:{}", nginx.addr)]));
    remote.says("forward");
    let words = ["curl", "-sS", "--unix-socket", "back.sock", "http://localhost/hello"];
    assert_eq!(laptop.exec("default", &words).ok(), "hello\n");
}

#[test]
fn a_relative_path_in_a_directory_that_no_forward_can_name_is_refused() {
    let laptop = Laptop::new();
    let folder = laptop.home().join("a:b");
    fs::create_dir(&folder).unwrap();
    let mut command = laptop.command(&["forward", "default", "-L", "./here.sock:80"]);
    command.current_dir(&folder);
    let run = Run::of(command);
    assert_eq!(run.status.code(), Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("a:b/here.sock") && run.stderr.contains("hint:"), "{}", run.stderr);
}

#[test]
fn a_path_that_is_taken_is_not_taken_away() {
    let laptop = Laptop::new();
    let _up = laptop.up(&[]);
    let nginx = nginx();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("precious");
    fs::write(&file, "precious").unwrap();
    for path in [file.display().to_string(), nginx.socket.display().to_string()] {
        for flag in ["-L", "-R"] {
            let run = laptop.run(&["forward", "default", flag, &format!("{path}:127.0.0.1:9")]);
            assert_eq!(run.status.code(), Some(1), "{flag} {path}: {}", run.stderr);
            let said = run.err();
            assert!(said.contains(&path) && said.contains("hint:"), "{flag}: {said}");
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let page = curl(&["--unix-socket", &nginx.socket.to_string_lossy(), "http://localhost/hello"]);
    assert_eq!(Run::of(page).ok(), "hello\n", "its server still has it");
}

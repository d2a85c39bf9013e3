//! Files of the laptop, read from the workspace.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use crate::support::*;

#[test]
fn a_declared_file_is_read_whole_or_in_part() {
    let laptop = Laptop::new();
    let bytes: Vec<u8> = rand::random_iter().take(2_000_000).collect();
    let (folder, single) = (laptop.home().join("open"), laptop.home().join("single"));
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::write(folder.join("deep/er/binary"), &bytes).unwrap();
    fs::write(&single, "single\n").unwrap();
    laptop.configure(&format!(
        "version: 1\nfiles:\n  - path: {}\n    max_size: 3MB\n  - {}\n",
        folder.display(),
        single.display()
    ));
    let _up = laptop.up(&[]);
    let path = folder.join("deep/er/binary").display().to_string();
    let read = |more: &[&str]| laptop.stub(&[&["file", "read", &path], more].concat());
    let whole = read(&[]);
    assert!(whole.status.success() && whole.stdout == bytes, "{} bytes: {}", whole.stdout.len(), whole.stderr);
    let part = read(&["--offset", "1000000", "--length", "5000"]);
    assert!(part.status.success() && part.stdout == bytes[1_000_000..1_005_000], "{}", part.stderr);
    assert_eq!(read(&["--offset", "5000000"]).ok(), "", "behind its end there is nothing");
    assert_eq!(laptop.stub(&["file", "read", &single.to_string_lossy()]).ok(), "single\n");
    // To a program that hashes, as an agent would.
    let script = format!("nexus-stub file read '{path}' | sha256sum");
    let expected = Run::with_input(command("sha256sum", [""; 0]), &bytes).ok();
    assert_eq!(laptop.exec("default", &["sh", "-c", &script]).ok(), expected);
}

#[test]
fn what_is_no_declared_file_is_refused() {
    let laptop = Laptop::new();
    let home = laptop.home().to_owned();
    let open = home.join("open");
    fs::create_dir_all(open.join("inner")).unwrap();
    fs::write(home.join("outside"), "canary").unwrap();
    fs::write(home.join("open-not"), "canary").unwrap();
    symlink(home.join("outside"), open.join("link")).unwrap();
    symlink(&home, open.join("way-out")).unwrap();
    symlink("/dev/zero", open.join("zero")).unwrap();
    nix::unistd::mkfifo(&open.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(open.join("socket")).unwrap();
    File::create(open.join("sparse")).unwrap().set_len(10_000_000_000).unwrap();
    laptop.configure(&format!("version: 1\nfiles: [{}, /dev]\n", open.display()));
    let _up = laptop.up(&[]);
    for (path, code, why) in [
        ("open/../outside", 2, "`..`"),
        ("open/inner/../../outside", 2, "`..`"),
        ("outside", 4, "declared"),
        ("open-not", 4, "declared"),
        ("config.yaml", 4, "declared"),
        ("open/link", 4, "symbolic link"),
        ("open/way-out/outside", 4, "symbolic link"),
        ("open/zero", 4, "symbolic link"),
        ("open/fifo", 2, "a FIFO"),
        ("open/socket", 2, "a socket"),
        ("open/inner", 2, "a directory"),
        ("open/absent", 1, "does not exist"),
        ("open/sparse", 1, "10000000000 bytes"),
        ("/dev/zero", 2, "a device"),
        ("/dev/full", 2, "a device"),
        ("relative", 2, "begin with"),
    ] {
        let asked = if path == "relative" { path.into() } else { home.join(path).display().to_string() };
        let run = laptop.stub(&["file", "read", &asked]);
        assert_eq!(run.status.code(), Some(code), "{path}: {}", run.stderr);
        assert_eq!(run.stdout, b"", "{path}");
        assert!(run.stderr.contains(why) && !run.stderr.contains("canary"), "{path}: {}", run.stderr);
    }
    // A part of what is too large is not too large.
    let sparse = open.join("sparse").display().to_string();
    let part = laptop.stub(&["file", "read", &sparse, "--offset", "9999999990", "--length", "100"]);
    assert!(part.status.success() && part.stdout == [0; 10], "{} {}", part.stdout.len(), part.stderr);
    assert!(laptop.stub(&["file", "read", &sparse]).err().contains("hint: ask for a `length`"));
    // All of this held nothing up.
    laptop.exec("default", &["true"]).ok();
}

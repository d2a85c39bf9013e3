//! Every way out of a declared directory that is known, and every file that is not a file.

use super::*;
use crate::service::call::output::channel;
use std::os::unix::fs::symlink;
use tokio_util::sync::CancellationToken;

struct Fixture {
    dir: tempfile::TempDir,
    roots: Vec<FileRoot>,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path();
    std::fs::create_dir_all(base.join("notes/deep/er")).unwrap();
    std::fs::create_dir(base.join("outside")).unwrap();
    std::fs::write(base.join("notes/a.txt"), "hello").unwrap();
    std::fs::write(base.join("notes/deep/er/b.txt"), "deep").unwrap();
    std::fs::write(base.join("outside/secret"), "hunter2").unwrap();
    std::fs::write(base.join("single"), "one").unwrap();
    std::fs::write(base.join("notes-too"), "no").unwrap();
    symlink("../outside/secret", base.join("notes/link")).unwrap();
    symlink("a.txt", base.join("notes/inner-link")).unwrap();
    symlink("../outside", base.join("notes/dir-link")).unwrap();
    symlink("/dev/zero", base.join("notes/zero")).unwrap();
    nix::unistd::mkfifo(&base.join("notes/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let root = |path: &str, max_size| FileRoot { path: base.join(path), max_size };
    let roots = vec![root("notes", 1000), root("notes/deep", 10), root("single", 1000)];
    Fixture { roots, dir }
}

impl Fixture {
    async fn read(&self, path: &str) -> Result<(Vec<u8>, Value), Refusal> {
        self.part(path, 0, None).await
    }

    async fn part(&self, path: &str, offset: u64, length: Option<u64>) -> Result<(Vec<u8>, Value), Refusal> {
        let (output, mut frames) = channel(CancellationToken::new());
        let request = ReadRequest { path: path.to_owned(), offset, length };
        let collect = async {
            let mut bytes = Vec::new();
            while let Some((_, buffer)) = frames.next().await {
                bytes.extend_from_slice(buffer.payload());
            }
            bytes
        };
        let read = read(&self.roots, self.dir.path(), "config.yaml", request, output);
        let (outcome, bytes) = tokio::join!(read, collect);
        outcome.map(|value| (bytes, value))
    }

    async fn refused(&self, path: &str) -> RefusalCode {
        self.read(path).await.map(|r| panic!("{path} was read: {r:?}")).unwrap_or_else(|r| r.code)
    }
}

#[tokio::test]
async fn declared_files_are_read() {
    let f = fixture();
    let absolute = f.dir.path().join("notes/a.txt");
    for path in ["~/notes/a.txt", absolute.to_str().unwrap(), "~//notes/./a.txt"] {
        let (bytes, account) = f.read(path).await.unwrap();
        assert_eq!((&bytes[..], account), (&b"hello"[..], json!({"size": 5, "offset": 0, "bytes": 5})));
    }
    assert_eq!(f.read("~/single").await.unwrap().0, b"one");
    assert_eq!(f.read("~/notes/deep/er/b.txt").await.unwrap().0, b"deep");
    assert_eq!(f.part("~/notes/a.txt", 1, Some(3)).await.unwrap().0, b"ell");
    assert_eq!(f.part("~/notes/a.txt", 4, Some(u64::MAX)).await.unwrap().0, b"o");
    assert_eq!(f.part("~/notes/a.txt", u64::MAX, None).await.unwrap().1["bytes"], 0);
}

#[tokio::test]
async fn no_path_leads_out() {
    let f = fixture();
    for path in ["~/notes/../outside/secret", "~/..", "a.txt", "", "~other/x", "notes/a.txt", "~/notes/a\0.txt"] {
        assert_eq!(f.refused(path).await, RefusalCode::InvalidArguments, "{path}");
    }
    assert_eq!(f.refused(&format!("/{}", "x".repeat(5000))).await, RefusalCode::InvalidArguments);
    for path in ["~/outside/secret", "/etc/passwd", "~/notes-too", "~", "/", "~/single2"] {
        assert_eq!(f.refused(path).await, RefusalCode::NotDeclared, "{path}");
    }
    for path in ["~/notes/link", "~/notes/inner-link", "~/notes/dir-link/secret", "~/notes/zero"] {
        assert_eq!(f.refused(path).await, RefusalCode::Denied, "{path}");
    }
    assert_eq!(f.refused("~/notes/none").await, RefusalCode::NotFound);
    assert_eq!(f.refused("~/notes/a.txt/x").await, RefusalCode::NotFound);
    assert_eq!(f.refused("~/single/x").await, RefusalCode::NotFound);
}

#[test]
fn the_stepwise_way_is_as_strict() {
    let f = fixture();
    let directory = rustix::fs::open(f.dir.path().join("notes"), DIRECTORY, Mode::empty()).unwrap();
    let open = |path: &str| open_stepwise(&directory, Path::new(path)).map(drop);
    assert_eq!(open("a.txt"), Ok(()));
    assert_eq!(open("deep/er/b.txt"), Ok(()));
    for path in ["link", "inner-link", "dir-link/secret", "zero"] {
        assert_eq!(open(path), Err(Errno::LOOP), "{path}");
    }
    assert_eq!(open("../outside/secret"), Err(Errno::INVAL));
    assert_eq!(open("none"), Err(Errno::NOENT));
}

#[tokio::test]
async fn what_is_not_a_regular_file_is_named() {
    let mut f = fixture();
    f.roots.push(FileRoot { path: "/dev".into(), max_size: 10 });
    let _socket = std::os::unix::net::UnixListener::bind(f.dir.path().join("notes/sock")).unwrap();
    for (path, word) in
        [("~/notes/deep", "directory"), ("~/notes/fifo", "FIFO"), ("/dev/zero", "device"), ("~/notes/sock", "socket")]
    {
        let refusal = f.read(path).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArguments);
        assert!(refusal.message.contains(word), "{refusal}");
    }
}

#[tokio::test]
async fn sizes_are_held_to_the_nearest_declaration() {
    let f = fixture();
    let sparse = f.dir.path().join("notes/sparse");
    File::create(&sparse).unwrap().set_len(10 << 30).unwrap();
    let refusal = f.read("~/notes/sparse").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::TooLarge);
    assert!(refusal.message.contains("length"));
    let (bytes, account) = f.part("~/notes/sparse", 9 << 30, Some(1000)).await.unwrap();
    assert_eq!((bytes.len(), account["size"].as_u64()), (1000, Some(10 << 30)));
    assert!(f.part("~/notes/sparse", 0, Some(1001)).await.is_err());
    std::fs::write(f.dir.path().join("notes/deep/c"), [0; 11]).unwrap();
    assert_eq!(f.refused("~/notes/deep/c").await, RefusalCode::TooLarge);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_gives_no_more_than_promised() {
    let mut f = fixture();
    let size = 1_000_000;
    f.roots[0].max_size = size;
    let path = f.dir.path().join("notes/log");
    for (change, expected) in [(2 * size, size..size + 1), (70_000, 65_000..size)] {
        std::fs::write(&path, vec![b'x'; size as usize]).unwrap();
        let (output, mut frames) = channel(CancellationToken::new());
        let request = ReadRequest { path: "~/notes/log".into(), offset: 0, length: None };
        let (roots, home) = (f.roots.clone(), f.dir.path().to_owned());
        let work = tokio::spawn(async move { read(&roots, &home, "", request, output).await });
        let mut total = frames.next().await.unwrap().1.payload_len() as u64;
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(change).unwrap();
        while let Some((_, buffer)) = frames.next().await {
            total += buffer.payload_len() as u64;
        }
        let account = work.await.unwrap().unwrap();
        assert_eq!(account["bytes"], total);
        assert!(expected.contains(&total), "{total}");
    }
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_read() {
    let mut f = fixture();
    f.roots[0].max_size = u64::MAX;
    File::create(f.dir.path().join("notes/sparse")).unwrap().set_len(10 << 30).unwrap();
    let (output, frames) = channel(CancellationToken::new());
    drop(frames);
    let request = ReadRequest { path: "~/notes/sparse".into(), offset: 0, length: None };
    let refusal = read(&f.roots, f.dir.path(), "", request, output).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Cancelled);
}

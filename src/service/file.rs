//! `file.read`: declared files, and files below declared directories.
//!
//! The path comes from the workspace. It is matched by components before the file system is touched, and opened from
//! the declared directory without following a single symbolic link, so that neither `..` nor a link leads out.
//! Refuses directories, devices, FIFOs and sockets, and files over the declared size.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use bytes::BufMut;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::service::call::output::Output;
use crate::session::framed::DataBuffer;
use crate::wire::limits::MAX_DATA;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Bytes of a file, or of the part that is asked for, when its declaration does not say.
pub const DEFAULT_MAX_SIZE: u64 = 1024 * 1024;

/// Bytes of a path: what Linux takes.
const MAX_PATH: usize = 4096;

/// A declared file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRoot {
    /// Absolute, without `..`.
    pub path: PathBuf,
    /// Bytes that one read may give.
    pub max_size: u64,
}

/// What `file.read` asks for.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadRequest {
    /// Absolute, or `~/…`.
    pub path: String,
    /// Where to begin, in bytes.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes at most.
    #[serde(default)]
    pub length: Option<u64>,
}

/// Reads a file below one of `roots`: its content goes to `output`, the account is returned.
pub async fn read(
    roots: &[FileRoot],
    home: &Path,
    config: &str,
    request: ReadRequest,
    output: Output,
) -> Result<Value, Refusal> {
    let path = resolve(&request.path, home)?;
    // Longest first: a declaration inside another one is the more particular.
    let root = roots.iter().filter(|r| path.starts_with(&r.path)).max_by_key(|r| r.path.components().count());
    let root = root.cloned().ok_or_else(|| {
        let message = format!(
            "no file or directory that holds this path is declared on the laptop. hint: its owner can add it to \
             {config}:\nfiles:\n  - path: {:?}",
            request.path
        );
        Refusal::new(RefusalCode::NotDeclared, message)
    })?;
    let work = move || transfer(&root, &path, &request, &output);
    tokio::task::spawn_blocking(work).await.map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))?
}

/// The absolute path that a request means, without touching the file system.
fn resolve(text: &str, home: &Path) -> Result<PathBuf, Refusal> {
    let refuse = |why: &str| Err(Refusal::new(RefusalCode::InvalidArguments, format!("the path is refused: {why}")));
    if text.contains('\0') {
        return refuse("it contains a NUL byte");
    }
    if text.len() > MAX_PATH {
        return refuse(&format!("it is longer than {MAX_PATH} bytes"));
    }
    let path = match text.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    };
    if !path.is_absolute() {
        return refuse("it is relative. hint: begin with `/` or `~/`");
    }
    if path.components().any(|c| matches!(c, Component::ParentDir)) {
        return refuse("it contains `..`. hint: name the file directly");
    }
    Ok(path.components().collect())
}

fn transfer(root: &FileRoot, path: &Path, request: &ReadRequest, output: &Output) -> Result<Value, Refusal> {
    let file = open(root, path).map_err(|errno| explain(errno, &request.path))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| explain(errno, &request.path))?;
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory. hint: name a file in it"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => Some("no regular file"),
    };
    if let Some(what) = what {
        let message = format!("`{}` cannot be read: it is {what}", request.path);
        return Err(Refusal::new(RefusalCode::InvalidArguments, message));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let rest = size.saturating_sub(request.offset);
    let wanted = request.length.unwrap_or(rest).min(rest);
    if wanted > root.max_size {
        let message = format!(
            "`{}` has {size} bytes and {wanted} of them are asked for; {max} are allowed at a time. hint: ask for a \
             `length` of at most {max}, or its owner can raise `max_size`",
            request.path,
            max = root.max_size
        );
        return Err(Refusal::new(RefusalCode::TooLarge, message));
    }
    let bytes = copy(&File::from(file), request.offset, wanted, output).map_err(|error| match error {
        CopyError::Refused(refusal) => refusal,
        CopyError::Io(error) => {
            Refusal::new(RefusalCode::Unavailable, format!("reading `{}` failed: {error}", request.path))
        }
    })?;
    Ok(json!({"size": size, "offset": request.offset, "bytes": bytes}))
}

enum CopyError {
    Io(io::Error),
    Refused(Refusal),
}

/// At most `wanted` bytes, however the file changes meanwhile.
fn copy(file: &File, offset: u64, wanted: u64, output: &Output) -> Result<u64, CopyError> {
    let mut chunk = vec![0; MAX_DATA];
    let mut done = 0;
    while done < wanted {
        let room = usize::try_from(wanted - done).unwrap_or(MAX_DATA).min(MAX_DATA);
        let n = match file.read_at(&mut chunk[..room], offset.saturating_add(done)) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Io(error)),
        };
        let mut buffer = DataBuffer::new();
        buffer.space().put_slice(&chunk[..n]);
        output.blocking_send(FrameKind::Data, &mut buffer).map_err(CopyError::Refused)?;
        done += n as u64;
    }
    Ok(done)
}

const OPEN: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens `path`, which lies below `root` or is it.
fn open(root: &FileRoot, path: &Path) -> Result<OwnedFd, Errno> {
    let inner = path.strip_prefix(&root.path).map_err(|_| Errno::INVAL)?;
    if inner.as_os_str().is_empty() {
        return rustix::fs::open(path, OPEN, Mode::empty());
    }
    let directory = rustix::fs::open(&root.path, DIRECTORY, Mode::empty())?;
    match open_beneath(&directory, inner) {
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => open_stepwise(&directory, inner),
        opened => opened,
    }
}

#[cfg(target_os = "linux")]
fn open_beneath(directory: &OwnedFd, inner: &Path) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, inner, OPEN, Mode::empty(), resolve)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_: &OwnedFd, _: &Path) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// The same, one component at a time, for systems that cannot do it in one call.
fn open_stepwise(directory: &OwnedFd, inner: &Path) -> Result<OwnedFd, Errno> {
    let mut current: Option<OwnedFd> = None;
    let mut components = inner.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else { return Err(Errno::INVAL) };
        let flags = if components.peek().is_some() { DIRECTORY | OFlags::NOFOLLOW } else { OPEN };
        let from = current.as_ref().unwrap_or(directory).as_fd();
        let opened = rustix::fs::openat(from, name, flags, Mode::empty());
        // A link where a directory should be answers ENOTDIR on Linux; elsewhere ELOOP.
        current = Some(opened.map_err(|errno| {
            let stat = rustix::fs::statat(from, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let link = stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink);
            if link { Errno::LOOP } else { errno }
        })?);
    }
    current.ok_or(Errno::INVAL)
}

fn explain(errno: Errno, path: &str) -> Refusal {
    let (code, why) = match errno {
        Errno::NOENT | Errno::NOTDIR => (RefusalCode::NotFound, "it does not exist".to_owned()),
        Errno::LOOP | Errno::XDEV | Errno::MLINK => (
            RefusalCode::Denied,
            "it is a symbolic link, or leads through one. hint: its owner can declare the path that it leads to".into(),
        ),
        Errno::ACCESS | Errno::PERM => (RefusalCode::Denied, "the laptop's own user may not read it".to_owned()),
        Errno::NXIO => (RefusalCode::InvalidArguments, "it is a socket, or a device that is not there".to_owned()),
        errno => (RefusalCode::Unavailable, io::Error::from(errno).to_string()),
    };
    Refusal::new(code, format!("`{path}` cannot be read: {why}"))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;

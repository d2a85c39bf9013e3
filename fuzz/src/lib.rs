//! What the targets share: genuine bytes with edits, and byte streams that arrive in pieces. Decides nothing about what is right;
//! each target says that for what it parses.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, SystemTime};

use arbitrary::Unstructured;
use nexus_proxy::identity::{Authority, Credential, Identity, PrivateKey, Role};
use nexus_proxy::lifeline::Paced;
use nexus_proxy::lifeline::paced::MOST_BULK;
use nexus_proxy::role::files;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Edits of one input: more make it unlike anything genuine.
const MAX_EDITS: usize = 8;

/// `genuine` with a few edits that the fuzzer chose: bytes replaced, inserted, removed, a tail cut off.
/// Says whether anything was changed.
pub fn edited(genuine: &[u8], bytes: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, bool)> {
    let mut edited = genuine.to_vec();
    for _ in 0..bytes.int_in_range(0..=MAX_EDITS)? {
        let at = bytes.choose_index(edited.len().max(1))?;
        match bytes.int_in_range(0..=4)? {
            0 if !edited.is_empty() => edited[at] = bytes.arbitrary()?,
            1 if !edited.is_empty() => edited[at] ^= 1 << bytes.int_in_range(0..=7)?,
            2 => edited.insert(at.min(edited.len()), bytes.arbitrary()?),
            3 if !edited.is_empty() => drop(edited.remove(at)),
            _ => edited.truncate(at),
        }
    }
    let changed = edited != genuine;
    Ok((edited, changed))
}

/// Whether a future, or a driver, is to be polled again.
#[derive(Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Raised, so that the first poll happens.
    pub fn raised() -> Arc<Flag> {
        Arc::new(Flag(AtomicBool::new(true)))
    }

    /// Takes it down; whether it was up.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Flag>) {
        self.0.store(true, Ordering::Release);
    }
}

/// One end of a byte stream whose other end is played by a target, in memory.
#[derive(Debug, Default, Clone)]
pub struct Pipe(Arc<Mutex<Ends>>);

/// What a [`Pipe`] holds.
#[derive(Debug, Default)]
pub struct Ends {
    /// Bytes on their way in.
    pub inward: Vec<u8>,
    /// Bytes of one read at most; 0 for as many as there are.
    pub piece: usize,
    /// Whether nothing follows what is on its way in.
    pub ended: bool,
    /// Bytes that went out.
    pub outward: Vec<u8>,
    /// Bytes that may still go out.
    pub room: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// What it holds; wakes whoever waits at the other end.
    pub fn with<T>(&self, change: impl FnOnce(&mut Ends) -> T) -> T {
        let mut ends = self.ends();
        let outcome = change(&mut ends);
        let (reader, writer) = (ends.reader.take(), ends.writer.take());
        drop(ends);
        [reader, writer].into_iter().flatten().for_each(Waker::wake);
        outcome
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.ends();
        if ends.inward.is_empty() && !ends.ended {
            ends.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let piece = if ends.piece == 0 { usize::MAX } else { ends.piece };
        let n = ends.inward.len().min(piece).min(buf.remaining());
        buf.put_slice(&ends.inward[..n]);
        ends.inward.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut ends = self.ends();
        let n = ends.room.min(buf.len());
        if n == 0 && !buf.is_empty() {
            ends.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        ends.room -= n;
        ends.outward.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Paced for Pipe {
    fn poll_paced(&mut self, _: &mut Context<'_>) -> Poll<usize> {
        Poll::Ready(MOST_BULK)
    }

    fn sparse(&mut self) {}
}

/// A directory of this process, in memory where there is such a place: files are written there for each run.
pub fn directory(name: &str) -> PathBuf {
    let base = Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
    let dir = base.join(format!("nexus-proxy-fuzz-{}", std::process::id())).join(name);
    files::private_dir(&dir).expect("a directory of ours");
    dir
}

/// Writes what an enrolment or a pairing leaves in `dir`, but for the file with names and pins.
pub fn become_member(dir: &Path, role: Role) {
    let now = SystemTime::now();
    let authority = Authority::create("d".parse().expect("a name"), now).expect("an authority");
    let key = PrivateKey::generate().expect("a key");
    let identity = Identity::new(authority.domain().clone(), role);
    let csr = key.csr_der().expect("a request");
    let chain = authority.issue(&csr, &identity, Duration::from_secs(86_400), now, &[]).expect("a certificate");
    let credential = Credential::new(chain, key).expect("a credential");
    let files = [
        ("ca.pem", authority.trust().to_pem()),
        ("chain.pem", credential.to_pem()),
        ("key.pem", credential.key.to_pem().to_string()),
    ];
    for (name, text) in files {
        files::write(&dir.join(name), text.as_bytes()).expect("a file of ours");
    }
}

/// A runtime of one thread whose clock stands still.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// Holds `value` against what comes back from its encoding.
pub fn comes_back<T: PartialEq + Debug, E: Debug>(value: &T, again: Result<T, E>) {
    match again {
        Ok(again) => assert_eq!(again, *value, "what was encoded reads differently"),
        Err(error) => panic!("{value:?} was accepted, and its encoding is not: {error:?}"),
    }
}

//! The stubs that handed this workspace over and live on until what they have is done: carriers of their sessions are
//! passed to them, and they hear which devices are not served any more.
//!
//! Each has a socket in the state directory, which goes with it: the directory is all that is known of them. So every
//! successor finds all of them, whichever of those between is gone. Nobody but this user and root is believed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::kin::Kin;
use super::link::{self, END, END_DEVICES, RESUME};
use super::{laptops, local};
use crate::identity::KeyPin;
use crate::lifeline::Route;
use crate::session::framed::StreamError;
use crate::transport::carrier::Carrier;
use crate::wire::lifeline::{Attach, LifelineMessage};
use crate::wire::{Refusal, RefusalCode};

/// Stubs that may live on beside the one that serves. Each takes memory, and a new session asks none of them; more of
/// them than this means that nobody looks.
pub const MAX_EARLIER: usize = 8;

/// How long one may take to say that it heeds what it is told.
const HEED: Duration = Duration::from_secs(2);

/// How long after that it is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(2);

/// How their sockets' names begin, before the process and a random number.
const PREFIX: &str = "earlier-";

/// How their sockets' names end.
const SUFFIX: &str = ".sock";

/// The socket of this process for those that come after it.
pub fn own_socket(dir: &Path) -> PathBuf {
    dir.join(format!("{PREFIX}{}-{:04x}{SUFFIX}", std::process::id(), rand::random::<u16>()))
}

/// The earlier stubs of a workspace, found by their sockets.
#[derive(Debug, Clone)]
pub struct Earlier {
    dir: PathBuf,
    kin: Kin,
}

impl Earlier {
    /// Those that have sockets in the state directory `dir`, and know `kin`.
    pub fn new(dir: &Path, kin: Kin) -> Earlier {
        Earlier { dir: dir.to_owned(), kin }
    }

    /// A carrier to the stub that has this attach's session, with the attach on it; or why the session cannot go on.
    /// `Timeout` and `Unavailable` are not final: one that does not answer may have it.
    pub async fn resume(&self, attach: &Attach, route: Route) -> Result<Carrier<UnixStream>, Refusal> {
        let params = &json!({"lifeline": link::name(attach.id), "route": route});
        let message = &LifelineMessage::Attach(*attach).encode();
        let ask = |socket: PathBuf| async move {
            let asked = async {
                let mut carrier = link::carrier(self.call(&socket, RESUME, params).await?).await;
                let sent = carrier.send(message.clone()).await;
                sent.map_err(|e| Refusal::new(RefusalCode::Unavailable, e.to_string()))?;
                Ok(carrier)
            };
            within_heed(asked).await
        };
        let mut asked: FuturesUnordered<_> = self.sockets().into_iter().map(ask).collect();
        let mut refused = laptops::unknown();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(carrier) => return Ok(carrier),
                Err(refusal) if refusal.code == RefusalCode::NotFound => {}
                Err(refusal) => refused = refusal,
            }
        }
        Err(refused)
    }

    /// Ends every session of these devices there, with the reason. Returns when each of them has said that it has, or is
    /// gone; one that stands still is told again until then.
    pub async fn end_devices(&self, pins: &[KeyPin], refusal: &Refusal) {
        if pins.is_empty() {
            return;
        }
        let pins: Vec<String> = pins.iter().map(KeyPin::to_string).collect();
        let params = json!({"pins": pins, "refusal": refusal});
        let insist = async |socket: PathBuf| {
            while !self.tell(&socket, END_DEVICES, &params).await {
                tokio::time::sleep(TOLD_AGAIN).await;
            }
        };
        join_all(self.sockets().into_iter().map(insist)).await;
    }

    /// Ends them: the workspace closes.
    pub async fn end(&self) {
        join_all(self.sockets().iter().map(|socket| self.tell(socket, END, &Value::Null))).await;
    }

    /// How many live, with those that cannot be asked. Sockets that were left by processes which are gone are removed.
    pub async fn count(&self) -> usize {
        let lives = async |socket: PathBuf| {
            let gone = local::is_deserted(&socket).await;
            if gone {
                let _ = std::fs::remove_file(&socket);
            }
            !gone
        };
        join_all(self.sockets().into_iter().map(lives)).await.into_iter().filter(|lives| *lives).count()
    }

    /// Their processes. Of one that cannot be asked, its socket's name tells.
    pub async fn pids(&self) -> Vec<i32> {
        let ask = async |socket: PathBuf| local::pid_at(&socket).await.unwrap_or_else(|_| named(&socket));
        join_all(self.sockets().into_iter().map(ask)).await.into_iter().flatten().collect()
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_one = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_one)).map(|entry| entry.path()).collect()
    }

    /// Tells the stub at `socket`; whether it heeds that, or is gone.
    async fn tell(&self, socket: &Path, method: &str, params: &Value) -> bool {
        match within_heed(self.call(socket, method, params)).await {
            Ok(_) => return true,
            Err(refusal) if refusal.code == RefusalCode::NotFound => return true,
            Err(refusal) if refusal.code == RefusalCode::Timeout => {
                tracing::warn!(socket = %socket.display(), method, "an earlier stub stands still");
            }
            Err(refusal) => {
                tracing::warn!(socket = %socket.display(), %refusal, method, "an earlier stub refused");
            }
        }
        false
    }

    /// Calls the stub at `socket`. `NotFound` when the process is gone, or does not have what is asked for.
    async fn call(&self, socket: &Path, method: &str, params: &Value) -> Result<UnixStream, Refusal> {
        let stream = local::connect(socket).await?.ok_or_else(laptops::unknown)?;
        match self.kin.call::<IgnoredAny>(stream, method, params).await {
            Ok((_, stream)) => Ok(stream),
            // It ended meanwhile.
            Err(StreamError::Io(_) | StreamError::Truncated) => Err(laptops::unknown()),
            Err(error) => Err(error.into_refusal()),
        }
    }
}

/// What an earlier stub answers; `Timeout` where it stands still. Whoever waits for it may hold one of a few places.
async fn within_heed<T>(asked: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let still = |_| {
        let text =
            format!("an earlier stub did not answer within {} s. hint: it was stopped, or is busy", HEED.as_secs());
        Refusal::new(RefusalCode::Timeout, text)
    };
    tokio::time::timeout(HEED, asked).await.map_err(still)?
}

/// The process that a socket's name tells.
fn named(socket: &Path) -> Option<i32> {
    let (pid, _) = socket.file_name()?.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lifeline::{AttachMode, LifelineId, TAG};

    /// Its socket takes connections, as that of a process that was stopped does.
    #[tokio::test]
    async fn one_that_stands_still_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let kin = Kin::load_or_make(dir.path()).unwrap();
        let _still = local::bind(&own_socket(dir.path())).unwrap();
        let earlier = Earlier::new(dir.path(), kin);
        let attach =
            Attach { id: LifelineId([7; 16]), sequence: 1, mode: AttachMode::Move, received: 0, tag: [0; TAG] };
        // Less than it may take to answer a call of another kind.
        let limit = 4 * HEED;
        let asked = tokio::time::timeout(limit, earlier.resume(&attach, Route::Direct)).await;
        let refusal = asked.expect("it does not keep whoever asks").unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Timeout, "it may have the session: {refusal}");
    }

    #[test]
    fn a_sockets_name_tells_its_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(named(&own_socket(Path::new("/state"))), Some(pid));
        for other in ["/state/stub.sock", "/state/earlier-x-1.sock", "/state/earlier-1.sock", "/"] {
            assert_eq!(named(Path::new(other)), None, "{other}");
        }
    }
}

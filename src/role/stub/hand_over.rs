//! Handing over to another process of the same workspace: the successor asks over the workspace's socket, and takes
//! everything that comes from then on; what the running stub has goes on there until it is done.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::kin::Kin;
use super::local;
use crate::session::framed::StreamError;
use crate::wire::refusal::printable_word;
use crate::wire::{Refusal, RefusalCode};

/// The call for it over the workspace's socket.
pub const METHOD: &str = "hand_over";

/// How long the running stub may take to hand over: it closes ports and sockets, which takes none, and may be on a machine
/// that thrashes.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(20);

/// Characters of a version that another stub says it has.
const MAX_VERSION: usize = 64;

/// What the running stub says when it has handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// Its process.
    pub pid: u32,
    /// Its program's version.
    pub version: String,
    /// Sessions that go on there.
    pub sessions: usize,
    /// Connections, processes and calls in them.
    pub streams: usize,
    /// The port for direct connections that it had; laptops know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<SocketAddr>,
}

/// A successor that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// Its process, where the system tells.
    pub pid: Option<i32>,
    /// For the answer.
    pub answer: oneshot::Sender<Result<HandedOver, Refusal>>,
}

/// Asks the stub that serves the workspace's socket to hand over; `None` when none does. When it has, everything that
/// it listened on is free, and its files, in the state directory `dir`, are the caller's.
pub async fn ask(socket: &Path, dir: &Path) -> Result<Option<HandedOver>, Refusal> {
    ask_within(TAKE_OVER_PATIENCE, socket, dir).await
}

async fn ask_within(patience: Duration, socket: &Path, dir: &Path) -> Result<Option<HandedOver>, Refusal> {
    let Some(stream) = local::connect(socket).await? else { return Ok(None) };
    let params = json!({"version": env!("CARGO_PKG_VERSION")});
    let kin = Kin::load(dir).map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string()))?;
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let asked = async {
        match kin {
            Some(kin) => kin.call::<HandedOver>(stream, METHOD, &params).await,
            None => local::call(stream, METHOD, params).await,
        }
    };
    let Ok(answer) = tokio::time::timeout(patience, asked).await else { return Err(stands_still(socket, pid)) };
    match answer {
        Ok((answer, _)) => Ok(Some(HandedOver { version: printable_word(&answer.version, MAX_VERSION), ..answer })),
        Err(StreamError::Refused(refusal)) if refusal.code == RefusalCode::Timeout => Err(stands_still(socket, pid)),
        // A release without this call refuses its frame as out of place, or does not know how it begins.
        Err(StreamError::Refused(refusal))
            if !matches!(refusal.code, RefusalCode::Malformed | RefusalCode::Unsupported) =>
        {
            Err(refusal)
        }
        Err(_) => {
            let text = format!(
                "the nexus-stub that serves {} did not hand over: it is of a release that cannot, or it just ended. \
                 hint: stop it, which ends what runs through it, and start this one without --take-over",
                socket.display()
            );
            Err(Refusal::new(RefusalCode::Unsupported, text))
        }
    }
}

/// Why nobody hands over while the process that serves `socket` does not answer.
fn stands_still(socket: &Path, pid: Option<i32>) -> Refusal {
    let pid = pid.map_or("PID".to_owned(), |pid| pid.to_string());
    let text = format!(
        "the nexus-stub that serves {}, process {pid}, did not hand over: it does not answer. hint: it is stopped or stuck; \
         `kill -CONT {pid}` lets one that was stopped go on, and `kill -KILL {pid}` ends it, with what runs through it",
        socket.display()
    );
    Refusal::new(RefusalCode::Timeout, text)
}

/// The answer to a request on the workspace's socket, once the stub's life has given its own.
pub fn answered(outcome: Result<HandedOver, Refusal>) -> Result<Value, Refusal> {
    outcome
        .and_then(|answer| serde_json::to_value(answer).map_err(|e| Refusal::new(RefusalCode::Internal, e.to_string())))
}

/// Why a stub that was started by a program which must not outlive it does not hand over.
pub fn belongs_to_its_parent() -> Refusal {
    let text = "this stub belongs to the program that started it, such as `nexus-proxy up`. hint: start that again";
    Refusal::new(RefusalCode::Denied, text)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::session::framed::FramedStream;
    use crate::wire::call::Request;

    #[tokio::test]
    async fn one_that_stands_still_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        Kin::load_or_make(dir.path()).unwrap();
        let socket = dir.path().join("stub.sock");
        let _still = UnixListener::bind(&socket).unwrap();
        let refusal = ask_within(Duration::from_millis(10), &socket, dir.path()).await.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Timeout);
        let pid = std::process::id();
        assert!(refusal.message.contains(&format!("hint: it is stopped or stuck; `kill -CONT {pid}`")), "{refusal}");
    }

    #[tokio::test]
    async fn a_release_that_cannot_is_told_from_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("stub.sock");
        assert_eq!(ask(&socket, dir.path()).await.unwrap(), None, "nobody is there");
        let listener = UnixListener::bind(&socket).unwrap();
        // A release without this call reads an open frame, or refuses.
        let old = async { drop(FramedStream::accept(listener.accept().await.unwrap().0).await) };
        let (asked, ()) = tokio::join!(ask(&socket, dir.path()), old);
        let refusal = asked.unwrap_err();
        assert!(refusal.message.contains("a release that cannot") && refusal.message.contains("hint:"), "{refusal}");

        let busy = async {
            let mut stream = FramedStream::new(listener.accept().await.unwrap().0);
            stream.reader.expect().await.unwrap();
            local::answer(&mut stream, 1.into(), Err(belongs_to_its_parent())).await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&socket, dir.path()), busy);
        assert_eq!(asked.unwrap_err(), belongs_to_its_parent());

        let kin = Kin::load_or_make(dir.path()).unwrap();
        let answer = HandedOver { pid: 7, version: "1\n2".into(), sessions: 1, streams: 2, direct: None };
        let good = async {
            let mut stream = FramedStream::new(listener.accept().await.unwrap().0);
            let request = stream.reader.expect().await.unwrap();
            let request = kin.hear(&mut stream, Request::parse(&request.payload).unwrap()).await.unwrap();
            assert_eq!(request.method, METHOD);
            local::answer(&mut stream, 1.into(), answered(Ok(answer.clone()))).await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&socket, dir.path()), good);
        assert_eq!(asked.unwrap(), Some(HandedOver { version: "12".into(), ..answer }));
        drop(listener);
        assert_eq!(ask(&socket, dir.path()).await.unwrap(), None, "a file that was left behind");
    }
}

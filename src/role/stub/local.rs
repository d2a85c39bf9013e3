//! Calls between two stubs on one machine: which process is there, and how long an answer may take.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::role::local;
pub use crate::role::local::{answer, bind, connect, hung_up, is_deserted, is_nobody, is_own};
use crate::session::framed::StreamError;
use crate::wire::{Refusal, RefusalCode};

/// How long a stub may take to answer. Closing ports and sockets takes none; a machine that thrashes does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The process that listens at `path`, if one of this user's does. An error where that cannot be told.
pub async fn pid_at(path: &Path) -> Result<Option<i32>, Refusal> {
    match connect(path).await {
        Ok(stream) => Ok(stream.and_then(|stream| stream.peer_cred().ok()?.pid())),
        Err(refusal) if refusal.code == RefusalCode::Denied => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// The next connection, once there is a place for it; until then it waits in the kernel's queue.
pub async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// Calls the stub at the other end, which may take a while. The stream is good for what the two agreed on.
pub async fn call<A: DeserializeOwned>(
    stream: UnixStream,
    method: &str,
    params: Value,
) -> Result<(A, UnixStream), StreamError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, local::call(stream, method, params)).await {
        Ok(called) => called.map(|(answer, stream)| (answer, stream.into_inner())),
        Err(_) => {
            let text = format!("the other stub did not answer within {} s", ANSWER_TIMEOUT.as_secs());
            Err(StreamError::Refused(Refusal::new(RefusalCode::Timeout, text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_there_only_where_that_is_certain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stub.sock");
        assert!(is_deserted(&path).await, "there is no file");
        let listener = bind(&path).unwrap();
        assert!(!is_deserted(&path).await);
        assert_eq!(pid_at(&path).await.unwrap(), i32::try_from(std::process::id()).ok());
        drop(listener);
        assert!(is_deserted(&path).await, "a file was left behind");
        assert_eq!(pid_at(&path).await.unwrap(), None);
    }

    /// Whoever has the socket can fill its queue; that does not make the stub behind it seem to be gone.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_full_queue_is_not_taken_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stub.sock");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        let mut queue = Vec::new();
        let refusal = loop {
            match connect(&path).await {
                Ok(stream) => queue.push(stream.unwrap()),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal.code, RefusalCode::Timeout);
        assert!(refusal.message.contains("hint:"), "{refusal}");
        assert!(!is_deserted(&path).await);
        assert_eq!(pid_at(&path).await.unwrap_err().code, RefusalCode::Timeout, "which process it is cannot be told");
        drop(listener);
        assert!(is_deserted(&path).await);
    }
}

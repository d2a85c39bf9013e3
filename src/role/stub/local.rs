//! Calls between two stubs on one machine: who is there, and how long an answer may take.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::role::local;
pub use crate::role::local::{answer, bind, is_nobody, is_own};
use crate::session::framed::StreamError;
use crate::wire::{Refusal, RefusalCode};

/// How long a stub may take to answer. Closing ports and sockets takes none; a machine that thrashes does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Connects to the stub at `path`; `None` when nobody listens there.
pub async fn connect(path: &Path) -> Result<Option<UnixStream>, Refusal> {
    match UnixStream::connect(path).await {
        Ok(stream) if is_own(&stream) => Ok(Some(stream)),
        Ok(_) => {
            let text = format!("another user listens at {}. hint: remove it, or use another --state", path.display());
            Err(Refusal::new(RefusalCode::Denied, text))
        }
        Err(error) if is_nobody(&error) => Ok(None),
        Err(error) => Err(Refusal::new(RefusalCode::Unavailable, format!("{}: {error}", path.display()))),
    }
}

/// The process that listens at `path`, if one of this user's does.
pub async fn pid_at(path: &Path) -> Option<i32> {
    connect(path).await.ok().flatten()?.peer_cred().ok()?.pid()
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

//! The answering side of a call: reads one request from a workspace that may be hostile, serves it from what is
//! declared, streams what it produces, sends one response.
//!
//! Refuses more calls at a time than are bounded, and requests that do not arrive in time; time in which the way to the caller
//! is interrupted does not count. Every call, served or
//! refused, leaves one line in the audit log: who, what, outcome; never arguments, never values.

use std::pin::pin;
use std::time::Instant;

use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::service::call::output::{self, STALL_TIMEOUT};
use crate::service::laptop::{Laptop, resource};
use crate::session::framed::{FrameReader, FrameWriter, FramedStream, Io, StreamError};
use crate::session::way::Way;
use crate::wire::call::{Request, Response};
use crate::wire::limits::{MAX_ANSWER, MAX_MESSAGE, OPEN_TIMEOUT};
use crate::wire::name::WorkspaceName;
use crate::wire::open::Accepted;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Characters of a resource's name in the audit log. The workspace chose it.
const MAX_AUDITED: usize = 200;

/// Serves one call on a stream whose open frame has been read, of a session whose way to the caller is `way`. Dropping the future stops
/// what runs for it at once.
pub async fn serve<S: Io>(stream: FramedStream<S>, way: &Way, laptop: &Laptop, workspace: &WorkspaceName) {
    let started = Instant::now();
    let mut audit = Audit { method: String::new(), resource: String::new() };
    let outcome = Box::pin(answer(stream, way, laptop, workspace, &mut audit)).await;
    let millis = started.elapsed().as_millis() as u64;
    let Audit { method, resource } = audit;
    // As strings, which every format of the log escapes in its own way.
    let (method, resource) = (method.as_str(), resource.as_str());
    match outcome {
        Ok(()) => tracing::info!(target: "audit", %workspace, method, resource, outcome = "ok", millis, "call"),
        Err(code) => tracing::info!(target: "audit", %workspace, method, resource, outcome = ?code, millis, "call"),
    }
}

/// What is known of a call once its request has been read.
struct Audit {
    method: String,
    resource: String,
}

async fn answer<S: Io>(
    mut stream: FramedStream<S>,
    way: &Way,
    laptop: &Laptop,
    workspace: &WorkspaceName,
    audit: &mut Audit,
) -> Result<(), RefusalCode> {
    let _permit = match laptop.permit(workspace) {
        Ok(permit) => permit,
        Err(refusal) => {
            let _ = way.timeout(OPEN_TIMEOUT, stream.refuse(&refusal)).await;
            return Err(refusal.code);
        }
    };
    let accepted = way.timeout(OPEN_TIMEOUT, stream.accepted(&Accepted::default())).await;
    if !matches!(accepted, Ok(Ok(()))) {
        return Err(RefusalCode::Unavailable);
    }
    let FramedStream { mut reader, mut writer } = stream;
    let request = match way.timeout(OPEN_TIMEOUT, request(&mut reader)).await {
        Ok(Ok(request)) => request,
        Ok(Err(StreamError::Io(_) | StreamError::Truncated)) => return Err(RefusalCode::Cancelled),
        Ok(Err(error)) => return give_up(&mut writer, way, error.into_refusal()).await,
        Err(_) => {
            let refusal = Refusal::new(RefusalCode::Timeout, "no request arrived in time");
            return give_up(&mut writer, way, refusal).await;
        }
    };
    let cut = |text: &str| text.chars().take(MAX_AUDITED).collect();
    *audit = Audit { method: cut(&request.method), resource: cut(resource(&request)) };
    let mut gone = pin!(gone(&mut reader));
    // A caller that gave up while its request was on its way wants nothing begun.
    if gone.as_mut().now_or_never().is_some() {
        return Err(RefusalCode::Cancelled);
    }

    let cancel = CancellationToken::new();
    let (output, frames) = output::channel(cancel.clone());
    let id = request.id.clone();
    let mut work = Box::pin(laptop.dispatch(request, output));
    let mut written = None;
    let mut outcome = None;
    {
        let mut write = pin!(frames.write(&mut writer, way));
        while outcome.is_none() || written.is_none() {
            tokio::select! {
                done = &mut work, if outcome.is_none() => outcome = Some(done),
                done = &mut write, if written.is_none() => match done {
                    Ok(()) => written = Some(()),
                    Err(()) => break,
                },
                () = &mut gone => break,
            }
        }
    }
    let outcome = match (outcome, written) {
        (Some(outcome), Some(())) => outcome,
        (outcome, _) => {
            // The caller is gone, or does not read. What runs for it gets its grace, then ends.
            cancel.cancel();
            if outcome.is_none() {
                let _ = work.await;
            }
            return Err(RefusalCode::Cancelled);
        }
    };
    let code = outcome.as_ref().map(drop).map_err(|refusal| refusal.code);
    // It may carry a token.
    let response = Zeroizing::new(encode(Response::new(id, outcome)));
    let sent = async {
        writer.send(FrameKind::Message, &response).await?;
        writer.close().await
    };
    match way.timeout(STALL_TIMEOUT, sent).await {
        Ok(Ok(())) => code,
        _ => code.and(Err(RefusalCode::Unavailable)),
    }
}

async fn request<R: AsyncRead + Unpin>(reader: &mut FrameReader<R>) -> Result<Request, StreamError> {
    let frame = reader.expect().await?;
    match frame.kind {
        FrameKind::Message => Request::parse(&frame.payload).map_err(StreamError::Refused),
        FrameKind::Abort => Err(StreamError::Truncated),
        kind => Err(StreamError::OutOfPlace(kind)),
    }
}

/// Refuses before there is an id to answer to.
async fn give_up<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    way: &Way,
    refusal: Refusal,
) -> Result<(), RefusalCode> {
    let _ = way.timeout(OPEN_TIMEOUT, writer.abort(&refusal)).await;
    Err(refusal.code)
}

/// Returns when the caller has aborted, closed, failed, or sent what has no place here: in every case it is gone.
async fn gone<R: AsyncRead + Unpin>(reader: &mut FrameReader<R>) {
    reader.limit(MAX_ANSWER);
    let _ = reader.next().await;
}

/// JSON bytes within the bound of a message.
fn encode(response: Response) -> Vec<u8> {
    let id = response.id.clone();
    let bytes = serde_json::to_vec(&response).unwrap_or_default();
    if (1..=MAX_MESSAGE).contains(&bytes.len()) {
        return bytes;
    }
    let message = format!(
        "the answer has {} bytes; {MAX_MESSAGE} are allowed. hint: ask for a part of it, like `config.get` with a key \
         further inside",
        bytes.len()
    );
    // An id that alone fills a message is not echoed.
    let id = if id.to_string().len() < MAX_MESSAGE / 2 { id } else { serde_json::Value::Null };
    serde_json::to_vec(&Response::new(id, Err(Refusal::new(RefusalCode::TooLarge, message)))).unwrap_or_default()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

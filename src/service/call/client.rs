//! The asking side of a call: sends one request, passes output on as it arrives, gives back the one response.
//!
//! Refuses to take a stream that stops without a response for a success. Dropping the future drops the stream,
//! which tells the other side to stop what it is doing.

use std::pin::pin;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::session::framed::{FrameReader, FramedStream, Io, StreamError};
use crate::wire::call::{Request, Response};
use crate::wire::open::Accepted;
use crate::wire::{FrameKind, Refusal, RefusalCode};

/// Makes one call on a stream whose open frame has been sent. `Data` goes to `stdout`, `Stderr` to `stderr`.
///
/// # Errors
/// What the other side refused, or `Unavailable` when the stream was cut before the response.
pub async fn call<S: Io>(
    stream: FramedStream<S>,
    method: &str,
    params: Value,
    stdout: impl AsyncWrite + Unpin,
    stderr: impl AsyncWrite + Unpin,
) -> Result<Value, Refusal> {
    let request = encode(&Request::new(method, params))?;
    let FramedStream { mut reader, mut writer } = stream;
    let mut send = pin!(writer.send(FrameKind::Message, &request));
    let mut converse = pin!(converse(&mut reader, stdout, stderr));
    // A refusal may arrive while the request is still leaving, and then says more than the failed write.
    tokio::select! {
        outcome = &mut converse => outcome,
        _ = &mut send => converse.await,
    }
}

fn encode(request: &Request) -> Result<Vec<u8>, Refusal> {
    let bytes = serde_json::to_vec(request).map_err(|e| Refusal::new(RefusalCode::Malformed, e.to_string()))?;
    let max = FrameKind::Message.max_payload();
    if bytes.len() > max {
        let message = format!(
            "the arguments make a request of {} bytes; {max} are allowed. hint: pass less, or in several calls",
            bytes.len()
        );
        return Err(Refusal::new(RefusalCode::TooLarge, message));
    }
    Ok(bytes)
}

async fn converse<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    mut stdout: impl AsyncWrite + Unpin,
    mut stderr: impl AsyncWrite + Unpin,
) -> Result<Value, Refusal> {
    let mut accepted = false;
    loop {
        let frame = reader.expect().await.map_err(StreamError::into_refusal)?;
        match frame.kind {
            FrameKind::Refuse | FrameKind::Abort => return Err(frame.refusal()),
            FrameKind::Accept if !accepted => {
                frame.json::<Accepted>()?;
                accepted = true;
            }
            FrameKind::Data if accepted => pass_on(&mut stdout, &frame.payload).await?,
            FrameKind::Stderr if accepted => pass_on(&mut stderr, &frame.payload).await?,
            FrameKind::Message if accepted => return frame.json::<Response>()?.outcome(),
            kind => return Err(StreamError::OutOfPlace(kind).into_refusal()),
        }
    }
}

async fn pass_on(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Refusal> {
    let written = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    written.await.map_err(|e| {
        Refusal::new(RefusalCode::Cancelled, format!("the call was given up: its output cannot be written here: {e}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Open, StreamRequest};
    use serde_json::json;

    async fn against(frames: &[(FrameKind, &[u8])]) -> (Result<Value, Refusal>, Vec<u8>, Vec<u8>) {
        let (a, b) = tokio::io::duplex(1 << 16);
        let stream = FramedStream::open(a, &Open::new(StreamRequest::Call {})).await.unwrap();
        let (_, server) = FramedStream::accept(b).await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let serve = async move {
            // The whole stream, so that all of it ends here.
            let mut server = server;
            for (kind, payload) in frames {
                server.writer.send(*kind, payload).await.unwrap();
            }
        };
        let (outcome, ()) = tokio::join!(call(stream, "tool.list", Value::Null, &mut out, &mut err), serve);
        (outcome, out, err)
    }

    #[tokio::test]
    async fn output_and_response_arrive() {
        let (outcome, out, err) = against(&[
            (FrameKind::Accept, b"{}"),
            (FrameKind::Data, b"a\xff"),
            (FrameKind::Stderr, b"oops"),
            (FrameKind::Data, b"b"),
            (FrameKind::Message, br#"{"jsonrpc":"2.0","id":1,"result":{"exit_code":0}}"#),
        ])
        .await;
        assert_eq!(outcome, Ok(json!({"exit_code": 0})));
        assert_eq!((out, err), (b"a\xffb".to_vec(), b"oops".to_vec()));
    }

    #[tokio::test]
    async fn a_cut_stream_is_never_a_success() {
        for frames in
            [&[][..], &[(FrameKind::Accept, &b"{}"[..])], &[(FrameKind::Accept, b"{}"), (FrameKind::Data, b"x")]]
        {
            assert_eq!(against(frames).await.0.unwrap_err().code, RefusalCode::Unavailable);
        }
    }

    #[tokio::test]
    async fn refusals_and_frames_out_of_place_are_errors() {
        let refusal = Refusal::new(RefusalCode::Busy, "later");
        assert_eq!(against(&[(FrameKind::Refuse, &refusal.to_bytes())]).await.0, Err(refusal.clone()));
        assert_eq!(
            against(&[(FrameKind::Accept, b"{}"), (FrameKind::Abort, &refusal.to_bytes())]).await.0,
            Err(refusal)
        );
        for frames in [
            &[(FrameKind::Data, &b"x"[..])][..],
            &[(FrameKind::Accept, b"{}"), (FrameKind::Exit, b"{}")],
            &[(FrameKind::Accept, b"{}"), (FrameKind::Message, b"nonsense")],
        ] {
            assert_eq!(against(frames).await.0.unwrap_err().code, RefusalCode::Malformed);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_heard_while_a_long_request_is_stuck() {
        let (a, b) = tokio::io::duplex(1000);
        let stream = FramedStream::open(a, &Open::new(StreamRequest::Call {})).await.unwrap();
        let (_, server) = FramedStream::accept(b).await.unwrap();
        let refusal = Refusal::new(RefusalCode::Busy, "later");
        let params = json!({"x": "y".repeat(500_000)});
        let (outcome, ()) = tokio::join!(
            call(stream, "tool.execute", params, tokio::io::sink(), tokio::io::sink()),
            server.refuse(&refusal)
        );
        assert_eq!(outcome, Err(refusal));
    }

    #[tokio::test]
    async fn a_request_over_the_bound_never_leaves() {
        let (a, _b) = tokio::io::duplex(1000);
        let params = json!({"x": "y".repeat(2_000_000)});
        let outcome = call(FramedStream::new(a), "x", params, tokio::io::sink(), tokio::io::sink()).await;
        assert_eq!(outcome.unwrap_err().code, RefusalCode::TooLarge);
    }
}

//! HTTP/1.1 over a connection to the coordinator: one JSON request, or the upgrade to a WebSocket.
//!
//! Answers are bounded, and an error answer is read as the refusal that it carries.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use hyper::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Io;
use super::carrier::{Carrier, Side, websocket};
use crate::wire::version::Version;
use crate::wire::{Refusal, RefusalCode};

/// Bytes of an answer's body.
pub const MAX_BODY: usize = 64 * 1024;

/// How long an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the answer to an upgrade may take. It needs no work; who waits longer waits for a connection that died.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(8);

/// Asks, or agrees, that neither end masks: TLS ends in both programs, so no intermediary reads the frames.
pub const MASKING: &str = "nexus-masking";

/// Proves the client where no client certificate can be: behind a load balancer.
pub const ASSERTION: &str = "nexus-assertion";

/// The value of [`MASKING`].
pub const MASKING_NONE: &str = "none";

fn broken(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Unavailable, format!("the coordinator did not answer: {what}"))
}

/// Posts `body` as JSON and reads a JSON answer.
pub async fn post_json<T: Io, Q: Serialize, A: DeserializeOwned>(
    io: T,
    host: &str,
    path: &str,
    body: &Q,
) -> Result<A, Refusal> {
    let body = serde_json::to_vec(body).map_err(|e| Refusal::new(RefusalCode::Malformed, e.to_string()))?;
    let request = Request::builder().method(Method::POST).uri(path).header(CONTENT_TYPE, "application/json");
    json(io, host, request, Bytes::from(body)).await
}

/// Gets a JSON answer.
pub async fn read_json<T: Io, A: DeserializeOwned>(io: T, host: &str, path: &str) -> Result<A, Refusal> {
    json(io, host, Request::builder().method(Method::GET).uri(path), Bytes::new()).await
}

async fn json<T: Io, A: DeserializeOwned>(
    io: T,
    host: &str,
    request: hyper::http::request::Builder,
    body: Bytes,
) -> Result<A, Refusal> {
    let request = request.header(HOST, host).header(CONNECTION, "close").body(Full::new(body)).map_err(broken)?;
    let (response, _connection) = exchange(io, request, ANSWER_TIMEOUT).await?;
    let status = response.status();
    let bytes = body_of(response).await?;
    if !status.is_success() {
        return Err(refusal_of(status, &bytes));
    }
    serde_json::from_slice(&bytes).map_err(|e| broken(format!("its answer does not parse: {e}")))
}

/// Upgrades to a WebSocket at `path` and gives the carrier on it. With an assertion there is a load balancer between,
/// which reads the frames: then this side masks, whatever the answer says.
pub async fn upgrade<T: Io>(io: T, host: &str, path: &str, assertion: Option<&str>) -> Result<Carrier<T>, Refusal> {
    let key = generate_key();
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(HOST, host)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, Version::offer())
        .header(if assertion.is_some() { ASSERTION } else { MASKING }, assertion.unwrap_or(MASKING_NONE))
        .body(Full::new(Bytes::new()))
        .map_err(broken)?;
    let (response, _connection) = exchange(io, request, UPGRADE_TIMEOUT).await?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let bytes = body_of(response).await?;
        return Err(refusal_of(status, &bytes));
    }
    let headers = response.headers();
    let accept = headers.get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(broken("the WebSocket handshake is wrong; something in between tampers with it"));
    }
    let chosen = text_of(headers, SEC_WEBSOCKET_PROTOCOL.as_str());
    if chosen.is_none() && assertion.is_some() {
        let text = "the answer has no Sec-WebSocket-Protocol. hint: the load balancer must pass it on";
        return Err(Refusal::new(RefusalCode::Misdirected, text));
    }
    if chosen.and_then(Version::choose).is_none() {
        let text = "the coordinator speaks no version that this program speaks. hint: bring both to the same release";
        return Err(Refusal::new(RefusalCode::Unsupported, text));
    }
    let unmasked = assertion.is_none() && text_of(headers, MASKING) == Some(MASKING_NONE);
    let side = if unmasked { Side::Unmasked } else { Side::Client };
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    let parts = upgraded.downcast::<TokioIo<T>>().map_err(|_| broken("the upgraded connection changed its type"))?;
    Ok(Carrier::new(websocket(parts.io.into_inner(), parts.read_buf, side).await))
}

/// The header's value, when it is text.
pub fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The task that moves an exchange's bytes; it ends when this is dropped, or when an upgrade takes the connection over.
type Connection = JoinSet<hyper::Result<()>>;

async fn exchange<T: Io>(
    io: T,
    request: Request<Full<Bytes>>,
    time: Duration,
) -> Result<(Response<hyper::body::Incoming>, Connection), Refusal> {
    let (mut sender, moving) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    let mut connection = JoinSet::new();
    connection.spawn(moving.with_upgrades());
    let answer = tokio::time::timeout(time, sender.send_request(request)).await;
    match answer {
        Ok(Ok(response)) => Ok((response, connection)),
        Ok(Err(error)) => {
            // With client certificates under TLS 1.3 the server's verdict arrives only now.
            let verdict = match connection.join_next().await {
                Some(Ok(Err(connection_error))) => describe(&connection_error),
                _ => describe(&error),
            };
            Err(broken(verdict))
        }
        Err(_) => Err(broken(format!("nothing came within {} s", time.as_secs()))),
    }
}

fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = source.to_string();
        cause = source.source();
    }
    text
}

async fn body_of(response: Response<hyper::body::Incoming>) -> Result<Bytes, Refusal> {
    let body = Limited::new(response.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(ANSWER_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(broken(error)),
        Err(_) => Err(broken("its answer stopped half-way")),
    }
}

fn refusal_of(status: StatusCode, body: &[u8]) -> Refusal {
    if serde_json::from_slice::<Refusal>(body).is_ok() {
        return Refusal::from_bytes(body);
    }
    let text = format!("it answered {status}. hint: is it a nexus-coordinator, and of the same release?");
    // Not the coordinator's words: a load balancer says so while the one behind it restarts, or a firewall, or a
    // network that wants a login. None of them is its verdict.
    let code = RefusalCode::Unavailable;
    Refusal::new(code, format!("the coordinator refused: {text}"))
}

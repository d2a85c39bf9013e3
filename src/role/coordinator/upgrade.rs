//! The upgrade to a WebSocket: who asks, for what, in which version; and the connection that comes of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use hyper::header::{SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::balancer::Balancer;
use super::registry::Registry;
use super::stream::Stream;
use crate::identity::certificate::PeerCertificate;
use crate::identity::uri::Role;
use crate::transport::carrier::{Carrier, Side, websocket};
use crate::transport::http::{MASKING, MASKING_NONE, text_of};
use crate::wire::name::{DeviceName, WorkspaceName};
use crate::wire::version::Version;
use crate::wire::{Refusal, RefusalCode};

/// Where a stub parks a connection.
pub const PARK_PATH: &str = "/v1/park";

/// Before the name of the workspace that a laptop asks for.
pub const CONNECT_PATH: &str = "/v1/connect/";

/// How a client says who it is.
#[derive(Clone)]
pub(super) enum Proof {
    /// TLS ends here: the certificate that the handshake has verified, if the client has shown one.
    Handshake(Option<PeerCertificate>),
    /// TLS ends at a load balancer: an assertion in the request.
    Assertion(Arc<Balancer>),
}

/// A connection that may be upgraded.
pub(super) struct Admitted {
    pub(super) purpose: Purpose,
    pub(super) certificate: PeerCertificate,
    pub(super) workspace: Option<WorkspaceName>,
    pub(super) side: Side,
}

pub(super) enum Purpose {
    Park(WorkspaceName),
    Connect(WorkspaceName, DeviceName),
}

/// Decides on an upgrade: who, for what, in which version.
pub(super) async fn admit(
    request: &Request<Incoming>,
    proof: &Proof,
    registry: &Registry,
) -> Result<(Admitted, Response<Body>), (StatusCode, Refusal)> {
    let refusal = |status, code, text: &str| (status, Refusal::new(code, text));
    let headers = request.headers();
    let certificate = match proof {
        Proof::Handshake(certificate) => certificate.clone().ok_or_else(|| {
            let text = "this needs a client certificate. hint: pair this device (nexus-proxy pair), or enrol the stub";
            refusal(StatusCode::UNAUTHORIZED, RefusalCode::Denied, text)
        })?,
        Proof::Assertion(balancer) => balancer.prove(request.method(), request.uri(), headers, SystemTime::now())?,
    };
    let denied = |refusal| (StatusCode::FORBIDDEN, refusal);
    registry.authorize(&certificate, SystemTime::now()).await.map_err(denied)?;
    let purpose = match (certificate.identity.role.clone(), request.uri().path().strip_prefix(CONNECT_PATH)) {
        (Role::Workspace(name), None) => Purpose::Park(name),
        (Role::Device(device), Some(name)) => {
            let name = name.parse::<WorkspaceName>();
            let name = name.map_err(|e| refusal(StatusCode::BAD_REQUEST, RefusalCode::Malformed, &e.to_string()))?;
            registry.workspace(&name).await.map_err(denied)?;
            Purpose::Connect(name, device)
        }
        _ => {
            let text = "a stub parks and a device connects; this certificate is for the other";
            return Err(refusal(StatusCode::FORBIDDEN, RefusalCode::Denied, text));
        }
    };
    let accept = accept_key(request.method(), headers).ok_or_else(|| {
        let (code, text) = match proof {
            Proof::Handshake(_) => {
                (RefusalCode::Malformed, "this address takes WebSocket upgrades only (RFC 6455, version 13)")
            }
            Proof::Assertion(_) => (
                RefusalCode::Misdirected,
                "no WebSocket upgrade arrived (RFC 6455, version 13). hint: the load balancer must pass it on, with HTTP/1.1",
            ),
        };
        refusal(StatusCode::UPGRADE_REQUIRED, code, text)
    })?;
    let offered = text_of(headers, SEC_WEBSOCKET_PROTOCOL.as_str());
    if offered.is_none() && matches!(proof, Proof::Assertion(_)) {
        let text = "no Sec-WebSocket-Protocol arrived. hint: the load balancer must pass it on";
        return Err(refusal(StatusCode::BAD_REQUEST, RefusalCode::Misdirected, text));
    }
    let version = offered.and_then(Version::choose).ok_or_else(|| {
        let text =
            format!("this coordinator speaks {}. hint: bring both programs to the same release", Version::offer());
        refusal(StatusCode::BAD_REQUEST, RefusalCode::Unsupported, &text)
    })?;
    // A load balancer reads the frames, and may not know that they are none of HTTP.
    let unmasked = matches!(proof, Proof::Handshake(_)) && text_of(headers, MASKING) == Some(MASKING_NONE);
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .header(SEC_WEBSOCKET_PROTOCOL, version.subprotocol());
    if unmasked {
        response = response.header(MASKING, MASKING_NONE);
    }
    let internal =
        |e: hyper::http::Error| refusal(StatusCode::INTERNAL_SERVER_ERROR, RefusalCode::Internal, &e.to_string());
    let response = response.body(Body::empty()).map_err(internal)?;
    let side = if unmasked { Side::Unmasked } else { Side::Server };
    let workspace = match &purpose {
        Purpose::Park(_) => None,
        Purpose::Connect(workspace, _) => Some(workspace.clone()),
    };
    Ok((Admitted { purpose, certificate, workspace, side }, response))
}

/// The answer to a well-formed WebSocket handshake.
fn accept_key(method: &Method, headers: &HeaderMap) -> Option<String> {
    let has = |name, token: &str| {
        let value: Option<&str> = text_of(headers, name);
        value.is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes)?;
    let key_is_16_bytes = data_encoding::BASE64.decode(key).is_ok_and(|key| key.len() == 16);
    let good = method == Method::GET
        && has(CONNECTION.as_str(), "upgrade")
        && has(UPGRADE.as_str(), "websocket")
        && has(SEC_WEBSOCKET_VERSION.as_str(), "13")
        && key_is_16_bytes;
    good.then(|| derive_accept_key(key))
}

pub(super) async fn upgraded(mut request: Request<Incoming>, peer: SocketAddr, side: Side) -> Option<Carrier<Stream>> {
    let upgraded = match hyper::upgrade::on(&mut request).await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%peer, %error, "upgrade failed");
            return None;
        }
    };
    drop(request);
    let Ok(parts) = upgraded.downcast::<TokioIo<Stream>>() else {
        tracing::error!("an upgraded connection changed its type");
        return None;
    };
    Some(Carrier::new(websocket(parts.io.into_inner(), parts.read_buf, side).await))
}

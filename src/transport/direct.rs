//! The direct carrier: a WebSocket on plain TCP from the laptop to the workspace. What it carries is encrypted and proven
//! end to end, so a second TLS around it would add nothing.
//!
//! Nobody is known by the connection itself. What the first message proves is for the lifeline to judge.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};

use super::Io;
use super::carrier::{Carrier, accepted_unmasked};
use super::http::{self, MASKING, MASKING_NONE};
use crate::wire::Refusal;
use crate::wire::version::Version;

/// The path of the upgrade.
pub const DIRECT_PATH: &str = "/v1/direct";

/// How long a connection to an address of the workspace may take. A way that takes longer is not worth having.
pub const DIRECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A direct carrier.
pub type DirectCarrier = Carrier<TcpStream>;

/// Dials an address that the workspace named.
pub async fn dial(address: SocketAddr) -> Result<DirectCarrier, Refusal> {
    let unreachable =
        |why: String| Refusal::new(crate::wire::RefusalCode::TargetUnreachable, format!("{address}: {why}"));
    let connect = async {
        let tcp = TcpStream::connect(address).await.map_err(|e| unreachable(e.to_string()))?;
        let _ = tcp.set_nodelay(true);
        http::upgrade(tcp, &address.to_string(), DIRECT_PATH, None).await
    };
    match tokio::time::timeout(DIRECT_TIMEOUT, connect).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable(format!("no connection within {} s", DIRECT_TIMEOUT.as_secs()))),
    }
}

/// Answers the upgrade on a connection that a laptop, or anybody, made.
pub async fn accept(tcp: TcpStream) -> io::Result<DirectCarrier> {
    let _ = tcp.set_nodelay(true);
    answer(tcp).await
}

/// The same on any byte stream.
pub async fn answer<T: Io>(io: T) -> io::Result<Carrier<T>> {
    #[expect(clippy::result_large_err, reason = "the type of the library's callback")]
    let upgrade = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let version = header("sec-websocket-protocol").and_then(Version::choose);
        let unmasked = header(MASKING) == Some(MASKING_NONE);
        let (Some(version), true, DIRECT_PATH) = (version, unmasked, request.uri().path()) else {
            let mut refused = ErrorResponse::new(Some("only laptops connect here".into()));
            *refused.status_mut() = StatusCode::BAD_REQUEST;
            return Err(refused);
        };
        let headers = response.headers_mut();
        headers.insert("sec-websocket-protocol", HeaderValue::from_static(version.subprotocol()));
        headers.insert(MASKING, HeaderValue::from_static(MASKING_NONE));
        Ok(response)
    };
    match tokio::time::timeout(DIRECT_TIMEOUT, accepted_unmasked(io, upgrade)).await {
        Ok(carrier) => carrier,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Whether a laptop may dial this address, which a hostile workspace may have chosen: a connection to it sends an
/// upgrade and a proof that helps nobody else. This machine's own addresses are for a workspace on this machine.
pub fn may_dial(address: SocketAddr, on_this_machine: bool) -> bool {
    let ip = address.ip().to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    address.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !link_local
        && ip.is_loopback() == on_this_machine
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_laptop_is_let_in_and_others_are_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async { accept(listener.accept().await.unwrap().0).await };
        let (dialed, accepted) = tokio::join!(dial(address), serve);
        let (mut dialed, mut accepted) = (dialed.unwrap(), accepted.unwrap());
        dialed.send(bytes::Bytes::from_static(b"hi")).await.unwrap();
        assert!(
            matches!(accepted.arrival().await, Ok(Some(super::super::carrier::Arrival::Bytes(got))) if got == "hi")
        );

        for request in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET /v1/direct HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
            "\u{0}\u{1}\u{2}\r\n\r\n",
        ] {
            let stranger = async {
                let mut stranger = TcpStream::connect(address).await.unwrap();
                stranger.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                let _ = stranger.read_to_string(&mut answer).await;
                answer
            };
            let serve = async { accept(listener.accept().await.unwrap().0).await };
            let (answer, accepted) = tokio::join!(stranger, serve);
            assert!(accepted.is_err() && !answer.contains("101"), "{request:?}: {answer}");
        }
    }

    #[test]
    fn addresses_that_a_workspace_may_not_send_us_to() {
        let may = |address: &str, here| may_dial(address.parse().unwrap(), here);
        assert!(may("10.0.0.7:4000", false) && may("[2001:db8::1]:4000", false));
        assert!(may("127.0.0.1:4000", true));
        for address in [
            "127.0.0.1:4000",
            "[::1]:4000",
            "0.0.0.0:4000",
            "169.254.169.254:80",
            "224.0.0.1:5",
            "10.0.0.7:0",
            "[fe80::1]:5",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
        ] {
            assert!(!may(address, false), "{address}");
        }
    }
}

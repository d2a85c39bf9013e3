//! Dialling a coordinator: directly, or through a corporate proxy as `HTTPS_PROXY` and `NO_PROXY` say.
//!
//! Every error says which hop failed and what to do. Nothing is sent in the clear but a `CONNECT`.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::address::CoordinatorUrl;
use super::read_ahead::ReadAhead;

/// How long reaching the coordinator (or the proxy before it) may take, and again the TLS handshake. The system repeats its first packet after one
/// second and three; who waits longer waits for a network that came back long ago.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// Sent as the server name when the address is an IP: a coordinator's certificate is checked by its URI name, not by this.
const UNNAMED: &str = "coordinator.nexus.invalid";

/// Why the coordinator was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection to the coordinator.
    #[error("cannot reach the coordinator at {address}: {why}. hint: {hint}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// The proxy would not let us through.
    #[error("the proxy {proxy} does not let us through to {address}: {why}. hint: {hint}")]
    Proxy {
        /// The proxy, without its password.
        proxy: String,
        /// Where to.
        address: String,
        /// What it said.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// TLS failed: usually a certificate.
    #[error("no secure connection to the coordinator at {address}: {error}")]
    Tls {
        /// Where.
        address: String,
        /// The error; `identity` can explain it.
        error: std::io::Error,
    },
}

/// A TLS connection to the coordinator, with `TCP_NODELAY` and keep-alive.
pub async fn dial(url: &CoordinatorUrl, tls: Arc<ClientConfig>) -> Result<TlsStream<ReadAhead<TcpStream>>, DialError> {
    dial_with(url, tls, &Matcher::from_env()).await
}

/// As [`dial`], with the rules for proxies given.
pub async fn dial_with(
    url: &CoordinatorUrl,
    tls: Arc<ClientConfig>,
    proxies: &Matcher,
) -> Result<TlsStream<ReadAhead<TcpStream>>, DialError> {
    let tcp = ReadAhead::new(connect(url, proxies).await?);
    // A load balancer is known by its name or address, which the certificate has to have.
    let name = ServerName::try_from(url.host())
        .ok()
        .filter(|name| url.is_behind_balancer() || matches!(name, ServerName::DnsName(_)))
        .or_else(|| ServerName::try_from(UNNAMED).ok());
    let tls_error = |error| DialError::Tls { address: url.authority(), error };
    let name = name.ok_or_else(|| tls_error(std::io::ErrorKind::InvalidInput.into()))?;
    let handshake = TlsConnector::from(tls).connect(name.to_owned(), tcp);
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(result) => result.map_err(tls_error),
        Err(_) => {
            let text = "it took too long. hint: is it a nexus-coordinator that listens there?";
            Err(tls_error(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
        }
    }
}

async fn connect(url: &CoordinatorUrl, proxies: &Matcher) -> Result<TcpStream, DialError> {
    let address = url.authority();
    let unreachable = |why: String| {
        let hint = hint_for(&why);
        DialError::Unreachable { address: address.clone(), why, hint }
    };
    let target: Uri = format!("https://{address}").parse().map_err(|e| unreachable(format!("{e}")))?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(30)));
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));

    let intercept = if url.is_loopback() { None } else { proxies.intercept(&target) };
    let Some(intercept) = intercept else {
        let stream = connector.call(target).await.map_err(|e| unreachable(root_cause(&e)))?;
        return Ok(stream.into_inner());
    };

    let proxy = intercept.uri().clone();
    let shown = format!("{}://{}", proxy.scheme_str().unwrap_or("http"), address_of(&proxy));
    let refused = |why: String, hint| DialError::Proxy { proxy: shown.clone(), address: address.clone(), why, hint };
    let through = async {
        match proxy.scheme_str() {
            Some("socks5" | "socks5h") => {
                let mut socks = SocksV5::new(proxy.clone(), connector).local_dns(proxy.scheme_str() == Some("socks5"));
                if let Some((user, password)) = intercept.raw_auth() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                let stream = socks.call(target).await;
                stream.map_err(|e| refused(root_cause(&e), "check the proxy's address and password in HTTPS_PROXY"))
            }
            Some("http") | None => {
                let mut tunnel = Tunnel::new(proxy.clone(), connector);
                if let Some(auth) = intercept.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                tunnel.call(target).await.map_err(|e| {
                    let why = root_cause(&e);
                    let hint = hint_for_proxy(&why);
                    refused(why, hint)
                })
            }
            Some(scheme) => Err(refused(
                format!("a proxy of kind `{scheme}` is not supported"),
                "set HTTPS_PROXY to an http:// or socks5h:// address",
            )),
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, through).await {
        Ok(result) => Ok(TokioIo::into_inner(result?)),
        Err(_) => Err(refused("it does not answer".into(), "check HTTPS_PROXY, and whether you are in its network")),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Host and port of a proxy, without the login that may stand before them.
fn address_of(proxy: &Uri) -> String {
    let host = proxy.host().unwrap_or_default();
    proxy.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn hint_for_proxy(why: &str) -> &'static str {
    if why.contains("authorization required") {
        "put its user and password into HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT"
    } else if why.contains("unsuccessful") {
        "ask who runs it to allow CONNECT to that address, or name the address in NO_PROXY"
    } else {
        "check the proxy's address in HTTPS_PROXY, and whether you are in its network"
    }
}

fn hint_for(why: &str) -> &'static str {
    if why.contains("refused") {
        "is nexus-coordinator running there, on that port?"
    } else if why.contains("lookup") || why.contains("Name or service") {
        "check the host name, and whether this machine is online"
    } else {
        "check the network, and HTTPS_PROXY if you are behind a corporate proxy"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
    }

    #[tokio::test]
    async fn a_closed_port_is_told_with_a_hint() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = CoordinatorUrl::from(listener.local_addr().unwrap());
        drop(listener);
        let error = dial(&url, tls()).await.unwrap_err().to_string();
        assert!(error.contains("refused") && error.contains("hint: is nexus-coordinator running"), "{error}");
    }

    #[tokio::test]
    async fn loopback_never_asks_a_proxy() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = CoordinatorUrl::from(listener.local_addr().unwrap());
        let proxies = Matcher::builder().all("http://127.0.0.1:1").build();
        assert!(connect(&url, &proxies).await.is_ok());
    }
}

//! Dialling a coordinator: directly, or through a corporate proxy as `HTTPS_PROXY` and `NO_PROXY` say.
//!
//! Every error says which hop failed and what to do. Nothing is sent in the clear but a `CONNECT`.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::address::CoordinatorUrl;
use super::connect;
use super::names::{LookupError, Names};
use super::read_ahead::ReadAhead;

/// How long reaching the coordinator (or the proxy before it) may take, and again the TLS handshake. The system repeats its first packet after one
/// second and three; who waits longer waits for a network that came back long ago.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// The port of a proxy whose address names none, and of one that speaks SOCKS.
const PROXY_PORT: u16 = 80;
const SOCKS_PORT: u16 = 1080;

/// Sent as the server name when the address is an IP: a coordinator's certificate is checked by its URI name, not by this.
const UNNAMED: &str = "coordinator.nexus.invalid";

/// Why the coordinator was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name of the next hop leads nowhere.
    #[error(
        "the name {host} {} cannot be looked up: {why}. hint: check the name, and whether this machine is online; the name \
         may be one that is known only inside a VPN",
        if *is_proxy { "of the proxy" } else { "of the coordinator" }
    )]
    Name {
        /// The name.
        host: String,
        /// Whether it is that of the proxy before the coordinator.
        is_proxy: bool,
        /// What the system said.
        why: LookupError,
    },
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
    dial_by(&Names::default(), url, tls).await
}

/// As [`dial`], with what is known of names.
pub async fn dial_by(
    names: &Names,
    url: &CoordinatorUrl,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<ReadAhead<TcpStream>>, DialError> {
    let tcp = ReadAhead::new(connect(names, url, &Matcher::from_env()).await?);
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

async fn connect(names: &Names, url: &CoordinatorUrl, proxies: &Matcher) -> Result<TcpStream, DialError> {
    let address = url.authority();
    let unreachable = |why: String| {
        let hint = hint_for(&why);
        DialError::Unreachable { address: address.clone(), why, hint }
    };
    let target: Uri = format!("https://{address}").parse().map_err(|e| unreachable(format!("{e}")))?;
    let intercept = if url.is_loopback() { None } else { proxies.intercept(&target) };
    let Some(intercept) = intercept else {
        let host = url.host();
        let addresses = names.resolve(&host, url.port()).await;
        let addresses = addresses.map_err(|why| DialError::Name { host, is_proxy: false, why })?;
        return match tokio::time::timeout(CONNECT_TIMEOUT, connect::first(&addresses)).await {
            Ok(connected) => connected.map_err(|e| unreachable(e.to_string())),
            Err(_) => Err(unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
        };
    };

    through(names, url, target, &intercept).await
}

/// A connection by way of a proxy.
async fn through(
    names: &Names,
    url: &CoordinatorUrl,
    target: Uri,
    intercept: &Intercept,
) -> Result<TcpStream, DialError> {
    let proxy = intercept.uri().clone();
    let shown = format!("{}://{}", proxy.scheme_str().unwrap_or("http"), address_of(&proxy));
    let refused = |why: String, hint| DialError::Proxy { proxy: shown.clone(), address: url.authority(), why, hint };
    let is_socks = match proxy.scheme_str() {
        Some("socks5" | "socks5h") => true,
        Some("http") | None => false,
        Some(scheme) => {
            let hint = "set HTTPS_PROXY to an http:// or socks5h:// address";
            return Err(refused(format!("a proxy of kind `{scheme}` is not supported"), hint));
        }
    };
    let look_up = async |host: String, port: u16, is_proxy| {
        names.resolve(&host, port).await.map_err(|why| DialError::Name { host, is_proxy, why })
    };
    // A proxy that is not asked to look names up. First, so that it is the proxy that is remembered as the next hop.
    let target = if proxy.scheme_str() == Some("socks5") {
        let found = look_up(url.host(), url.port(), false).await?;
        found.first().and_then(|address| format!("https://{address}").parse().ok()).unwrap_or(target)
    } else {
        target
    };
    let port = proxy.port_u16().unwrap_or(if is_socks { SOCKS_PORT } else { PROXY_PORT });
    let hops = look_up(proxy.host().unwrap_or_default().to_owned(), port, true).await?;
    let asked = async {
        let hop = connect::first(&hops).await;
        let hop = Connected(Some(hop.map_err(|e| refused(e.to_string(), hint_for_proxy("")))?));
        if is_socks {
            let mut socks = SocksV5::new(proxy.clone(), hop);
            if let Some((user, password)) = intercept.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            let stream = socks.call(target).await;
            stream.map_err(|e| refused(root_cause(&e), "check the proxy's address and password in HTTPS_PROXY"))
        } else {
            let mut tunnel = Tunnel::new(proxy.clone(), hop);
            if let Some(auth) = intercept.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            tunnel.call(target).await.map_err(|e| {
                let why = root_cause(&e);
                let hint = hint_for_proxy(&why);
                refused(why, hint)
            })
        }
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, asked).await {
        Ok(result) => Ok(TokioIo::into_inner(result?)),
        Err(_) => Err(refused("it does not answer".into(), "check HTTPS_PROXY, and whether you are in its network")),
    }
}

/// A connection to the proxy, for what speaks to it: asked for once.
struct Connected(Option<TcpStream>);

impl Service<Uri> for Connected {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
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
        assert!(connect(&Names::default(), &url, &proxies).await.is_ok());
    }

    #[tokio::test]
    async fn a_name_that_leads_nowhere_is_told_apart() {
        let url: CoordinatorUrl = "https://coordinator.invalid:9".parse().unwrap();
        let none = Matcher::builder().build();
        let by_proxy = Matcher::builder().all("http://proxy.invalid:1").build();
        for (proxies, text) in [(&none, "of the coordinator"), (&by_proxy, "of the proxy")] {
            let error = connect(&Names::default(), &url, proxies).await.unwrap_err();
            assert!(matches!(error, DialError::Name { .. }), "{error}");
            assert!(error.to_string().contains(text) && error.to_string().contains("hint: check the name"), "{error}");
        }
    }
}

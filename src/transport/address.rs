//! The address of a coordinator: `https://HOST[:PORT]`. Plain HTTP is refused.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The port when an address names none.
pub const DEFAULT_PORT: u16 = 443;

/// Where a coordinator is reached: `https://HOST:PORT`, or `https+balancer://HOST:PORT` when TLS ends at a load balancer
/// before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoordinatorUrl {
    host: Host<String>,
    port: u16,
    balancer: bool,
}

/// How the address of a coordinator behind a load balancer begins. Not guessed: whoever answers with any certificate
/// that the system trusts would otherwise be taken for a balancer, and be shown the one-time code.
const BALANCER: &str = "https+balancer://";

/// Why a text is not a coordinator's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a coordinator's address: {why}. hint: write https://HOST or https://HOST:PORT")]
pub struct AddressError {
    text: String,
    why: String,
}

impl FromStr for CoordinatorUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<CoordinatorUrl, AddressError> {
        let error = |why: &str| AddressError { text: text.chars().take(200).collect(), why: why.into() };
        let behind = text.strip_prefix(BALANCER);
        let plain = behind.map(|rest| format!("https://{rest}"));
        let url = Url::parse(plain.as_deref().unwrap_or(text)).map_err(|e| error(&e.to_string()))?;
        match url.scheme() {
            "https" | "wss" => {}
            "http" | "ws" => return Err(error("it asks for plain HTTP, which is never used")),
            _ => return Err(error("it does not begin with https://")),
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(error("it has a path"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(error("it names a user"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => match name.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) => Host::Ipv4(ip),
                Ok(IpAddr::V6(ip)) => Host::Ipv6(ip),
                Err(_) => Host::Domain(name.to_owned()),
            },
            Some(Host::Ipv4(ip)) => Host::Ipv4(ip),
            Some(Host::Ipv6(ip)) => Host::Ipv6(ip),
            None => return Err(error("it names no host")),
        };
        Ok(CoordinatorUrl { host, port: url.port().unwrap_or(DEFAULT_PORT), balancer: behind.is_some() })
    }
}

impl TryFrom<String> for CoordinatorUrl {
    type Error = AddressError;
    fn try_from(text: String) -> Result<CoordinatorUrl, AddressError> {
        text.parse()
    }
}

impl From<CoordinatorUrl> for String {
    fn from(url: CoordinatorUrl) -> String {
        url.to_string()
    }
}

impl From<std::net::SocketAddr> for CoordinatorUrl {
    fn from(addr: std::net::SocketAddr) -> CoordinatorUrl {
        let host = match addr.ip() {
            IpAddr::V4(ip) => Host::Ipv4(ip),
            IpAddr::V6(ip) => Host::Ipv6(ip),
        };
        CoordinatorUrl { host, port: addr.port(), balancer: false }
    }
}

impl fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.balancer { BALANCER } else { "https://" }, self.authority())
    }
}

impl CoordinatorUrl {
    /// `HOST:PORT`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether TLS ends at a load balancer, which shows a certificate of its own and passes no client's on.
    pub fn is_behind_balancer(&self) -> bool {
        self.balancer
    }

    /// The same place, behind a load balancer when `balancer` says so, and when it was so already.
    pub fn or_behind_balancer(self, balancer: bool) -> CoordinatorUrl {
        CoordinatorUrl { balancer: self.balancer || balancer, ..self }
    }

    /// The host without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, when the host is given as one and not by name.
    pub fn literal(&self) -> Option<std::net::SocketAddr> {
        let ip = self.host().trim_matches(['[', ']']).parse().ok()?;
        Some(std::net::SocketAddr::new(ip, self.port()))
    }

    /// Whether it is this machine; a corporate proxy is never asked for that.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_address() {
        for (text, authority) in [
            ("https://example.com", "example.com:443"),
            ("wss://example.com:8443/", "example.com:8443"),
            ("https://[::1]:9", "[::1]:9"),
            ("https://10.0.0.1:7000", "10.0.0.1:7000"),
        ] {
            let url: CoordinatorUrl = text.parse().unwrap();
            assert_eq!(url.authority(), authority);
            assert!(!url.is_behind_balancer());
            assert_eq!(url.to_string().parse::<CoordinatorUrl>().unwrap(), url);
        }
        let url: CoordinatorUrl = "https+balancer://Example.com".parse().unwrap();
        assert!(url.is_behind_balancer());
        assert_eq!(url.to_string(), "https+balancer://example.com:443");
        assert_eq!(url.to_string().parse::<CoordinatorUrl>().unwrap(), url);
        let direct: CoordinatorUrl = "https://example.com".parse().unwrap();
        assert_eq!(direct.or_behind_balancer(true), url);
        assert_eq!(url.clone().or_behind_balancer(false), url);
        for text in [
            "https+balancer://",
            "http+balancer://h",
            "https+balancer://h/path",
            "http://example.com",
            "example.com",
            "https://u:p@h",
            "https://h/path",
            "https://h?x",
            "",
            "https://",
        ] {
            let error = text.parse::<CoordinatorUrl>().unwrap_err().to_string();
            assert!(error.contains("hint:"), "{error}");
        }
    }
}

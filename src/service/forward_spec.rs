//! Forwards as people write them, in the manner of OpenSSH: `-L 8080:db.internal:5432`, `-R 0:127.0.0.1:3000`,
//! `-D 1080`. Nothing is resolved or opened here. Refuses to listen on every interface unless that is written out.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::wire::Endpoint;

/// Where a listener is when nothing else is said, and what a bare port means as a target.
const LOOPBACK: &str = "127.0.0.1";

const SHAPES: &str = "\
hint: write [bind:]port:host:hostport, [bind:]port:/path/of/socket, /path/of/socket:host:hostport, \
/path/of/socket:/other/socket, or a port alone; put IPv6 addresses in brackets, and /udp at the end for UDP";

const DYNAMIC_SHAPES: &str = "hint: write [bind:]port, for example 1080 or [::1]:1080";

/// What is wrong with a forward, with the syntax.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a forward: {why}. {shapes}")]
pub struct SpecError {
    text: String,
    why: String,
    shapes: &'static str,
}

/// The argument of `-L` and of `-R`: where to listen, and what to connect to on the other side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ForwardSpec {
    /// Where to listen: on the laptop for `-L`, in the workspace for `-R`.
    pub bind: Endpoint,
    /// What to dial on the other side. UDP exactly if `bind` is.
    pub target: Endpoint,
}

/// The argument of `-D`: where the SOCKS server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DynamicSpec {
    /// A TCP endpoint.
    pub bind: Endpoint,
}

impl FromStr for ForwardSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<ForwardSpec, SpecError> {
        parse_forward(text).map_err(|why| SpecError { text: text.to_owned(), why, shapes: SHAPES })
    }
}

impl FromStr for DynamicSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<DynamicSpec, SpecError> {
        let bind = split(text).and_then(|parts| match &parts[..] {
            [p] => tcp(LOOPBACK, port(p)?),
            [host, p] => tcp(host, port(p)?),
            _ => Err(format!("it has {} parts", parts.len())),
        });
        match bind {
            Ok(bind) => Ok(DynamicSpec { bind }),
            Err(why) => Err(SpecError { text: text.to_owned(), why, shapes: DYNAMIC_SHAPES }),
        }
    }
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Plain(&self.bind), Plain(&self.target))?;
        if matches!(self.bind, Endpoint::Udp { .. }) { f.write_str("/udp") } else { Ok(()) }
    }
}

impl fmt::Display for DynamicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bind)
    }
}

struct Plain<'a>(&'a Endpoint);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Endpoint::Tcp { host, port } | Endpoint::Udp { host, port } if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            Endpoint::Tcp { host, port } | Endpoint::Udp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix { path } => f.write_str(path),
        }
    }
}

fn parse_forward(text: &str) -> Result<ForwardSpec, String> {
    let (text, udp) = match text.strip_suffix("/udp") {
        // A path may well end in `/udp`.
        Some(rest) if rest.ends_with(|c: char| c.is_ascii_digit()) && !last_part(rest).contains('/') => (rest, true),
        _ => (text, false),
    };
    let parts = split(text)?;
    let path = |part: &str| part.contains('/');
    let unix = |part: &str| Endpoint::Unix { path: part.to_owned() };
    let (bind, target) = match &parts[..] {
        [p] if !path(p) => (tcp(LOOPBACK, port(p)?)?, tcp(LOOPBACK, target_port(p)?)?),
        [a, b] if path(a) && path(b) => (unix(a), unix(b)),
        [a, p] if path(a) => (unix(a), tcp(LOOPBACK, target_port(p)?)?),
        [p, b] if path(b) => (tcp(LOOPBACK, port(p)?)?, unix(b)),
        [p, q] => (tcp(LOOPBACK, port(p)?)?, tcp(LOOPBACK, target_port(q)?)?),
        [a, host, p] if path(a) => (unix(a), tcp(host, target_port(p)?)?),
        [host, p, b] if path(b) => (tcp(host, port(p)?)?, unix(b)),
        [p, host, q] => (tcp(LOOPBACK, port(p)?)?, tcp(host, target_port(q)?)?),
        [at, p, host, q] => (tcp(at, port(p)?)?, tcp(host, target_port(q)?)?),
        parts => return Err(format!("{} parts in this order mean nothing", parts.len())),
    };
    match udp {
        true => Ok(ForwardSpec { bind: to_udp(bind)?, target: to_udp(target)? }),
        false => Ok(ForwardSpec { bind, target }),
    }
}

fn last_part(text: &str) -> &str {
    text.rsplit(':').next().unwrap_or(text)
}

/// The parts between colons; a bracketed part keeps its colons and loses its brackets.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let part = if let Some(inner) = rest.strip_prefix('[') {
            let (address, after) = inner.split_once(']').ok_or("a bracket is not closed")?;
            let address: Ipv6Addr = address.parse().map_err(|_| format!("[{address}] is no IPv6 address"))?;
            parts.push(address.to_string());
            after
        } else {
            let end = rest.find(':').unwrap_or(rest.len());
            match &rest[..end] {
                "" => return Err("a part of it is empty (* means every interface)".to_owned()),
                part => parts.push(part.to_owned()),
            }
            &rest[end..]
        };
        match part.strip_prefix(':') {
            Some(next) => rest = next,
            None if part.is_empty() => return Ok(parts),
            None => return Err(format!("{part:?} follows a bracket")),
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| format!("{text:?} is no port from 0 to 65535"))
}

fn target_port(text: &str) -> Result<u16, String> {
    match port(text)? {
        0 => Err("the port to connect to cannot be 0".to_owned()),
        port => Ok(port),
    }
}

fn tcp(host: &str, port: u16) -> Result<Endpoint, String> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '[' | ']' | '@' | '\\');
    if host.contains(strange) {
        return Err(format!("{host:?} is no host"));
    }
    Ok(Endpoint::Tcp { host: host.to_owned(), port })
}

fn to_udp(endpoint: Endpoint) -> Result<Endpoint, String> {
    match endpoint {
        Endpoint::Tcp { host, port } | Endpoint::Udp { host, port } => Ok(Endpoint::Udp { host, port }),
        Endpoint::Unix { path } => Err(format!("{path} is a Unix socket, and those take no /udp")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_shape() {
        for (text, long) in [
            ("3000", "127.0.0.1:3000:127.0.0.1:3000"),
            ("8080:3000", "127.0.0.1:8080:127.0.0.1:3000"),
            ("8080:db:5432", "127.0.0.1:8080:db:5432"),
            ("0:db:5432", "127.0.0.1:0:db:5432"),
            ("*:8080:db:5432", "*:8080:db:5432"),
            ("0.0.0.0:8080:[::1]:80", "0.0.0.0:8080:[::1]:80"),
            ("[::]:8080:[0:0::1]:80", "[::]:8080:[::1]:80"),
            ("/run/a.sock:db:80", "/run/a.sock:db:80"),
            ("./a.sock:80", "./a.sock:127.0.0.1:80"),
            ("8080:/run/b.sock", "127.0.0.1:8080:/run/b.sock"),
            ("*:8080:/run/b.sock", "*:8080:/run/b.sock"),
            ("/a:/b", "/a:/b"),
            ("/a:/b/9/udp", "/a:/b/9/udp"),
            ("53:10.0.0.2:53/udp", "127.0.0.1:53:10.0.0.2:53/udp"),
            ("53/udp", "127.0.0.1:53:127.0.0.1:53/udp"),
            ("[::1]:53:[::1]:53/udp", "[::1]:53:[::1]:53/udp"),
        ] {
            let spec: ForwardSpec = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(spec.to_string(), long);
            assert_eq!(long.parse(), Ok(spec));
        }
        assert_eq!("1080".parse::<DynamicSpec>().unwrap().to_string(), "127.0.0.1:1080");
        assert_eq!("[::1]:0".parse::<DynamicSpec>().unwrap().to_string(), "[::1]:0");
    }

    #[test]
    fn errors_teach() {
        for text in [
            "",
            "x",
            "0",
            "70000",
            "+80",
            ":80:a:1",
            "80:a:0",
            "80:a:b",
            "80::1",
            "1:2:3:4:5",
            "[::1:80:a:1",
            "[x]:1:a:1",
            "[::1]80",
            "80:a b:1",
            "/a",
            "/a:/b:/c",
            "80:/b:9",
            "80:/b/udp:1/udp",
            "a/b:1/udp",
            "80:u@h:1",
        ] {
            let error = text.parse::<ForwardSpec>().expect_err(text).to_string();
            assert!(error.contains("is not a forward: ") && error.contains("hint: write "), "{error}");
        }
        assert!("/a".parse::<DynamicSpec>().is_err());
        assert!("a:b:1".parse::<DynamicSpec>().is_err());
    }

    fn host() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9.-]{1,20}", any::<Ipv6Addr>().prop_map(|a| a.to_string()), Just("*".to_owned())]
    }

    fn endpoint(lowest_port: u16) -> impl Strategy<Value = Endpoint> {
        prop_oneof![
            (host(), lowest_port..).prop_map(|(host, port)| Endpoint::Tcp { host, port }),
            "/[a-z0-9._-]{1,9}(/[a-z0-9._-]{1,9})?".prop_map(|path| Endpoint::Unix { path }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(bind in endpoint(0), target in endpoint(1), udp: bool) {
            let spec = match (to_udp(bind.clone()), to_udp(target.clone())) {
                (Ok(bind), Ok(target)) if udp => ForwardSpec { bind, target },
                _ => ForwardSpec { bind, target },
            };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn any_text_parses_to_itself_or_is_refused(text in "[0-9a:/.\\[\\]*]{0,20}(/udp)?") {
            if let Ok(spec) = text.parse::<ForwardSpec>() {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }
    }
}

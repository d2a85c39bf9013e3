//! The coordinator behind a load balancer that ends TLS: who may be the balancer, for whom it speaks, and how clients
//! prove themselves through it. Nothing that a client can say counts before its assertion has been judged.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use hyper::header::HeaderName;
use hyper::{HeaderMap, Method, StatusCode, Uri};

use super::replays::Replays;
use crate::identity::assertion::{Fault, Judge};
use crate::identity::certificate::PeerCertificate;
use crate::identity::{IdentityError, Trust};
use crate::transport::address::CoordinatorUrl;
use crate::transport::http::ASSERTION;
use crate::wire::{Refusal, RefusalCode};

/// Where a balancer writes whom it speaks for.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A network from which a balancer connects: `10.0.0.0/16`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || format!("`{text}` is not a network. hint: write an address, or 10.0.0.0/16");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |prefix| prefix.parse().map_err(|_| wrong()))?;
        if prefix > bits {
            return Err(wrong());
        }
        // Peers are known by their IPv4 address, in whichever form they come.
        match address.to_canonical() {
            own if own.is_ipv4() == address.is_ipv4() => Ok(Network { address, prefix }),
            own => Ok(Network { address: own, prefix: prefix.checked_sub(128 - 32).ok_or_else(wrong)? }),
        }
    }
}

impl Network {
    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other, bits) = match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits().into(), u128::from(other.to_bits()), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        // A prefix of nothing shifts everything out.
        let shift = bits - self.prefix;
        (own ^ other).checked_shr(shift).unwrap_or(0) == 0
    }
}

/// What the listener without TLS goes by.
#[derive(Debug)]
pub struct Balancer {
    trusted: Vec<Network>,
    judge: ArcSwap<Judge>,
    audience: String,
    replays: Replays,
}

impl Balancer {
    /// Balancers connect from this machine or from `trusted`; clients know the coordinator as `public` and have
    /// certificates of `trust`.
    pub fn new(
        trust: &Trust,
        public: &CoordinatorUrl,
        trusted: Vec<Network>,
        now: SystemTime,
    ) -> Result<Balancer, IdentityError> {
        let audience = public.authority();
        let judge = ArcSwap::from_pointee(Judge::new(trust, audience.clone())?);
        Ok(Balancer { trusted, judge, audience, replays: Replays::new(now) })
    }

    /// From here on clients have certificates of `trust`.
    pub fn set_trust(&self, trust: &Trust) -> Result<(), IdentityError> {
        self.judge.store(Judge::new(trust, self.audience.clone())?.into());
        Ok(())
    }

    /// Whether a connection from here may be a balancer's. Nobody else may speak without TLS: whoever can, chooses the
    /// address that limits count, and shows codes and requests to all on the way.
    pub fn is_trusted(&self, peer: IpAddr) -> bool {
        peer.to_canonical().is_loopback() || self.trusted.iter().any(|network| network.contains(peer))
    }

    /// Proves who asks, by the assertion of the request, which is used up by that.
    pub fn prove(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Result<PeerCertificate, (StatusCode, Refusal)> {
        let refuse = |code, text: String| (StatusCode::UNAUTHORIZED, Refusal::new(code, text));
        let mut values = headers.get_all(ASSERTION).iter();
        let header = match (values.next(), values.next()) {
            (Some(header), None) => header,
            (None, _) => {
                let text = "this needs an assertion, because TLS ends before the coordinator. hint: pair or enrol with the address that `nexus-coordinator invite` prints";
                return Err(refuse(RefusalCode::Misdirected, text.into()));
            }
            (Some(_), Some(_)) => {
                let text = "more than one assertion. hint: something between adds headers";
                return Err(refuse(RefusalCode::Misdirected, text.into()));
            }
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let proved = self.judge.load().judge(header.as_bytes(), method.as_str(), path, now).map_err(|error| {
            let code = match error.fault() {
                Fault::Time => RefusalCode::Unavailable,
                Fault::Way => RefusalCode::Misdirected,
                Fault::Client => RefusalCode::Denied,
            };
            refuse(code, error.to_string())
        })?;
        self.replays.take(&proved, now).map_err(|refusal| (StatusCode::UNAUTHORIZED, refusal))?;
        Ok(proved.certificate)
    }
}

/// For whom a balancer at `peer` speaks: the last hop in its header, which is the one that it wrote itself. What
/// stands before came with the request. Without any, all clients count as one.
pub fn client_of(peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
    let last = headers.get_all(FORWARDED_FOR).iter().next_back().and_then(|value| value.to_str().ok());
    let last = last.and_then(|value| value.rsplit(',').next()).map(str::trim);
    // Some write the port as well.
    let address = last.and_then(|hop| {
        hop.parse::<IpAddr>().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
    });
    SocketAddr::new(address.unwrap_or(peer.ip()), peer.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Authority;

    #[test]
    fn networks() {
        let contains =
            |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(contains("10.1.0.0/16", "10.1.255.1") && !contains("10.1.0.0/16", "10.2.0.1"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("192.0.2.7", "::ffff:192.0.2.7"));
        assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::1"));
        assert!(contains("::/0", "2001:db9::1") && !contains("::/0", "192.0.2.1"));
        assert!(contains("::ffff:192.0.2.7", "192.0.2.7") && contains("::ffff:10.1.0.0/112", "::ffff:10.1.2.3"));
        assert!(!contains("::ffff:10.1.0.0/112", "10.2.0.1"));
        for wrong in
            ["", "x", "::ffff:10.0.0.0/95", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "::/129", "10.0.0.0/8/8"]
        {
            assert!(wrong.parse::<Network>().unwrap_err().contains("hint:"), "{wrong}");
        }
    }

    #[test]
    fn only_balancers_speak_without_tls() {
        let now = SystemTime::now();
        let authority = Authority::create("d".parse().unwrap(), now).unwrap();
        let public = "https://h".parse().unwrap();
        let balancer = Balancer::new(authority.trust(), &public, vec!["10.1.0.0/16".parse().unwrap()], now).unwrap();
        let trusted = |address: &str| balancer.is_trusted(address.parse().unwrap());
        assert!(trusted("127.0.0.1") && trusted("::1") && trusted("::ffff:127.0.0.1") && trusted("10.1.2.3"));
        assert!(!trusted("10.2.0.1") && !trusted("192.0.2.1") && !trusted("2001:db8::1"));
    }

    #[test]
    fn the_last_hop_is_who_asks() {
        let peer: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        let client = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(FORWARDED_FOR, value.parse().unwrap());
            }
            client_of(peer, &headers).ip().to_string()
        };
        assert_eq!(client(&["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(&["203.0.113.1, 198.51.100.1,192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(&["203.0.113.1", "198.51.100.1, 2001:db8::1"]), "2001:db8::1");
        assert_eq!(client(&["192.0.2.1:4000"]), "192.0.2.1");
        assert_eq!(client(&["[2001:db8::1]:4000"]), "2001:db8::1");
        for nothing in [&[][..], &[""], &["192.0.2.1, unknown"], &["192.0.2.1,"], &["\u{fffd}"]] {
            assert_eq!(client(nothing), "127.0.0.1", "{nothing:?}");
        }
    }
}

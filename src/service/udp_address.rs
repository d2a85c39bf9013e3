//! The address in front of a datagram of an association, as RFC 1928 section 7 lays it out from `ATYP` on.
//! Refuses what is cut short, of unknown type, or named with bytes that are no text.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Most bytes that an address takes: its type, a length, 255 bytes of name, a port.
pub const MAX_ADDRESS: usize = 1 + 1 + 255 + 2;

/// Where a datagram goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address and a port.
    Ip(SocketAddr),
    /// A name, for the workspace to resolve, and a port.
    Name(String, u16),
}

/// The address at the front of `bytes`, and what follows it.
pub fn parse(bytes: &[u8]) -> Option<(Address, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    match *kind {
        IPV4 => {
            let (ip, rest) = rest.split_first_chunk::<4>()?;
            let (port, rest) = parse_port(rest)?;
            Some((Address::Ip((*ip, port).into()), rest))
        }
        IPV6 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let (port, rest) = parse_port(rest)?;
            Some((Address::Ip((Ipv6Addr::from(*ip), port).into()), rest))
        }
        NAME => {
            let (len, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked(*len as usize)?;
            let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
            let (port, rest) = parse_port(rest)?;
            // A client that writes an address as a name means the address.
            let address = match name.parse::<IpAddr>() {
                Ok(ip) => Address::Ip((ip, port).into()),
                Err(_) => Address::Name(name.to_owned(), port),
            };
            Some((address, rest))
        }
        _ => None,
    }
}

/// Appends `address` to `out`. An IPv4 address in IPv6 clothes is written as IPv4.
pub fn encode(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(IPV4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(IPV6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn parse_port(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (port, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*port), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let v4 = [1, 127, 0, 0, 1, 0x1f, 0x90, b'x'];
        assert_eq!(parse(&v4), Some((Address::Ip("127.0.0.1:8080".parse().unwrap()), &b"x"[..])));
        let name = [3, 2, b'd', b'b', 0, 53];
        assert_eq!(parse(&name), Some((Address::Name("db".into(), 53), &b""[..])));
        for cut in 0..v4.len() - 1 {
            assert_eq!(parse(&v4[..cut]), None);
        }
        for bad in [&[2, 0, 0][..], &[3, 0, 0, 1], &[3, 1, 0xff, 0, 1], &[3, 200, b'a', 0, 1]] {
            assert_eq!(parse(bad), None);
        }
    }

    proptest! {
        #[test]
        fn round_trip(address: SocketAddr, payload: Vec<u8>) {
            let mut bytes = Vec::new();
            encode(address, &mut bytes);
            prop_assert!(bytes.len() <= MAX_ADDRESS);
            bytes.extend_from_slice(&payload);
            let plain = SocketAddr::new(address.ip().to_canonical(), address.port());
            prop_assert_eq!(parse(&bytes), Some((Address::Ip(plain), &payload[..])));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}

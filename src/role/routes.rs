//! By which route something would leave this machine: through which interface, and to whom first. An address alone does not tell
//! one network from another, since many routers give the same.
//!
//! Only the system's main table is read, as Linux shows it. Where there is none nothing is known.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where the kernel shows its routes.
const TABLES: [&str; 2] = ["/proc/net/route", "/proc/net/ipv6_route"];

/// Bytes of a table that are looked at: some thousand routes.
const MAX_TABLE: u64 = 256 * 1024;

/// Routes that are taken, and those of them that only refuse.
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;

/// A way to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The interface by which it leaves.
    pub interface: String,
    /// Who passes it on; the address of nobody where the network is at that interface.
    pub next: IpAddr,
    network: IpAddr,
    bits: u32,
    metric: u32,
}

/// The main table.
#[derive(Debug, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// As it is.
    pub fn now() -> Routes {
        let [v4, v6] = TABLES.map(|table| {
            let mut text = String::new();
            // A last line that is cut, or bytes that are no text, are as good as none.
            let _ = File::open(table).and_then(|file| file.take(MAX_TABLE).read_to_string(&mut text));
            text
        });
        Routes::parse(&v4, &v6)
    }

    /// As the two tables say; what is no route in them is left out.
    pub fn parse(v4: &str, v6: &str) -> Routes {
        Routes(v4.lines().filter_map(route_v4).chain(v6.lines().filter_map(route_v6)).collect())
    }

    /// The one that what goes to `target` takes.
    pub fn toward<'a>(&'a self, target: IpAddr) -> Option<&'a Route> {
        let leads = |route: &&Route| {
            prefix(target, route.bits) == Some(route.network) && target.is_ipv4() == route.next.is_ipv4()
        };
        // Of equal ones always the same, in whatever order they are shown.
        let first = |route: &&'a Route| (route.bits, u32::MAX - route.metric, route.interface.as_str(), route.next);
        self.0.iter().filter(leads).max_by_key(first)
    }
}

fn route_v4(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, network, next, flags, _, _, metric, mask, ..] = fields[..] else { return None };
    // Numbers are the machine's own, of addresses as they are in memory.
    let address = |text: &str| Some(Ipv4Addr::from(u32::from_str_radix(text, 16).ok()?.to_ne_bytes()));
    is_taken(u32::from_str_radix(flags, 16).ok()?).then_some(Route {
        interface: interface.to_owned(),
        next: address(next)?.into(),
        network: address(network)?.into(),
        bits: u32::from(address(mask)?).count_ones(),
        metric: metric.parse().ok()?,
    })
}

fn route_v6(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [network, bits, _, _, next, metric, _, _, flags, interface] = fields[..] else { return None };
    let address = |text: &str| Some(Ipv6Addr::from(u128::from_str_radix(text, 16).ok()?));
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    is_taken(number(flags)?).then_some(Route {
        interface: interface.to_owned(),
        next: address(next)?.into(),
        network: address(network)?.into(),
        bits: number(bits)?,
        metric: number(metric)?,
    })
}

fn is_taken(flags: u32) -> bool {
    flags & UP != 0 && flags & REJECT == 0
}

/// The first `bits` of an address.
fn prefix(address: IpAddr, bits: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let rest = 32u32.checked_sub(bits)?;
            Some(Ipv4Addr::from(u32::MAX.checked_shl(rest).unwrap_or(0) & u32::from(address)).into())
        }
        IpAddr::V6(address) => {
            let rest = 128u32.checked_sub(bits)?;
            Some(Ipv6Addr::from(u128::MAX.checked_shl(rest).unwrap_or(0) & u128::from(address)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
tun0\t0000000A\t0100080A\t0003\t0\t0\t0\t000000FF\t0\t0\t0
none\t0000000B\t0100080A\t0200\t0\t0\t0\t000000FF\t0\t0\t0
";
    const V6: &str = "\
20010db8000000000000000000000000 20 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003    wlan0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_longest_prefix_and_then_the_least_metric_leads() {
        let routes = Routes::parse(V4, V6);
        let toward = |target: &str| {
            let route = routes.toward(target.parse().unwrap());
            route.map(|route| (route.interface.as_str(), route.next.to_string()))
        };
        assert_eq!(toward("203.0.113.7"), Some(("eth0", "192.168.1.1".into())));
        assert_eq!(toward("192.168.1.77"), Some(("eth0", "0.0.0.0".into())));
        assert_eq!(toward("10.1.2.3"), Some(("tun0", "10.8.0.1".into())));
        assert_eq!(toward("11.1.2.3"), Some(("eth0", "192.168.1.1".into())), "one that is not taken");
        assert_eq!(toward("2001:db8::7"), Some(("eth0", "::".into())));
        assert_eq!(toward("2001:dead::7"), Some(("wlan0", "fe80::1".into())));
        assert_eq!(Routes::default().toward("10.1.2.3".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_table(v4 in ".{0,200}", v6 in "([0-9a-f]{0,40} ?){0,12}", target: [u8; 16]) {
            let _ = Routes::parse(&v4, &v6).toward(Ipv6Addr::from(target).into());
        }
    }
}

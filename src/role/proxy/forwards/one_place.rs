//! Forwards that would lead to themselves, where the workspace is on this machine and shares its localhost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{Endpoint, Refusal, RefusalCode};

/// Whether what is sent to one arrives at the other, where both are of one machine. A port that is to be picked is nobody's yet.
pub(super) fn is_one_place(bind: &Endpoint, target: &Endpoint) -> bool {
    match (bind, target) {
        (Endpoint::Tcp { host, port }, Endpoint::Tcp { host: to, port: at })
        | (Endpoint::Udp { host, port }, Endpoint::Udp { host: to, port: at }) => {
            let meet = || addresses_of(host).iter().any(|bind| addresses_of(to).iter().any(|to| meet(*bind, *to)));
            port == at && *port != 0 && (host == to || meet())
        }
        (bind, target) => bind == target,
    }
}

/// What a host may stand for that is this machine by its name, or is an address.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    match host {
        "*" => vec![Ipv4Addr::UNSPECIFIED.into()],
        _ if host.eq_ignore_ascii_case("localhost") => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => host.parse().into_iter().collect(),
    }
}

/// Whether whoever listens at `bind` hears who dials `to`. Other loopback addresses are other places.
fn meet(bind: IpAddr, to: IpAddr) -> bool {
    let is_here = |address: IpAddr| address.is_loopback() || address.is_unspecified();
    // What listens on every IPv4 address hears no one who dials ::1.
    let hears = bind.is_ipv6() || to.is_ipv4() || to.is_unspecified();
    bind == to || (bind.is_unspecified() && is_here(to) && hears) || (to.is_unspecified() && is_here(bind))
}

/// The refusal of a forward that would.
pub(super) fn leads_to_itself(bind: &Endpoint) -> Refusal {
    let text = format!(
        "{bind} would lead to itself: this workspace is on this machine, and so is its localhost. hint: listen on another port, or \
         on port 0, which picks a free one"
    );
    Refusal::new(RefusalCode::InvalidArguments, text)
}

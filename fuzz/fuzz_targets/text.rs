//! Small texts, and the address in front of a datagram. The first byte selects what the rest is taken for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_proxy::identity::{Code, Identity, KeyPin};
use nexus_proxy::service::config_value::Pattern;
use nexus_proxy::service::forward_spec::{DynamicSpec, ForwardSpec};
use nexus_proxy::service::udp_address::{self, Address, MAX_ADDRESS};
use nexus_proxy::transport::address::CoordinatorUrl;
use nexus_proxy::wire::name::{DeviceName, MAX_NAME, TrustDomain, WorkspaceName};
use nexus_proxy::wire::{Endpoint, FrameKind};
use nexus_proxy_fuzz::comes_back;

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    if which % 8 == 7 {
        return datagram(rest);
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match which % 8 {
        0 => name(text),
        1 => {
            // One spelling for each.
            if let Ok(identity) = text.parse::<Identity>() {
                assert_eq!(identity.to_string(), text);
            }
            if let Ok(pin) = text.parse::<KeyPin>() {
                assert_eq!(pin.to_string(), text);
            }
        }
        2 => code(text),
        3 => url(text),
        4 => {
            if let Ok(spec) = text.parse::<ForwardSpec>() {
                assert_eq!(udp(&spec.bind), udp(&spec.target));
                comes_back(&spec, spec.to_string().parse());
            }
        }
        5 => {
            if let Ok(spec) = text.parse::<DynamicSpec>() {
                assert!(matches!(spec.bind, Endpoint::Tcp { .. }));
                comes_back(&spec, spec.to_string().parse());
            }
        }
        _ => {
            let parts = text.split('.').all(|part| !part.is_empty());
            assert_eq!(Pattern::parse(text).is_ok(), parts);
        }
    }
});

fn udp(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Udp { .. })
}

fn name(text: &str) {
    let parsed = text.parse::<WorkspaceName>();
    assert_eq!(parsed.is_ok(), text.parse::<DeviceName>().is_ok());
    assert_eq!(parsed.is_ok(), text.parse::<TrustDomain>().is_ok());
    match parsed {
        Ok(name) => {
            assert_eq!(name.as_str(), text);
            assert!((1..=MAX_NAME).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-'));
            assert!(text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')));
        }
        Err(error) => assert!(error.to_string().chars().count() < 250),
    }
}

fn code(text: &str) {
    match text.parse::<Code>() {
        Ok(code) => {
            comes_back(&code, code.reveal().parse());
            assert!(text.len() >= code.reveal().len() - 9, "shorter than one without hyphens");
        }
        Err(error) => {
            // What is nearly a code is nearly a secret.
            let error = error.to_string();
            assert!(text.len() < 16 || !error.contains(text));
        }
    }
}

fn url(text: &str) {
    if let Ok(url) = text.parse::<CoordinatorUrl>() {
        comes_back(&url, url.to_string().parse());
        let host = url.host();
        assert!(!host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control()));
        assert!(!host.contains(['/', '@', '[', ']']));
        assert!(url.authority().ends_with(&format!(":{}", url.port())));
        assert!(url.literal().is_none_or(|addr| addr.port() == url.port()));
        assert_eq!(url.is_behind_balancer(), text.starts_with("https+balancer://"));
        let _ = url.is_loopback();
    }
}

fn datagram(bytes: &[u8]) {
    let Some((address, payload)) = udp_address::parse(bytes) else { return };
    assert!(bytes.ends_with(payload) && bytes.len() - payload.len() <= MAX_ADDRESS);
    assert!(MAX_ADDRESS <= FrameKind::Datagram.max_payload());
    match address {
        Address::Ip(ip) => {
            let mut again = Vec::new();
            udp_address::encode(ip, &mut again);
            let plain = std::net::SocketAddr::new(ip.ip().to_canonical(), ip.port());
            assert_eq!(udp_address::parse(&again), Some((Address::Ip(plain), &[][..])));
        }
        Address::Name(name, _) => assert!(!name.is_empty() && name.len() <= 255),
    }
}

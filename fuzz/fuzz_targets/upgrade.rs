//! The heads of HTTP with which a carrier begins, on either side, and the message that follows; the coordinator's answers in
//! JSON; and for whom a load balancer says that it speaks. The first byte selects which.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arbitrary::Unstructured;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::lifeline::first_attach;
use nexus_proxy::role::coordinator::balancer::{Network, client_of};
use nexus_proxy::transport::{direct, http};
use nexus_proxy::wire::Refusal;
use nexus_proxy::wire::lifeline::{Attach, AttachMode, LifelineId, LifelineMessage, TAG};
use nexus_proxy::wire::onboarding::{AUTHORITIES_PATH, Authorities};
use nexus_proxy::wire::refusal::printable;
use nexus_proxy_fuzz::{Pipe, edited, runtime};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Bytes of a piece: a head in much smaller ones is refused, because a client that sends one so wants to keep somebody busy.
const LEAST_PIECE: usize = 16;

const ATTACH: Attach =
    Attach { id: LifelineId([7; 16]), sequence: 3, mode: AttachMode::Move, received: 4096, tag: [9; TAG] };

const REQUEST: &str = "GET /v1/direct HTTP/1.1\r\nHost: 192.0.2.7:41234\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: nexus.v2\r\n\
    Nexus-Masking: none\r\n\r\n";

const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: ACCEPT\r\nSec-WebSocket-Protocol: nexus.v2\r\nNexus-Masking: none\r\n\r\n";

const REFUSAL: &str =
    "HTTP/1.1 403 Forbidden\r\nContent-Length: 40\r\n\r\n{\"code\":\"denied\",\"message\":\"hint: no\"}   ";

const AUTHORITIES: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n\
    {\"authorities\":\"PEM\"}";

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    match bytes.int_in_range(0..=7)? {
        0 => drop(accepted(bytes.bytes(bytes.len())?, &[], 0)),
        1 | 2 => {
            let attach = LifelineMessage::Attach(ATTACH).encode();
            let frame = [&[0x82, attach.len() as u8][..], &attach].concat();
            let ((head, edited_head), (frame, edited_frame)) =
                (edited(REQUEST.as_bytes(), bytes)?, edited(&frame, bytes)?);
            let attach = accepted(&head, &frame, LEAST_PIECE + usize::from(bytes.arbitrary::<u8>()?));
            assert!(edited_head || edited_frame || attach.as_ref() == Some(&ATTACH), "{attach:?}");
        }
        3 => {
            let (answer, changed) = edited(ANSWER.as_bytes(), bytes)?;
            let carrier = answered(&answer, bytes.arbitrary::<u8>()?.into());
            assert!(changed || carrier);
        }
        4 => {
            let (answer, changed) = edited(REFUSAL.as_bytes(), bytes)?;
            assert!(!answered(&answer, 0) || changed);
        }
        5 => forwarded(bytes)?,
        6 => {
            let (answer, changed) = edited(AUTHORITIES.as_bytes(), bytes)?;
            match asked(&answer, bytes.arbitrary::<u8>()?.into()) {
                Ok(said) => assert!(changed || said.authorities == "PEM"),
                Err(refusal) => {
                    assert!(changed, "{refusal}");
                    assert_eq!(refusal.message, printable(&refusal.message));
                }
            }
        }
        _ => network(bytes)?,
    }
    Ok(())
}

/// What a stub hears at its direct port: the attach that it makes of it, or nothing. Who is let in was asked for an upgrade
/// first. `rest` comes when there was an answer, or none is to be expected any more.
fn accepted(head: &[u8], rest: &[u8], piece: usize) -> Option<Attach> {
    let pipe = Pipe::default();
    pipe.with(|ends| (ends.inward, ends.piece, ends.room) = (head.to_vec(), piece, usize::MAX));
    let client = async {
        // More often than there are pieces of the head.
        for _ in 0..head.len() + 2 {
            if pipe.with(|ends| ends.outward.ends_with(b"\r\n\r\n")) {
                break;
            }
            tokio::task::yield_now().await;
        }
        pipe.with(|ends| {
            ends.inward.extend_from_slice(rest);
            ends.ended = true;
        });
    };
    let stub = async {
        let carrier = direct::answer(pipe.clone()).await;
        let upgraded = pipe.with(|ends| ends.outward.starts_with(b"HTTP/1.1 101 "));
        assert_eq!(carrier.is_ok(), upgraded);
        first_attach(&mut carrier.ok()?).await
    };
    runtime().block_on(async { tokio::join!(stub, client).0 })
}

/// Whether a client takes an answer to its upgrade.
fn answered(answer: &[u8], piece: usize) -> bool {
    let pipe = Pipe::default();
    pipe.with(|ends| (ends.room, ends.piece) = (usize::MAX, piece));
    let server = async {
        let key = loop {
            let said = pipe.with(|ends| String::from_utf8_lossy(&ends.outward).to_ascii_lowercase());
            if said.ends_with("\r\n\r\n") {
                let said = pipe.with(|ends| String::from_utf8_lossy(&ends.outward).into_owned());
                let at = said.to_ascii_lowercase().find("sec-websocket-key: ").expect("a key is sent") + 19;
                break said[at..].lines().next().unwrap_or_default().to_owned();
            }
            tokio::task::yield_now().await;
        };
        let at = answer.windows(6).position(|part| part == b"ACCEPT");
        let answer = at.map_or(answer.to_vec(), |at| {
            [&answer[..at], derive_accept_key(key.as_bytes()).as_bytes(), &answer[at + 6..]].concat()
        });
        pipe.with(|ends| (ends.inward, ends.ended) = (answer, true));
    };
    runtime().block_on(async {
        let (_, carrier) = tokio::join!(server, http::upgrade(pipe.clone(), "host", "/v1/park", None));
        carrier.is_ok()
    })
}

/// What a client makes of an answer in JSON.
fn asked(answer: &[u8], piece: usize) -> Result<Authorities, Refusal> {
    let pipe = Pipe::default();
    pipe.with(|ends| (ends.room, ends.piece) = (usize::MAX, piece));
    let server = async {
        while !pipe.with(|ends| ends.outward.ends_with(b"\r\n\r\n")) {
            tokio::task::yield_now().await;
        }
        pipe.with(|ends| (ends.inward, ends.ended) = (answer.to_vec(), true));
    };
    runtime().block_on(async { tokio::join!(server, http::read_json(pipe.clone(), "host", AUTHORITIES_PATH)).1 })
}

/// Whatever a client writes before it: the hop that the balancer wrote is the last.
fn forwarded(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let peer = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bytes.arbitrary()?);
    let mut headers = HeaderMap::new();
    let client = address(bytes)?;
    let separate = bytes.arbitrary::<bool>()?;
    let written = bytes.bytes(bytes.len())?;
    if let Ok(value) = HeaderValue::from_bytes(written) {
        headers.append("x-forwarded-for", value);
    }
    assert_eq!(client_of(peer, &headers).port(), peer.port());
    if separate {
        headers.append("x-forwarded-for", HeaderValue::from_str(&client.to_string()).expect("plain text"));
    } else if let Ok(value) = HeaderValue::from_bytes(&[written, b", ", client.to_string().as_bytes()].concat()) {
        let is_text = value.to_str().is_ok();
        headers.insert("x-forwarded-for", value);
        if !is_text {
            assert_eq!(client_of(peer, &headers), peer, "what cannot be read counts as nobody's");
            return Ok(());
        }
    } else {
        return Ok(());
    }
    assert_eq!(client_of(peer, &headers), SocketAddr::new(client, peer.port()));
    Ok(())
}

/// A network holds its own address, and what it holds does not change with the bits behind its prefix.
fn network(bytes: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (own, prefix) = (address(bytes)?, bytes.arbitrary::<u8>()?);
    let bits = if own.is_ipv4() { 32 } else { 128 };
    let network = format!("{own}/{prefix}").parse::<Network>();
    // Of an IPv4 address in the form of IPv6, only the part behind the form can be left open.
    let least = if own.is_ipv6() && own.to_canonical().is_ipv4() { 96 } else { 0 };
    assert_eq!(network.is_ok(), (least..=bits).contains(&prefix));
    if let Ok(network) = network {
        let other = address(bytes)?;
        assert!(network.contains(own));
        if prefix == bits {
            assert_eq!(network.contains(other), own.to_canonical() == other.to_canonical());
        }
        if prefix == least {
            assert_eq!(network.contains(other), own.to_canonical().is_ipv4() == other.to_canonical().is_ipv4());
        }
    }
    let text = String::from_utf8_lossy(bytes.bytes(bytes.len())?).into_owned();
    if let Err(error) = text.parse::<Network>() {
        assert!(error.contains("hint:"));
    }
    Ok(())
}

fn address(bytes: &mut Unstructured<'_>) -> arbitrary::Result<IpAddr> {
    Ok(match bytes.arbitrary()? {
        true => Ipv4Addr::from(bytes.arbitrary::<[u8; 4]>()?).into(),
        false => Ipv6Addr::from(bytes.arbitrary::<[u8; 16]>()?).into(),
    })
}

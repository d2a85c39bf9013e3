//! Everything of the wire but the lifeline: frames, and JSON. The first byte selects what the rest is taken for.

#![no_main]

use bytes::BufMut;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::session::framed::{DataBuffer, FrameReader};
use nexus_proxy::wire::call::{MAX_ID, Request, Response};
use nexus_proxy::wire::control::Control;
use nexus_proxy::wire::limits::{FRAME_HEADER, MAX_ANSWER, MAX_CONTROL, MAX_DEVICES, MAX_SENTENCE};
use nexus_proxy::wire::onboarding::{
    Authorities, EnrollAnswer, EnrollRequest, Health, PairAnswer, PairRequest, RenewAnswer, RenewRequest,
};
use nexus_proxy::wire::open::{Accepted, Exit, Signal};
use nexus_proxy::wire::refusal::{printable, printable_word};
use nexus_proxy::wire::version::Version;
use nexus_proxy::wire::{FrameHeader, Open, Refusal};
use nexus_proxy_fuzz::{Flag, Pipe, comes_back};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    match which % 14 {
        0 => header(rest),
        1 => frames(rest),
        2 => open(rest),
        3 => json::<Accepted>(rest),
        4 => {
            json::<Exit>(rest);
            json::<Signal>(rest);
            if let Ok(exit) = serde_json::from_slice::<Exit>(rest) {
                let _ = exit.shell_code();
            }
        }
        5 => refusal(rest),
        6 => control(rest),
        7 => request(rest),
        8 => response(rest),
        9 => parsed(PairRequest::parse(rest), PairRequest::parse),
        10 => parsed(EnrollRequest::parse(rest), EnrollRequest::parse),
        11 => {
            parsed(RenewRequest::parse(rest), RenewRequest::parse);
            parsed(RenewAnswer::parse(rest), RenewAnswer::parse);
            parsed(Health::parse(rest), Health::parse);
            parsed(Authorities::parse(rest), Authorities::parse);
        }
        12 => {
            parsed(PairAnswer::parse(rest), PairAnswer::parse);
            let answer = EnrollAnswer::parse(rest);
            assert!(answer.as_ref().is_ok_and(|answer| answer.device_pins.len() <= MAX_DEVICES) || answer.is_err());
            parsed(answer, EnrollAnswer::parse);
        }
        _ => version(rest),
    }
});

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<FRAME_HEADER>() else { return };
    if let Ok(header) = FrameHeader::decode(*bytes) {
        assert!(header.len <= header.kind.max_payload());
        assert_eq!(header.encode(), *bytes);
    }
}

/// Frames in whatever pieces they arrive: the same frames, and never more in memory than arrived.
fn frames(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let read = |piece: usize| {
        let pipe = Pipe::default();
        pipe.with(|ends| (ends.inward, ends.piece, ends.ended) = (bytes.to_vec(), piece, true));
        let mut reader = FrameReader::new(pipe);
        let waker = Flag::raised().into();
        let mut cx = std::task::Context::from_waker(&waker);
        let mut whole = Vec::new();
        let fault = loop {
            match reader.poll_next(&mut cx) {
                std::task::Poll::Ready(Ok(Some(frame))) => {
                    assert!(frame.payload.len() <= frame.kind.max_payload());
                    whole.extend_from_slice(&FrameHeader::new(frame.kind, frame.payload.len()).encode());
                    whole.extend_from_slice(&frame.payload);
                    let _ = (frame.json::<Accepted>(), frame.refusal());
                }
                std::task::Poll::Ready(Ok(None)) => break None,
                std::task::Poll::Ready(Err(fault)) => break Some(fault.to_string()),
                std::task::Poll::Pending => panic!("all there is has arrived"),
            }
        };
        assert!(bytes.starts_with(&whole));
        assert!(fault.is_some() || whole.len() == bytes.len(), "a clean end lost bytes");
        (whole, fault)
    };
    assert_eq!(read(0), read(usize::from(*piece)));
    let mut buffer = DataBuffer::new();
    let room = buffer.space().remaining_mut();
    buffer.space().put_slice(&bytes[..bytes.len().min(room)]);
    assert_eq!(buffer.payload_len(), bytes.len().min(room));
}

fn open(bytes: &[u8]) {
    if let Ok(open) = Open::parse(bytes) {
        let _ = open.request.name();
        comes_back(&open, Open::parse(&open.to_bytes().expect("no longer than what arrived")));
    }
}

fn refusal(bytes: &[u8]) {
    let refusal = Refusal::from_bytes(bytes);
    clean(&refusal);
    let again = refusal.to_bytes();
    assert!(again.len() <= MAX_ANSWER);
    assert_eq!(Refusal::from_bytes(&again), refusal);
    let text = String::from_utf8_lossy(bytes);
    assert_eq!(printable(&printable(&text)), printable(&text));
    assert!(printable_word(&text, 40).chars().count() <= 40);
}

fn clean(refusal: &Refusal) {
    assert!(refusal.message.len() <= MAX_SENTENCE);
    assert!(!refusal.message.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
}

fn control(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Control::parse(text) {
        Ok(control) => {
            assert!(text.len() <= MAX_CONTROL);
            comes_back(&control, Control::parse(&control.to_text()));
        }
        Err(refusal) => clean(&refusal),
    }
}

fn request(bytes: &[u8]) {
    match Request::parse(bytes) {
        Ok(request) => {
            assert!(request.id.as_str().is_none_or(|id| id.len() <= MAX_ID));
            assert!(!request.id.is_array() && !request.id.is_object());
            comes_back(&request, Request::parse(&serde_json::to_vec(&request).expect("JSON")));
        }
        Err(refusal) => clean(&refusal),
    }
}

fn response(bytes: &[u8]) {
    json::<Response>(bytes);
    if let Ok(response) = serde_json::from_slice::<Response>(bytes)
        && let Err(refusal) = response.outcome()
    {
        clean(&refusal);
    }
}

fn version(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let offered = text.split(',').any(|name| name.trim() == Version::V2.subprotocol());
    assert_eq!(Version::choose(text).is_some(), offered);
}

fn json<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        comes_back(&value, serde_json::from_slice(&serde_json::to_vec(&value).expect("JSON")));
    }
}

fn parsed<T: Serialize + PartialEq + std::fmt::Debug>(
    outcome: Result<T, Refusal>,
    parse: impl Fn(&[u8]) -> Result<T, Refusal>,
) {
    match outcome {
        Ok(value) => comes_back(&value, parse(&serde_json::to_vec(&value).expect("JSON"))),
        Err(refusal) => clean(&refusal),
    }
}

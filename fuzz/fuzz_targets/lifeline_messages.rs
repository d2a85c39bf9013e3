//! Messages of the lifeline: any bytes are one or none, and one has one encoding.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nexus_proxy::wire::lifeline::{DATA_HEADER, LifelineMessage};
use nexus_proxy::wire::limits::MAX_ANSWER;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = LifelineMessage::parse(Bytes::copy_from_slice(data)) else { return };
    let encoded = message.encode();
    match &message {
        LifelineMessage::Data { payload, .. } => assert_eq!(payload.len(), data.len() - DATA_HEADER),
        // A sentence is cleaned when it is read.
        LifelineMessage::End { refusal: Some(_), .. } => assert!(encoded.len() <= 9 + MAX_ANSWER),
        LifelineMessage::End { refusal: None, .. } => assert_eq!(data.len(), 9),
        _ => assert!(data.len() <= 1 + 16 + 8 + 1 + 8 + 16),
    }
    if !matches!(message, LifelineMessage::End { refusal: Some(_), .. }) {
        assert_eq!(encoded, data);
    }
    assert_eq!(LifelineMessage::parse(encoded).as_ref(), Ok(&message));
});

//! Control messages between a program and the coordinator: text messages on the WebSocket, JSON, bounded.
//! What follows a `Join` in binary messages is between the two ends; the coordinator copies it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{MAX_CONTROL, MAX_RECONNECT};
use super::refusal::{Refusal, RefusalCode};

/// What the coordinator says. A type this version does not know reads as `Unknown` and is ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// To a stub: this connection waits for a laptop.
    Parked {},
    /// To both: the two connections are joined; binary messages from here on belong to the session.
    Join {
        /// Names the session in the logs of all three.
        session: String,
        /// To a stub: the name of the device on the other side. A hint for logs; the inner TLS proves it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// To a laptop: it waits for longer than usual, and why. It is not refused.
    Waiting {
        /// For a person to read; at most [`MAX_SENTENCE`](super::limits::MAX_SENTENCE).
        message: String,
    },
    /// To a laptop: there will be no session.
    Refused(Refusal),
    /// To both: this coordinator is about to stop.
    Drain {
        /// When to come back, in milliseconds from now. Spread out, so that clients do not return all at once.
        reconnect_after_ms: u64,
    },
    /// To a stub: devices that are not let in any more. Their sessions end.
    Revoked {
        /// The pins of their keys, as text; at most [`MAX_REVOKED`](super::limits::MAX_REVOKED).
        pins: Vec<String>,
    },
    /// To a stub: other authorities are in force than before. It asks which.
    Authorities {},
    /// Anything else.
    #[serde(other)]
    Unknown,
}

impl Control {
    /// JSON text.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How long a client waits that a `drain` tells to come back after this many milliseconds.
    pub fn reconnect_after(ms: u64) -> Duration {
        Duration::from_millis(ms).min(MAX_RECONNECT)
    }

    /// Reads a control message.
    pub fn parse(text: &str) -> Result<Control, Refusal> {
        if text.len() > MAX_CONTROL {
            return Err(Refusal::new(RefusalCode::TooLarge, "control message over its bound"));
        }
        serde_json::from_str(text)
            .map_err(|e| Refusal::new(RefusalCode::Malformed, format!("control message does not parse: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::MAX_REVOKED;
    use proptest::prelude::*;

    #[test]
    fn the_most_revoked_devices_fit() {
        let revoked = Control::Revoked { pins: vec![format!("sha256:{}", "f".repeat(64)); MAX_REVOKED] };
        assert_eq!(Control::parse(&revoked.to_text()).unwrap(), revoked);
    }

    #[test]
    fn golden_text() {
        let cases = [
            (Control::Parked {}, r#"{"type":"parked"}"#),
            (Control::Join { session: "s1".into(), device: None }, r#"{"type":"join","session":"s1"}"#),
            (Control::Authorities {}, r#"{"type":"authorities"}"#),
            (Control::Waiting { message: "silent".into() }, r#"{"type":"waiting","message":"silent"}"#),
            (Control::Drain { reconnect_after_ms: 250 }, r#"{"type":"drain","reconnect_after_ms":250}"#),
            (
                Control::Refused(Refusal::new(RefusalCode::Unavailable, "no stub")),
                r#"{"type":"refused","code":"unavailable","message":"no stub"}"#,
            ),
        ];
        for (control, text) in cases {
            assert_eq!(control.to_text(), text);
            assert_eq!(Control::parse(text).unwrap(), control);
        }
        assert_eq!(Control::parse(r#"{"type":"party"}"#).unwrap(), Control::Unknown);
    }

    #[test]
    fn no_drain_sends_a_client_away_for_long() {
        assert_eq!(Control::reconnect_after(250), Duration::from_millis(250));
        assert_eq!(Control::reconnect_after(u64::MAX), MAX_RECONNECT);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            let _ = Control::parse(&text);
        }
    }
}

//! Why something was refused: a code for programs and a sentence for people.

use serde::{Deserialize, Serialize};

use super::limits::MAX_SENTENCE;

/// Why, for programs. Names are never reused; a code this version does not know reads as `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The kind of stream, the method or the version is not known here.
    Unsupported,
    /// The bytes do not parse as what they should be.
    Malformed,
    /// Over a bound.
    TooLarge,
    /// The arguments do not fit what was declared.
    InvalidArguments,
    /// Nothing by that name is declared in the laptop's configuration.
    NotDeclared,
    /// A rule or a person said no.
    Denied,
    /// It is declared, but it is not there.
    NotFound,
    /// The target answered with a refusal.
    TargetRefused,
    /// The target cannot be reached.
    TargetUnreachable,
    /// It took longer than its bound.
    Timeout,
    /// The address to listen on is taken.
    AddressInUse,
    /// Too much of it at once; the same may succeed later.
    Busy,
    /// The other side is not there now.
    Unavailable,
    /// A new login of the same device took its place.
    TakenOver,
    /// The caller took it back.
    Cancelled,
    /// It came by a way on which it cannot be served: something between both sides is set up wrongly.
    Misdirected,
    /// A fault on this side.
    Internal,
    /// A code from a newer version.
    #[serde(other)]
    Other,
}

/// A refusal: a code, and a sentence a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why, for programs.
    pub code: RefusalCode,
    /// What happened, why, and after `hint:` what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with its sentence cut to [`MAX_SENTENCE`] bytes, without what [`printable`] drops: sentences of
    /// ours quote what a peer sent, down to the errors of its JSON.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        let mut message = printable(&message.into());
        // JSON doubles a byte at worst, so it fits an answer frame.
        message.truncate(message.floor_char_boundary(MAX_SENTENCE));
        Refusal { code, message }
    }

    /// JSON bytes, within the bound of an answer frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what a peer sent. What does not parse becomes a refusal that says so.
    /// Control characters are dropped, so that a hostile sentence cannot drive a terminal.
    pub fn from_bytes(bytes: &[u8]) -> Refusal {
        let refusal: Refusal = serde_json::from_slice(bytes).unwrap_or_else(|_| {
            Refusal::new(RefusalCode::Malformed, "the other side refused without a readable reason")
        });
        Refusal::new(refusal.code, refusal.message)
    }
}

/// `text` without control characters other than line feed and tab, and without those that reorder what is around
/// them. For everything of a peer that a terminal shows.
pub fn printable(text: &str) -> String {
    let reorders = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|&c| (!c.is_control() && !reorders(c)) || matches!(c, '\n' | '\t')).collect()
}

/// As [`printable`], on one line of at most `max` characters: for a name or a version among other words.
pub fn printable_word(text: &str, max: usize) -> String {
    printable(text).chars().filter(|c| !c.is_control()).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_from_the_future_is_tolerated() {
        let refusal = Refusal::from_bytes(br#"{"code":"quota_of_2031","message":"no","more":1}"#);
        assert_eq!(refusal.code, RefusalCode::Other);
        assert_eq!(refusal.message, "no");
    }

    #[test]
    fn a_hostile_sentence_is_cut_and_cleaned() {
        let long = format!("{{\"code\":\"denied\",\"message\":\"\\u001b[2J{}\"}}", "x".repeat(100_000));
        let refusal = Refusal::from_bytes(long.as_bytes());
        assert!(refusal.message.starts_with("[2J"));
        assert_eq!(refusal.message.len(), MAX_SENTENCE);
        for long in ["\u{1f600}".repeat(9000), "\"".repeat(9000)] {
            let bytes = Refusal::new(RefusalCode::Other, long).to_bytes();
            assert!(bytes.len() <= super::super::limits::MAX_ANSWER, "{}", bytes.len());
        }
        assert!(refusal.to_bytes().len() <= super::super::limits::MAX_ANSWER);
        assert_eq!(Refusal::from_bytes(b"\xff\xfe").code, RefusalCode::Malformed);
        assert_eq!(Refusal::new(RefusalCode::Other, "a\u{9b}2J\u{202e}b\nc").message, "a2Jb\nc");
        assert_eq!(printable_word("1.2\n\u{1b}[2J and more", 6), "1.2[2J");
    }
}

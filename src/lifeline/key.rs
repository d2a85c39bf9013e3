//! The key with which both ends of a session prove, on a new carrier, that they are the ends of it.
//!
//! It comes out of the session's own TLS (RFC 8446, section 7.5), so nobody in between has it. It protects a session from being
//! ended by strangers, not its content: that is what TLS above the lifeline is for.

use aws_lc_rs::hmac;

use crate::wire::lifeline::{Attach, Attached, TAG};

/// The exporter's label.
pub const LABEL: &[u8] = b"EXPORTER-nexus-lifeline";

/// Bytes of the exported secret.
pub const SECRET: usize = 32;

/// The key. Does not print.
#[derive(Clone)]
pub struct ResumeKey(hmac::Key);

impl std::fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResumeKey")
    }
}

impl ResumeKey {
    /// The key made of the exported secret.
    pub fn new(secret: &[u8; SECRET]) -> ResumeKey {
        ResumeKey(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Gives an attach its tag.
    pub fn sign_attach(&self, attach: Attach) -> Attach {
        Attach { tag: self.tag(&attach.signed()), ..attach }
    }

    /// Whether the attach is of the laptop of this session.
    pub fn is_attach(&self, attach: &Attach) -> bool {
        equal(&self.tag(&attach.signed()), &attach.tag)
    }

    /// Gives an answer its tag.
    pub fn sign_attached(&self, attached: Attached) -> Attached {
        Attached { tag: self.tag(&attached.signed()), ..attached }
    }

    /// Whether the answer is of the stub of this session.
    pub fn is_attached(&self, attached: &Attached) -> bool {
        equal(&self.tag(&attached.signed()), &attached.tag)
    }

    fn tag(&self, signed: &[u8]) -> [u8; TAG] {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&hmac::sign(&self.0, signed).as_ref()[..TAG]);
        tag
    }
}

fn equal(a: &[u8; TAG], b: &[u8; TAG]) -> bool {
    subtle::ConstantTimeEq::ct_eq(&a[..], &b[..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lifeline::{AttachMode, LifelineId};

    #[test]
    fn a_tag_holds_for_one_message_under_one_key() {
        let key = ResumeKey::new(&[1; SECRET]);
        let attach =
            Attach { id: LifelineId([1; 16]), sequence: 1, mode: AttachMode::Move, received: 5, tag: [0; TAG] };
        let signed = key.sign_attach(attach);
        assert!(key.is_attach(&signed) && !key.is_attach(&attach));
        assert!(!ResumeKey::new(&[2; SECRET]).is_attach(&signed));
        for other in [
            Attach { sequence: 2, ..signed },
            Attach { received: 6, ..signed },
            Attach { mode: AttachMode::Standby, ..signed },
            Attach { id: LifelineId([2; 16]), ..signed },
        ] {
            assert!(!key.is_attach(&other), "{other:?}");
        }
        let answer = key.sign_attached(Attached { sequence: 1, received: 5, tag: [0; TAG] });
        assert!(key.is_attached(&answer) && !key.is_attached(&Attached { received: 4, ..answer }));
    }
}

//! PEM armour. Reading is bounded by the callers' types; what is not a section of the wanted kind is refused.

use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::wire::limits::MAX_CROSSED;

use super::IdentityError;

/// Characters of base64 on a line of PEM (RFC 7468).
const LINE: usize = 64;

/// Bytes of PEM that are looked at: a chain of a few certificates is far below.
pub(super) const MAX_PEM: usize = 64 * 1024;

/// Certificates in one chain: leaf and authority, and those that vouch for it. A bundle of authorities has as many.
const MAX_CHAIN: usize = 2 + MAX_CROSSED;

/// One section.
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    // Wiped, because a private key passes through here.
    let body = Zeroizing::new(BASE64.encode(der));
    text.reserve_exact(body.len() + body.len() / LINE + label.len() + 32);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Every certificate in `text`, at least one.
pub(super) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    if text.len() > MAX_PEM {
        return Err(IdentityError::malformed("a PEM text over its bound of 64 KiB"));
    }
    let mut chain = Vec::new();
    for item in CertificateDer::pem_slice_iter(text.as_bytes()) {
        chain.push(item.map_err(|e| IdentityError::malformed(format!("PEM does not parse: {e}")))?);
        if chain.len() > MAX_CHAIN {
            return Err(IdentityError::malformed("a chain of more than four certificates"));
        }
    }
    if chain.is_empty() {
        return Err(IdentityError::malformed("no certificate in the PEM text"));
    }
    Ok(chain)
}

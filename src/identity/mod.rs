//! Who is who: names, keys, pins, certificates, and the TLS configurations that check them.
//!
//! One coordinator is one trust domain with one certificate authority, or two while one takes the other's place. A certificate carries exactly one URI
//! name (`spiffe://{domain}/{role}/{name}`), and that name is what a handshake checks; DNS names prove nothing
//! here. Nothing in this layer reads a file, a socket or a clock of its own: callers pass the time.

pub mod assertion;
pub mod authority;
pub mod certificate;
pub mod code;
pub mod error;
pub mod key;
mod pem;
pub mod pin;
pub mod trust;
pub mod uri;
pub mod verify;

pub use authority::Authority;
pub use certificate::{Credential, PeerCertificate};
pub use code::{Code, CodeKind};
pub use error::IdentityError;
pub use key::PrivateKey;
pub use pin::KeyPin;
pub use trust::{Bundle, Trust};
pub use uri::{Identity, Role};
pub use verify::{ClientAuth, Expect};

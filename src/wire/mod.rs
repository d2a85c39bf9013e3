//! The wire: messages, identifiers, limits and versions, as `proxy-protocol.md` specifies them.
//!
//! Nothing here reads a socket, a clock or a file. Everything that arrives is parsed by a function in this
//! layer, and every such function has a bound and a refusal.

pub mod call;
pub mod control;
pub mod frame;
pub mod lifeline;
pub mod limits;
pub mod name;
pub mod onboarding;
pub mod open;
pub mod refusal;
pub mod version;

pub use frame::{FrameHeader, FrameKind};
pub use open::{Endpoint, Open, StreamRequest};
pub use refusal::{Refusal, RefusalCode};

//! Every bound of the wire, in one place, with its unit and its reason.

use std::time::Duration;

/// Bytes of a frame header: one of kind, three of length.
pub const FRAME_HEADER: usize = 4;

/// Bytes of payload in one `Data`, `Stderr` frame. With its header it fills 64 KiB, which is one mux frame.
pub const MAX_DATA: usize = 64 * 1024 - FRAME_HEADER;

/// Bytes of an `Open` frame. An argument vector has to fit; nothing else comes near.
pub const MAX_OPEN: usize = 128 * 1024;

/// Bytes of an `Accept`, `Refuse`, `Abort`, `Exit` or `Signal` frame: a code and a sentence.
pub const MAX_ANSWER: usize = 8 * 1024;

/// Bytes of one JSON-RPC message. Bulk travels in `Data` frames beside it.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// Bytes of one datagram: what UDP over IPv4 carries (65 507), plus a SOCKS5 address in front.
pub const MAX_DATAGRAM: usize = 65_507 + 262;

/// Bytes of one control message between a program and the coordinator.
pub const MAX_CONTROL: usize = 16 * 1024;

/// Addresses in the answer to a `hello`. A machine has few.
pub const MAX_DIRECT: usize = 16;

/// Sessions of a device that drain, beside the one that does not: that many updates of a program one after the other,
/// within the life of one connection. Laptop and workspace keep the same number.
pub const MAX_DRAINING: usize = 4;

/// Pins in one `revoked` message; more go in further messages.
pub const MAX_REVOKED: usize = 128;

/// Bytes of one onboarding request: a certificate request and a code.
pub const MAX_ONBOARDING: usize = 16 * 1024;

/// Bytes of one onboarding answer: a chain, an authority and at most [`MAX_DEVICES`] pins.
pub const MAX_ONBOARDING_ANSWER: usize = 64 * 1024;

/// Devices of one coordinator. Each is a pin in every enrolment answer.
pub const MAX_DEVICES: usize = 256;

/// Bytes of an assertion, as the header carries it: a certificate, a signature and a text. Load balancers bound a header
/// at 8 KiB and more.
pub const MAX_ASSERTION: usize = 4 * 1024;

/// How long an assertion may be good for. It is made for one request, which is sent at once.
pub const ASSERTION_LIFETIME: Duration = Duration::from_secs(60);

/// How far the clocks of a client and its coordinator may differ for an assertion.
pub const ASSERTION_SKEW: Duration = Duration::from_secs(60);

/// Bytes of one binary WebSocket message. Larger messages hold up everything behind them on a slow link.
pub const MAX_CARRIER_MESSAGE: usize = 128 * 1024;

/// Streams that one peer may have open in one session. The multiplexer refuses what is above it, and ends the session
/// only with a peer that does not read its refusals.
pub const MAX_STREAMS: usize = 8 * 1024;

/// Streams for calls and processes in one session at a time; a forwarded connection is cheaper than either.
pub const MAX_CALLS: usize = 256;

/// Listeners that one session may hold in the workspace.
pub const MAX_LISTENERS: usize = 256;

/// UDP flows that one forward keeps; the one idle for longest makes room.
pub const MAX_UDP_FLOWS: usize = 1024;

/// Authorities of one coordinator that are in force at a time: one signs, and another is about to, or did before.
pub const MAX_AUTHORITIES: usize = 2;

/// Certificates, beside those of the authorities, with which one authority vouches for the next: whoever was away for as
/// many rotations finds the way.
pub const MAX_CROSSED: usize = 2;

/// Bytes of a sentence that a peer sends for a person to read.
pub const MAX_SENTENCE: usize = 2 * 1024;

/// Longest wait that a client lets a `drain` tell it. A coordinator is not gone for longer without being missed.
pub const MAX_RECONNECT: Duration = Duration::from_secs(60);

/// How long a new stream may take to present its open frame.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long dialling a target may take before the forward is refused.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a TLS handshake, outer or inner, may take as a whole.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a UDP flow lives without a datagram (RFC 4787 asks for at least two minutes).
pub const UDP_IDLE: Duration = Duration::from_secs(150);

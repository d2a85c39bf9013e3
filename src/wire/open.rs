//! The open frame and the messages that belong to a kind of stream.

use std::collections::BTreeMap;
use std::fmt;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::limits;
use super::refusal::{Refusal, RefusalCode};

/// First frame of every stream. Fields that are not known are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// What is asked for.
    #[serde(flatten)]
    pub request: StreamRequest,
    /// Ties log lines of both sides together: up to 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// What a stream is for. Names are never reused; a kind this version does not know reads as `Unknown` and is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StreamRequest {
    /// Proves that the session works end to end. Accepted at once, with the acceptor's version.
    Hello {
        /// The opener's program version, for logs.
        version: String,
        /// Distinguishes one run of the laptop's program from the next: a new one replaces the old one's session.
        instance: String,
    },
    /// Bytes to and from a target that the acceptor dials. Laptop to workspace.
    Connect {
        /// What to dial.
        target: Endpoint,
    },
    /// Datagrams to and from one UDP target. Laptop to workspace.
    Udp {
        /// Where they go.
        target: Endpoint,
    },
    /// Datagrams that each carry their own address, as RFC 1928 section 7 lays it out from `ATYP` on. Laptop to workspace.
    UdpAssociate {},
    /// Asks the workspace to listen. The listener lives as long as this stream. Laptop to workspace.
    Listen {
        /// Where; port 0 picks one, and the answer says which.
        bind: Endpoint,
        /// Chosen by the laptop; the workspace names it for each connection it accepts.
        listener: u32,
    },
    /// A connection, or a UDP flow, that a listener accepted. Workspace to laptop; the laptop knows the target.
    Accepted {
        /// The number from `Listen`.
        listener: u32,
        /// Who connected, for logs.
        peer: String,
    },
    /// A process in the workspace. Laptop to workspace.
    Process(ProcessRequest),
    /// One JSON-RPC call. Workspace to laptop, and for the list of devices laptop to workspace.
    Call {},
    /// Anything else.
    #[serde(other)]
    Unknown,
}

impl StreamRequest {
    /// The name on the wire, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            StreamRequest::Hello { .. } => "hello",
            StreamRequest::Connect { .. } => "connect",
            StreamRequest::Udp { .. } => "udp",
            StreamRequest::UdpAssociate {} => "udp_associate",
            StreamRequest::Listen { .. } => "listen",
            StreamRequest::Accepted { .. } => "accepted",
            StreamRequest::Process(_) => "process",
            StreamRequest::Call {} => "call",
            StreamRequest::Unknown => "unknown",
        }
    }
}

/// A process to run. The arguments are passed as they are; no shell reads them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessRequest {
    /// Program and arguments; at least the program.
    pub argv: Vec<String>,
    /// Working directory; the workspace's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to the workspace's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// An address to dial or to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "net", rename_all = "snake_case")]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// A name or an address; names are resolved by the side that dials.
        host: String,
        /// The port; 0 only to listen on.
        port: u16,
    },
    /// UDP.
    Udp {
        /// A name or an address; names are resolved by the side that sends.
        host: String,
        /// The port; 0 only to listen on.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// Absolute, or relative to the workspace's directory.
        path: String,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Udp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}/udp"),
            Endpoint::Udp { host, port } => write!(f, "{host}:{port}/udp"),
            Endpoint::Unix { path } => f.write_str(path),
        }
    }
}

/// The payload of an `Accept` frame.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// `Hello`: the acceptor's program version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `Listen`: where it listens, with the port that was picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Endpoint>,
    /// `Hello`: where the workspace can be reached without the coordinator; at most [`MAX_DIRECT`](super::limits::MAX_DIRECT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<Vec<SocketAddr>>,
    /// `Process`: its id in the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// How a process ended: by itself with a code, or by a signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, 0 to 255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl Exit {
    /// The code a shell would report: 128 + n for signal n.
    pub fn shell_code(self) -> i32 {
        self.code.unwrap_or_else(|| self.signal.unwrap_or(0).saturating_add(128))
    }
}

/// A signal for a process and its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The number on Linux: 1 HUP, 2 INT, 3 QUIT, 9 KILL, 15 TERM.
    pub signal: i32,
}

impl Open {
    /// An open frame for `request`.
    pub fn new(request: StreamRequest) -> Open {
        Open { request, trace: None }
    }

    /// JSON bytes. Refused when they would not fit the bound of an open frame.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Refusal> {
        let bytes = serde_json::to_vec(self).map_err(|e| Refusal::new(RefusalCode::Malformed, e.to_string()))?;
        if bytes.len() > limits::MAX_OPEN {
            let message = format!(
                "the request is {} bytes long; {} are allowed. hint: pass long input on standard input or in a file",
                bytes.len(),
                limits::MAX_OPEN
            );
            return Err(Refusal::new(RefusalCode::TooLarge, message));
        }
        Ok(bytes)
    }

    /// Reads an open frame's payload.
    pub fn parse(bytes: &[u8]) -> Result<Open, Refusal> {
        serde_json::from_slice(bytes)
            .map_err(|e| Refusal::new(RefusalCode::Malformed, format!("the open frame does not parse: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        prop_oneof![
            (".{0,40}", any::<u16>()).prop_map(|(host, port)| Endpoint::Tcp { host, port }),
            (".{0,40}", any::<u16>()).prop_map(|(host, port)| Endpoint::Udp { host, port }),
            ".{0,40}".prop_map(|path| Endpoint::Unix { path }),
        ]
    }

    fn request() -> impl Strategy<Value = StreamRequest> {
        prop_oneof![
            (".{0,9}", ".{0,9}").prop_map(|(version, instance)| StreamRequest::Hello { version, instance }),
            endpoint().prop_map(|target| StreamRequest::Connect { target }),
            endpoint().prop_map(|target| StreamRequest::Udp { target }),
            Just(StreamRequest::UdpAssociate {}),
            (endpoint(), any::<u32>()).prop_map(|(bind, listener)| StreamRequest::Listen { bind, listener }),
            (any::<u32>(), ".{0,20}").prop_map(|(listener, peer)| StreamRequest::Accepted { listener, peer }),
            proptest::collection::vec(".{0,9}", 1..4)
                .prop_map(|argv| StreamRequest::Process(ProcessRequest { argv, ..Default::default() })),
            Just(StreamRequest::Call {}),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(request in request(), trace in proptest::option::of("[0-9a-f]{32}")) {
            let open = Open { request, trace };
            prop_assert_eq!(Open::parse(&open.to_bytes().unwrap()).unwrap(), open);
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = Open::parse(&bytes);
        }
    }

    #[test]
    fn golden_text() {
        let target = Endpoint::Tcp { host: "127.0.0.1".into(), port: 3000 };
        let bytes = Open::new(StreamRequest::Connect { target }).to_bytes().unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            r#"{"kind":"connect","target":{"net":"tcp","host":"127.0.0.1","port":3000}}"#
        );
    }

    #[test]
    fn unknown_kinds_and_fields_are_tolerated() {
        let open = Open::parse(br#"{"kind":"teleport","beam":1}"#).unwrap();
        assert_eq!(open.request, StreamRequest::Unknown);
        let open = Open::parse(br#"{"kind":"call","later":true}"#).unwrap();
        assert_eq!(open.request, StreamRequest::Call {});
    }

    #[test]
    fn too_long_a_request_is_refused_before_it_leaves() {
        let argv = vec!["x".repeat(limits::MAX_OPEN)];
        let refusal = Open::new(StreamRequest::Process(ProcessRequest { argv, ..Default::default() })).to_bytes();
        assert_eq!(refusal.unwrap_err().code, RefusalCode::TooLarge);
    }
}

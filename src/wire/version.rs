//! Versions, negotiated as WebSocket subprotocols on the upgrade. A number is never given a second meaning.

/// A version of the whole protocol: control messages, carrier, session and streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first.
    V1,
}

impl Version {
    /// Every version spoken here, newest first.
    pub const ALL: [Version; 1] = [Version::V1];

    /// The subprotocol name in `Sec-WebSocket-Protocol`.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Version::V1 => "nexus.v1",
        }
    }

    /// The header value a client offers: all versions, newest first.
    pub fn offer() -> String {
        Version::ALL.map(Version::subprotocol).join(", ")
    }

    /// The newest version that both sides speak, from the client's header value.
    pub fn choose(offered: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|version| offered.split(',').any(|name| name.trim() == version.subprotocol()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(Version::choose("nexus.v9, nexus.v1"), Some(Version::V1));
        assert_eq!(Version::choose(&Version::offer()), Some(Version::ALL[0]));
        assert_eq!(Version::choose("nexus.v9,chat"), None);
        assert_eq!(Version::choose(""), None);
    }

    #[test]
    fn all_is_exhaustive_and_sorted() {
        // A new variant does not compile here until it has its place in `ALL`.
        for version in Version::ALL {
            match version {
                Version::V1 => {}
            }
        }
        assert!(Version::ALL.is_sorted_by(|a, b| a > b));
    }
}

//! Versions, negotiated as WebSocket subprotocols on the upgrade. A number is never given a second meaning.

/// A version of the whole protocol: control messages, carrier, lifeline, session and streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Without a lifeline: binary messages were the session's bytes, and a session ended with its carrier. Not spoken.
    V1,
    /// Each binary message is one of the lifeline's.
    V2,
}

impl Version {
    /// Every version spoken here, newest first.
    pub const ALL: [Version; 1] = [Version::V2];

    /// Versions that were spoken once. Their names are never used again.
    pub const RETIRED: [Version; 1] = [Version::V1];

    /// The subprotocol name in `Sec-WebSocket-Protocol`.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Version::V1 => "nexus.v1",
            Version::V2 => "nexus.v2",
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
        assert_eq!(Version::choose("nexus.v9, nexus.v2, nexus.v1"), Some(Version::V2));
        assert_eq!(Version::choose(&Version::offer()), Some(Version::ALL[0]));
        assert_eq!(Version::choose("nexus.v9,chat"), None);
        assert_eq!(Version::choose(""), None);
    }

    #[test]
    fn what_is_retired_is_neither_offered_nor_chosen() {
        for version in Version::RETIRED {
            assert_eq!(Version::choose(version.subprotocol()), None);
            assert!(!Version::offer().contains(version.subprotocol()));
        }
    }

    #[test]
    fn all_is_exhaustive_and_sorted() {
        let known: Vec<Version> = Version::ALL.into_iter().chain(Version::RETIRED).collect();
        for version in &known {
            // A new variant does not compile here until it has its place in `ALL` or `RETIRED`.
            match version {
                Version::V1 | Version::V2 => {}
            }
        }
        assert!(known.windows(2).all(|pair| pair[0] > pair[1]));
    }
}

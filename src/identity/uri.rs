//! The name in a certificate: a trust domain, a role, and the name within the role.
//! Refuses every spelling but one, so that two texts never mean the same peer.

use std::fmt;
use std::str::FromStr;

use crate::wire::name::{DeviceName, NodeName, TrustDomain, WorkspaceName};
use crate::wire::refusal::printable;

use super::IdentityError;

const SCHEME: &str = "spiffe://";

/// What a peer is, within its trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// The coordinator of the domain.
    Coordinator,
    /// One key on one laptop.
    Device(DeviceName),
    /// The stub in a workspace.
    Workspace(WorkspaceName),
    /// A host that runs workspaces.
    Node(NodeName),
}

/// The URI name of a certificate: `spiffe://{domain}/coordinator`, `…/device/{name}`, `…/workspace/{name}` or
/// `…/node/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Whose certificate authority vouches for it.
    pub domain: TrustDomain,
    /// What it is there.
    pub role: Role,
}

impl Role {
    /// The name within the role; the coordinator has none.
    pub fn name(&self) -> Option<&str> {
        match self {
            Role::Coordinator => None,
            Role::Device(name) => Some(name.as_str()),
            Role::Workspace(name) => Some(name.as_str()),
            Role::Node(name) => Some(name.as_str()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Coordinator => f.write_str("coordinator"),
            Role::Device(name) => write!(f, "device/{name}"),
            Role::Workspace(name) => write!(f, "workspace/{name}"),
            Role::Node(name) => write!(f, "node/{name}"),
        }
    }
}

impl Identity {
    /// The identity of `role` in `domain`.
    pub fn new(domain: TrustDomain, role: Role) -> Identity {
        Identity { domain, role }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.domain, self.role)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Identity, IdentityError> {
        parse(text).ok_or_else(|| {
            let text: String = printable(text).chars().take(200).collect();
            IdentityError::malformed(format!("`{text}` is not a name of this system"))
        })
    }
}

fn parse(text: &str) -> Option<Identity> {
    let (domain, path) = text.strip_prefix(SCHEME)?.split_once('/')?;
    let role = match path.split_once('/') {
        None if path == "coordinator" => Role::Coordinator,
        Some(("device", name)) => Role::Device(name.parse().ok()?),
        Some(("workspace", name)) => Role::Workspace(name.parse().ok()?),
        Some(("node", name)) => Role::Node(name.parse().ok()?),
        _ => return None,
    };
    Some(Identity { domain: domain.parse().ok()?, role })
}

/// The URI name of an authority's own certificate: the trust domain, without a path.
pub(super) fn domain_uri(domain: &TrustDomain) -> String {
    format!("{SCHEME}{domain}")
}

/// Reads what [`domain_uri`] writes.
pub(super) fn parse_domain_uri(text: &str) -> Option<TrustDomain> {
    text.strip_prefix(SCHEME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_text() {
        let domain: TrustDomain = "nexus-ab12".parse().unwrap();
        let cases = [
            (Role::Coordinator, "spiffe://nexus-ab12/coordinator"),
            (Role::Device("laptop".parse().unwrap()), "spiffe://nexus-ab12/device/laptop"),
            (Role::Workspace("web".parse().unwrap()), "spiffe://nexus-ab12/workspace/web"),
            (Role::Node("n1".parse().unwrap()), "spiffe://nexus-ab12/node/n1"),
        ];
        for (role, text) in cases {
            let identity = Identity::new(domain.clone(), role);
            assert_eq!(identity.to_string(), text);
            assert_eq!(text.parse::<Identity>().unwrap(), identity);
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://d",
            "spiffe://d/",
            "spiffe:///coordinator",
            "SPIFFE://d/coordinator",
            "spiffe://D/coordinator",
            "spiffe://d/coordinator/",
            "spiffe://d/coordinator/x",
            "spiffe://d/device",
            "spiffe://d/device/",
            "spiffe://d/device/a/b",
            "spiffe://d/device/a?x",
            "spiffe://d/device/a%20",
            "spiffe://d:1/device/a",
            "spiffe://d/tool/a",
            "https://d/device/a",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in "(spiffe://)?[a-z/-]{0,30}|.*") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}

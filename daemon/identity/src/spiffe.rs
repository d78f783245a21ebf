//! Names and roles as they stand in a certificate: `spiffe://<trust-domain>/<role>/<name>`.
//!
//! Shapes follow the SPIFFE ID standard (spiffe.io, "SPIFFE-ID", sections 2 and 2.4): lower-case trust domain, path
//! segments of letters, digits, `.`, `-` and `_`. One extra rule here: the path has exactly two segments, and the
//! first is a role from [`Role`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest trust domain, as for a DNS name.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Longest peer name: it appears in log lines and file names, and the common name field holds 64 characters.
const PEER_NAME_BYTES_MAX: usize = 64;

/// What the holder of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs the system day to day: nodes, pools, volumes, buckets, users.
    Operator,
    /// Runs pools, volumes, snapshots, replicas and buckets: gives no node a key, and makes nobody an access key.
    StorageAdmin,
    /// Holds an unseal share; may lift a latch and approve what cannot be undone.
    SecurityOfficer,
    /// Reads everything that is not secret, changes nothing.
    Auditor,
    /// A monitoring system: reads status and metrics.
    Monitor,
    /// The key holder on the compute tier.
    Keyholder,
    /// A storage node.
    Node,
    /// A machine that mounts volumes over NBD. Never an administrator.
    NbdClient,
}

/// Which of the four issuing authorities signs a certificate. Each class has an issuer of its own, so that no
/// certificate can cross from one into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IssuerClass {
    /// Operators, storage administrators, security officers, auditors and monitoring.
    People,
    /// Keyholders and storage nodes.
    Machines,
    /// NBD clients.
    Clients,
    /// Host name certificates of the NBD and S3 heads; they carry no role.
    Servers,
}

impl IssuerClass {
    /// All classes, in the order they are written and listed.
    pub const ALL: [Self; 4] = [Self::People, Self::Machines, Self::Clients, Self::Servers];

    /// The class as it stands in file names and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::People => "people",
            Self::Machines => "machines",
            Self::Clients => "clients",
            Self::Servers => "servers",
        }
    }
}

impl fmt::Display for IssuerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 8] = [
        Self::Operator,
        Self::StorageAdmin,
        Self::SecurityOfficer,
        Self::Auditor,
        Self::Monitor,
        Self::Keyholder,
        Self::Node,
        Self::NbdClient,
    ];

    /// The role as it stands in the URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::StorageAdmin => "storage-admin",
            Self::SecurityOfficer => "security-officer",
            Self::Auditor => "auditor",
            Self::Monitor => "monitor",
            Self::Keyholder => "keyholder",
            Self::Node => "node",
            Self::NbdClient => "nbd-client",
        }
    }

    /// The only issuer class whose signature makes this role believable.
    pub const fn issuer_class(self) -> IssuerClass {
        match self {
            Self::Operator | Self::StorageAdmin | Self::SecurityOfficer | Self::Auditor | Self::Monitor => {
                IssuerClass::People
            }
            Self::Keyholder | Self::Node => IssuerClass::Machines,
            Self::NbdClient => IssuerClass::Clients,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| InvalidName { text: text.to_owned(), expected: EXPECTED_ROLE })
    }
}

const EXPECTED_ROLE: &str =
    "a role: operator, storage-admin, security-officer, auditor, monitor, keyholder, node or nbd-client";
const EXPECTED_DOMAIN: &str =
    "a trust domain: 1 to 255 lower-case letters, digits, `.`, `-` or `_`, as in storage.example.com";
const EXPECTED_NAME: &str =
    "a name: 1 to 64 letters, digits, `.`, `-` or `_`, starting with a letter or digit, as in node-1";
const EXPECTED_URI: &str = "a name of the form spiffe://<trust-domain>/<role>/<name>";

/// Why a role, name, trust domain or SPIFFE URI could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidName {
    /// What was read.
    pub text: String,
    /// What would have been right.
    pub expected: &'static str,
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $valid:ident, $expected:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                if $valid(&text) { Ok(Self(text)) } else { Err(InvalidName { text, expected: $expected }) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

fn valid_trust_domain(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && text.len() <= TRUST_DOMAIN_BYTES_MAX && text.chars().all(allowed)
}

fn valid_peer_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= PEER_NAME_BYTES_MAX
        && text.chars().all(allowed)
}

checked_text!(
    /// The organisation's name in every certificate; certificates of another trust domain are foreign.
    TrustDomain,
    valid_trust_domain,
    EXPECTED_DOMAIN
);
checked_text!(
    /// The name of one person or machine inside its role.
    PeerName,
    valid_peer_name,
    EXPECTED_NAME
);

/// A full name: trust domain, role and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// The organisation.
    pub trust_domain: TrustDomain,
    /// What the holder is.
    pub role: Role,
    /// Which one.
    pub name: PeerName,
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.trust_domain, self.role, self.name)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName { text: text.to_owned(), expected: EXPECTED_URI };
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(invalid)?.split('/');
        let (Some(domain), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        Ok(Self { trust_domain: domain.parse()?, role: role.parse()?, name: name.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_uri_reads_back_as_written() {
        for role in Role::ALL {
            let uri = format!("spiffe://storage.example.com/{role}/box-1.a_b");
            assert_eq!(uri.parse::<SpiffeId>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn anything_but_two_known_segments_is_refused() {
        let long = format!("spiffe://a/node/{}", "n".repeat(PEER_NAME_BYTES_MAX + 1));
        for text in [
            "",
            "spiffe://",
            "spiffe://a/node",
            "spiffe://a/node/",
            "spiffe://a//n",
            "spiffe:///node/n",
            "spiffe://A/node/n",
            "spiffe://a/root/n",
            "spiffe://a/Node/n",
            "spiffe://a/node/n/extra",
            "spiffe://a/node/../operator",
            "spiffe://a/node/n?x",
            "spiffe://a/node/.n",
            "spiffe://a/node/n%2e",
            "SPIFFE://a/node/n",
            "https://a/node/n",
            &long,
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
        assert!("n".repeat(PEER_NAME_BYTES_MAX).parse::<PeerName>().is_ok());
        assert!("d".repeat(TRUST_DOMAIN_BYTES_MAX).parse::<TrustDomain>().is_ok());
        assert!("d".repeat(TRUST_DOMAIN_BYTES_MAX + 1).parse::<TrustDomain>().is_err());
    }

    #[test]
    fn no_client_class_signs_an_administrator() {
        for role in Role::ALL {
            let class = role.issuer_class();
            assert_eq!(class == IssuerClass::Clients, role == Role::NbdClient, "{role}");
            assert_ne!(class, IssuerClass::Servers, "{role}");
        }
    }
}

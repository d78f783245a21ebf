//! The `[[peers]]` tables and `[replication]`: which other nodes volumes are replicated to and from, and what that may use.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use identity::PeerName;
use serde::{Deserialize, Serialize};
use units::VolumeId;

use crate::error::Invalid;

/// Most peers of a node: each that is dialled has a thread.
const PEERS_MAX: usize = 16;

/// Time between two epochs. The longest is what a replica may be behind.
const INTERVAL_MS: RangeInclusive<u32> = 100..=1000;

/// What is written before an epoch ends early.
const EPOCH_MIB: RangeInclusive<u32> = 1..=256;

/// Longest label of a place.
const RESIDENCY_BYTES_MAX: usize = 64;

/// The SHA-256 of a public key, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(pub [u8; 32]);

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the hash of a key: expected 64 hexadecimal digits, as `nightlatch peer add` writes them"
)]
pub struct InvalidKeyHash(String);

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

impl FromStr for KeyHash {
    type Err = InvalidKeyHash;

    fn from_str(text: &str) -> Result<Self, InvalidKeyHash> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map_err(|_| InvalidKeyHash(text.to_owned()))?;
        Ok(Self(hash))
    }
}

impl TryFrom<String> for KeyHash {
    type Error = InvalidKeyHash;

    fn try_from(text: String) -> Result<Self, InvalidKeyHash> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.to_string()
    }
}

/// One `[[peers]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// The other node's name, as in its certificate.
    pub name: PeerName,
    /// The SHA-256 of its certificate's public key: no other is believed.
    pub key_sha256: KeyHash,
    /// Its port for peers, `host:port`. Without it nothing is sent to it; it may send here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The volumes that are exchanged with it; all of them where none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeId>,
    /// Whether it may send here.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub receive: bool,
    /// Where it is. A volume that must stay in a place is sent to no peer outside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<String>,
}

fn yes() -> bool {
    true
}

fn is_yes(is_it: &bool) -> bool {
    *is_it
}

impl PeerConfig {
    /// Whether a volume is exchanged with it, by its list.
    pub fn has(&self, volume: VolumeId) -> bool {
        self.volumes.is_empty() || self.volumes.contains(&volume)
    }
}

/// The `[replication]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// Most MiB a second to each peer; 0 is no limit.
    pub mib_per_s: u32,
    /// Milliseconds from one epoch to the next, while something is written.
    pub interval_ms: u32,
    /// How much is written, in MiB, before an epoch ends early.
    pub epoch_mib: u32,
    /// The place that a volume must not leave.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub residency: BTreeMap<VolumeId, String>,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            mib_per_s: 0,
            interval_ms: *INTERVAL_MS.end(),
            epoch_mib: *EPOCH_MIB.end(),
            residency: BTreeMap::new(),
        }
    }
}

impl ReplicationConfig {
    /// Whether a volume may be at a peer.
    pub fn may_be_at(&self, volume: VolumeId, peer: &PeerConfig) -> bool {
        self.residency.get(&volume).is_none_or(|place| peer.residency.as_ref() == Some(place))
    }
}

fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_place(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=RESIDENCY_BYTES_MAX).contains(&text.len()) && text.chars().all(plain)
}

pub(crate) fn validate(
    peers: &[PeerConfig],
    replication: &ReplicationConfig,
    own_name: &str,
) -> Result<(), Invalid> {
    validate_limits(replication)?;
    if peers.len() > PEERS_MAX {
        return Err(Invalid::new(
            "peers",
            format!("{} peers are named; a node has at most {PEERS_MAX}", peers.len()),
            "let a peer replicate to others",
        ));
    }
    for (index, peer) in peers.iter().enumerate() {
        let key = |field: &str| format!("peers[{index}].{field}");
        let is_same = |other: &PeerConfig| other.name == peer.name || other.key_sha256 == peer.key_sha256;
        if peer.name.as_str() == own_name || peers[..index].iter().any(is_same) {
            return Err(Invalid::new(
                key("name"),
                format!("{} is this node itself, or a peer that is named above", peer.name),
                "name each other node once",
            ));
        }
        if let Some(address) = peer.address.as_deref().filter(|address| !is_address(address)) {
            return Err(Invalid::new(
                key("address"),
                format!("`{address}` is no address"),
                "give HOST:PORT, the port being `listen.peers` of the other node",
            ));
        }
        if let Some(place) = peer.residency.as_deref().filter(|place| !is_place(place)) {
            return Err(Invalid::new(
                key("residency"),
                format!("`{place}` is no name for a place"),
                format!("use 1 to {RESIDENCY_BYTES_MAX} letters, digits, `-`, `_` and `.`"),
            ));
        }
        if let Some(volume) = peer.volumes.iter().find(|volume| !replication.may_be_at(**volume, peer)) {
            let place = replication.residency.get(volume).map_or("", String::as_str);
            return Err(Invalid::new(
                key("volumes"),
                format!("{volume} must not leave `{place}`, and {} is not there", peer.name),
                format!("take it out of the list, or correct the peer's residency if it is in `{place}`"),
            ));
        }
    }
    Ok(())
}

fn validate_limits(replication: &ReplicationConfig) -> Result<(), Invalid> {
    let ranges = [
        ("replication.mib_per_s", replication.mib_per_s, 0..=1_000_000),
        ("replication.interval_ms", replication.interval_ms, INTERVAL_MS),
        ("replication.epoch_mib", replication.epoch_mib, EPOCH_MIB),
    ];
    if let Some((key, given, range)) = ranges.into_iter().find(|(_, given, range)| !range.contains(given)) {
        return Err(Invalid::new(
            key,
            format!("{given} is out of range"),
            format!("give {} to {}", range.start(), range.end()),
        ));
    }
    match replication.residency.values().find(|place| !is_place(place)) {
        None => Ok(()),
        Some(place) => Err(Invalid::new(
            "replication.residency",
            format!("`{place}` is no name for a place"),
            format!("use 1 to {RESIDENCY_BYTES_MAX} letters, digits, `-`, `_` and `.`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId([1; 16]);

    fn peer(name: &str, key: u8) -> PeerConfig {
        PeerConfig {
            name: name.parse().unwrap(),
            key_sha256: KeyHash([key; 32]),
            address: Some("node-2.example.com:7413".to_owned()),
            volumes: Vec::new(),
            receive: true,
            residency: None,
        }
    }

    #[test]
    fn a_peer_may_send_here_unless_it_is_said_not_to() {
        let read = |receive: &str| {
            let text = format!("name = \"node-2\"\nkey_sha256 = \"{}\"\n{receive}", KeyHash([2; 32]));
            toml::from_str::<PeerConfig>(&text).unwrap()
        };
        assert!(read("").receive && read("receive = true\n").receive);
        let sent_to = read("receive = false\n");
        assert!(!sent_to.receive);
        assert!(toml::to_string(&sent_to).unwrap().contains("receive = false"));
        assert!(!toml::to_string(&read("")).unwrap().contains("receive"));
    }

    #[test]
    fn a_peer_is_named_once_and_is_not_the_node_itself() {
        let check = |peers: &[PeerConfig]| validate(peers, &ReplicationConfig::default(), "node-1").is_ok();
        assert!(check(&[peer("node-2", 2), peer("node-3", 3)]));
        assert!(!check(&[peer("node-2", 2), peer("node-2", 3)]));
        assert!(!check(&[peer("node-2", 2), peer("node-3", 2)]));
        assert!(!check(&[peer("node-1", 2)]));
        for bad in ["", "node-2", ":7413", "node-2:", "node-2:0", "node-2:70000"] {
            assert!(!check(&[PeerConfig { address: Some(bad.to_owned()), ..peer("node-2", 2) }]), "{bad}");
        }
        let many: Vec<_> = (0..17).map(|n| peer(&format!("peer-{n}"), n)).collect();
        assert!(check(&many[..16]) && !check(&many));
    }

    #[test]
    fn a_volume_that_must_stay_in_a_place_is_refused_to_a_peer_outside_it() {
        let replication =
            ReplicationConfig { residency: [(V, "eu".to_owned())].into(), ..ReplicationConfig::default() };
        let at = |residency: Option<&str>, volumes: &[VolumeId]| PeerConfig {
            residency: residency.map(str::to_owned),
            volumes: volumes.to_vec(),
            ..peer("node-2", 2)
        };
        let check = |peer| validate(&[peer], &replication, "node-1");
        assert!(check(at(Some("eu"), &[V])).is_ok());
        for outside in [Some("us"), None] {
            let refused = format!("{:?}", check(at(outside, &[V])).unwrap_err());
            assert!(refused.contains("must not leave `eu`"), "{refused}");
            // Not named, it is silently left out.
            assert!(check(at(outside, &[])).is_ok());
            assert!(!replication.may_be_at(V, &at(outside, &[])));
        }
        assert!(replication.may_be_at(V, &at(Some("eu"), &[])));
    }

    #[test]
    fn limits_are_taken_at_their_ends_and_refused_past_them() {
        let check = |replication| validate(&[], &replication, "node-1").is_ok();
        let default = ReplicationConfig::default;
        for (low, high) in [(100, 1000)] {
            assert!(check(ReplicationConfig { interval_ms: low, ..default() }));
            assert!(check(ReplicationConfig { interval_ms: high, ..default() }));
            assert!(!check(ReplicationConfig { interval_ms: low - 1, ..default() }));
            assert!(!check(ReplicationConfig { interval_ms: high + 1, ..default() }));
        }
        assert!(check(ReplicationConfig { epoch_mib: 256, ..default() }));
        assert!(!check(ReplicationConfig { epoch_mib: 257, ..default() }));
        assert!(!check(ReplicationConfig { epoch_mib: 0, ..default() }));
    }
}

//! The values in the store: a byte with the version of each, then postcard. CLUSTER.md is the specification.

use lease::message::PoolState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use units::{Fence, GrantId, NodeId, PoolId, VolumeId};

/// Version of every value but the ledger, which has its own.
const VERSION: u8 = 1;

/// The name of the value that says which store this is.
pub(crate) const STORE: &str = "store";

/// The name of the ledger.
pub(crate) const LEDGER: &str = "ledger";

const LEASES: &str = "leases/";
const STATES: &str = "states/";
const MEMBERS: &str = "members/";
const LINKS: &str = "links/";

/// What a name is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Store,
    Ledger,
    Lease(VolumeId),
    State(PoolId),
    Member(String),
    Link(NodeId),
    /// A later program's.
    Unknown,
}

impl Named {
    pub(crate) fn of(name: &str) -> Self {
        fn id<T: std::str::FromStr>(text: &str, named: impl Fn(T) -> Named) -> Named {
            text.parse().map_or(Named::Unknown, named)
        }
        match name {
            STORE => Self::Store,
            LEDGER => Self::Ledger,
            _ => {
                if let Some(volume) = name.strip_prefix(LEASES) {
                    id(volume, Self::Lease)
                } else if let Some(pool) = name.strip_prefix(STATES) {
                    id(pool, Self::State)
                } else if let Some(node) = name.strip_prefix(LINKS) {
                    id(node, Self::Link)
                } else {
                    name.strip_prefix(MEMBERS).map_or(Self::Unknown, |member| Self::Member(member.to_owned()))
                }
            }
        }
    }
}

pub(crate) fn lease_name(volume: VolumeId) -> String {
    format!("{LEASES}{volume}")
}

pub(crate) fn state_name(pool: PoolId) -> String {
    format!("{STATES}{pool}")
}

pub(crate) fn member_name(name: &str) -> String {
    format!("{MEMBERS}{name}")
}

pub(crate) fn link_name(node: NodeId) -> String {
    format!("{LINKS}{node}")
}

/// Which store this is: made with its first ledger, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreValue {
    pub(crate) id: [u8; 16],
}

/// A volume's last grant, and for how long from the writing of this its key may be held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseValue {
    pub(crate) node: NodeId,
    pub(crate) grant: GrantId,
    pub(crate) fence: Fence,
    pub(crate) lease_ms: u64,
    /// By the writer's clock, from before it wrote; `None` once the key is known to be gone.
    pub(crate) left_ms: Option<u64>,
    pub(crate) pool: Option<PoolId>,
    /// The keyholder that wrote it.
    pub(crate) by: String,
}

/// The last known state of a pool.
pub(crate) type StateValue = PoolState;

/// A keyholder that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberValue {
    /// Drawn at each start.
    pub(crate) incarnation: [u8; 16],
    /// Grows with each look at the store.
    pub(crate) beat: u64,
    /// It has the root, and dials nodes.
    pub(crate) unsealed: bool,
    /// Its administrative port, for people and other keyholders.
    pub(crate) address: String,
    pub(crate) version: String,
}

/// Who dials a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkValue {
    pub(crate) holder: String,
    /// The run of the holder that took it.
    pub(crate) incarnation: [u8; 16],
}

/// A value that is not what it should be, or of a later program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    // Plain numbers, texts and options: nothing that could fail.
    bytes.extend(postcard::to_stdvec(value).unwrap_or_default());
    bytes
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            _ => Err(Unreadable),
        },
        _ => Err(Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Vec<(String, Vec<u8>)> {
        let volume = VolumeId([1; 16]);
        let lease = LeaseValue {
            node: NodeId([2; 16]),
            grant: GrantId([3; 16]),
            fence: Fence(7),
            lease_ms: 30_000,
            left_ms: Some(90_030),
            pool: Some(PoolId([4; 16])),
            by: "compute-1".to_owned(),
        };
        let released = LeaseValue { left_ms: None, pool: None, ..lease.clone() };
        let state = StateValue { pool: PoolId([4; 16]), count: 9, chain: [5; 32] };
        let member = MemberValue {
            incarnation: [6; 16],
            beat: 300,
            unsealed: true,
            address: "https://10.0.0.1:7420".to_owned(),
            version: "0.3.0".to_owned(),
        };
        let link = LinkValue { holder: "compute-1".to_owned(), incarnation: [6; 16] };
        vec![
            (STORE.to_owned(), encode(&StoreValue { id: [8; 16] })),
            (lease_name(volume), encode(&lease)),
            (lease_name(VolumeId([9; 16])), encode(&released)),
            (state_name(PoolId([4; 16])), encode(&state)),
            (member_name("compute-1"), encode(&member)),
            (link_name(NodeId([2; 16])), encode(&link)),
        ]
    }

    #[test]
    fn the_committed_values_are_what_is_written() {
        let lines: Vec<_> =
            golden().iter().map(|(name, value)| format!("{name} {}", hex::encode(value))).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/cluster-v1.txt");
        let committed = std::fs::read_to_string(path).unwrap();
        assert_eq!(lines.join("\n"), committed.trim_end());
    }

    #[test]
    fn a_cut_altered_or_later_value_is_unreadable() {
        let (_, good) = &golden()[1];
        assert!(decode::<LeaseValue>(good).is_ok());
        for at in 0..good.len() {
            assert_eq!(decode::<LeaseValue>(&good[..at]), Err(Unreadable), "cut at {at}");
        }
        let mut later = good.clone();
        later[0] += 1;
        assert_eq!(decode::<LeaseValue>(&later), Err(Unreadable));
        assert_eq!(decode::<LeaseValue>(&[good.as_slice(), &[0]].concat()), Err(Unreadable));
    }

    #[test]
    fn every_name_reads_back_and_a_later_programs_is_passed_over() {
        for (name, named) in [
            (STORE.to_owned(), Named::Store),
            (LEDGER.to_owned(), Named::Ledger),
            (lease_name(VolumeId([1; 16])), Named::Lease(VolumeId([1; 16]))),
            (state_name(PoolId([1; 16])), Named::State(PoolId([1; 16]))),
            (member_name("a/b"), Named::Member("a/b".to_owned())),
            (link_name(NodeId([1; 16])), Named::Link(NodeId([1; 16]))),
            ("leases/1".to_owned(), Named::Unknown),
            ("later".to_owned(), Named::Unknown),
        ] {
            assert_eq!(Named::of(&name), named);
        }
    }
}

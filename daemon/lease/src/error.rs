//! What can go wrong in a session and with a grant, one kind each, in words that say what to do next.
//!
//! Two families, because they end differently: a [`SessionError`] closes the connection, a [`GrantRefusal`]
//! refuses one grant and leaves the session and every other key alone. Both travel to the keyholder, so that the
//! person who reads its status sees the node's reason.

use std::fmt;

use serde::{Deserialize, Serialize};
use units::{Fence, GrantId, NodeId};

use crate::message::{StateVerdict, WipeCause};

/// Why a session ends. The node reports [`SessionError::refusal`] to the keyholder before it closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The length prefix is over the limit.
    #[error(
        "a frame of {bytes} bytes was announced, the limit is {limit}; the peer is not speaking this protocol"
    )]
    Oversize {
        /// What the prefix said.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The bytes do not decode, or something is left over.
    #[error("the {what} does not decode: it was cut, altered, or made by a faulty peer; reconnect")]
    Malformed {
        /// The part that did not decode.
        what: &'static str,
    },
    /// Another protocol version.
    #[error(
        "the peer speaks lease protocol version {theirs}, this program {ours}; upgrade the older of the two"
    )]
    UnsupportedVersion {
        /// The peer's version.
        theirs: u8,
        /// This program's version.
        ours: u8,
    },
    /// A kind of message that this version does not have, or that the peer's role never sends.
    #[error("message kind {kind} is not one that this peer may send; upgrade the older of the two")]
    UnexpectedKind {
        /// The kind byte.
        kind: u8,
    },
    /// A known message at the wrong point of the exchange.
    #[error("a {got} arrived while {expected} was due; the peer is faulty or something replays old messages")]
    OutOfOrder {
        /// What arrived.
        got: &'static str,
        /// What was due.
        expected: &'static str,
    },
    /// The transcript hash is that of another session: other TLS connection, other evidence, or a replay.
    #[error(
        "the {what} belongs to another session; it was replayed, or something stands between node and keyholder"
    )]
    OtherSession {
        /// The message.
        what: &'static str,
    },
    /// The signature does not verify.
    #[error("the signature on the {what} does not verify; it was altered or not made by the pinned key")]
    BadSignature {
        /// The message.
        what: &'static str,
    },
    /// The node has not been told whose grants to accept.
    #[error(
        "this node has no grant-signing key pinned; enrol it with the key that `nightlatch key status` prints"
    )]
    NotEnrolled,
    /// The keyholder offers another grant-signing key than the pinned one.
    #[error(
        "the keyholder signs grants with {offered}, this node is enrolled with {pinned}; if the root secret was \
         replaced on purpose enrol the node again, otherwise find out who is dialling it"
    )]
    ForeignSigningKey {
        /// The key that was offered.
        offered: KeyFingerprint,
        /// The key that is pinned.
        pinned: KeyFingerprint,
    },
    /// The keyholder wanted another node.
    #[error("the keyholder dialled node {wanted} and reached {reached}; correct the address of one of them")]
    WrongNode {
        /// Whom the keyholder wanted.
        wanted: NodeId,
        /// Who answered.
        reached: NodeId,
    },
    /// The node's identity key is not the one pinned at enrolment.
    #[error(
        "the node identifies itself with key {offered}, pinned is {pinned}; if the machine was reinstalled on \
         purpose approve it again, otherwise treat it as foreign"
    )]
    ForeignIdentity {
        /// The key that was offered.
        offered: KeyFingerprint,
        /// The key that is pinned.
        pinned: KeyFingerprint,
    },
    /// A later session with the same node took over.
    #[error("a newer session with the keyholder has taken over")]
    Superseded,
    /// The peer has said nothing for too long.
    #[error("the peer has been silent for {ms} ms; the connection is given up and dialled again")]
    Silent {
        /// How long.
        ms: u64,
    },
    /// The session is over: a wipe or a close came before.
    #[error("the session is over; a new one is needed")]
    Closed,
    /// A key was still on its way in or out when evidence was due.
    #[error("a key of the session before is still on its way in or out; the keyholder dials again")]
    Unsettled,
    /// An answer names another volume than its grant did.
    #[error("the answer to grant {grant} names another volume than the grant; the node is faulty or lies")]
    OtherVolume {
        /// The grant.
        grant: GrantId,
    },
    /// A limit of the protocol is exceeded by a valid encoding.
    #[error("{what} of {actual} is over the limit of {limit}")]
    OverLimit {
        /// What is limited.
        what: &'static str,
        /// The number found.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The signing key is gone, because this program has been sealed.
    #[error("the signing key is gone: this program is sealed; unseal it")]
    SignerGone,
}

impl SessionError {
    /// What the peer is told. Details that only an attacker would profit from stay here.
    pub fn refusal(&self) -> SessionRefusal {
        match self {
            Self::UnsupportedVersion { ours, .. } => SessionRefusal::UnsupportedVersion { supported: *ours },
            Self::NotEnrolled => SessionRefusal::NotEnrolled,
            Self::ForeignSigningKey { pinned, .. } => SessionRefusal::ForeignSigningKey { pinned: *pinned },
            Self::WrongNode { reached, .. } => SessionRefusal::WrongNode { reached: *reached },
            Self::OtherSession { .. } => SessionRefusal::OtherSession,
            Self::BadSignature { .. } => SessionRefusal::BadSignature,
            Self::Superseded => SessionRefusal::Superseded,
            Self::OutOfOrder { .. } | Self::UnexpectedKind { .. } => SessionRefusal::OutOfOrder,
            Self::Silent { .. } => SessionRefusal::Silent,
            Self::Closed | Self::Unsettled | Self::SignerGone => SessionRefusal::Closed,
            Self::Oversize { .. }
            | Self::Malformed { .. }
            | Self::ForeignIdentity { .. }
            | Self::OtherVolume { .. }
            | Self::OverLimit { .. } => SessionRefusal::Malformed,
        }
    }
}

/// The node's reason for ending a session, as the keyholder receives it. Advisory: it is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SessionRefusal {
    /// See [`SessionError::UnsupportedVersion`].
    #[error("the node speaks lease protocol version {supported}; upgrade the older of the two programs")]
    UnsupportedVersion {
        /// The version that the node speaks.
        supported: u8,
    },
    /// See [`SessionError::NotEnrolled`].
    #[error(
        "the node has no grant-signing key pinned; enrol it there with the key that `nightlatch key status` prints"
    )]
    NotEnrolled,
    /// See [`SessionError::ForeignSigningKey`].
    #[error(
        "the node is enrolled with grant-signing key {pinned}; restore the root that belongs to it, or enrol the \
         node again"
    )]
    ForeignSigningKey {
        /// What the node has pinned.
        pinned: KeyFingerprint,
    },
    /// See [`SessionError::WrongNode`].
    #[error("the address belongs to node {reached}; correct the address or the id")]
    WrongNode {
        /// Who answered.
        reached: NodeId,
    },
    /// See [`SessionError::OtherSession`].
    #[error("the node received a message of another session; look for something between node and keyholder")]
    OtherSession,
    /// See [`SessionError::BadSignature`].
    #[error("the node could not verify a signature; look for something between node and keyholder")]
    BadSignature,
    /// See [`SessionError::OutOfOrder`].
    #[error("the node received a message out of order; upgrade the older of the two programs")]
    OutOfOrder,
    /// See [`SessionError::Malformed`].
    #[error("the node could not decode a message; upgrade the older of the two programs")]
    Malformed,
    /// See [`SessionError::Superseded`].
    #[error("a newer session took over; is a second keyholder dialling this node?")]
    Superseded,
    /// See [`SessionError::Silent`].
    #[error("the node heard nothing for too long and hung up")]
    Silent,
    /// See [`SessionError::Closed`].
    #[error("the node ended the session; it will be dialled again")]
    Closed,
}

/// Why a node refuses one grant. The session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GrantRefusal {
    /// No such volume on this node.
    #[error("the node has no such volume; check which node holds it, or create it there")]
    WrongVolume,
    /// The volume exists but was sealed under another key domain or epoch.
    #[error(
        "the volume on the node belongs to another key domain or epoch; restore the ledger that created it"
    )]
    WrongDomain,
    /// The key-check value in the grant is not the volume's.
    #[error("the key-check value is not that of the volume; restore the root and ledger that created it")]
    WrongCheck,
    /// The envelope opened, but the key in it does not give the key-check value.
    #[error("the key in the grant is not the volume's key; restore the root and ledger that created it")]
    WrongKey,
    /// The envelope does not open with this session's one-time key.
    #[error("the grant does not open with the node's one-time key; push again")]
    Unopenable,
    /// The fence is not above the highest that the node has seen.
    #[error(
        "fence {offered} is not above {highest}, the highest seen; a newer grant exists, or the ledger is old: restore its latest backup"
    )]
    OldFence {
        /// Fence of the grant.
        offered: Fence,
        /// Highest seen for the volume.
        highest: Fence,
    },
    /// This grant has been received before.
    #[error("this grant was received before; if no one restarted the keyholder, look for a replay")]
    Replayed,
    /// The lease is outside what the protocol or the node allows.
    #[error(
        "a lease of {offered_ms} ms is outside {min_ms}..={max_ms} ms; change the lease at the keyholder or the node's limits"
    )]
    LeaseOutOfRange {
        /// Lease of the grant.
        offered_ms: u64,
        /// Shortest that the node takes.
        min_ms: u64,
        /// Longest that the node takes.
        max_ms: u64,
    },
    /// The lease counts from a challenge sent so long ago that it is over already.
    #[error(
        "the lease was over when the grant arrived; push again, and look at the delay between the machines"
    )]
    Expired,
    /// The grant answers no challenge that the node remembers.
    #[error("the grant answers no outstanding challenge of the node; push again")]
    UnknownChallenge,
    /// The node holds this volume's key already.
    #[error("the node already holds this volume by grant {by}; revoke that first")]
    AlreadyHeld {
        /// The grant that is in force.
        by: GrantId,
    },
    /// The node has no place for another key.
    #[error("the node holds as many keys as it can; move a volume to another node")]
    TooManyKeys,
    /// There is no memory in which the node would take a key.
    #[error(
        "the node has no secret memory (memfd_secret) and may not use mlock; boot with secretmem.enable=1 or set \
         allow_mlock"
    )]
    NoSecretMemory,
    /// The fence could not be made durable.
    #[error("the node could not record the fence on its pool; look at the node's pool status")]
    FenceNotDurable,
    /// A wipe came between the grant and its admission.
    #[error("the node was wiped while it took the key; it is pushed again by its reboot policy")]
    Wiped,
    /// The volume could not be opened with the key.
    #[error("the node took the key but could not open the volume; look at the node's log and pool status")]
    VolumeFailed,
    /// A trigger stands that would take the key at once.
    #[error("at the node {0} still stands, for which it gives up keys; it takes them when that has passed")]
    TriggerStanding(WipeCause),
    /// The volume's pool is not in the state that the keyholder knew, or a later one.
    #[error(
        "the pool at the node is not in the state it was known in: {0}. Find out who could write to the device; to serve what is \
         there, `nightlatch volume accept-state`, then push"
    )]
    RolledBack(StateVerdict),
    /// A key of a new epoch came for a volume whose grant is not in force.
    #[error("the grant that the new epoch belongs to is not in force on the node; push the volume first")]
    NotHeld,
    /// The volume could not be written under a new epoch: its pool has no room for what that takes.
    #[error("the volume's pool has no room for a new epoch; free some space, and it is given again")]
    NoSpace,
    /// A named key has one epoch for its life: what it wrapped lies in a store that names no epoch.
    #[error("a named key has one epoch for its life; make another, and have clients name that one")]
    OneEpoch,
}

/// The first eight bytes of a public key's SHA-256, as people compare them.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFingerprint(pub [u8; 8]);

impl KeyFingerprint {
    /// The fingerprint of an Ed25519 public key.
    pub fn of(public: &[u8; 32]) -> Self {
        use sha2::Digest;
        let digest: [u8; 32] = sha2::Sha256::digest(public).into();
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        Self(head)
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFingerprint({self})")
    }
}

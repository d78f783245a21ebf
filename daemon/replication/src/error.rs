//! Why something is refused: a volume's epoch, or a whole session.

use serde::{Deserialize, Serialize};
use units::VolumeId;

/// Why a receiver refuses a volume or an epoch of it. The session goes on for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    #[error(
        "this peer may not send this volume here; name the volume in the `[[peers]]` entry of the receiving node"
    )]
    NotAuthorised,
    #[error(
        "a writer with a higher fence has taken over; this side is no longer the primary: delete its copy to make it a replica"
    )]
    LowerFence,
    #[error(
        "another writer has the same fence: one of the two machines is a copy of the other; revoke and unlatch the volume on the one that is right"
    )]
    OtherGeneration,
    #[error("the epoch's number was used before: this machine was set back to an earlier state")]
    NumberUsed,
    #[error("the volume is no replica there: it was promoted, or made there")]
    NotAReplica,
    #[error(
        "the replica's newest snapshot is none that this side has: delete those there that are newer than what both have, or the replica"
    )]
    Diverged,
    #[error("the epoch is under another key, or of another kind of volume, than the replica")]
    OtherVolume,
    #[error("the replica has no space left; grow its pool, or delete snapshots there")]
    NoSpace,
    #[error("the replica could not do it; its log says why")]
    Failed,
    #[error("the epoch was damaged on its way, or where it came from")]
    Damaged,
    #[error("another peer is sending the volume at this moment")]
    Busy,
    #[error(
        "the fence or the epoch's number is further ahead than any writer comes: this side, or what the replica remembers of it, is not what it should be"
    )]
    TooFarAhead,
}

impl Reason {
    /// Whether it says that the sender is not what it takes itself for: an event of the trail.
    pub fn is_suspicious(self) -> bool {
        match self {
            Self::NotAuthorised
            | Self::LowerFence
            | Self::OtherGeneration
            | Self::NumberUsed
            | Self::OtherVolume
            | Self::Damaged
            | Self::TooFarAhead => true,
            Self::NotAReplica | Self::Diverged | Self::NoSpace | Self::Failed | Self::Busy => false,
        }
    }

    /// A word for logs, metrics and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotAuthorised => "not-authorised",
            Self::LowerFence => "lower-fence",
            Self::OtherGeneration => "other-generation",
            Self::NumberUsed => "number-used",
            Self::NotAReplica => "not-a-replica",
            Self::Diverged => "diverged",
            Self::OtherVolume => "other-volume",
            Self::NoSpace => "no-space",
            Self::Failed => "failed",
            Self::Damaged => "damaged",
            Self::Busy => "busy",
            Self::TooFarAhead => "too-far-ahead",
        }
    }
}

/// Why an epoch cannot be read where it is sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("an epoch's snapshot is gone: another is closed in its place")]
    Gone,
    #[error(
        "the volume's key is being rotated, and what is to be sent lies under two epochs of it: another is closed and sent once that is sealed anew (`nightlatch volume rotate --show`)"
    )]
    Rotating,
    #[error(
        "a sector of an epoch is damaged on this node, whose log names it: bring it back with `nightlatch pool heal`; where it has been written over since, `nightlatch snapshot delete` of the epoch lets another go in its place"
    )]
    Damaged,
    #[error("this node cannot read an epoch; its log says why")]
    Failed,
}

impl Unreadable {
    /// A word for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone-here",
            Self::Rotating => "rotating",
            Self::Damaged => "damaged-here",
            Self::Failed => "failed-here",
        }
    }
}

/// Why a volume is not sent for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The peer takes it not; of a replica that has gone another way, this side finds that.
    #[error("{0}")]
    Refused(Reason),
    /// It cannot be read here.
    #[error("{0}")]
    Unreadable(Unreadable),
}

impl Halt {
    /// Whether the epoch itself can never be sent.
    pub(crate) fn is_of_the_epoch(self) -> bool {
        match self {
            Self::Refused(reason) => matches!(
                reason,
                Reason::LowerFence | Reason::OtherGeneration | Reason::NumberUsed | Reason::TooFarAhead
            ),
            Self::Unreadable(why) => matches!(why, Unreadable::Gone | Unreadable::Rotating),
        }
    }

    /// A word for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.label(),
            Self::Unreadable(why) => why.label(),
        }
    }
}

/// Why a session ends. Whoever finds it says so to the other side where that may help, and closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SessionError {
    #[error(
        "the peer speaks version {theirs} of the replication protocol, this node {ours}; update the older one"
    )]
    UnsupportedVersion { theirs: u8, ours: u8 },
    #[error("a frame of {bytes} bytes is longer than any")]
    Oversize { bytes: u64 },
    #[error("a frame is not what its kind says")]
    Malformed,
    #[error("a frame does not fit its checksum")]
    Checksum,
    #[error("a frame of another session came: it was recorded and sent again")]
    Replayed,
    #[error("a frame came twice")]
    Repeated,
    #[error("a frame is missing, or came before its turn")]
    Reordered,
    #[error("a frame came that is not the turn of its kind")]
    Unexpected,
    #[error("a frame is for volume {0}, of which nothing was begun in this session")]
    NotBegun(VolumeId),
    #[error("the peer says it is another node than its certificate does")]
    WrongNode,
    #[error("the peer has not answered in time")]
    Silent,
}

impl SessionError {
    /// Whether an honest peer over a connection that neither loses nor repeats never causes it: an event of the trail.
    pub fn is_suspicious(self) -> bool {
        !matches!(self, Self::Silent | Self::UnsupportedVersion { .. })
    }
}

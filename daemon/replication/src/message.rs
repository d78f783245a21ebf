//! What the two sides say. PROTOCOL.md has the order.

use serde::{Deserialize, Serialize};
use units::{DomainId, Fence, Lba, NodeId, SectorCount, VolumeEpoch, VolumeId};

use crate::epoch::{EpochKey, Generation};
use crate::error::{Reason, SessionError};

/// Most epochs that a sender may have kept for other peers: a node has sixteen.
pub(crate) const KEPT_MAX: usize = 16;

/// What kind a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Closed,
    Hello,
    Welcome,
    Offer,
    Standing,
    Begin,
    Begun,
    Portion,
    Took,
    End,
    Done,
    Refused,
    Alive,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Closed,
        Self::Hello,
        Self::Welcome,
        Self::Offer,
        Self::Standing,
        Self::Begin,
        Self::Begun,
        Self::Portion,
        Self::Took,
        Self::End,
        Self::Done,
        Self::Refused,
        Self::Alive,
    ];

    /// On the wire.
    pub fn byte(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.byte() == byte)
    }
}

/// What kind a volume is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    Block,
    Objects,
}

/// An epoch's snapshot, as STREAM.md says it: what a replica is made with, and since which older snapshot the portions tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub volume: VolumeId,
    pub snapshot: VolumeId,
    pub since: Option<VolumeId>,
    /// When the snapshot was taken, seconds since 1970.
    pub created_s: u64,
    pub sectors: SectorCount,
    pub domain: DomainId,
    pub epoch: VolumeEpoch,
    pub check: [u8; 16],
    pub kind: VolumeKind,
    /// Blocks that have been encrypted under the domain and epoch.
    pub blocks: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The session is over, and why. Understood in every version.
    Closed(SessionError),
    Hello(Hello),
    Welcome(Welcome),
    Offer(Offer),
    Standing(Standing),
    Begin(Begin),
    Begun(Reached),
    /// A part of the epoch: from where, and STREAM.md's bytes.
    Portion(Reached, Vec<u8>),
    Took(Reached),
    End(Of),
    Done(Of),
    Refused(Refused),
    Alive,
}

impl Message {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Closed(_) => Kind::Closed,
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Offer(_) => Kind::Offer,
            Self::Standing(_) => Kind::Standing,
            Self::Begin(_) => Kind::Begin,
            Self::Begun(_) => Kind::Begun,
            Self::Portion(..) => Kind::Portion,
            Self::Took(_) => Kind::Took,
            Self::End(_) => Kind::End,
            Self::Done(_) => Kind::Done,
            Self::Refused(_) => Kind::Refused,
            Self::Alive => Kind::Alive,
        }
    }
}

/// The sender says who it is. Its certificate must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
}

/// The receiver says who it is; the frame's header has the session's number, which it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) node: NodeId,
}

/// A volume is to be sent: how far is the replica?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) volume: VolumeId,
    pub(crate) fence: Fence,
    pub(crate) generation: Generation,
}

/// The replica's newest snapshot, and the one that it has in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) volume: VolumeId,
    pub(crate) newest: Option<VolumeId>,
    pub(crate) receiving: Option<VolumeId>,
}

/// An epoch begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) key: EpochKey,
    /// Epochs that are kept, because they are another peer's newest, or may be before the next begins; at most [`KEPT_MAX`].
    pub(crate) keep: Vec<VolumeId>,
    pub(crate) manifest: Manifest,
}

/// Where in an epoch: everything before is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) volume: VolumeId,
    pub(crate) snapshot: VolumeId,
    pub(crate) at: Lba,
}

/// An epoch as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Of {
    pub(crate) volume: VolumeId,
    pub(crate) snapshot: VolumeId,
}

/// A volume is not taken, or its epoch not gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) volume: VolumeId,
    pub(crate) reason: Reason,
}

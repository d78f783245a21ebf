//! Replication: volumes of this node on their way to its peers, and replicas of theirs here. Sealed or not: none of it has a key.
//!
//! ```text
//!   closing (epochs) ── outgoing (a task for each peer) ── dial (a thread for each, the only part that may)
//!   incoming (the port for peers) ── pools
//! ```
//!
//! The order of what is said, and who may say it, are `replication`'s (PROTOCOL.md). Here are its sockets, its clock and its disk.
//!
//! Invariants:
//! - Who sends a volume is written down before anything of an epoch is taken in (`state.rs`), and a number before a snapshot has it.
//! - What is taken in for a volume is under that volume's turn, whichever peer it comes from: who was superseded changes nothing.
//! - No snapshot is deleted but such as replication made, that nobody locked and no schedule keeps.
//! - Lock order: a volume's turn, `state`; a sender's lock is held for no call that waits.

mod closing;
mod dial;
mod incoming;
mod outgoing;
mod state;
mod status;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use config::{NodeConfig, PeerConfig, ReplicationConfig};
use identity::{Credentials, ExpectedPeer, Role, Trust, TrustDomain};
use pool::{PoolError, PoolErrorKind};
use replication::{Halt, Reason, Sender, SenderLimits, Unreadable};
use units::{BootInstant, Fence, NodeId, VolumeId};

use crate::boot_clock;
use crate::lock::lock;

pub(crate) use closing::keep as keep_epochs;
pub(crate) use incoming::serve;
pub(crate) use outgoing::keep as keep_peer;

/// Who a node is in the protocol, by its certificate's key.
fn protocol_id(spki_sha256: [u8; 32]) -> NodeId {
    let mut id = [0; 16];
    id.copy_from_slice(&spki_sha256[..16]);
    NodeId(id)
}

/// What a replica has heard in this run, by this machine's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Arrivals {
    /// An epoch came whole.
    newest_at: Option<BootInstant>,
    /// A session that offers the volume said something.
    heard_at: Option<BootInstant>,
}

/// Another node.
pub(crate) struct Peer {
    config: PeerConfig,
    /// Its sessions here.
    sessions: incoming::Sessions,
    /// What is sent to it; `None` where it is not dialled.
    outgoing: Option<outgoing::Way>,
}

/// All of a node's replication.
pub(crate) struct Replication {
    id: NodeId,
    config: ReplicationConfig,
    trust_domain: TrustDomain,
    peers: Vec<Arc<Peer>>,
    state: state::State,
    /// One at a time takes something in for a volume.
    turns: Mutex<BTreeMap<VolumeId, Arc<Mutex<()>>>>,
    closed: Mutex<BTreeMap<VolumeId, closing::Closed>>,
    /// Volumes of which nothing can be sent, to anybody.
    unsent: Mutex<BTreeMap<VolumeId, closing::Unsent>>,
    /// When something of a replica arrived, or was to be heard of it, in this run.
    arrivals: Mutex<BTreeMap<VolumeId, Arrivals>>,
    /// What was refused since the start, by its reason.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    started_at: BootInstant,
    /// A peer has acknowledged: older epochs may go.
    is_pruning_due: AtomicBool,
}

impl std::fmt::Debug for Replication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replication").field("peers", &self.peers.len()).finish_non_exhaustive()
    }
}

impl Replication {
    /// Reads what is remembered of writers, and starts a thread for each peer that is dialled. Before the node gives up its rights: these
    /// threads keep that of dialling one port, and no other.
    pub(crate) fn open(
        config: &NodeConfig,
        credentials: &Credentials,
        trust: &Trust,
    ) -> anyhow::Result<Self> {
        let id = protocol_id(credentials.facts().spki_sha256);
        let peers = config.peers.iter().map(|peer| {
            let outgoing = peer.address.as_ref().map(|address| {
                let expected = ExpectedPeer::named(Role::Node, peer.name.clone()).pinned(peer.key_sha256.0);
                let tls = identity::control_client(credentials, trust, expected)?;
                let limits = SenderLimits {
                    bytes_per_s: (config.replication.mib_per_s > 0)
                        .then(|| u64::from(config.replication.mib_per_s) << 20),
                    ..SenderLimits::default()
                };
                let sender = Sender::new(id, protocol_id(peer.key_sha256.0), limits, boot_clock::now());
                outgoing::Way::open(peer.name.as_str(), address, tls, sender).with_context(|| {
                    format!("the thread that dials the peer {} could not be started", peer.name)
                })
            });
            let sessions = incoming::Sessions::default();
            Ok(Arc::new(Peer { config: peer.clone(), sessions, outgoing: outgoing.transpose()? }))
        });
        Ok(Self {
            id,
            config: config.replication.clone(),
            trust_domain: trust.trust_domain().clone(),
            peers: peers.collect::<anyhow::Result<_>>()?,
            state: state::State::open(&config.state_dir).context("who has replicated here is not known")?,
            turns: Mutex::default(),
            closed: Mutex::default(),
            unsent: Mutex::default(),
            arrivals: Mutex::default(),
            refused: Mutex::default(),
            started_at: boot_clock::now(),
            is_pruning_due: AtomicBool::new(true),
        })
    }

    /// Peers that are dialled.
    pub(crate) fn dialled(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.iter().filter(|peer| peer.outgoing.is_some())
    }

    /// Peers that a volume is sent to, and the way there.
    fn ways(&self, volume: VolumeId) -> impl Iterator<Item = (&Arc<Peer>, &outgoing::Way)> {
        let to =
            move |peer: &&Arc<Peer>| peer.config.has(volume) && self.config.may_be_at(volume, &peer.config);
        self.peers.iter().filter(to).filter_map(|peer| Some((peer, peer.outgoing.as_ref()?)))
    }

    /// The newest snapshots that peers have of a volume of which nothing is sent to them because what is newer lies under two epochs of
    /// its key.
    pub(crate) fn held_back_since(&self, volume: VolumeId) -> Vec<VolumeId> {
        let since = |way: &outgoing::Way| {
            let progress = lock(&way.sender).progress(volume)?;
            let is_held_back = progress.trouble == Some(Halt::Unreadable(Unreadable::Rotating));
            progress.common.filter(|_| is_held_back)
        };
        self.ways(volume).filter_map(|(_, way)| since(way)).collect()
    }

    /// A volume is deleted whose key was granted under this fence: who sends it here later must not have a lower one.
    pub(crate) fn remember_fence(&self, volume: VolumeId, fence: Fence) -> io::Result<()> {
        self.state.remember_fence(volume, fence)
    }

    pub(crate) fn turn(&self, volume: VolumeId) -> Arc<Mutex<()>> {
        let mut turns = lock(&self.turns);
        // Nobody waits for the others: a peer names as many as it likes.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(volume).or_default())
    }
}

/// A pool's error as the protocol tells it.
fn reason(error: &PoolError) -> Reason {
    match error {
        PoolError::NotAReplica(_) => Reason::NotAReplica,
        PoolError::NoCommonSnapshot { .. } => Reason::Diverged,
        PoolError::BadPortion { .. } => Reason::Damaged,
        PoolError::TooManyVolumes => Reason::NoSpace,
        error if error.kind() == PoolErrorKind::NoSpace => Reason::NoSpace,
        _ => Reason::Failed,
    }
}

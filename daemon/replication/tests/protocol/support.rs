//! A sender and a receiver, of fixed identifiers.

use replication::{
    Allowed, Epoch, EpochKey, EpochName, Generation, Manifest, Receiver, ReceiverEffect, ReceiverParams,
    Sender, SenderEffect, SenderLimits, VolumeKind,
};
use units::{BootInstant, DomainId, Fence, NodeId, SectorCount, VolumeEpoch, VolumeId};

pub(crate) const VOLUME: VolumeId = VolumeId([0x11; 16]);
pub(crate) const PRIMARY: NodeId = NodeId([0x22; 16]);
pub(crate) const REPLICA: NodeId = NodeId([0x33; 16]);
pub(crate) const GENERATION: Generation = Generation([0x44; 16]);
pub(crate) const SESSION: u64 = 0x5566_7788_99aa_bbcc;
pub(crate) const NOW: BootInstant = BootInstant(1_000_000_000);

pub(crate) fn key(number: u64) -> EpochKey {
    let snapshot = EpochName { number, random: [0x66; 5] }.id().unwrap();
    EpochKey { fence: Fence(7), generation: GENERATION, number, snapshot }
}

pub(crate) fn epoch(number: u64) -> Epoch {
    Epoch { key: key(number), closed_at: NOW }
}

pub(crate) fn manifest(number: u64, since: Option<u64>) -> Manifest {
    Manifest {
        volume: VOLUME,
        snapshot: key(number).snapshot,
        since: since.map(|since| key(since).snapshot),
        created_s: 1_700_000_000,
        sectors: SectorCount(8),
        domain: DomainId([0x77; 16]),
        epoch: VolumeEpoch(3),
        check: [0x88; 16],
        kind: VolumeKind::Block,
        blocks: 9,
    }
}

pub(crate) fn sender() -> Sender {
    let mut sender = Sender::new(PRIMARY, REPLICA, SenderLimits::default(), NOW);
    sender.set_writer(VOLUME, Fence(7), GENERATION);
    sender
}

pub(crate) fn receiver() -> Receiver {
    let allowed = Allowed::These([VOLUME].into());
    Receiver::new(ReceiverParams { node: REPLICA, peer: PRIMARY, allowed, session: SESSION })
}

/// What the sender says and asks for, in two lists.
pub(crate) fn said(sender: &mut Sender) -> (Vec<Vec<u8>>, Vec<SenderEffect>) {
    let (mut frames, mut rest) = (Vec::new(), Vec::new());
    while let Some(effect) = sender.poll() {
        match effect {
            SenderEffect::Send(bytes) => frames.push(bytes),
            other => rest.push(other),
        }
    }
    (frames, rest)
}

pub(crate) fn answered(receiver: &mut Receiver) -> (Vec<Vec<u8>>, Vec<ReceiverEffect>) {
    let (mut frames, mut rest) = (Vec::new(), Vec::new());
    while let Some(effect) = receiver.poll() {
        match effect {
            ReceiverEffect::Send(bytes) => frames.push(bytes),
            other => rest.push(other),
        }
    }
    (frames, rest)
}

/// The frame that was said, without its prefix, when it is one.
pub(crate) fn one(frames: &[Vec<u8>]) -> &[u8] {
    match frames {
        [frame] => &frame[replication::PREFIX_BYTES..],
        other => panic!("{} frames instead of one", other.len()),
    }
}

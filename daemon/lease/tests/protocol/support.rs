//! Two machines and no network: what every test of the exchange needs.

use std::sync::Arc;

use lease::envelope::{self, PublicEnvelopeKey};
use lease::frame::FrameBuffer;
use lease::keyholder::{EpochOrder, GrantOrder, KeyholderEvent, KeyholderSession, KeyholderSessionParams};
use lease::message::{LeaseLimits, OnRollback, OnSeal, PoolState, StateVerdict, VolumeKind, VolumePresent};
use lease::node::{
    EvidenceInput, GrantToAdmit, NodeEffect, NodeLease, NodeParams, NodeSession, NodeSessionParams,
};
use lease::{LocalSigner, SessionError, Signer};
use units::{
    BootId, BootInstant, ByteLen, DomainId, Fence, GrantId, NodeId, PoolId, RootEpoch, VolumeEpoch, VolumeId,
};

pub(crate) const NODE: NodeId = NodeId([0x11; 16]);
pub(crate) const VOLUME: VolumeId = VolumeId([0x22; 16]);
pub(crate) const DOMAIN: DomainId = DomainId([0x33; 16]);
pub(crate) const EPOCH: VolumeEpoch = VolumeEpoch(1);
pub(crate) const CHECK: [u8; 16] = [0x44; 16];
pub(crate) const STATE: PoolState = PoolState { pool: PoolId([0x45; 16]), count: 300, chain: [0x46; 32] };
pub(crate) const EXPORTER: [u8; 32] = [0x55; 32];
pub(crate) const LEASE_MS: u64 = 5_000;
pub(crate) const ENVELOPE_SECRET: [u8; 32] = [0x66; 32];
pub(crate) const PRK: [u8; 32] = [0x77; 32];

pub(crate) fn ms(ms: u64) -> BootInstant {
    BootInstant(ms * 1_000_000)
}

pub(crate) fn grant_signer() -> Arc<LocalSigner> {
    Arc::new(LocalSigner::from_seed(&[0xaa; 32]))
}

pub(crate) fn identity() -> Arc<LocalSigner> {
    Arc::new(LocalSigner::from_seed(&[0xbb; 32]))
}

pub(crate) fn envelope_key() -> PublicEnvelopeKey {
    envelope::keypair(&ENVELOPE_SECRET).unwrap()
}

pub(crate) fn present(volume: VolumeId) -> VolumePresent {
    VolumePresent {
        volume,
        pool: STATE.pool,
        domain: DOMAIN,
        epoch: EPOCH,
        check: CHECK,
        size_bytes: ByteLen(1 << 30),
        fence: Fence(7),
    }
}

pub(crate) fn node_lease() -> NodeLease {
    let mut lease = NodeLease::new(NodeParams {
        node: NODE,
        boot: BootId([0x99; 16]),
        image: None,
        identity: identity(),
        limits: LeaseLimits::PROTOCOL,
        pin: Some(grant_signer().public_key()),
    });
    lease.set_volumes([present(VOLUME)]).unwrap();
    lease.set_states(vec![STATE]);
    lease
}

pub(crate) fn keyholder_params() -> KeyholderSessionParams {
    KeyholderSessionParams {
        keyholder: "compute-1".to_owned(),
        node: NODE,
        pinned: Some(identity().public_key()),
        signer: grant_signer(),
        root_epoch: RootEpoch(1),
        exporter: EXPORTER,
        challenge: [0xcc; 32],
    }
}

pub(crate) fn order(grant: u8, fence: u64) -> GrantOrder {
    GrantOrder {
        grant: GrantId([grant; 16]),
        volume: VOLUME,
        domain: DOMAIN,
        epoch: EPOCH,
        fence: Fence(fence),
        lease_ms: LEASE_MS,
        label: "db-1".to_owned(),
        kind: VolumeKind::Block,
        on_seal: OnSeal::Hold,
        known_state: Some(STATE),
        on_rollback: OnRollback::Refuse,
        check: CHECK,
        further: Vec::new(),
    }
}

/// A new epoch of the volume, under a grant and its fence.
pub(crate) fn epoch_order(grant: u8, fence: u64, epoch: u32) -> EpochOrder {
    EpochOrder {
        grant: GrantId([grant; 16]),
        volume: VOLUME,
        domain: DOMAIN,
        fence: Fence(fence),
        epoch: VolumeEpoch(epoch),
        check: [0x66; 16],
    }
}

/// A frame without its prefix.
pub(crate) fn unframe(bytes: &[u8]) -> Vec<u8> {
    let mut buffer = FrameBuffer::default();
    buffer.push(bytes);
    let frame = buffer.next_frame().unwrap().expect("a whole frame");
    assert_eq!(buffer.next_frame().unwrap(), None, "one frame");
    frame
}

/// The frames among the effects.
pub(crate) fn sent(effects: &[NodeEffect]) -> Vec<Vec<u8>> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            NodeEffect::Send(bytes) => Some(unframe(bytes)),
            _ => None,
        })
        .collect()
}

/// An established session, node and keyholder on the same clock.
pub(crate) struct Pair {
    pub(crate) lease: NodeLease,
    pub(crate) node: NodeSession,
    pub(crate) keyholder: KeyholderSession,
}

impl Pair {
    pub(crate) fn new(now: BootInstant, mut lease: NodeLease, params: KeyholderSessionParams) -> Self {
        let exporter = params.exporter;
        let node = NodeSession::new(&mut lease, now, NodeSessionParams { exporter, seed: [0xdd; 32] });
        Self { lease, node, keyholder: KeyholderSession::new(now, params) }
    }

    /// Hello and evidence; the node's error where it refuses.
    pub(crate) fn establish(&mut self, now: BootInstant) -> Result<KeyholderEvent, SessionError> {
        let hello = unframe(&self.keyholder.start().unwrap());
        let effects = self.node.on_frame(&mut self.lease, now, &hello)?;
        assert_eq!(effects, [NodeEffect::NeedEvidence]);
        let input = EvidenceInput { hygiene: "{}".to_owned(), envelope_key: envelope_key(), attests: false };
        let effects = self.node.on_evidence(&mut self.lease, now, input)?;
        let evidence = sent(&effects).remove(0);
        Ok(self.keyholder.on_frame(now, &evidence)?.expect("evidence"))
    }

    pub(crate) fn established(now: BootInstant) -> Self {
        let mut pair = Self::new(now, node_lease(), keyholder_params());
        let event = pair.establish(now).unwrap();
        assert!(matches!(event, KeyholderEvent::Evidence(_, None)));
        pair
    }

    /// The frame of a grant, its envelope really sealed.
    pub(crate) fn grant_frame(&mut self, order: GrantOrder) -> Vec<u8> {
        let bytes = self
            .keyholder
            .grant(order, |request| {
                envelope::seal(request.recipient, request.info, request.aad, &PRK, &mut [0xee; 64])
            })
            .unwrap();
        unframe(&bytes)
    }

    /// The frame of a new epoch's key, its envelope really sealed.
    pub(crate) fn epoch_frame(&self, order: EpochOrder) -> Vec<u8> {
        let bytes = self
            .keyholder
            .epoch_key(order, |request| {
                envelope::seal(request.recipient, request.info, request.aad, &PRK, &mut [0xef; 64])
            })
            .unwrap();
        unframe(&bytes)
    }

    pub(crate) fn deliver(
        &mut self,
        now: BootInstant,
        frame: &[u8],
    ) -> Result<Vec<NodeEffect>, SessionError> {
        self.node.on_frame(&mut self.lease, now, frame)
    }

    /// Grants, and admits as a keyring would.
    pub(crate) fn grant(&mut self, now: BootInstant, order: GrantOrder) -> Vec<NodeEffect> {
        let frame = self.grant_frame(order);
        let effects = self.deliver(now, &frame).unwrap();
        let admit = admitted(&effects);
        self.node.on_admitted(&mut self.lease, now, admit.volume, admit.grant, Ok(StateVerdict::First))
    }

    /// Lets the node send its next challenge and the keyholder see it; returns when it was sent.
    pub(crate) fn challenge(&mut self) -> BootInstant {
        let due = self.node.next_timeout(&self.lease).unwrap();
        let effects = self.node.on_time(&mut self.lease, due);
        for frame in sent(&effects) {
            self.keyholder.on_frame(due, &frame).unwrap();
        }
        due
    }

    /// The frame of a renewal that answers the latest challenge.
    pub(crate) fn renewal_frame(&mut self, lease_ms: u64, grants: &[GrantId]) -> Vec<u8> {
        let challenged = self.keyholder.latest_challenge().unwrap();
        unframe(&self.keyholder.renewal(challenged, lease_ms, grants.to_vec()).unwrap())
    }
}

/// The grant among the effects.
pub(crate) fn admitted(effects: &[NodeEffect]) -> &GrantToAdmit {
    effects
        .iter()
        .find_map(|effect| match effect {
            NodeEffect::AdmitGrant(admit) => Some(admit.as_ref()),
            _ => None,
        })
        .expect("a grant to admit")
}

//! The receiver: one connection of an authorised peer, and the epochs that come over it.
//!
//! The shell carries effects out one after the other, in their order, and says what came of each that asks for it. Under a lock that
//! all connections share it does, per volume:
//!
//! 1. At [`ReceiverEffect::Begin`]: [`Histories::judge`], then writes down [`Histories::accept`] durably, then begins in the pool. Were
//!    the pool first, a power cut would leave a part of an epoch whose writer nobody remembers. What the pool would refuse whatever came
//!    of it is asked before, without a change: what is refused leaves nothing behind.
//! 2. At [`ReceiverEffect::Take`], [`ReceiverEffect::Commit`] and [`ReceiverEffect::Prune`]: [`Histories::is_current`], then the pool. So
//!    a writer that was superseded in the middle of an epoch changes nothing any more.
//!
//! Older epochs are deleted once the next has begun, not only once it is there: a pool that has no room for one more makes it so.
//!
//! [`Histories::judge`]: crate::Histories::judge
//! [`Histories::accept`]: crate::Histories::accept
//! [`Histories::is_current`]: crate::Histories::is_current

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use units::{Fence, Lba, NodeId, VolumeId};

use crate::epoch::{EpochKey, EpochName, Generation};
use crate::error::{Reason, SessionError};
use crate::frame::{Frame, Numbering};
use crate::message::{Begin, KEPT_MAX, Manifest, Message, Of, Offer, Reached, Refused, Standing, Welcome};
use crate::mutation::{Mutation, is_broken};

/// Volumes that one session may offer: a pool has no more.
const VOLUMES_MAX: usize = 65_536;

/// Which volumes a peer may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    Any,
    These(BTreeSet<VolumeId>),
}

impl Allowed {
    fn has(&self, volume: VolumeId) -> bool {
        match self {
            Self::Any => true,
            Self::These(volumes) => volumes.contains(&volume),
        }
    }
}

/// What a session is made of.
#[derive(Clone, Debug)]
pub struct ReceiverParams {
    pub node: NodeId,
    /// Who the other side is, by its certificate.
    pub peer: NodeId,
    pub allowed: Allowed,
    /// Random, never the same again: what was recorded of one session is of no use in another.
    pub session: u64,
}

/// What there is of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Absent,
    Replica,
    /// It is written here, or was.
    Writer,
}

/// How a volume stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub role: Role,
    /// The newest snapshot that has arrived whole.
    pub newest: Option<VolumeId>,
    /// The one that has arrived in part.
    pub receiving: Option<VolumeId>,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverEffect {
    /// Send these bytes.
    Send(Vec<u8>),
    /// [`crate::Histories::check_writer`], then say how the volume stands: [`Receiver::on_local`].
    Look { volume: VolumeId, fence: Fence, generation: Generation },
    /// Begin an epoch, or go on with it: [`Receiver::on_begun`].
    Begin { key: EpochKey, manifest: Manifest },
    /// Take a portion in, durably: [`Receiver::on_took`].
    Take { key: EpochKey, volume: VolumeId, portion: Vec<u8> },
    /// Make the epoch visible, durably: [`Receiver::on_committed`].
    Commit { key: EpochKey, manifest: Manifest },
    /// Delete the volume's epochs that nobody has locked or keeps for another reason: all but its newest and these.
    Prune { key: EpochKey, volume: VolumeId, keep: Vec<VolumeId> },
    /// A volume was refused. Where the reason is suspicious ([`Reason::is_suspicious`]), it is an event of the audit trail.
    Refused { volume: VolumeId, reason: Reason },
    /// An event of the audit trail: the session was.
    AuditSession(SessionError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The shell looks how the volume stands.
    Looking,
    /// The sender knows.
    Standing,
    Beginning,
    /// Portions come.
    Open,
    Committing,
    /// What of the epoch is still on its way is ignored.
    Refused,
}

#[derive(Debug)]
struct Incoming {
    phase: Phase,
    epoch: Option<Begin>,
    next: Lba,
    /// Portions that the shell has not answered.
    taking: u32,
    ended: bool,
    /// There was no space for it, and what could go has gone.
    has_made_room: bool,
}

impl Incoming {
    fn new() -> Self {
        let (phase, epoch, next) = (Phase::Looking, None, Lba(0));
        Self { phase, epoch, next, taking: 0, ended: false, has_made_room: false }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Receiver {
    params: ReceiverParams,
    numbering: Numbering,
    greeted: bool,
    over: bool,
    volumes: BTreeMap<VolumeId, Incoming>,
    effects: VecDeque<ReceiverEffect>,
}

impl Receiver {
    pub fn new(params: ReceiverParams) -> Self {
        Self {
            params,
            numbering: Numbering::default(),
            greeted: false,
            over: false,
            volumes: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    /// While the shell is at something that takes long: a sign of life for the sender.
    pub fn alive(&mut self) -> Vec<u8> {
        self.numbering.frame(Message::Alive)
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<ReceiverEffect> {
        self.effects.pop_front()
    }

    /// A frame came, without its prefix. After an error the session is over: the shell carries out what [`Receiver::poll`] still
    /// gives, and closes the connection.
    pub fn on_frame(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let taken = Frame::from_bytes(bytes).and_then(|frame| self.on_whole_frame(frame));
        taken.inspect_err(|error| self.end(*error))
    }

    /// The shell could not cut the stream into frames.
    pub fn end(&mut self, error: SessionError) {
        if self.over {
            return;
        }
        self.over = true;
        // What was begun is not gone on with; the shell is asked nothing more.
        self.effects.retain(|effect| matches!(effect, ReceiverEffect::Send(_)));
        self.send(Message::Closed(error));
        if error.is_suspicious() {
            self.effects.push_back(ReceiverEffect::AuditSession(error));
        }
    }

    fn on_whole_frame(&mut self, frame: Frame) -> Result<(), SessionError> {
        if self.over {
            return Err(SessionError::Unexpected);
        }
        if let Message::Closed(error) = frame.message {
            self.over = true;
            return Err(error);
        }
        self.numbering.check(frame.session, frame.sequence)?;
        match frame.message {
            Message::Hello(hello) if !self.greeted => {
                if hello.node != self.params.peer {
                    return Err(SessionError::WrongNode);
                }
                self.greeted = true;
                self.numbering.session = self.params.session;
                self.send(Message::Welcome(Welcome { node: self.params.node }));
                Ok(())
            }
            _ if !self.greeted => Err(SessionError::Unexpected),
            Message::Offer(offer) => self.on_offer(offer),
            Message::Begin(begin) => self.on_begin(begin),
            Message::Portion(reached, portion) => self.on_portion(reached, portion),
            Message::End(of) => self.on_end(of),
            Message::Alive => {
                self.send(Message::Alive);
                Ok(())
            }
            _ => Err(SessionError::Unexpected),
        }
    }

    fn on_offer(&mut self, offer: Offer) -> Result<(), SessionError> {
        let Offer { volume, fence, generation } = offer;
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(SessionError::Unexpected);
        }
        self.volumes.insert(volume, Incoming::new());
        if !self.params.allowed.has(volume) {
            self.refuse(volume, Reason::NotAuthorised);
            return Ok(());
        }
        self.effects.push_back(ReceiverEffect::Look { volume, fence, generation });
        Ok(())
    }

    /// How a volume stands, or why its writer is refused.
    pub fn on_local(&mut self, volume: VolumeId, local: Result<Local, Reason>) {
        let Some(incoming) = self.in_phase(volume, Phase::Looking) else { return };
        match local {
            Ok(Local { role: Role::Writer, .. }) => self.refuse(volume, Reason::NotAReplica),
            Ok(Local { newest, receiving, .. }) => {
                incoming.phase = Phase::Standing;
                self.send(Message::Standing(Standing { volume, newest, receiving }));
            }
            Err(reason) => self.refuse(volume, reason),
        }
    }

    fn on_begin(&mut self, begin: Begin) -> Result<(), SessionError> {
        let Begin { key, manifest, .. } = begin;
        if begin.keep.len() > KEPT_MAX {
            return Err(SessionError::Malformed);
        }
        let volume = manifest.volume;
        let incoming = self.volumes.get_mut(&volume).ok_or(SessionError::NotBegun(volume))?;
        let name = EpochName::read(key.snapshot).ok_or(SessionError::Malformed)?;
        if manifest.snapshot != key.snapshot || name.number != key.number {
            return Err(SessionError::Malformed);
        }
        if incoming.phase != Phase::Standing {
            return Err(SessionError::Unexpected);
        }
        *incoming = Incoming { phase: Phase::Beginning, epoch: Some(begin), ..Incoming::new() };
        self.effects.push_back(ReceiverEffect::Begin { key, manifest });
        Ok(())
    }

    /// From which sector on an epoch is to be sent, or why not.
    pub fn on_begun(&mut self, volume: VolumeId, begun: Result<Lba, Reason>) {
        let Some(incoming) = self.in_phase(volume, Phase::Beginning) else { return };
        match begun {
            Ok(at) => {
                incoming.phase = Phase::Open;
                incoming.next = at;
                if let Some(epoch) = incoming.epoch.clone() {
                    self.send(Message::Begun(Reached { volume, snapshot: epoch.key.snapshot, at }));
                    self.prune(volume, &epoch);
                }
            }
            Err(Reason::NoSpace) if self.makes_room(volume) => {}
            Err(reason) => self.refuse(volume, reason),
        }
    }

    /// The volume, if a frame is of the epoch that was begun in this session; `None` where it was refused meanwhile.
    fn of_epoch(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
    ) -> Result<Option<(&mut Incoming, Begin)>, SessionError> {
        let incoming = self.volumes.get_mut(&volume).ok_or(SessionError::NotBegun(volume))?;
        let epoch = incoming.epoch.clone().ok_or(SessionError::NotBegun(volume))?;
        if epoch.key.snapshot != snapshot {
            return Err(SessionError::Unexpected);
        }
        match incoming.phase {
            Phase::Open if !incoming.ended => Ok(Some((incoming, epoch))),
            Phase::Refused => Ok(None),
            _ => Err(SessionError::Unexpected),
        }
    }

    fn on_portion(&mut self, reached: Reached, portion: Vec<u8>) -> Result<(), SessionError> {
        let Reached { volume, snapshot, .. } = reached;
        let Some((incoming, epoch)) = self.of_epoch(volume, snapshot)? else { return Ok(()) };
        incoming.taking = incoming.taking.saturating_add(1);
        self.effects.push_back(ReceiverEffect::Take { key: epoch.key, volume, portion });
        Ok(())
    }

    /// Up to where an epoch is there durably, or why a portion was not taken.
    pub fn on_took(&mut self, volume: VolumeId, took: Result<Lba, Reason>) {
        let Some(incoming) = self.in_phase(volume, Phase::Open) else { return };
        let Some(epoch) = incoming.epoch.clone() else { return };
        incoming.taking = incoming.taking.saturating_sub(1);
        match took {
            Ok(at) => {
                incoming.next = at;
                let snapshot = epoch.key.snapshot;
                self.send(Message::Took(Reached { volume, snapshot, at }));
                self.commit_if_whole(volume, &epoch);
            }
            Err(reason) => self.refuse(volume, reason),
        }
    }

    fn on_end(&mut self, of: Of) -> Result<(), SessionError> {
        let Of { volume, snapshot } = of;
        let Some((incoming, epoch)) = self.of_epoch(volume, snapshot)? else { return Ok(()) };
        incoming.ended = true;
        self.commit_if_whole(volume, &epoch);
        Ok(())
    }

    /// Once everything that was sent is durable, and everything was sent.
    fn commit_if_whole(&mut self, volume: VolumeId, epoch: &Begin) {
        let Some(incoming) = self.volumes.get_mut(&volume) else { return };
        let half = is_broken(Mutation::ApplyHalfAnEpoch);
        if !half && (!incoming.ended || incoming.taking > 0) {
            return;
        }
        if incoming.next.0 < epoch.manifest.sectors.0 && !half {
            self.refuse(volume, Reason::Damaged);
            return;
        }
        incoming.phase = Phase::Committing;
        self.effects.push_back(ReceiverEffect::Commit { key: epoch.key, manifest: epoch.manifest });
        if is_broken(Mutation::AcknowledgeBeforeDurable) {
            self.send(Message::Done(Of { volume, snapshot: epoch.key.snapshot }));
        }
    }

    /// The epoch is visible, durably, or why not.
    pub fn on_committed(&mut self, volume: VolumeId, committed: Result<(), Reason>) {
        let Some(incoming) = self.in_phase(volume, Phase::Committing) else { return };
        let Some(epoch) = incoming.epoch.clone() else { return };
        match committed {
            Ok(()) => {
                // The next may begin without an offer.
                incoming.phase = Phase::Standing;
                incoming.epoch = None;
                if !is_broken(Mutation::AcknowledgeBeforeDurable) {
                    self.send(Message::Done(Of { volume, snapshot: epoch.key.snapshot }));
                }
                self.prune(volume, &epoch);
            }
            Err(Reason::NoSpace) if self.makes_room(volume) => {}
            Err(reason) => self.refuse(volume, reason),
        }
    }

    fn prune(&mut self, volume: VolumeId, epoch: &Begin) {
        let (key, keep) = (epoch.key, epoch.keep.clone());
        self.effects.push_back(ReceiverEffect::Prune { key, volume, keep });
    }

    /// What found no space is done again once older epochs have gone. False where that was so already.
    fn makes_room(&mut self, volume: VolumeId) -> bool {
        let Some(incoming) = self.volumes.get_mut(&volume).filter(|incoming| !incoming.has_made_room) else {
            return false;
        };
        let (phase, Some(epoch)) = (incoming.phase, incoming.epoch.clone()) else { return false };
        incoming.has_made_room = true;
        self.prune(volume, &epoch);
        let Begin { key, manifest, .. } = epoch;
        self.effects.push_back(match phase {
            Phase::Beginning => ReceiverEffect::Begin { key, manifest },
            _ => ReceiverEffect::Commit { key, manifest },
        });
        true
    }

    fn in_phase(&mut self, volume: VolumeId, phase: Phase) -> Option<&mut Incoming> {
        self.volumes.get_mut(&volume).filter(|incoming| incoming.phase == phase && !self.over)
    }

    fn refuse(&mut self, volume: VolumeId, reason: Reason) {
        if let Some(incoming) = self.volumes.get_mut(&volume) {
            incoming.phase = Phase::Refused;
        }
        self.effects.retain(
            |effect| !matches!(effect, ReceiverEffect::Take { volume: taken, .. } if *taken == volume),
        );
        self.send(Message::Refused(Refused { volume, reason }));
        self.effects.push_back(ReceiverEffect::Refused { volume, reason });
    }

    fn send(&mut self, message: Message) {
        let bytes = self.numbering.frame(message);
        self.effects.push_back(ReceiverEffect::Send(bytes));
    }
}

#[cfg(test)]
mod tests {
    use units::{DomainId, SectorCount, VolumeEpoch};

    use super::*;
    use crate::frame::PREFIX_BYTES;
    use crate::message::{Hello, VolumeKind};

    #[test]
    fn a_list_of_what_is_kept_is_taken_at_its_limit_and_one_more_ends_the_session() {
        let (node, volume) = (NodeId([1; 16]), VolumeId([2; 16]));
        let snapshot = EpochName { number: 1, random: [3; 5] }.id().unwrap();
        let key = EpochKey { fence: Fence(1), generation: Generation([4; 16]), number: 1, snapshot };
        let manifest = Manifest {
            volume,
            snapshot,
            since: None,
            created_s: 0,
            sectors: SectorCount(8),
            domain: DomainId([5; 16]),
            epoch: VolumeEpoch(1),
            check: [6; 16],
            kind: VolumeKind::Block,
            blocks: 0,
        };
        for (kept, expected) in [(KEPT_MAX, Ok(())), (KEPT_MAX + 1, Err(SessionError::Malformed))] {
            let params = ReceiverParams { node, peer: node, allowed: Allowed::Any, session: 7 };
            let (mut receiver, mut numbering) = (Receiver::new(params), Numbering::default());
            let mut say = |receiver: &mut Receiver, message| {
                let frame = numbering.frame(message);
                numbering.session = 7;
                receiver.on_frame(&frame[PREFIX_BYTES..])
            };
            say(&mut receiver, Message::Hello(Hello { node })).unwrap();
            let offer = Offer { volume, fence: Fence(1), generation: Generation([4; 16]) };
            say(&mut receiver, Message::Offer(offer)).unwrap();
            receiver.on_local(volume, Ok(Local { role: Role::Absent, newest: None, receiving: None }));
            let begin = Begin { key, keep: vec![snapshot; kept], manifest };
            assert_eq!(say(&mut receiver, Message::Begin(begin)), expected);
        }
    }
}

//! The sender: one peer, over as many connections as it takes, and the epochs that it is to have.
//!
//! Invariants:
//! - What [`Sender::needs`] names stays: the newest epoch that the peer acknowledged, those that wait, and the one on its way. Until the
//!   peer has said in this run how far it is, what an earlier run has left stays too: one of that may be the peer's newest. An epoch
//!   that was closed in this run cannot be before the peer has said so.
//! - Of epochs that wait there are at most [`SenderLimits::epochs_waiting`]; when one more comes the peer falls to catch-up: all but
//!   the newest are given up, and what it is sent is the difference to that.
//! - A volume that the peer has all of is [`State::UpToDate`] only if that is the newest epoch there is. Where it is not, and none waits,
//!   it is [`State::Lacking`]: one is to be closed, whether something was written or not.
//! - Of ciphertext that was read and not acknowledged there is at most [`SenderLimits::window_bytes`] and one portion, of all volumes
//!   together. They are read in turn, one portion at a time.

use std::collections::{BTreeMap, VecDeque};

use units::{BootInstant, Fence, Lba, NodeId, VolumeId};

use crate::epoch::{EpochKey, EpochName, Generation};
use crate::error::{Halt, Reason, SessionError, Unreadable};
use crate::frame::{Frame, Numbering};
use crate::message::{Begin, Hello, KEPT_MAX, Manifest, Message, Of, Offer, Reached, Refused, Standing};
use crate::mutation::{Mutation, is_broken};

/// Epochs of earlier runs that are kept for a peer of which nobody knows how far it is, the oldest and the newest half of them: each
/// run leaves one or two. A peer whose newest is between them is seeded anew.
const RESTORED_MAX: usize = 64;

/// What a sender may use.
#[derive(Clone, Copy, Debug)]
pub struct SenderLimits {
    /// Ciphertext on its way, of all volumes.
    pub window_bytes: u64,
    /// Epochs that wait for those before them.
    pub epochs_waiting: usize,
    /// Most bytes a second; without a limit if absent.
    pub bytes_per_s: Option<u64>,
    /// Silence after which the connection is given up.
    pub silence_ms: u64,
    /// Silence of ours after which we say that we are there.
    pub alive_ms: u64,
    /// How long a volume rests that was refused.
    pub retry_ms: u64,
}

impl Default for SenderLimits {
    fn default() -> Self {
        Self {
            window_bytes: 16 << 20,
            epochs_waiting: 4,
            bytes_per_s: None,
            silence_ms: 15_000,
            alive_ms: 3_000,
            retry_ms: 5_000,
        }
    }
}

/// A barrier of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub key: EpochKey,
    pub closed_at: BootInstant,
}

/// A part of an epoch, as the pool gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    pub bytes: Vec<u8>,
    /// Where the next begins.
    pub next: Lba,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderEffect {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Say whether there is such a snapshot of the volume: [`Sender::on_found`].
    Find { volume: VolumeId, snapshot: VolumeId },
    /// [`Sender::on_manifest`].
    ReadManifest { volume: VolumeId, snapshot: VolumeId, since: Option<VolumeId> },
    /// [`Sender::on_portion`].
    ReadPortion { manifest: Manifest, from: Lba },
    /// The peer has this epoch, durably.
    Acknowledged { volume: VolumeId, epoch: Epoch },
    /// The volume is not sent, for a while at least. Said once, until something of it arrives again.
    Stopped { volume: VolumeId, why: Halt },
}

/// How far a volume is with this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no connection.
    Away,
    /// The peer is asked how far it is.
    Asking,
    /// It has the newest epoch.
    UpToDate,
    /// It has not, and none waits for it: the next is to be closed though nothing may have been written.
    Lacking,
    /// An epoch is on its way.
    Sending { at: Lba, sectors: u64 },
    /// It rests, and is tried again.
    Stopped(Halt),
}

/// What [`Sender::progress`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub state: State,
    /// The newest epoch that the peer has, as far as this run knows.
    pub acknowledged: Option<Epoch>,
    /// The snapshot that differences are since.
    pub common: Option<VolumeId>,
    /// Epochs that it has not, with that on its way.
    pub epochs_behind: usize,
    pub in_flight_bytes: u64,
    /// Whether the peer has the newest epoch there is.
    pub has_newest: bool,
    /// Epochs were given up for the difference to the newest.
    pub is_catching_up: bool,
    /// Why it was stopped last, until something of it has arrived since. So what fails again and again is told while it is tried.
    pub trouble: Option<Halt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was said of the volume in this session.
    Silent,
    Offered,
    /// The shell looks whether it has what the peer has.
    Finding {
        newest: VolumeId,
        receiving: Option<VolumeId>,
    },
    Ready,
    ReadingManifest,
    Beginning,
    Sending,
    Ending,
    Stopped {
        why: Halt,
        retry_at: BootInstant,
    },
}

/// The newest snapshot that both sides have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Unknown,
    None,
    At(VolumeId),
}

impl Base {
    fn snapshot(self) -> Option<VolumeId> {
        match self {
            Self::At(snapshot) => Some(snapshot),
            Self::Unknown | Self::None => None,
        }
    }
}

/// The epoch on its way.
#[derive(Debug)]
struct Current {
    epoch: Epoch,
    manifest: Option<Manifest>,
    read: Lba,
    taken: Lba,
    /// Where each portion that was not acknowledged ends, and its bytes.
    in_flight: VecDeque<(Lba, u64)>,
}

impl Current {
    fn new(epoch: Epoch) -> Self {
        Self { epoch, manifest: None, read: Lba(0), taken: Lba(0), in_flight: VecDeque::new() }
    }

    fn in_flight_bytes(&self) -> u64 {
        self.in_flight.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[derive(Debug)]
struct Outgoing {
    fence: Fence,
    generation: Generation,
    /// What the peer is to keep for others.
    keep: Vec<VolumeId>,
    phase: Phase,
    base: Base,
    /// While the base is unknown: what an earlier run has left.
    restored: Vec<VolumeId>,
    /// Nothing but the newest epoch is kept, until the peer has told how far it is.
    is_given_up: bool,
    /// The newest epoch there is.
    newest: Option<VolumeId>,
    current: Option<Current>,
    waiting: VecDeque<Epoch>,
    acknowledged: Option<Epoch>,
    is_catching_up: bool,
    trouble: Option<Halt>,
}

impl Outgoing {
    fn in_flight_bytes(&self) -> u64 {
        self.current.as_ref().map_or(0, Current::in_flight_bytes)
    }

    /// The peer has told how far it is.
    fn set_base(&mut self, base: Base) {
        self.base = base;
        self.restored.clear();
        self.is_given_up = false;
    }

    fn has_newest(&self) -> bool {
        self.newest.is_some() && self.base.snapshot() == self.newest
    }

    /// Whether a portion of it can be read now.
    fn can_be_read(&self) -> bool {
        let left =
            |current: &Current| current.manifest.is_some_and(|manifest| current.read.0 < manifest.sectors.0);
        self.phase == Phase::Sending && self.current.as_ref().is_some_and(left)
    }
}

/// Everything that is sent to one peer.
#[derive(Debug)]
pub struct Sender {
    node: NodeId,
    peer: NodeId,
    limits: SenderLimits,
    numbering: Numbering,
    connected: bool,
    greeted: bool,
    now: BootInstant,
    heard_at: BootInstant,
    /// When the peer was last there, in a session; before the first, since when it is awaited.
    seen_at: BootInstant,
    spoke_at: BootInstant,
    /// Bytes that may be sent now; less than nothing after a large portion.
    allowance: i64,
    /// Up to when they were credited: whatever else happens in between, each moment is credited once.
    credited_at: BootInstant,
    /// The volume that a portion is being read of.
    reading: Option<VolumeId>,
    /// The volume that one was read of last: it is the turn of the next.
    last_read: Option<VolumeId>,
    volumes: BTreeMap<VolumeId, Outgoing>,
    effects: VecDeque<SenderEffect>,
}

impl Sender {
    /// `peer` is who the other side must be.
    pub fn new(node: NodeId, peer: NodeId, limits: SenderLimits, now: BootInstant) -> Self {
        Self {
            node,
            peer,
            limits,
            numbering: Numbering::default(),
            connected: false,
            greeted: false,
            now,
            heard_at: now,
            seen_at: now,
            spoke_at: now,
            allowance: 0,
            credited_at: now,
            reading: None,
            last_read: None,
            volumes: BTreeMap::new(),
            effects: VecDeque::new(),
        }
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<SenderEffect> {
        self.effects.pop_front()
    }

    /// A volume is to be sent, by this writer. Where it had another fence, what waits is sent under the new one.
    pub fn set_writer(&mut self, volume: VolumeId, fence: Fence, generation: Generation) {
        match self.volumes.get_mut(&volume) {
            Some(outgoing) if (outgoing.fence, outgoing.generation) == (fence, generation) => return,
            Some(outgoing) => {
                (outgoing.fence, outgoing.generation) = (fence, generation);
                outgoing.phase = Phase::Silent;
                outgoing.trouble = None;
                if let Some(current) = outgoing.current.take() {
                    outgoing.waiting.push_front(current.epoch);
                }
                for epoch in &mut outgoing.waiting {
                    (epoch.key.fence, epoch.key.generation) = (fence, generation);
                }
            }
            None => {
                let outgoing = Outgoing {
                    fence,
                    generation,
                    keep: Vec::new(),
                    phase: Phase::Silent,
                    base: Base::Unknown,
                    restored: Vec::new(),
                    is_given_up: false,
                    newest: None,
                    current: None,
                    waiting: VecDeque::new(),
                    acknowledged: None,
                    is_catching_up: false,
                    trouble: None,
                };
                self.volumes.insert(volume, outgoing);
            }
        }
        if self.greeted {
            self.offer(volume);
        }
    }

    /// A volume is no longer sent.
    pub fn remove(&mut self, volume: VolumeId) {
        self.volumes.remove(&volume);
        self.reading = self.reading.filter(|reading| *reading != volume);
    }

    /// Which epochs the peer is to keep for others' sake ([`kept_for_others`]): told with each epoch that begins.
    pub fn keep(&mut self, volume: VolumeId, mut snapshots: Vec<VolumeId>) {
        if let Some(outgoing) = self.volumes.get_mut(&volume) {
            snapshots.truncate(KEPT_MAX);
            outgoing.keep = snapshots;
        }
    }

    /// Epochs of this writer that an earlier run has closed, the oldest first.
    pub fn restore(&mut self, volume: VolumeId, epochs: impl IntoIterator<Item = Epoch>) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.waiting = epochs.into_iter().collect();
        outgoing.newest = outgoing.waiting.back().map(|epoch| epoch.key.snapshot);
        outgoing.restored = outgoing.waiting.iter().map(|epoch| epoch.key.snapshot).collect();
        if let Some(surplus) = outgoing.restored.len().checked_sub(RESTORED_MAX) {
            outgoing.restored.drain(RESTORED_MAX / 2..RESTORED_MAX / 2 + surplus);
            let left = &outgoing.restored;
            outgoing.waiting.retain(|epoch| left.contains(&epoch.key.snapshot));
        }
    }

    /// The primary has closed an epoch.
    pub fn close_epoch(&mut self, volume: VolumeId, epoch: Epoch) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.newest = Some(epoch.key.snapshot);
        if outgoing.is_given_up {
            outgoing.waiting.clear();
        }
        outgoing.waiting.push_back(epoch);
        if outgoing.waiting.len() > self.limits.epochs_waiting.max(1) {
            outgoing.is_catching_up = true;
            outgoing.waiting.drain(..outgoing.waiting.len() - 1);
        }
        self.begin_next(volume);
    }

    /// Snapshots that must stay for the peer, those first that are its newest or may be; `None` of a volume that is not sent.
    pub fn needs(&self, volume: VolumeId) -> Option<Vec<VolumeId>> {
        let outgoing = self.volumes.get(&volume)?;
        let has = outgoing.base.snapshot().into_iter().chain(outgoing.restored.iter().copied());
        let current = outgoing.current.as_ref().map(|current| current.epoch.key.snapshot);
        let waiting = outgoing.waiting.iter().map(|epoch| epoch.key.snapshot);
        Some(has.chain(current).chain(waiting).collect())
    }

    /// How long the peer has not been there; 0 while it is.
    pub fn away_ms(&self, now: BootInstant) -> u64 {
        if self.greeted { 0 } else { now.ms_since(self.seen_at) }
    }

    /// Nothing but the newest epoch stays for a peer that is away: what it costs is more than it is worth. Unless the peer has that one,
    /// it is found to have gone another way when it comes back, and is seeded anew. Whether there was more.
    pub fn give_up(&mut self, volume: VolumeId) -> bool {
        if self.greeted {
            return false;
        }
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return false };
        let newest = outgoing.newest;
        let is_older = |snapshot: &VolumeId| Some(*snapshot) != newest;
        let was = outgoing.base.snapshot().filter(is_older).is_some()
            || outgoing.restored.iter().any(is_older)
            || outgoing.current.as_ref().is_some_and(|current| is_older(&current.epoch.key.snapshot))
            || outgoing.waiting.len() > 1;
        if !was || outgoing.is_given_up {
            return false;
        }
        outgoing.is_given_up = true;
        if let Some(current) = outgoing.current.take() {
            outgoing.waiting.push_front(current.epoch);
        }
        outgoing.waiting.retain(|epoch| Some(epoch.key.snapshot) == newest);
        (outgoing.base, outgoing.restored) = (Base::Unknown, Vec::new());
        true
    }

    /// Whether there is a connection, and the peer has said who it is.
    pub fn is_connected(&self) -> bool {
        self.greeted
    }

    /// How far a volume is.
    pub fn progress(&self, volume: VolumeId) -> Option<Progress> {
        let outgoing = self.volumes.get(&volume)?;
        let state = match (outgoing.phase, &outgoing.current) {
            (Phase::Stopped { why, .. }, _) => State::Stopped(why),
            _ if !self.greeted => State::Away,
            (_, Some(current)) if current.manifest.is_some() => State::Sending {
                at: current.taken,
                sectors: current.manifest.map_or(0, |manifest| manifest.sectors.0),
            },
            (Phase::Ready, None) if outgoing.has_newest() => State::UpToDate,
            (Phase::Ready, None) => State::Lacking,
            _ => State::Asking,
        };
        Some(Progress {
            state,
            acknowledged: outgoing.acknowledged,
            common: outgoing.base.snapshot(),
            epochs_behind: outgoing.waiting.len() + usize::from(outgoing.current.is_some()),
            in_flight_bytes: outgoing.in_flight_bytes(),
            has_newest: outgoing.has_newest(),
            is_catching_up: outgoing.is_catching_up,
            trouble: outgoing.trouble,
        })
    }

    /// There is a connection to the peer.
    pub fn on_connected(&mut self, now: BootInstant) {
        self.disconnect();
        (self.now, self.heard_at) = (now, now);
        self.connected = true;
        self.send(Message::Hello(Hello { node: self.node }));
    }

    /// There is none any more. What the shell still reads for it, it need not hand over.
    pub fn disconnect(&mut self) {
        (self.connected, self.greeted) = (false, false);
        self.reading = None;
        self.numbering = Numbering::default();
        self.effects.retain(|effect| matches!(effect, SenderEffect::Acknowledged { .. }));
        for outgoing in self.volumes.values_mut() {
            if !matches!(outgoing.phase, Phase::Stopped { .. }) {
                outgoing.phase = Phase::Silent;
            }
            if let Some(current) = &mut outgoing.current {
                *current = Current::new(current.epoch);
            }
        }
    }

    /// A frame came, without its prefix. After an error the session is over.
    pub fn on_frame(&mut self, now: BootInstant, bytes: &[u8]) -> Result<(), SessionError> {
        self.now = now;
        let frame = Frame::from_bytes(bytes)?;
        self.heard_at = now;
        if let Message::Closed(error) = frame.message {
            return Err(error);
        }
        if !self.connected {
            return Err(SessionError::Unexpected);
        }
        if let (Message::Welcome(welcome), false) = (&frame.message, self.greeted) {
            if welcome.node != self.peer {
                return Err(SessionError::WrongNode);
            }
            self.numbering.session = frame.session;
            self.numbering.check(frame.session, frame.sequence)?;
            self.greeted = true;
            self.seen_at = now;
            let volumes: Vec<_> = self.volumes.keys().copied().collect();
            volumes.into_iter().for_each(|volume| self.offer(volume));
            return Ok(());
        }
        self.numbering.check(frame.session, frame.sequence)?;
        self.seen_at = now;
        match frame.message {
            Message::Standing(standing) => self.on_standing(standing),
            Message::Begun(reached) => self.on_begun(reached),
            Message::Took(reached) => self.on_took(reached),
            Message::Done(of) => self.on_done(of),
            Message::Refused(refused) => self.on_refused(refused),
            Message::Alive => Ok(()),
            _ => Err(SessionError::Unexpected),
        }
    }

    /// Time has passed. After an error the session is over.
    pub fn on_time(&mut self, now: BootInstant) -> Result<(), SessionError> {
        let passed_ms = now.ms_since(self.credited_at);
        if passed_ms == 0 {
            return Ok(());
        }
        self.now = self.now.max(now);
        self.credited_at = self.credited_at.saturating_add_ms(passed_ms);
        if let Some(rate) = self.limits.bytes_per_s {
            let more = i64::try_from(rate.saturating_mul(passed_ms) / 1000).unwrap_or(i64::MAX);
            let most = i64::try_from(rate / 4).unwrap_or(i64::MAX);
            self.allowance = self.allowance.saturating_add(more).min(most);
        }
        if !self.connected {
            return Ok(());
        }
        if passed_ms > self.limits.alive_ms {
            // Whoever was at something else for so long has asked for no answer: the peer gets its time anew.
            self.heard_at = now;
        }
        if now.ms_since(self.heard_at) > self.limits.silence_ms {
            return Err(SessionError::Silent);
        }
        if !self.greeted {
            return Ok(());
        }
        if now.ms_since(self.spoke_at) > self.limits.alive_ms {
            self.send(Message::Alive);
        }
        let due = |phase| matches!(phase, Phase::Stopped { retry_at, .. } if retry_at <= now);
        let volumes: Vec<_> =
            self.volumes.iter().map(|(volume, outgoing)| (*volume, outgoing.phase)).collect();
        volumes.into_iter().filter(|(_, phase)| due(*phase)).for_each(|(volume, _)| self.offer(volume));
        self.pump();
        Ok(())
    }

    fn offer(&mut self, volume: VolumeId) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.phase = Phase::Offered;
        let Outgoing { fence, generation, .. } = *outgoing;
        self.send(Message::Offer(Offer { volume, fence, generation }));
    }

    /// The volume, if it is the turn of what came for it. What comes for a volume that was removed meanwhile is of no matter.
    fn in_turn(
        &mut self,
        volume: VolumeId,
        turn: impl Fn(Phase) -> bool,
    ) -> Result<Option<&mut Outgoing>, SessionError> {
        match self.volumes.get_mut(&volume) {
            None => Ok(None),
            // The writer changed, or the epoch could not be read on: the answer is to what was said before.
            Some(outgoing) if turn(outgoing.phase) => Ok(Some(outgoing)),
            Some(outgoing)
                if matches!(
                    outgoing.phase,
                    Phase::Silent | Phase::Offered | Phase::Finding { .. } | Phase::Stopped { .. }
                ) =>
            {
                Ok(None)
            }
            Some(_) => Err(SessionError::Unexpected),
        }
    }

    fn on_standing(&mut self, standing: Standing) -> Result<(), SessionError> {
        let Standing { volume, newest, receiving } = standing;
        let Some(outgoing) = self.in_turn(volume, |phase| phase == Phase::Offered)? else { return Ok(()) };
        match newest {
            Some(newest) => {
                outgoing.phase = Phase::Finding { newest, receiving };
                self.effects.push_back(SenderEffect::Find { volume, snapshot: newest });
            }
            None => {
                outgoing.set_base(Base::None);
                self.go_on(volume, receiving);
            }
        }
        Ok(())
    }

    /// Whether the newest snapshot that the peer has is here too.
    pub fn on_found(&mut self, volume: VolumeId, snapshot: VolumeId, is_there: bool) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let Phase::Finding { newest, receiving } = outgoing.phase else { return };
        if newest != snapshot {
            return;
        }
        if !is_there {
            self.stop(volume, Halt::Refused(Reason::Diverged));
            return;
        }
        outgoing.set_base(Base::At(newest));
        // It arrived, and its acknowledgement was lost.
        let current = outgoing.current.take().map(|current| current.epoch);
        let mut known = current.into_iter().chain(outgoing.waiting.iter().copied());
        let arrived = known.find(|epoch| epoch.key.snapshot == newest);
        if let Some(current) = current {
            outgoing.waiting.push_front(current);
        }
        if let Some(arrived) = arrived {
            outgoing.acknowledged = Some(arrived);
            outgoing.trouble = None;
            self.effects.push_back(SenderEffect::Acknowledged { volume, epoch: arrived });
        }
        if let Some(name) = EpochName::read(newest) {
            outgoing.waiting.retain(|epoch| epoch.key.number > name.number);
        }
        self.go_on(volume, receiving);
    }

    /// With the epoch that the peer has in part if it is still here, else with the newest.
    fn go_on(&mut self, volume: VolumeId, receiving: Option<VolumeId>) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.phase = Phase::Ready;
        if let Some(current) = outgoing.current.take() {
            outgoing.waiting.push_front(current.epoch);
        }
        let begun = outgoing.waiting.iter().position(|epoch| Some(epoch.key.snapshot) == receiving);
        let first = begun.unwrap_or(outgoing.waiting.len().saturating_sub(1));
        outgoing.is_catching_up |= first > 0;
        outgoing.waiting.drain(..first);
        self.begin_next(volume);
    }

    fn begin_next(&mut self, volume: VolumeId) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        if outgoing.phase != Phase::Ready || outgoing.current.is_some() {
            return;
        }
        let Some(epoch) = outgoing.waiting.pop_front() else {
            outgoing.is_catching_up = false;
            if outgoing.has_newest() {
                outgoing.trouble = None;
            }
            return;
        };
        outgoing.current = Some(Current::new(epoch));
        outgoing.phase = Phase::ReadingManifest;
        let (snapshot, since) = (epoch.key.snapshot, outgoing.base.snapshot());
        self.effects.push_back(SenderEffect::ReadManifest { volume, snapshot, since });
    }

    /// What the epoch's snapshot is, or why it cannot be read.
    pub fn on_manifest(&mut self, volume: VolumeId, manifest: Result<Manifest, Unreadable>) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let (Phase::ReadingManifest, Some(current)) = (outgoing.phase, &mut outgoing.current) else { return };
        match manifest {
            Ok(manifest) if manifest.snapshot == current.epoch.key.snapshot => {
                current.manifest = Some(manifest);
                outgoing.phase = Phase::Beginning;
                let begin = Begin { key: current.epoch.key, keep: outgoing.keep.clone(), manifest };
                self.send(Message::Begin(begin));
            }
            Ok(_) => {}
            Err(why) => self.stop(volume, Halt::Unreadable(why)),
        }
    }

    fn on_begun(&mut self, reached: Reached) -> Result<(), SessionError> {
        let Reached { volume, snapshot, at } = reached;
        let Some(outgoing) = self.in_turn(volume, |phase| phase == Phase::Beginning)? else { return Ok(()) };
        let current = outgoing.current.as_mut().filter(|current| current.epoch.key.snapshot == snapshot);
        let current = current.ok_or(SessionError::Unexpected)?;
        if current.manifest.is_none_or(|manifest| at.0 > manifest.sectors.0) {
            return Err(SessionError::Malformed);
        }
        (current.read, current.taken) = (at, at);
        outgoing.phase = Phase::Sending;
        self.end_if_read(volume);
        self.pump();
        Ok(())
    }

    /// Says that this was all, once it is.
    fn end_if_read(&mut self, volume: VolumeId) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        if outgoing.phase != Phase::Sending || outgoing.can_be_read() {
            return;
        }
        let Some(epoch) = outgoing.current.as_ref().map(|current| current.epoch) else { return };
        outgoing.phase = Phase::Ending;
        self.send(Message::End(Of { volume, snapshot: epoch.key.snapshot }));
        if is_broken(Mutation::ClearOnSend) {
            self.acknowledge(volume, epoch);
        }
    }

    /// Reads the next portion, of the volume whose turn it is.
    fn pump(&mut self) {
        let may_send = self.limits.bytes_per_s.is_none() || self.allowance > 0;
        let in_flight: u64 = self.volumes.values().map(Outgoing::in_flight_bytes).sum();
        if self.reading.is_some() || !may_send || in_flight >= self.limits.window_bytes {
            return;
        }
        let can_be_read =
            |(volume, outgoing): (&VolumeId, &Outgoing)| outgoing.can_be_read().then_some(*volume);
        let after = |volume: &VolumeId| self.last_read.is_none_or(|last| *volume > last);
        let mut readable = self.volumes.iter().filter_map(can_be_read);
        let first = readable.next();
        let Some(turn) = first.into_iter().chain(readable).find(after).or(first) else { return };
        let Some(current) = self.volumes.get(&turn).and_then(|outgoing| outgoing.current.as_ref()) else {
            return;
        };
        let Some(manifest) = current.manifest else { return };
        (self.reading, self.last_read) = (Some(turn), Some(turn));
        self.effects.push_back(SenderEffect::ReadPortion { manifest, from: current.read });
    }

    /// A part of an epoch, or why it cannot be read.
    pub fn on_portion(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
        from: Lba,
        portion: Result<Portion, Unreadable>,
    ) {
        if self.reading != Some(volume) {
            return;
        }
        self.reading = None;
        self.take_portion(volume, snapshot, from, portion);
        self.pump();
    }

    fn take_portion(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
        from: Lba,
        portion: Result<Portion, Unreadable>,
    ) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let (Phase::Sending, Some(current)) = (outgoing.phase, &mut outgoing.current) else { return };
        if current.epoch.key.snapshot != snapshot || current.read != from {
            return;
        }
        match portion {
            Ok(Portion { bytes, next }) if next > from => {
                let len = bytes.len() as u64;
                current.read = next;
                current.in_flight.push_back((next, len));
                self.allowance = self.allowance.saturating_sub(i64::try_from(len).unwrap_or(i64::MAX));
                self.send(Message::Portion(Reached { volume, snapshot, at: from }, bytes));
                self.end_if_read(volume);
            }
            Ok(_) => self.stop(volume, Halt::Unreadable(Unreadable::Failed)),
            Err(why) => self.stop(volume, Halt::Unreadable(why)),
        }
    }

    fn on_took(&mut self, reached: Reached) -> Result<(), SessionError> {
        let Reached { volume, snapshot, at } = reached;
        let turn = |phase| matches!(phase, Phase::Sending | Phase::Ending);
        let Some(outgoing) = self.in_turn(volume, turn)? else { return Ok(()) };
        let current = outgoing.current.as_mut().filter(|current| current.epoch.key.snapshot == snapshot);
        let Some(current) = current else { return Ok(()) };
        if at > current.read {
            return Err(SessionError::Malformed);
        }
        if at > current.taken {
            current.taken = at;
            outgoing.trouble = None;
        }
        while current.in_flight.front().is_some_and(|(end, _)| *end <= at) {
            current.in_flight.pop_front();
        }
        self.pump();
        Ok(())
    }

    fn on_done(&mut self, of: Of) -> Result<(), SessionError> {
        let Of { volume, snapshot } = of;
        let Some(outgoing) = self.in_turn(volume, |phase| phase == Phase::Ending)? else { return Ok(()) };
        let current = outgoing.current.take().filter(|current| current.epoch.key.snapshot == snapshot);
        let epoch = current.ok_or(SessionError::Unexpected)?.epoch;
        outgoing.phase = Phase::Ready;
        self.acknowledge(volume, epoch);
        self.begin_next(volume);
        Ok(())
    }

    fn acknowledge(&mut self, volume: VolumeId, epoch: Epoch) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.set_base(Base::At(epoch.key.snapshot));
        outgoing.acknowledged = Some(epoch);
        outgoing.trouble = None;
        self.effects.push_back(SenderEffect::Acknowledged { volume, epoch });
    }

    fn on_refused(&mut self, refused: Refused) -> Result<(), SessionError> {
        let Refused { volume, reason } = refused;
        if self.volumes.contains_key(&volume) {
            self.stop(volume, Halt::Refused(reason));
            self.pump();
        }
        Ok(())
    }

    /// The volume rests. The epoch on its way is gone on with later, for the peer has a part of it; but for one that can never be
    /// sent, in whose place another is closed ([`State::Lacking`]).
    fn stop(&mut self, volume: VolumeId, why: Halt) {
        let retry_at = self.now.saturating_add_ms(self.limits.retry_ms);
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.phase = Phase::Stopped { why, retry_at };
        outgoing.current = match outgoing.current.take() {
            Some(current) if !why.is_of_the_epoch() => Some(Current::new(current.epoch)),
            _ => None,
        };
        self.reading = self.reading.filter(|reading| *reading != volume);
        if outgoing.trouble.replace(why) != Some(why) {
            self.effects.push_back(SenderEffect::Stopped { volume, why });
        }
    }

    fn send(&mut self, message: Message) {
        self.spoke_at = self.now;
        let bytes = self.numbering.frame(message);
        self.effects.push_back(SenderEffect::Send(bytes));
    }
}

/// Which epochs a peer is to keep for the others' sake, of what each of those needs ([`Sender::needs`]): so that two replicas have one in
/// common when one of them is promoted. The first of each first: where there are too many, what a peer has goes before what waits for it.
pub fn kept_for_others(needs: &[Vec<VolumeId>]) -> Vec<VolumeId> {
    let longest = needs.iter().map(Vec::len).max().unwrap_or(0);
    let mut kept = Vec::new();
    for snapshot in (0..longest).flat_map(|rank| needs.iter().filter_map(move |of| of.get(rank))) {
        if kept.len() < KEPT_MAX && !kept.contains(snapshot) {
            kept.push(*snapshot);
        }
    }
    kept
}

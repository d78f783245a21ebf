//! The sender: one peer, over as many connections as it takes, and the epochs that it is to have.
//!
//! Invariants:
//! - What [`Sender::needs`] names stays: the newest epoch that the peer acknowledged, those that wait, and the one on its way. Until the
//!   peer has said in this run how far it is, nothing may go.
//! - Of epochs that wait there are at most [`SenderLimits::epochs_waiting`]; when one more comes the peer falls to catch-up: all but
//!   the newest are given up, and what it is sent is the difference to that.
//! - Of ciphertext that was read and not acknowledged there is at most [`SenderLimits::window_bytes`] and one portion.

use std::collections::{BTreeMap, VecDeque};

use units::{BootInstant, Fence, Lba, NodeId, VolumeId};

use crate::epoch::{EpochKey, EpochName, Generation};
use crate::error::{Reason, SessionError};
use crate::frame::{Frame, Numbering};
use crate::message::{Begin, Hello, Manifest, Message, Of, Offer, Reached, Refused, Standing};
use crate::mutation::{Mutation, is_broken};

/// What a sender may use.
#[derive(Clone, Copy, Debug)]
pub struct SenderLimits {
    /// Ciphertext on its way.
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
    /// The peer refuses the volume, for a while at least.
    Stopped { volume: VolumeId, reason: Reason },
}

/// How far a volume is with this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no connection.
    Away,
    /// The peer is asked how far it is.
    Asking,
    /// It has everything there is.
    UpToDate,
    /// An epoch is on its way.
    Sending { at: Lba, sectors: u64 },
    /// It was refused.
    Stopped(Reason),
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
    /// Epochs were given up for the difference to the newest.
    pub is_catching_up: bool,
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
        reason: Reason,
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
    reading: bool,
}

impl Current {
    fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            manifest: None,
            read: Lba(0),
            taken: Lba(0),
            in_flight: VecDeque::new(),
            reading: false,
        }
    }

    fn in_flight_bytes(&self) -> u64 {
        self.in_flight.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[derive(Debug)]
struct Outgoing {
    fence: Fence,
    generation: Generation,
    keep_from: u64,
    phase: Phase,
    base: Base,
    current: Option<Current>,
    waiting: VecDeque<Epoch>,
    acknowledged: Option<Epoch>,
    is_catching_up: bool,
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
    spoke_at: BootInstant,
    /// Bytes that may be sent now; less than nothing after a large portion.
    allowance: i64,
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
            spoke_at: now,
            allowance: 0,
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
                    keep_from: 0,
                    phase: Phase::Silent,
                    base: Base::Unknown,
                    current: None,
                    waiting: VecDeque::new(),
                    acknowledged: None,
                    is_catching_up: false,
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
    }

    /// Which epochs the peer is to keep for others' sake: those with this number and above.
    pub fn keep_from(&mut self, volume: VolumeId, number: u64) {
        if let Some(outgoing) = self.volumes.get_mut(&volume) {
            outgoing.keep_from = number;
        }
    }

    /// Epochs of this writer that an earlier run has closed, the oldest first.
    pub fn restore(&mut self, volume: VolumeId, epochs: impl IntoIterator<Item = Epoch>) {
        if let Some(outgoing) = self.volumes.get_mut(&volume) {
            outgoing.waiting = epochs.into_iter().collect();
        }
    }

    /// The primary has closed an epoch.
    pub fn close_epoch(&mut self, volume: VolumeId, epoch: Epoch) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        outgoing.waiting.push_back(epoch);
        if outgoing.waiting.len() > self.limits.epochs_waiting.max(1) {
            outgoing.is_catching_up = true;
            outgoing.waiting.drain(..outgoing.waiting.len() - 1);
        }
        self.begin_next(volume);
    }

    /// Snapshots that must stay for the peer; `None` while nobody knows, and nothing may go.
    pub fn needs(&self, volume: VolumeId) -> Option<Vec<VolumeId>> {
        let outgoing = self.volumes.get(&volume)?;
        if outgoing.base == Base::Unknown {
            return None;
        }
        let waiting = outgoing.waiting.iter().map(|epoch| epoch.key.snapshot);
        let current = outgoing.current.as_ref().map(|current| current.epoch.key.snapshot);
        Some(waiting.chain(current).chain(outgoing.base.snapshot()).collect())
    }

    /// Whether there is a connection, and the peer has said who it is.
    pub fn is_connected(&self) -> bool {
        self.greeted
    }

    /// How far a volume is.
    pub fn progress(&self, volume: VolumeId) -> Option<Progress> {
        let outgoing = self.volumes.get(&volume)?;
        let state = match (outgoing.phase, &outgoing.current) {
            (Phase::Stopped { reason, .. }, _) => State::Stopped(reason),
            _ if !self.greeted => State::Away,
            (_, Some(current)) if current.manifest.is_some() => State::Sending {
                at: current.taken,
                sectors: current.manifest.map_or(0, |manifest| manifest.sectors.0),
            },
            (Phase::Ready, None) => State::UpToDate,
            _ => State::Asking,
        };
        Some(Progress {
            state,
            acknowledged: outgoing.acknowledged,
            common: outgoing.base.snapshot(),
            epochs_behind: outgoing.waiting.len() + usize::from(outgoing.current.is_some()),
            in_flight_bytes: outgoing.current.as_ref().map_or(0, Current::in_flight_bytes),
            is_catching_up: outgoing.is_catching_up,
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
            let volumes: Vec<_> = self.volumes.keys().copied().collect();
            volumes.into_iter().for_each(|volume| self.offer(volume));
            return Ok(());
        }
        self.numbering.check(frame.session, frame.sequence)?;
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
        let passed_ms = now.ms_since(self.now);
        if passed_ms == 0 {
            return Ok(());
        }
        self.now = now;
        if let Some(rate) = self.limits.bytes_per_s {
            let more = i64::try_from(rate.saturating_mul(passed_ms) / 1000).unwrap_or(i64::MAX);
            let most = i64::try_from(rate / 4).unwrap_or(i64::MAX);
            self.allowance = self.allowance.saturating_add(more).min(most);
        }
        if !self.connected {
            return Ok(());
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
        for (volume, phase) in volumes {
            if due(phase) {
                self.offer(volume);
            } else {
                self.pump(volume);
            }
        }
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
                outgoing.base = Base::None;
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
            self.stop(volume, Reason::Diverged);
            return;
        }
        outgoing.base = Base::At(newest);
        // It arrived, and its acknowledgement was lost.
        let current = outgoing.current.take().map(|current| current.epoch);
        let mut known = current.into_iter().chain(outgoing.waiting.iter().copied());
        let arrived = known.find(|epoch| epoch.key.snapshot == newest);
        if let Some(current) = current {
            outgoing.waiting.push_front(current);
        }
        if let Some(arrived) = arrived {
            outgoing.acknowledged = Some(arrived);
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
            return;
        };
        outgoing.current = Some(Current::new(epoch));
        outgoing.phase = Phase::ReadingManifest;
        let (snapshot, since) = (epoch.key.snapshot, outgoing.base.snapshot());
        self.effects.push_back(SenderEffect::ReadManifest { volume, snapshot, since });
    }

    /// What the epoch's snapshot is, or why it cannot be read.
    pub fn on_manifest(&mut self, volume: VolumeId, manifest: Result<Manifest, Reason>) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let (Phase::ReadingManifest, Some(current)) = (outgoing.phase, &mut outgoing.current) else { return };
        match manifest {
            Ok(manifest) if manifest.snapshot == current.epoch.key.snapshot => {
                current.manifest = Some(manifest);
                outgoing.phase = Phase::Beginning;
                let begin = Begin { key: current.epoch.key, keep_from: outgoing.keep_from, manifest };
                self.send(Message::Begin(begin));
            }
            Ok(_) => {}
            Err(reason) => {
                outgoing.current = None;
                self.stop(volume, reason);
            }
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
        self.pump(volume);
        Ok(())
    }

    /// Reads on, or says that this was all.
    fn pump(&mut self, volume: VolumeId) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let (Phase::Sending, Some(current)) = (outgoing.phase, &mut outgoing.current) else { return };
        let Some(manifest) = current.manifest else { return };
        if current.read.0 >= manifest.sectors.0 {
            outgoing.phase = Phase::Ending;
            let epoch = current.epoch;
            self.send(Message::End(Of { volume, snapshot: epoch.key.snapshot }));
            if is_broken(Mutation::ClearOnSend) {
                self.acknowledge(volume, epoch);
            }
            return;
        }
        let may_send = self.limits.bytes_per_s.is_none() || self.allowance > 0;
        if may_send && !current.reading && current.in_flight_bytes() < self.limits.window_bytes {
            current.reading = true;
            self.effects.push_back(SenderEffect::ReadPortion { manifest, from: current.read });
        }
    }

    /// A part of an epoch, or why it cannot be read.
    pub fn on_portion(
        &mut self,
        volume: VolumeId,
        snapshot: VolumeId,
        from: Lba,
        portion: Result<Portion, Reason>,
    ) {
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let (Phase::Sending, Some(current)) = (outgoing.phase, &mut outgoing.current) else { return };
        if current.epoch.key.snapshot != snapshot || current.read != from || !current.reading {
            return;
        }
        current.reading = false;
        match portion {
            Ok(Portion { bytes, next }) if next > from => {
                let len = bytes.len() as u64;
                current.read = next;
                current.in_flight.push_back((next, len));
                self.allowance = self.allowance.saturating_sub(i64::try_from(len).unwrap_or(i64::MAX));
                self.send(Message::Portion(Reached { volume, snapshot, at: from }, bytes));
                self.pump(volume);
            }
            Ok(_) => self.stop(volume, Reason::Failed),
            Err(reason) => {
                outgoing.current = None;
                self.stop(volume, reason);
            }
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
        current.taken = current.taken.max(at);
        while current.in_flight.front().is_some_and(|(end, _)| *end <= at) {
            current.in_flight.pop_front();
        }
        self.pump(volume);
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
        outgoing.base = Base::At(epoch.key.snapshot);
        outgoing.acknowledged = Some(epoch);
        self.effects.push_back(SenderEffect::Acknowledged { volume, epoch });
    }

    fn on_refused(&mut self, refused: Refused) -> Result<(), SessionError> {
        let Refused { volume, reason } = refused;
        if self.volumes.contains_key(&volume) {
            self.stop(volume, reason);
        }
        Ok(())
    }

    /// The volume rests. What can be gone on with later stays; what cannot is given up.
    fn stop(&mut self, volume: VolumeId, reason: Reason) {
        let retry_at = self.now.saturating_add_ms(self.limits.retry_ms);
        let Some(outgoing) = self.volumes.get_mut(&volume) else { return };
        let was = outgoing.phase;
        outgoing.phase = Phase::Stopped { reason, retry_at };
        match reason {
            Reason::NoSpace | Reason::Failed | Reason::Busy => {
                if let Some(current) = &mut outgoing.current {
                    *current = Current::new(current.epoch);
                }
            }
            _ => outgoing.current = None,
        }
        if !matches!(was, Phase::Stopped { reason: before, .. } if before == reason) {
            self.effects.push_back(SenderEffect::Stopped { volume, reason });
        }
    }

    fn send(&mut self, message: Message) {
        self.spoke_at = self.now;
        let bytes = self.numbering.frame(message);
        self.effects.push_back(SenderEffect::Send(bytes));
    }
}

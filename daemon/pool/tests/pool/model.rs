//! The reference: what every sector may hold, kept as one map a volume.
//!
//! A sector's content is made from a tag, 512 bytes at a time, so that a torn sector shows which writes it is a mix of
//! and a byte that no write ever put there is noticed. The record of a sector says what the model knows of it: whoever reads
//! one compares them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use device::{Sealed, SectorBuf, SectorRecord};
use pool::{
    Limits, Piece, Pool, PoolError, PoolVolume, StateHead, Verdict, VolumeInfo, VolumeKind, VolumeSpec,
};
use units::{ByteLen, DomainId, Fence, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch, VolumeId};

use crate::replica;

pub(crate) const EPOCH: VolumeEpoch = VolumeEpoch(7);
const UNIT_BYTES: usize = 512;

const UNITS: usize = SECTOR_BYTES / UNIT_BYTES;

/// What one write put into a sector; never the same twice.
pub(crate) type Tag = u64;

/// A sector by its units: where all are alike it was written whole.
pub(crate) type Units = [Tag; UNITS];

pub(crate) fn spec(number: u8, sectors: u64) -> VolumeSpec {
    VolumeSpec {
        id: VolumeId([number; 16]),
        sectors: SectorCount(sectors),
        domain: DomainId([number ^ 0xff; 16]),
        epoch: EPOCH,
        check: [number.wrapping_add(1); 16],
        kind: if number.is_multiple_of(2) { VolumeKind::Block } else { VolumeKind::Objects },
    }
}

/// Sectors with the content of `tags`.
pub(crate) fn sealed(tags: impl IntoIterator<Item = Tag>) -> Sealed {
    sealed_under(EPOCH, tags)
}

/// As [`sealed`], under an epoch: their records say which.
pub(crate) fn sealed_under(epoch: VolumeEpoch, tags: impl IntoIterator<Item = Tag>) -> Sealed {
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    for tag in tags {
        let start = bytes.len();
        for unit in 0..(SECTOR_BYTES / UNIT_BYTES) as u64 {
            let word = unit_word(tag, unit).to_le_bytes();
            bytes.extend(word.iter().cycle().take(UNIT_BYTES));
        }
        records.push(record_of(tag, epoch, &bytes[start..]));
    }
    Sealed::from_cipher(SectorBuf::copied_from(&bytes).unwrap(), records)
}

/// The same content under another epoch, as whoever has both keys makes it. What was not sealed under `before` is refused.
pub(crate) fn resealed(data: &Sealed, before: VolumeEpoch, epoch: VolumeEpoch) -> Result<Sealed, PoolError> {
    let tags = data.as_bytes().chunks(SECTOR_BYTES).zip(data.records()).map(|(sector, record)| {
        let units = units(sector).expect("what a write made");
        assert_eq!(*record, record_of(units[0], before, sector), "sealed under {before}");
        units[0]
    });
    Ok(sealed_under(epoch, tags))
}

/// The key-check value of a domain's epoch.
pub(crate) fn check_of(domain: DomainId, epoch: VolumeEpoch) -> [u8; 16] {
    let number = domain.0[0] ^ 0xff;
    let first = number.wrapping_add(1);
    [if epoch == EPOCH { first } else { first ^ u8::try_from(epoch.0 % 251).unwrap() }; 16]
}

fn record_of(tag: Tag, epoch: VolumeEpoch, sector: &[u8]) -> SectorRecord {
    let keyed = u128::from(tag) << 64 | u128::from(epoch.0) << 32 | 0x7a67;
    SectorRecord { sequence: tag, checksum: crc32c::crc32c(sector), tag: keyed.to_le_bytes() }
}

fn unit_word(tag: Tag, unit: u64) -> u64 {
    tag << 8 | 0xc0 | unit
}

/// The tag of each 512-byte unit; `None` where there are bytes that no write made.
fn units(sector: &[u8]) -> Option<Units> {
    let mut tags = [0; UNITS];
    for (nth, (unit, tag)) in (0_u64..).zip(sector.chunks(UNIT_BYTES).zip(&mut tags)) {
        let word = u64::from_le_bytes(unit[..8].try_into().unwrap());
        if word != unit_word(word >> 8, nth) || unit.chunks(8).any(|chunk| chunk != word.to_le_bytes()) {
            return None;
        }
        *tag = word >> 8;
    }
    Some(tags)
}

/// What a volume was found to hold, sector by sector; `None` for a hole.
pub(crate) type Content = Vec<Option<Units>>;

/// Reads `count` sectors and checks that the pieces cover exactly them.
pub(crate) fn read(volume: &PoolVolume, first: u64, count: u64) -> Result<Content, String> {
    let pieces = volume.read(Lba(first), SectorCount(count)).map_err(|error| format!("read: {error}"))?;
    let mut content = Content::new();
    for piece in pieces {
        match piece {
            Piece::Hole(count) => content.extend((0..count.0).map(|_| None)),
            Piece::Sealed { first: at, epoch, data } => {
                if at.0 != first + content.len() as u64 {
                    return Err(format!("a piece at {at} of epoch {epoch}, expected at {}", content.len()));
                }
                for (sector, record) in data.as_bytes().chunks(SECTOR_BYTES).zip(data.records()) {
                    let at = first + content.len() as u64;
                    let units = units(sector).ok_or_else(|| format!("garbage in sector {at}"))?;
                    if *record != record_of(units[0], epoch, sector) {
                        return Err(format!("sector {at} holds {units:?}, and its record says {record:?}"));
                    }
                    content.push(Some(units));
                }
            }
        }
    }
    if content.len() as u64 != count {
        return Err(format!("{} sectors answered of {count}", content.len()));
    }
    let present: u64 = content.iter().filter(|sector| sector.is_some()).count() as u64;
    let runs = volume.presence(Lba(first), SectorCount(count)).map_err(|error| error.to_string())?;
    let said: u64 = runs.iter().filter(|(_, present)| *present).map(|(run, _)| run.0).sum();
    let covered: u64 = runs.iter().map(|(run, _)| run.0).sum();
    if covered != count || said != present {
        return Err(format!("presence says {said} of {covered}, reading says {present} of {count}"));
    }
    Ok(content)
}

/// What a sector may hold: what it held at the last flush, or anything done to it since.
#[derive(Clone, Debug, Default)]
struct Sector {
    durable: Option<Units>,
    since: Vec<Option<Units>>,
}

impl Sector {
    fn current(&self) -> Option<Units> {
        self.since.last().copied().unwrap_or(self.durable)
    }

    /// After a cut: old or one of the new, whole.
    fn allows(&self, found: Option<Units>) -> bool {
        std::iter::once(self.durable).chain(self.since.iter().copied()).any(|state| state == found)
    }
}

#[derive(Clone, Debug)]
struct Volume {
    spec: VolumeSpec,
    fence: Fence,
    limits: Limits,
    sectors: BTreeMap<u64, Sector>,
}

/// A volume's fence and limits, and its size, are what the model says.
fn same_settings(_: VolumeId, info: &VolumeInfo, volume: &Volume) -> Result<(), String> {
    let same = (info.sectors, info.fence, info.limits) == (volume.spec.sectors, volume.fence, volume.limits);
    if same { Ok(()) } else { Err(format!("{info:?} is not {volume:?}")) }
}

/// The word of a volume's key for a state.
pub(crate) fn word(domain: DomainId, state: &StateHead) -> [u8; 16] {
    std::array::from_fn(|nth| state.chain[nth] ^ domain.0[nth])
}

impl Volume {
    /// Every sector that was ever written, and every other that is present.
    fn read_all(&self, handle: &PoolVolume) -> Result<Vec<(u64, Option<Units>)>, String> {
        let size = self.spec.sectors;
        let runs = handle.presence(Lba(0), size).map_err(|error| format!("presence: {error}"))?;
        let mut sectors: BTreeSet<u64> = self.sectors.range(..size.0).map(|(sector, _)| *sector).collect();
        let mut at = 0;
        for (run, present) in runs {
            if present {
                sectors.extend(at..at + run.0);
            }
            at += run.0;
        }
        if at != size.0 {
            return Err(format!("presence covers {at} sectors of {}", size.0));
        }
        let mut found = Vec::new();
        let mut rest: Vec<u64> = sectors.into_iter().collect();
        while let Some(first) = rest.first().copied() {
            let count = rest.iter().zip(first..).take_while(|(sector, next)| *sector == next).count();
            found.extend((first..).zip(read(handle, first, count as u64)?));
            rest.drain(..count);
        }
        Ok(found)
    }
}

/// Something that was begun when the power was cut, and may or may not have happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begun {
    Create(VolumeSpec),
    Delete(VolumeId),
    Resize(VolumeId, u64),
    RaiseFence(VolumeId, Fence),
    Limit(VolumeId, Limits),
    /// The pool, to this length.
    Grow(ByteLen),
    /// Of the volume, under this id.
    Snapshot(VolumeId, VolumeId),
    DeleteSnapshot(VolumeId),
    /// Of the snapshot, under this id.
    Clone(VolumeId, VolumeId),
    /// The volume, to the snapshot.
    RollBack(VolumeId, VolumeId),
    /// A new epoch of the volume's key.
    Epoch(VolumeId, VolumeEpoch),
}

#[derive(Clone, Debug)]
struct Snapshot {
    of: VolumeId,
    content: Volume,
}

/// What the pool may hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    volumes: BTreeMap<VolumeId, Volume>,
    snapshots: BTreeMap<VolumeId, Snapshot>,
    begun: Option<Begun>,
    /// The length of the device that the pool uses, once it has grown.
    len: Option<ByteLen>,
    /// What a keyholder was told last.
    told: Option<StateHead>,
    /// Snapshots of the replica that are there for sure.
    arrived: BTreeSet<VolumeId>,
}

impl Model {
    pub(crate) fn ids(&self) -> Vec<VolumeId> {
        self.volumes.keys().copied().collect()
    }

    /// Snapshots, each with its volume, which may be gone.
    pub(crate) fn snapshots(&self) -> Vec<(VolumeId, VolumeId)> {
        self.snapshots.iter().map(|(id, snapshot)| (*id, snapshot.of)).collect()
    }

    pub(crate) fn size(&self, id: VolumeId) -> u64 {
        self.volumes[&id].spec.sectors.0
    }

    pub(crate) fn fence(&self, id: VolumeId) -> Fence {
        self.volumes[&id].fence
    }

    /// What writes of the volume are sealed under.
    pub(crate) fn epoch(&self, id: VolumeId) -> VolumeEpoch {
        self.volumes[&id].spec.epoch
    }

    /// The newest epoch that a volume or snapshot of the volume's domain knows.
    pub(crate) fn newest_epoch_of(&self, id: VolumeId) -> VolumeEpoch {
        self.newest_epoch(self.volumes[&id].spec.domain)
    }

    fn newest_epoch(&self, domain: DomainId) -> VolumeEpoch {
        let all = self.volumes.values().chain(self.snapshots.values().map(|snapshot| &snapshot.content));
        let of_domain = all.filter(|volume| volume.spec.domain == domain);
        of_domain.map(|volume| volume.spec.epoch).max().unwrap_or(EPOCH)
    }

    pub(crate) fn begin(&mut self, begun: Begun) {
        self.begun = Some(begun);
    }

    /// What was begun has been acknowledged, and with it everything before.
    pub(crate) fn acknowledge(&mut self) {
        match self.begun.take() {
            Some(Begun::Create(spec)) => {
                let (fence, limits, sectors) = (Fence(0), Limits::default(), BTreeMap::new());
                self.volumes.insert(spec.id, Volume { spec, fence, limits, sectors });
            }
            Some(Begun::Delete(id)) => {
                self.volumes.remove(&id);
            }
            Some(Begun::Resize(id, sectors)) => {
                let volume = self.volumes.get_mut(&id).unwrap();
                volume.spec.sectors = SectorCount(sectors);
                volume.sectors.retain(|sector, _| *sector < sectors);
            }
            Some(Begun::RaiseFence(id, fence)) => self.volumes.get_mut(&id).unwrap().fence = fence,
            Some(Begun::Limit(id, limits)) => self.volumes.get_mut(&id).unwrap().limits = limits,
            Some(Begun::Grow(len)) => {
                // It makes nothing else durable.
                self.len = Some(len);
                return;
            }
            Some(Begun::Snapshot(of, id)) => {
                self.flushed();
                self.snapshots.insert(id, Snapshot { of, content: self.volumes[&of].clone() });
            }
            Some(Begun::DeleteSnapshot(id)) => {
                self.snapshots.remove(&id);
            }
            Some(Begun::Clone(snapshot, id)) => {
                let Volume { spec, sectors, .. } = self.snapshots[&snapshot].content.clone();
                let epoch = self.newest_epoch(spec.domain);
                let spec = VolumeSpec { id, epoch, check: check_of(spec.domain, epoch), ..spec };
                let (fence, limits) = (Fence(0), Limits::default());
                self.volumes.insert(id, Volume { spec, fence, limits, sectors });
            }
            Some(Begun::RollBack(id, snapshot)) => self.roll_back(id, snapshot),
            Some(Begun::Epoch(id, epoch)) => {
                let spec = &mut self.volumes.get_mut(&id).unwrap().spec;
                (spec.epoch, spec.check) = (epoch, check_of(spec.domain, epoch));
            }
            None => {}
        }
        self.flushed();
    }

    /// What the snapshot showed, and nothing of what only the volume ever held.
    fn roll_back(&mut self, id: VolumeId, snapshot: VolumeId) {
        let Volume { spec, sectors, .. } = self.snapshots[&snapshot].content.clone();
        let volume = self.volumes.get_mut(&id).unwrap();
        volume.spec.sectors = spec.sectors;
        volume.sectors = sectors;
    }

    /// What was begun was refused and has not happened.
    pub(crate) fn refused(&mut self) {
        self.begun = None;
    }

    pub(crate) fn write(&mut self, id: VolumeId, first: u64, tags: impl Iterator<Item = Tag>) {
        for (sector, tag) in (first..).zip(tags) {
            self.change(id, sector, Some([tag; UNITS]));
        }
    }

    pub(crate) fn unmap(&mut self, id: VolumeId, first: u64, count: u64) {
        // A sector that no write ever touched is a hole as it is.
        let known = &mut self.volumes.get_mut(&id).unwrap().sectors;
        known.range_mut(first..first + count).for_each(|(_, sector)| sector.since.push(None));
    }

    fn change(&mut self, id: VolumeId, sector: u64, content: Option<Units>) {
        self.volumes.get_mut(&id).unwrap().sectors.entry(sector).or_default().since.push(content);
    }

    /// The pool's state is told to a keyholder.
    pub(crate) fn tell(&mut self, pool: &Pool) {
        self.told = pool.tell_state();
    }

    /// A snapshot of the replica has arrived.
    pub(crate) fn arrived(&mut self, snapshot: VolumeId) {
        self.arrived.insert(snapshot);
    }

    /// The replica is being deleted.
    pub(crate) fn forget_replica(&mut self) {
        self.arrived.clear();
    }

    /// Everything acknowledged so far is durable.
    pub(crate) fn flushed(&mut self) {
        for volume in self.volumes.values_mut() {
            for sector in volume.sectors.values_mut() {
                sector.durable = sector.current();
                sector.since.clear();
            }
        }
    }

    /// A write that failed may have happened in any part: takes what is there, if it is old or new.
    pub(crate) fn settle(&mut self, found: Content, id: VolumeId, first: u64) {
        for (sector, found) in (first..).zip(found) {
            let known = self.volumes.get_mut(&id).unwrap().sectors.entry(sector).or_default();
            assert!(known.allows(found), "{found:?} {known:?}");
            known.since.push(found);
        }
    }

    /// Without a cut there is one right answer for every sector.
    pub(crate) fn verify_exactly(&self, pool: &Pool) -> Result<(), String> {
        self.verify_volumes(pool, same_settings)?;
        for (id, volume) in &self.volumes {
            let handle = pool.volume(*id).map_err(|error| error.to_string())?;
            for (sector, found) in volume.read_all(&handle)? {
                let expected = volume.sectors.get(&sector).and_then(Sector::current);
                if found != expected {
                    return Err(format!("{id} sector {sector}: found {found:?}, expected {expected:?}"));
                }
            }
        }
        self.verify_snapshots(pool)
    }

    /// A snapshot never changes: the same ones are there, and every sector of them is as it was.
    fn verify_snapshots(&self, pool: &Pool) -> Result<(), String> {
        let own = pool.snapshots().into_iter().filter(|info| info.volume != replica::VOLUME);
        let found: BTreeMap<VolumeId, _> = own.map(|info| (info.id, info)).collect();
        if !found.keys().eq(self.snapshots.keys()) {
            return Err(format!("snapshots {:?} instead of {:?}", found.keys(), self.snapshots.keys()));
        }
        for (id, snapshot) in &self.snapshots {
            let (info, spec) = (&found[id], &snapshot.content.spec);
            if (info.volume, info.sectors, info.domain) != (snapshot.of, spec.sectors, spec.domain) {
                return Err(format!("{info:?} is not of {:?}, {spec:?}", snapshot.of));
            }
            let handle = pool.snapshot(*id).map_err(|error| error.to_string())?;
            for (sector, found) in snapshot.content.read_all(&handle)? {
                let expected = snapshot.content.sectors.get(&sector).and_then(Sector::current);
                if found != expected {
                    return Err(format!(
                        "snapshot {id} sector {sector}: found {found:?}, expected {expected:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn verify_volumes(
        &self,
        pool: &Pool,
        compare: impl Fn(VolumeId, &VolumeInfo, &Volume) -> Result<(), String>,
    ) -> Result<(), String> {
        let own = pool.volumes().into_iter().filter(|info| info.id != replica::VOLUME);
        let found: BTreeMap<VolumeId, VolumeInfo> = own.map(|info| (info.id, info)).collect();
        for (id, volume) in &self.volumes {
            let info = found.get(id).ok_or_else(|| format!("volume {id} is gone"))?;
            let same = (info.domain, info.epoch, info.check, info.kind)
                == (volume.spec.domain, volume.spec.epoch, volume.spec.check, volume.spec.kind);
            if !same {
                return Err(format!("{info:?} is not {:?}", volume.spec));
            }
            compare(*id, info, volume)?;
            verify_epochs(pool, info)?;
        }
        match found.keys().find(|id| !self.volumes.contains_key(id)) {
            Some(id) => Err(format!("volume {id} is back, or never was")),
            None => Ok(()),
        }
    }

    /// After a cut: settles what was begun by what is there, then compares every sector with what it may hold, and takes
    /// what it does hold for durable.
    pub(crate) fn verify_after_cut(&mut self, pool: &Pool) -> Result<(), String> {
        self.settle_begun(pool)?;
        if self.len.is_some_and(|len| len != pool.info().used_len) {
            return Err(format!("{:?} was in use, and {} is", self.len, pool.info().used_len));
        }
        replica::verify(pool, &self.arrived)?;
        self.verify_volumes(pool, same_settings)?;
        let mut wrong = String::new();
        for (id, volume) in &mut self.volumes {
            let handle = pool.volume(*id).map_err(|error| error.to_string())?;
            for (sector, found) in volume.read_all(&handle)? {
                let known = volume.sectors.entry(sector).or_default();
                if !known.allows(found) {
                    let _ = writeln!(wrong, "{id} sector {sector}: found {found:?}, may be {known:?}");
                }
                *known = Sector { durable: found, since: Vec::new() };
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        self.verify_snapshots(pool)?;
        self.verify_state(pool)
    }

    /// Of a pool on a damaged device, opened as after a cut: each sector is one that it may hold, or an error. How many are
    /// errors.
    pub(crate) fn verify_damaged(&self, pool: &Pool) -> Result<u64, String> {
        let mut errors = 0;
        for (id, volume) in &self.volumes {
            let handle = pool.volume(*id).map_err(|error| error.to_string())?;
            for (sector, known) in volume.sectors.range(..volume.spec.sectors.0) {
                match read(&handle, *sector, 1) {
                    Ok(found) if known.allows(found[0]) => {}
                    Ok(found) => {
                        return Err(format!("{id} sector {sector}: found {found:?}, may be {known:?}"));
                    }
                    Err(_) => errors += 1,
                }
            }
        }
        for (id, snapshot) in &self.snapshots {
            let handle = pool.snapshot(*id).map_err(|error| error.to_string())?;
            for (sector, known) in snapshot.content.sectors.range(..snapshot.content.spec.sectors.0) {
                match read(&handle, *sector, 1) {
                    Ok(found) if found[0] == known.current() => {}
                    Ok(found) => {
                        return Err(format!("snapshot {id} sector {sector}: found {found:?}, is {known:?}"));
                    }
                    Err(_) => errors += 1,
                }
            }
        }
        Ok(errors)
    }

    /// A cut looks like no attack: what was told is in what there is.
    fn verify_state(&self, pool: &Pool) -> Result<(), String> {
        for info in pool.volumes().iter().filter(|info| !info.replica) {
            let volume = pool.volume(info.id).map_err(|error| error.to_string())?;
            let verdict = volume.judge_state(self.told, |state, found| *found == word(info.domain, state));
            if matches!(verdict, Verdict::Older | Verdict::Other | Verdict::Altered) {
                return Err(format!("the state is {verdict:?}, told was {:?}", self.told));
            }
        }
        Ok(())
    }

    /// A snapshot whose taking was cut short shows what a cut leaves of its volume: old or new, sector by sector.
    fn settle_snapshot(&mut self, pool: &Pool, of: VolumeId, id: VolumeId) -> Result<(), String> {
        let Ok(handle) = pool.snapshot(id) else { return Ok(()) };
        let mut content = self.volumes[&of].clone();
        for (sector, found) in content.read_all(&handle)? {
            let known = content.sectors.entry(sector).or_default();
            if !known.allows(found) {
                return Err(format!("new snapshot, sector {sector}: found {found:?}, may be {known:?}"));
            }
            *known = Sector { durable: found, since: Vec::new() };
        }
        // The volume goes on from just that.
        self.volumes.insert(of, content.clone());
        self.snapshots.insert(id, Snapshot { of, content });
        Ok(())
    }

    /// Whether the volume shows what the snapshot does, every sector of it.
    fn shows(&self, pool: &Pool, id: VolumeId, snapshot: VolumeId) -> Result<bool, String> {
        let content = &self.snapshots[&snapshot].content;
        let handle = pool.volume(id).map_err(|error| error.to_string())?;
        if handle.sectors() != content.spec.sectors {
            return Ok(false);
        }
        let found = content.read_all(&handle)?;
        Ok(found
            .iter()
            .all(|(sector, found)| *found == content.sectors.get(sector).and_then(Sector::current)))
    }

    /// What was begun either happened, and then whole, or did not.
    fn settle_begun(&mut self, pool: &Pool) -> Result<(), String> {
        let Some(begun) = self.begun else { return Ok(()) };
        let info = |id| pool.volumes().into_iter().find(|info| info.id == id);
        let happened = match begun {
            Begun::Create(spec) => info(spec.id).is_some(),
            Begun::Delete(id) => info(id).is_none(),
            Begun::Resize(id, sectors) => info(id).is_some_and(|info| info.sectors.0 == sectors),
            Begun::RaiseFence(id, fence) => info(id).is_some_and(|info| info.fence == fence),
            Begun::Limit(id, limits) => info(id).is_some_and(|info| info.limits == limits),
            Begun::Grow(len) => pool.info().used_len == len,
            Begun::Snapshot(of, id) => {
                self.begun = None;
                return self.settle_snapshot(pool, of, id);
            }
            Begun::DeleteSnapshot(id) => pool.snapshot(id).is_err(),
            Begun::Clone(_, id) => info(id).is_some(),
            Begun::RollBack(id, snapshot) => self.shows(pool, id, snapshot)?,
            Begun::Epoch(id, epoch) => info(id).is_some_and(|info| info.epoch == epoch),
        };
        self.begun = None;
        if !happened {
            return Ok(());
        }
        let since: Vec<_> = self.volumes.clone().into_iter().collect();
        self.begun = Some(begun);
        self.acknowledge();
        // That it happened says nothing of writes that no flush was acknowledged for.
        for (id, before) in since {
            if matches!(begun, Begun::RollBack(rolled_back, _) if rolled_back == id) {
                continue;
            }
            if let Some(volume) = self.volumes.get_mut(&id) {
                let size = volume.spec.sectors.0;
                volume.sectors = before.sectors.into_iter().filter(|(sector, _)| *sector < size).collect();
            }
        }
        Ok(())
    }
}

/// What the pool says of the epochs that a volume's sectors are under is what reading them shows.
fn verify_epochs(pool: &Pool, info: &VolumeInfo) -> Result<(), String> {
    let wrong = |error: PoolError| format!("epochs: {error}");
    let volume = pool.volume(info.id).map_err(wrong)?;
    let (mut at, mut outdated, mut first) = (0, 0, None);
    let mut seen = BTreeSet::new();
    for (run, present) in volume.presence(Lba(0), info.sectors).map_err(wrong)? {
        let pieces = if present { volume.read(Lba(at), run).map_err(wrong)? } else { Vec::new() };
        for piece in pieces {
            let Piece::Sealed { first: sector, epoch, data } = piece else { continue };
            seen.insert(epoch);
            if epoch != info.epoch {
                outdated += data.sectors().0;
                first.get_or_insert(sector);
            }
        }
        at += run.0;
    }
    let said = volume.outdated().map_err(wrong)?.0;
    let next = volume.next_outdated(Lba(0), SectorCount(1)).map_err(wrong)?.map(|(sector, _)| sector);
    if (said, next) != (outdated, first) {
        return Err(format!("{said} from {next:?} said to be outdated, {outdated} from {first:?} are"));
    }
    let named: BTreeSet<VolumeEpoch> = pool.epochs(info.domain).iter().map(|of| of.epoch).collect();
    let shown: BTreeSet<VolumeEpoch> = pool
        .epochs(info.domain)
        .iter()
        .filter(|of| of.shown_by.contains(&info.id))
        .map(|of| of.epoch)
        .collect();
    // What a clone hides of what is below it is shown by it all the same, as far as is known.
    if !seen.is_subset(&named) || !seen.is_subset(&shown) {
        return Err(format!("{seen:?} are read, {named:?} are named, {shown:?} said to be shown"));
    }
    Ok(())
}

/// What somebody shows is what is allocated, and the metadata is sound.
pub(crate) fn verify_metadata(pool: &Arc<Pool>) -> Result<(), String> {
    // What the first finds to be hidden for good, the second frees.
    for _ in 0..2 {
        pool.flush().map_err(|error| error.to_string())?;
    }
    let report = pool.check().map_err(|error| error.to_string())?;
    if !report.is_sound() {
        return Err(format!("{:?}", report.problems));
    }
    let info = pool.info();
    let unseen = pool.usage().unseen;
    if report.mapped_extents * info.extent_len.0 != info.allocated.0 || unseen.0 != 0 {
        return Err(format!(
            "{} is allocated, the table maps {} extents, and nobody shows {unseen}",
            info.allocated, report.mapped_extents
        ));
    }
    if info.snapshots == 0 {
        let owned: u64 = pool.volumes().iter().map(|info| info.allocated.0).sum();
        if pool.volumes().iter().all(|volume| volume.clone_of.is_none()) && owned != info.allocated.0 {
            return Err(format!("volumes own {owned}, {} is allocated", info.allocated));
        }
    }
    Ok(())
}

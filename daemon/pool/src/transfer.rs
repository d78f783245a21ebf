//! Sending snapshots to another pool, and taking them in: ciphertext and its records, without any key.
//!
//! What is sent is a snapshot, whole or what of it differs from an older one, in portions that can be asked for again. What
//! takes it in is a replica: a volume that nobody else writes. Each snapshot that has arrived whole is a snapshot there too, with
//! the id and the content that it has where it came from; what is on its way when all breaks off is nothing but a replica's
//! present, which is never shown.
//!
//! Invariants:
//! - A replica that is said to receive a snapshot holds its newest snapshot and of the new one everything before a sector. That
//!   is said only once the former is so, and taken back before it is no longer.
//! - What takes something in for a replica, promotes it or deletes of it has that volume's turn. Its content is given to it outside the
//!   pool's lock for changes, which is taken for each of them.
//! - What a portion holds is compared with its checksums before it is sent and again before it is taken in.
//!
//! STREAM.md draws the bytes.

use std::ops::Range;
use std::sync::Arc;

use device::{Sealed, SectorBuf, SectorRecord};
use units::{DomainId, Lba, SECTOR_BYTES, SECTORS_MAX, SectorCount, VolumeEpoch, VolumeId};

use crate::blocks::{AHEAD, USED_UP};
use crate::bytes::Decoder;
use crate::commit::lock;
use crate::entry::{Receiving, Role};
use crate::volume::VolumeState;
use crate::{Change, Piece, Pool, PoolError, PoolVolume, SnapshotInfo, VolumeKind, VolumeSpec};

const MAGIC: [u8; 4] = *b"NLPT";
const VERSION: u32 = 1;
/// Magic, version, checksum, epoch, first, end, runs.
const HEADER_BYTES: usize = 40;
const CHECKSUM_AT: usize = 8;
const END_AT: usize = 24;
/// Sequence, checksum, tag.
const RECORD_BYTES: usize = 28;
/// Most sectors that one portion tells of, 8 GiB, and in how many runs.
const REACH: u64 = 1 << 21;
const RUNS_MAX: usize = 1 << 16;
/// Sectors that are compared at once for a portion: 32 MiB.
const COMPARED_AT_ONCE: u64 = 1 << 13;
/// Sectors that are read and written at once: 1 MiB.
const AT_ONCE: u64 = 256;
/// Far beyond what any pool can count.
const SEQUENCE_MAX: u64 = 1 << 56;

/// What a snapshot is, and what it is sent since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub volume: VolumeId,
    pub snapshot: VolumeId,
    /// An older snapshot that the other side has as its newest; nothing where all is sent.
    pub since: Option<VolumeId>,
    /// When the snapshot was taken, seconds since 1970.
    pub created_s: u64,
    pub sectors: SectorCount,
    pub domain: DomainId,
    pub epoch: VolumeEpoch,
    pub check: [u8; 16],
    pub kind: VolumeKind,
    /// Blocks that have been encrypted under this domain and epoch.
    pub blocks: u64,
}

/// A part of a snapshot, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    pub bytes: Vec<u8>,
    /// Where the next begins: at the snapshot's end there is none.
    pub next: Lba,
    /// How many sectors of ciphertext are in it.
    pub written: SectorCount,
}

impl Portion {
    /// Where the next begins, read from an encoded one that nobody has verified.
    pub fn next_after(bytes: &[u8]) -> Option<Lba> {
        Decoder::new(bytes.get(END_AT..)?).u64().map(Lba)
    }
}

impl Manifest {
    fn spec(&self) -> VolumeSpec {
        let Self { volume, sectors, domain, epoch, check, kind, .. } = *self;
        VolumeSpec { id: volume, sectors, domain, epoch, check, kind }
    }
}

impl Pool {
    /// What a snapshot is.
    pub fn manifest(&self, snapshot: VolumeId, since: Option<VolumeId>) -> Result<Manifest, PoolError> {
        let state = self.snapshot_state(snapshot)?;
        since.map(|since| self.snapshot_state(since)).transpose()?;
        if !self.core.layout.has_records() {
            return Err(PoolError::NoRecords(self.core.pool));
        }
        let (spec, info) = (state.spec(), state.snapshot_info());
        Ok(Manifest {
            volume: info.volume,
            snapshot,
            since,
            created_s: info.created_s,
            sectors: spec.sectors,
            domain: spec.domain,
            epoch: spec.epoch,
            check: spec.check,
            kind: spec.kind,
            blocks: self.core.encrypted.of(state.key()),
        })
    }

    /// A part of what `manifest` describes, from a sector on, with no more than `most` sectors of ciphertext.
    pub fn send(&self, manifest: &Manifest, from: Lba, most: SectorCount) -> Result<Portion, PoolError> {
        let snapshot = self.snapshot(manifest.snapshot)?;
        let since = manifest.since.map(|since| self.snapshot(since)).transpose()?;
        let reach = manifest.sectors.0.min(from.0.saturating_add(REACH));
        let mut portion = Encoding { first: from.0, end: from.0, ..Encoding::default() };
        let mut room = most.0.max(1);
        // No further than the portion has room for: what is behind is looked at for the next one.
        'whole: loop {
            let count = SectorCount(COMPARED_AT_ONCE.min(reach.saturating_sub(portion.end)));
            for (run, change) in snapshot.changes_since(since.as_deref(), Lba(portion.end), count)? {
                let run = if change == Change::Written { run.0.min(room) } else { run.0 };
                if change == Change::Written {
                    portion.read(&snapshot, manifest.epoch, portion.end..portion.end + run)?;
                    room -= run;
                }
                portion.push(run, change);
                if room == 0 || portion.runs.len() == RUNS_MAX {
                    break 'whole;
                }
            }
            if portion.end >= reach {
                break;
            }
        }
        let written = SectorCount(portion.records.len() as u64);
        Ok(Portion { next: Lba(portion.end), written, bytes: portion.into_bytes(manifest.epoch) })
    }

    /// Makes ready to take a snapshot in: from which sector on it is to be sent. Makes the replica where there is none.
    pub fn begin_receiving(&self, manifest: &Manifest) -> Result<Lba, PoolError> {
        self.core.check_not_failed()?;
        if !manifest.spec().size_is_allowed() {
            return Err(PoolError::VolumeSize(manifest.sectors));
        }
        if !self.core.layout.has_records() {
            return Err(PoolError::NoRecords(self.core.pool));
        }
        let turn = self.turns.of(manifest.volume);
        let _turn = lock(&turn);
        if manifest.blocks > USED_UP + AHEAD {
            return Err(bad(manifest.volume, "it tells of more blocks than a key may encrypt"));
        }
        if let Some(there) = self.arrived(manifest) {
            // Said again, because the answer was lost.
            return there.map(|info| Lba(info.sectors.0));
        }
        let state = match self.volume_state(manifest.volume) {
            Err(PoolError::NoSuchVolume(_)) if manifest.since.is_none() => {
                let _changing = lock(&self.changing);
                self.add_volume(manifest.spec(), Role::Replica { receiving: None }, None)?;
                self.volume_state(manifest.volume)?
            }
            found => found?,
        };
        let receiving = state.head().replica.ok_or(PoolError::NotAReplica(manifest.volume))?;
        let spec = state.spec();
        let same_key = spec.epoch == manifest.epoch;
        if (spec.domain, spec.kind) != (manifest.domain, manifest.kind)
            || (same_key && spec.check != manifest.check)
        {
            return Err(bad(manifest.volume, "it is of another volume, or under another key"));
        }
        let base = self.newest_snapshot(manifest.volume);
        if base.as_ref().map(|base| base.id()) != manifest.since {
            let since = manifest.since.unwrap_or(manifest.snapshot);
            return Err(PoolError::NoCommonSnapshot { volume: manifest.volume, since });
        }
        let goes_on = |receiving: &Receiving| {
            same_key && receiving.snapshot == manifest.snapshot && state.head().sectors == manifest.sectors
        };
        if let Some(receiving) = receiving.filter(goes_on) {
            return Ok(receiving.next);
        }
        self.restore(&state, base.as_ref())?;
        let _changing = lock(&self.changing);
        self.change_key(&state, (manifest.epoch, manifest.check))?;
        self.set_size(&state, manifest.sectors)?;
        let receiving = Receiving { snapshot: manifest.snapshot, next: Lba(0) };
        state.set_replica(&self.core, Some(Some(receiving)))?;
        self.core.flush()?;
        Ok(Lba(0))
    }

    /// Takes a portion in; where the next begins. Durable when it returns.
    pub fn receive(&self, volume: VolumeId, snapshot: VolumeId, portion: &[u8]) -> Result<Lba, PoolError> {
        self.core.check_not_failed()?;
        let turn = self.turns.of(volume);
        let _turn = lock(&turn);
        let state = self.volume_state(volume)?;
        let (receiving, sectors) = {
            let head = state.head();
            (head.replica.flatten(), head.sectors)
        };
        let receiving = receiving
            .filter(|receiving| receiving.snapshot == snapshot)
            .ok_or(PoolError::NotReceiving { volume })?;
        let decoded = Decoded::from_bytes(portion).map_err(|what| bad(volume, what))?;
        if decoded.epoch != state.head().epoch {
            return Err(bad(volume, "it is sealed under another epoch"));
        }
        if decoded.first > receiving.next || decoded.end.0 > sectors.0 {
            return Err(bad(volume, "it leaves something out, or reaches past the end"));
        }
        let target = PoolVolume::new(&self.core, &state);
        let mut at = decoded.first.0;
        for (run, change) in decoded.runs {
            match change {
                Change::Same | Change::Written => {}
                Change::Unmapped => target.clear(Lba(at), SectorCount(run))?,
            }
            at += run;
        }
        for (first, sealed) in decoded.written {
            self.core.raise_sequence(sealed.records());
            target.store(first, decoded.epoch, &Arc::new(sealed))?;
        }
        self.core.flush()?;
        // Durable with the next portion: before, this one comes again.
        let next = receiving.next.max(decoded.end);
        let _changing = lock(&self.changing);
        state.set_replica(&self.core, Some(Some(Receiving { snapshot, next })))?;
        Ok(next)
    }

    /// All of a snapshot has arrived: makes it one. Durable when it returns.
    pub fn end_receiving(&self, manifest: &Manifest) -> Result<SnapshotInfo, PoolError> {
        self.core.check_not_failed()?;
        let turn = self.turns.of(manifest.volume);
        let _turn = lock(&turn);
        let _changing = lock(&self.changing);
        let state = self.volume_state(manifest.volume)?;
        if let Some(there) = self.arrived(manifest) {
            return there;
        }
        let (receiving, sectors) = {
            let head = state.head();
            (head.replica.flatten(), head.sectors)
        };
        let arrived =
            |receiving: &Receiving| receiving.snapshot == manifest.snapshot && receiving.next.0 >= sectors.0;
        if !receiving.as_ref().is_some_and(arrived) {
            return Err(PoolError::NotReceiving { volume: manifest.volume });
        }
        state.note_blocks(&self.core, manifest.blocks.min(USED_UP));
        let info = self.take_snapshot(&state, manifest.snapshot, manifest.created_s)?;
        state.set_replica(&self.core, Some(None))?;
        self.core.flush()?;
        Ok(info)
    }

    /// The snapshot that a replica has in part.
    pub fn receiving(&self, volume: VolumeId) -> Option<VolumeId> {
        let state = self.volume_state(volume).ok()?;
        let receiving = state.head().replica.flatten();
        receiving.map(|receiving| receiving.snapshot)
    }

    /// Makes a replica a volume like others, which holds what its newest snapshot shows: which. Durable when it returns. Reads
    /// nothing and needs no space.
    pub fn promote(&self, volume: VolumeId) -> Result<VolumeId, PoolError> {
        self.core.check_not_failed()?;
        let turn = self.turns.of(volume);
        let _turn = lock(&turn);
        let _changing = lock(&self.changing);
        let state = self.volume_state(volume)?;
        if !state.is_replica() {
            return Err(PoolError::NotAReplica(volume));
        }
        let base = self.newest_snapshot(volume).ok_or(PoolError::NothingArrived(volume))?;
        // What is on its way is given up before the volume shows something else.
        state.set_replica(&self.core, Some(None))?;
        self.core.flush()?;
        let VolumeSpec { epoch, check, .. } = base.state.spec();
        let before = self.show(&state, &base.state, Some((epoch, check)))?;
        state.set_replica(&self.core, None)?;
        self.leave(&before)?;
        // What has been encrypted where it comes from counts here from now on: it is the same key.
        self.core.encrypted.add(state.key(), state.blocks());
        Ok(base.id())
    }

    /// The snapshot of a manifest, where it is there already; an error where its id is something else's.
    fn arrived(&self, manifest: &Manifest) -> Option<Result<SnapshotInfo, PoolError>> {
        let found = lock(&self.volumes).live.get(&manifest.snapshot).cloned()?;
        let is_it = found.is_snapshot() && found.origin() == Some(manifest.volume);
        let info = found.snapshot_info();
        Some(match is_it && info.sectors == manifest.sectors {
            true => Ok(info),
            false => Err(PoolError::VolumeExists(manifest.snapshot)),
        })
    }

    /// Before a snapshot goes: a replica that receives since this one must begin again, since another.
    pub(crate) fn before_losing(&self, snapshot: &VolumeState) -> Result<(), PoolError> {
        let Some(volume) = snapshot.origin() else { return Ok(()) };
        let Ok(state) = self.volume_state(volume) else { return Ok(()) };
        let newest = self.newest_snapshot(volume).map(|newest| newest.id());
        if state.head().replica.flatten().is_some() && newest == Some(snapshot.id()) {
            state.set_replica(&self.core, Some(None))?;
            self.core.flush()?;
        }
        Ok(())
    }

    pub(crate) fn newest_snapshot(&self, volume: VolumeId) -> Option<Arc<PoolVolume>> {
        let live = lock(&self.volumes);
        let own = live.live.values().filter(|state| state.is_snapshot() && state.origin() == Some(volume));
        let newest = own.max_by_key(|state| {
            let head = state.head();
            (head.view.branch.id, head.view.moment)
        });
        newest.map(|state| PoolVolume::new(&self.core, state))
    }

    /// Gives a replica the content and the size of its newest snapshot again. What was on its way is given up first.
    fn restore(&self, state: &Arc<VolumeState>, base: Option<&Arc<PoolVolume>>) -> Result<(), PoolError> {
        {
            let _changing = lock(&self.changing);
            state.set_replica(&self.core, Some(None))?;
            self.core.flush()?;
            if let Some(base) = base {
                self.set_size(state, base.sectors())?;
            }
        }
        let target = PoolVolume::new(&self.core, state);
        let mut at = 0;
        let sectors = target.sectors().0;
        while at < sectors {
            let reach = REACH.min(sectors - at);
            for (run, change) in
                target.changes_since(base.map(|base| &**base), Lba(at), SectorCount(reach))?
            {
                let end = at + run.0;
                match (change, base) {
                    (Change::Same, _) => {}
                    (_, None) => target.clear(Lba(at), run)?,
                    (_, Some(base)) => self.copy(base, &target, at..end)?,
                }
                at = end;
            }
        }
        self.core.flush()
    }

    /// Puts what `from` holds of these sectors into `to`, a replica, each under the epoch that it is sealed under.
    fn copy(&self, from: &PoolVolume, to: &PoolVolume, sectors: Range<u64>) -> Result<(), PoolError> {
        let mut at = sectors.start;
        while at < sectors.end {
            let count = AT_ONCE.min(sectors.end - at);
            for piece in from.read(Lba(at), SectorCount(count))? {
                match piece {
                    Piece::Hole(count) => {
                        to.clear(Lba(at), count)?;
                        at += count.0;
                    }
                    Piece::Sealed { first, epoch, data } => {
                        compare(from, at, &data)?;
                        if to.epoch() != epoch {
                            let _changing = lock(&self.changing);
                            self.change_key(&to.state, (epoch, to.info().check))?;
                        }
                        at += data.sectors().0;
                        to.store(first, epoch, &Arc::new(data))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Compares what was read with its checksums. A volume's own reader does so too, with the tag.
fn compare(read_from: &PoolVolume, first: u64, data: &Sealed) -> Result<(), PoolError> {
    let Some(misfit) = data.first_misfit() else { return Ok(()) };
    let sector = Lba(first + misfit);
    let error = PoolError::DamagedSector { volume: read_from.id(), sector };
    read_from.report_damage(sector, &error);
    Err(error)
}

fn bad(volume: VolumeId, what: &'static str) -> PoolError {
    PoolError::BadPortion { volume, what }
}

/// A portion being made.
#[derive(Default)]
struct Encoding {
    first: u64,
    end: u64,
    runs: Vec<(u64, Change)>,
    records: Vec<SectorRecord>,
    ciphertext: Vec<u8>,
}

impl Encoding {
    fn push(&mut self, sectors: u64, change: Change) {
        match self.runs.last_mut() {
            Some((run, same)) if *same == change => *run += sectors,
            _ => self.runs.push((sectors, change)),
        }
        self.end += sectors;
    }

    fn read(
        &mut self,
        snapshot: &PoolVolume,
        epoch: VolumeEpoch,
        sectors: Range<u64>,
    ) -> Result<(), PoolError> {
        let mut at = sectors.start;
        while at < sectors.end {
            let count = AT_ONCE.min(sectors.end - at);
            for piece in snapshot.read(Lba(at), SectorCount(count))? {
                // A snapshot has no hole where it says that something was written.
                let Piece::Sealed { epoch: under, data, .. } = piece else {
                    return Err(PoolError::Interrupted);
                };
                if under != epoch {
                    return Err(PoolError::TwoEpochs { snapshot: snapshot.id() });
                }
                compare(snapshot, at, &data)?;
                at += data.sectors().0;
                self.records.extend_from_slice(data.records());
                self.ciphertext.extend_from_slice(data.as_bytes());
            }
        }
        Ok(())
    }

    fn into_bytes(self, epoch: VolumeEpoch) -> Vec<u8> {
        let len =
            HEADER_BYTES + 8 * self.runs.len() + RECORD_BYTES * self.records.len() + self.ciphertext.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(epoch.0.to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.end.to_le_bytes());
        bytes.extend((self.runs.len() as u64).to_le_bytes());
        for (sectors, change) in self.runs {
            let change: u64 = match change {
                Change::Same => 0,
                Change::Written => 1,
                Change::Unmapped => 2,
            };
            bytes.extend((sectors << 2 | change).to_le_bytes());
        }
        for record in &self.records {
            bytes.extend(record.sequence.to_le_bytes());
            bytes.extend(record.checksum.to_le_bytes());
            bytes.extend(record.tag);
        }
        bytes.extend(self.ciphertext);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// Covers everything but itself.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CHECKSUM_AT]), &bytes[CHECKSUM_AT + 4..])
}

/// A portion that was read.
#[derive(Debug)]
struct Decoded {
    epoch: VolumeEpoch,
    first: Lba,
    end: Lba,
    runs: Vec<(u64, Change)>,
    written: Vec<(Lba, Sealed)>,
}

impl Decoded {
    fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "it ends too soon";
        if bytes.len() < HEADER_BYTES || bytes[..4] != MAGIC {
            return Err("it is no portion of a snapshot");
        }
        let mut fields = Decoder::new(&bytes[4..]);
        if fields.u32() != Some(VERSION) {
            return Err("it is of another version of the format; bring both sides to the same release");
        }
        if fields.u32() != Some(checksum(bytes)) {
            return Err("its checksum is wrong: it was damaged on its way");
        }
        let epoch = VolumeEpoch(fields.u32().ok_or(SHORT)?);
        let (first, end) = (fields.u64().ok_or(SHORT)?, fields.u64().ok_or(SHORT)?);
        if end > SECTORS_MAX {
            return Err("it reaches past the end of every volume");
        }
        let count = fields.u64().filter(|count| *count <= RUNS_MAX as u64).ok_or("it has too many runs")?;
        let (mut at, mut runs, mut written) = (first, Vec::new(), Vec::new());
        for _ in 0..count {
            let run = fields.u64().ok_or(SHORT)?;
            let (sectors, change) = (
                run >> 2,
                match run & 3 {
                    0 => Change::Same,
                    1 => Change::Written,
                    2 => Change::Unmapped,
                    _ => return Err("it tells of a change that there is not"),
                },
            );
            let next =
                at.checked_add(sectors).filter(|next| *next <= end).ok_or("its runs do not fit its range")?;
            if change == Change::Written {
                written.push(at..next);
            }
            runs.push((sectors, change));
            at = next;
        }
        if at != end {
            return Err("its runs do not fit its range");
        }
        let sectors: u64 = written.iter().map(|run| run.end - run.start).sum();
        let sectors = usize::try_from(sectors)
            .ok()
            .filter(|sectors| *sectors <= bytes.len() / SECTOR_BYTES)
            .ok_or(SHORT)?;
        let mut records = Decoder::new(fields.bytes(RECORD_BYTES * sectors).ok_or(SHORT)?);
        let mut ciphertext = Decoder::new(fields.bytes(SECTOR_BYTES * sectors).ok_or(SHORT)?);
        if !fields.is_empty() {
            return Err("something follows its end");
        }
        let mut sealed = Vec::new();
        let parts = written.into_iter().flat_map(|run| {
            let end = run.end;
            run.step_by(256).map(move |first| first..end.min(first.saturating_add(AT_ONCE)))
        });
        for part in parts {
            let len = usize::try_from(part.end - part.start).map_err(|_| SHORT)?;
            let buf =
                SectorBuf::copied_from(ciphertext.bytes(len * SECTOR_BYTES).ok_or(SHORT)?).ok_or(SHORT)?;
            let mut of_part = Vec::with_capacity(len);
            for _ in 0..len {
                let (sequence, checksum) = (records.u64().ok_or(SHORT)?, records.u32().ok_or(SHORT)?);
                if sequence >= SEQUENCE_MAX {
                    return Err("it has a sequence that no pool reaches");
                }
                of_part.push(SectorRecord { sequence, checksum, tag: records.array().ok_or(SHORT)? });
            }
            let data =
                Sealed::from_frame(buf, of_part).map_err(|_| "a sector has not its record's checksum")?;
            sealed.push((Lba(part.start), data));
        }
        Ok(Self { epoch, first: Lba(first), end: Lba(end), runs, written: sealed })
    }
}

const _: () = assert!(AT_ONCE == 256 && HEADER_BYTES == 4 + 4 + 4 + 4 + 8 + 8 + 8);

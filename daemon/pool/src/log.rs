//! The log: a ring of 4 KiB blocks that carries table entries before they may reach their place.
//!
//! Invariants:
//! - A block is never written twice in one lap, so a torn write cannot harm one that was durable.
//! - A block names its predecessor by checksum and session. A session is one opening of the pool and random, so a
//!   block that a power cut left over from an earlier, never completed attempt cannot continue a later one.
//! - Blocks come in batches, and a batch counts only when its last block is there. One batch is durable before the next
//!   is written, so a damaged block with later batches behind it is told from the end of the log.
//!
//! - A sector's ciphertext lies in a block of its own behind the blocks of its batch, without a header: its record's checksum
//!   covers it. A batch that lacks one was never acknowledged, unless another follows it.
//!
//! What the log is not: a journal of operations. Its records are whole entries, and applying them again is harmless.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use device::{Device, Metadata, Sealed, SectorBuf, SectorRecord};
use units::{ByteOffset, PoolId, SECTOR_BYTES, SectorCount};

use crate::bytes::{Decoder, Encoder};
use crate::digest::{NextState, Planned, Root, StateHead};
use crate::entry::{
    Mapping, VolumeEntry, decode_extent, decode_volume, encode_extent, encode_volume, extent_record_bytes,
};
use crate::layout::{
    DIGEST_BYTES, Layout, PAGES_PER_TRANSFER, SECTOR, SECTOR_RECORD_BYTES, VOLUME_ENTRY_BYTES,
};
use crate::records::{SectorId, decode_record, encode_record};
use crate::superblock::Superblock;
use crate::{PoolError, VOLUMES_MAX};

const MAGIC: u32 = u32::from_le_bytes(*b"NLLB");
const HEADER_BYTES: usize = 48;
const CHECKSUM_AT: usize = 4;
/// What of a block holds records.
pub(crate) const PAYLOAD_BYTES: usize = SECTOR_BYTES - HEADER_BYTES;

const RECORD_HEADER_BYTES: usize = 8;
/// Far below what a superblock may say comes next, and further than any pool can count.
const RECORD_SEQUENCE_MAX: u64 = u64::MAX / 4;

const KIND_VOLUME: u8 = 1;
const KIND_EXTENT: u8 = 2;
const KIND_EXTENT_FREE: u8 = 3;
const KIND_HOLES: u8 = 4;
const KIND_HOLES_FREE: u8 = 5;
/// A sector's record; its ciphertext is in its place.
const KIND_SECTOR: u8 = 6;
/// A sector's record, and its ciphertext in a block behind the records.
const KIND_SECTOR_AND_CONTENT: u8 = 7;
/// A page that a checkpoint is about to change in its place: which, what it is and what it becomes.
const KIND_PLAN: u8 = 8;
/// What somebody who has a volume's key says to the state that the records before it in the batch make.
const KIND_VOUCH: u8 = 9;
/// First behind a checkpoint: what the tables are now.
const KIND_ROOT: u8 = 10;
const ROOT_BYTES: usize = 32;
const PLAN_BODY_BYTES: usize = 8 + 2 * DIGEST_BYTES;
/// The sector's number, then its record.
const SECTOR_BODY_BYTES: usize = 4 + SECTOR_RECORD_BYTES;

/// How a block names the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) session: u64,
    pub(crate) checksum: u32,
}

/// One table entry, or one sector's record, on its way.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Volume { slot: u32, entry: Box<VolumeEntry> },
    Extent { index: u32, mapping: Option<Mapping> },
    Holes { index: u32, mapping: Option<Mapping> },
    Sector { of: SectorId, record: SectorRecord, ciphertext: Option<Arc<Sealed>> },
    Plan { page: ByteOffset, planned: Planned },
    Root(Root),
    Vouch { slot: u32, mac: VouchMac },
}

/// What a key's holder says to a state (`Witness`).
pub(crate) type VouchMac = [u8; VOUCH_BYTES];
pub(crate) const VOUCH_BYTES: usize = 16;

/// As replay finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replayed {
    Volume {
        slot: u32,
        entry: Box<VolumeEntry>,
    },
    Extent {
        index: u32,
        mapping: Option<Mapping>,
    },
    Holes {
        index: u32,
        mapping: Option<Mapping>,
    },
    /// With the sequence number of the block that has the ciphertext, where one has.
    Sector {
        of: SectorId,
        record: SectorRecord,
        block: Option<u64>,
    },
    Plan {
        page: ByteOffset,
        planned: Planned,
    },
    Root(Root),
    Vouch {
        slot: u32,
        mac: VouchMac,
    },
    /// Behind the records of a batch: the state they make, and the one that those before the first `Vouch` make.
    BatchEnd {
        start: LogEnd,
        state: StateHead,
        vouched: StateHead,
    },
}

/// What one batch carries.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    payloads: Vec<Vec<u8>>,
    ciphertexts: Vec<Arc<Sealed>>,
    pub(crate) records: Vec<Record>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// The state behind it.
    fn state_after(&self, before: StateHead) -> StateHead {
        let mut next = NextState::batch(before);
        self.payloads.iter().for_each(|payload| next.add(payload));
        next.state()
    }
}

impl Record {
    pub(crate) fn encoded_bytes(&self, layout: Layout) -> usize {
        RECORD_HEADER_BYTES
            + match self {
                Self::Volume { .. } => VOLUME_ENTRY_BYTES,
                Self::Extent { mapping: Some(_), .. } | Self::Holes { mapping: Some(_), .. } => {
                    extent_record_bytes(layout)
                }
                Self::Extent { mapping: None, .. } | Self::Holes { mapping: None, .. } => 0,
                Self::Sector { .. } => SECTOR_BODY_BYTES,
                Self::Plan { .. } => PLAN_BODY_BYTES,
                Self::Root(_) => ROOT_BYTES,
                Self::Vouch { .. } => VOUCH_BYTES,
            }
    }

    fn encode(&self, layout: Layout, pool: PoolId, out: &mut [u8]) {
        let (header, body) = out.split_at_mut(RECORD_HEADER_BYTES);
        let (kind, index, mapping) = match self {
            Self::Volume { slot, entry } => {
                encode_volume(pool, *slot, Some(entry), body);
                (KIND_VOLUME, *slot, None)
            }
            Self::Extent { index, mapping } => {
                (if mapping.is_some() { KIND_EXTENT } else { KIND_EXTENT_FREE }, *index, mapping.as_ref())
            }
            Self::Holes { index, mapping } => {
                (if mapping.is_some() { KIND_HOLES } else { KIND_HOLES_FREE }, *index, mapping.as_ref())
            }
            Self::Sector { of, record, ciphertext } => {
                let (sector, stored) = body.split_at_mut(4);
                Encoder::new(sector).u32(of.sector);
                encode_record(pool, *of, record, stored);
                let kind = if ciphertext.is_some() { KIND_SECTOR_AND_CONTENT } else { KIND_SECTOR };
                (kind, of.extent, None)
            }
            Self::Plan { page, planned } => {
                Encoder::new(body).u64(page.0 / SECTOR).bytes(&planned.before).bytes(&planned.after);
                (KIND_PLAN, 0, None)
            }
            Self::Root(root) => {
                Encoder::new(body).bytes(&root.0);
                (KIND_ROOT, 0, None)
            }
            Self::Vouch { slot, mac } => {
                Encoder::new(body).bytes(mac);
                (KIND_VOUCH, *slot, None)
            }
        };
        if mapping.is_some() {
            encode_extent(layout, pool, index, mapping, body);
        }
        Encoder::new(header).u8(kind).bytes(&[0; 3]).u32(index);
    }
}

impl Replayed {
    /// Reads one record; `None` where it cannot be one of this pool's.
    fn decode(layout: Layout, pool: PoolId, extents: u32, fields: &mut Decoder<'_>) -> Option<Self> {
        let kind = fields.u8()?;
        let _reserved = fields.array::<3>()?;
        let index = fields.u32()?;
        match kind {
            KIND_VOLUME if index < VOLUMES_MAX => {
                let entry = decode_volume(pool, index, fields.bytes(VOLUME_ENTRY_BYTES)?).ok()??;
                Some(Self::Volume { slot: index, entry: Box::new(entry) })
            }
            KIND_EXTENT if index < extents => {
                let body = fields.bytes(extent_record_bytes(layout))?;
                Some(Self::Extent { index, mapping: Some(decode_extent(layout, pool, index, body)??) })
            }
            KIND_EXTENT_FREE if index < extents => Some(Self::Extent { index, mapping: None }),
            KIND_HOLES => {
                let body = fields.bytes(extent_record_bytes(layout))?;
                Some(Self::Holes { index, mapping: Some(decode_extent(layout, pool, index, body)??) })
            }
            KIND_HOLES_FREE => Some(Self::Holes { index, mapping: None }),
            KIND_SECTOR | KIND_SECTOR_AND_CONTENT if index < extents && layout.has_records() => {
                let of = SectorId { extent: index, sector: fields.u32()? };
                let record = decode_record(pool, of, fields.bytes(SECTOR_RECORD_BYTES)?)?;
                if record.sequence >= RECORD_SEQUENCE_MAX {
                    return None;
                }
                // Which block is known when all records of the batch are.
                let block = (kind == KIND_SECTOR_AND_CONTENT).then_some(0);
                (of.sector < layout.extent_sectors()).then_some(Self::Sector { of, record, block })
            }
            KIND_PLAN if layout.has_digests() => {
                let page = ByteOffset(fields.u64()?.checked_mul(SECTOR)?);
                let planned = Planned { before: fields.array()?, after: fields.array()? };
                Some(Self::Plan { page, planned })
            }
            KIND_ROOT if layout.has_digests() => Some(Self::Root(Root(fields.array()?))),
            KIND_VOUCH if layout.has_digests() && index < VOLUMES_MAX => {
                Some(Self::Vouch { slot: index, mac: fields.array()? })
            }
            _ => None,
        }
    }
}

/// Where the log ends, and what its next block must name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogEnd {
    /// The sequence number of the next block.
    pub(crate) next: u64,
    pub(crate) link: Link,
    /// What everything before it makes.
    pub(crate) state: StateHead,
}

impl LogEnd {
    /// Where the log begins that a superblock names.
    pub(crate) fn start(superblock: &Superblock) -> Self {
        Self { next: superblock.log_start, link: superblock.log_link, state: superblock.state }
    }
}

/// A block's header, checksum verified.
struct Block<'a> {
    session: u64,
    previous: Link,
    sequence: u64,
    /// Blocks that follow in the same batch.
    left: u32,
    payload: &'a [u8],
    checksum: u32,
}

impl<'a> Block<'a> {
    /// `None` for anything that is not a block of this pool, whole.
    fn decode(pool: PoolId, bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Decoder::new(bytes);
        let magic = fields.u32()?;
        let checksum = fields.u32()?;
        let sequence = fields.u64()?;
        let session = fields.u64()?;
        let previous = Link { session: fields.u64()?, checksum: fields.u32()? };
        let left = fields.u32()?;
        let payload_bytes = fields.u32()? as usize;
        let _reserved = fields.u32()?;
        let payload = fields.bytes(payload_bytes)?;
        let whole = magic == MAGIC && block_checksum(pool, bytes) == checksum;
        whole.then_some(Self { session, previous, sequence, left, payload, checksum })
    }
}

/// Covers the pool's id and the block but for the checksum itself.
fn block_checksum(pool: PoolId, block: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&pool.0), &block[..CHECKSUM_AT]);
    crc32c::crc32c_append(sum, &block[CHECKSUM_AT + 4..])
}

/// Why the log cannot be used.
#[derive(Debug)]
pub(crate) enum ReplayError {
    Pool(PoolError),
    /// A block whose checksum is right holds what cannot be: written by something else, or a bug.
    Record {
        sequence: u64,
    },
    /// The log ends at a damaged block, and not because it was never written: later batches are there.
    Block {
        sequence: u64,
    },
}

impl From<PoolError> for ReplayError {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

/// Hands every record of every complete batch to `apply`, in order, and returns where the log ends.
pub(crate) fn replay(
    device: &dyn Device,
    superblock: &Superblock,
    apply: impl FnMut(Replayed),
) -> Result<LogEnd, ReplayError> {
    let mut replay = Replay {
        superblock: *superblock,
        extents: superblock.layout.extents_on(superblock.device_len)?,
        end: LogEnd::start(superblock),
        at: LogEnd::start(superblock),
        state: NextState::batch(superblock.state),
        vouched: None,
        batch: Vec::new(),
        left: 0,
        ciphertexts: VecDeque::new(),
        doubtful: false,
        damage: None,
        apply,
    };
    scan(device, superblock, superblock.log_start, |bytes| replay.block(bytes))?;
    let Replay { end, damage, .. } = replay;
    match damage {
        Some(damage) => Err(damage),
        None if goes_on_behind(device, superblock, end)? => Err(ReplayError::Block { sequence: end.next }),
        None => Ok(end),
    }
}

/// The log being read, block by block.
struct Replay<F> {
    superblock: Superblock,
    extents: u32,
    /// Behind the last batch that counts.
    end: LogEnd,
    /// Behind the last block.
    at: LogEnd,
    /// What the records of the batch make so far, and what those before its first `Vouch` made.
    state: NextState,
    vouched: Option<StateHead>,
    batch: Vec<Replayed>,
    /// Blocks of the batch that are still to come.
    left: u32,
    /// Records of the batch whose ciphertext is still to come, by their place in `batch`.
    ciphertexts: VecDeque<usize>,
    /// The batch lacks a ciphertext: it counts only if it was acknowledged, so if another follows.
    doubtful: bool,
    damage: Option<ReplayError>,
    apply: F,
}

impl<F: FnMut(Replayed)> Replay<F> {
    fn block(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        // As long as blocks with records follow, more blocks do than there are ciphertexts known.
        if self.left > 0 && self.ciphertexts.len() == self.left as usize {
            self.ciphertext(bytes);
            return ControlFlow::Continue(());
        }
        let Some(block) = Block::decode(self.superblock.pool, bytes) else { return ControlFlow::Break(()) };
        let continues = block.sequence == self.at.next && block.previous == self.at.link;
        if !continues || (self.left > 0 && block.left != self.left - 1) {
            return ControlFlow::Break(());
        }
        self.records(&block)
    }

    fn records(&mut self, block: &Block<'_>) -> ControlFlow<()> {
        if self.left == 0 && self.doubtful {
            // This batch names it as durable.
            self.apply_batch();
        }
        let mut fields = Decoder::new(block.payload);
        while !fields.is_empty() {
            let (layout, pool) = (self.superblock.layout, self.superblock.pool);
            let bytes = fields.rest();
            let Some(record) = Replayed::decode(layout, pool, self.extents, &mut fields) else {
                return self.stop(ReplayError::Record { sequence: self.at.next });
            };
            // What comes behind a vouch has none, and a root is what the whole batch begins with.
            let misplaced = match record {
                Replayed::Vouch { .. } => false,
                Replayed::Root(_) => self.vouched.is_some() || !self.batch.is_empty(),
                _ => self.vouched.is_some(),
            };
            if misplaced {
                return self.stop(ReplayError::Record { sequence: self.at.next });
            }
            match record {
                Replayed::Sector { block: Some(_), .. } => self.ciphertexts.push_back(self.batch.len()),
                Replayed::Vouch { .. } => {
                    self.vouched.get_or_insert_with(|| self.state.state());
                }
                _ => {}
            }
            self.state.add(&bytes[..bytes.len() - fields.rest().len()]);
            self.batch.push(record);
        }
        if self.ciphertexts.len() > block.left as usize {
            return self.stop(ReplayError::Record { sequence: self.at.next });
        }
        self.at.link = Link { session: block.session, checksum: block.checksum };
        self.pass(block.left);
        ControlFlow::Continue(())
    }

    fn ciphertext(&mut self, bytes: &[u8]) {
        let of = self.ciphertexts.pop_front().and_then(|nth| self.batch.get_mut(nth));
        if let Some(Replayed::Sector { record, block, .. }) = of {
            let whole = crc32c::crc32c(bytes) == record.checksum;
            self.doubtful |= !whole;
            *block = whole.then_some(self.at.next);
        }
        self.pass(self.left - 1);
    }

    /// Goes behind a block of whose batch `left` blocks are still to come.
    fn pass(&mut self, left: u32) {
        self.at.next += 1;
        self.left = left;
        if left == 0 && !self.doubtful {
            self.apply_batch();
        }
    }

    fn apply_batch(&mut self) {
        self.batch.drain(..).for_each(&mut self.apply);
        let state = self.state.state();
        let vouched = self.vouched.take().unwrap_or(state);
        (self.apply)(Replayed::BatchEnd { start: self.end, state, vouched });
        self.at.state = state;
        self.state = NextState::batch(state);
        self.end = self.at;
        self.doubtful = false;
    }

    fn stop(&mut self, damage: ReplayError) -> ControlFlow<()> {
        self.damage = Some(damage);
        ControlFlow::Break(())
    }
}

/// Whether more than one batch of a session lies behind the end of the log. A session starts a batch only when the one
/// before is durable, so what a power cut leaves behind the end is parts of one batch of each session that was cut.
/// Parts of two mean that the first of them was acknowledged and has been damaged since.
fn goes_on_behind(device: &dyn Device, superblock: &Superblock, end: LogEnd) -> Result<bool, PoolError> {
    let mut last_of_batch: BTreeMap<u64, u64> = BTreeMap::new();
    let mut sequence = end.next;
    let mut two = false;
    scan(device, superblock, end.next, |bytes| {
        let block = Block::decode(superblock.pool, bytes).filter(|block| block.sequence == sequence);
        if let Some(block) = block {
            let last = sequence + u64::from(block.left);
            two |= *last_of_batch.entry(block.session).or_insert(last) != last;
        }
        sequence += 1;
        ControlFlow::Continue(())
    })?;
    Ok(two)
}

/// Hands the blocks from `first` to the end of the lap to `visit`, until it breaks.
fn scan(
    device: &dyn Device,
    superblock: &Superblock,
    first: u64,
    mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), PoolError> {
    let layout = superblock.layout;
    let stop = superblock.log_start + layout.log_blocks();
    let mut next = first;
    while next < stop {
        let to_ring_end = layout.log_blocks() - next % layout.log_blocks();
        let count = to_ring_end.min(stop - next).min(PAGES_PER_TRANSFER);
        let blocks = device.read_metadata(layout.log_block_at(next), SectorCount(count))?;
        for bytes in blocks.as_bytes().chunks_exact(SECTOR_BYTES) {
            if visit(bytes).is_break() {
                return Ok(());
            }
        }
        next += count;
    }
    Ok(())
}

/// The open log, at its end.
#[derive(Debug)]
pub(crate) struct Log {
    layout: Layout,
    pool: PoolId,
    session: u64,
    start: u64,
    end: LogEnd,
}

impl Log {
    /// Continues after `end`, under a session that no one else has.
    pub(crate) fn new(superblock: &Superblock, end: LogEnd, session: u64) -> Self {
        Self { layout: superblock.layout, pool: superblock.pool, session, start: superblock.log_start, end }
    }

    pub(crate) fn end(&self) -> LogEnd {
        self.end
    }

    /// Blocks in use.
    pub(crate) fn used_blocks(&self) -> u64 {
        self.end.next - self.start
    }

    pub(crate) fn free_blocks(&self) -> u64 {
        self.layout.log_blocks() - self.used_blocks()
    }

    /// Gives the blocks before `start` up for reuse. Only once the superblock that says so is durable, twice.
    pub(crate) fn forget_before(&mut self, start: LogEnd) {
        self.start = start.next;
    }

    /// Writes a batch. It counts once the caller's flush has returned.
    ///
    /// # Panics
    ///
    /// Where it is longer than there are free blocks, or a payload is too long: the caller measures.
    pub(crate) fn append(&mut self, device: &dyn Device, batch: &Batch) -> Result<(), PoolError> {
        let blocks = (batch.payloads.len() + batch.ciphertexts.len()) as u64;
        assert!(blocks <= self.free_blocks(), "a batch fits the log");
        let (mut payloads, mut ciphertexts) = (&batch.payloads[..], &batch.ciphertexts[..]);
        let (mut end, mut at) = (self.end, self.end.next);
        // One transfer where the ring's end does not come between.
        while !(payloads.is_empty() && ciphertexts.is_empty()) {
            let to_ring_end = self.layout.log_blocks() - at % self.layout.log_blocks();
            let room = usize::try_from(to_ring_end.min(PAGES_PER_TRANSFER)).unwrap_or(usize::MAX);
            let (front, payloads_left) = payloads.split_at(room.min(payloads.len()));
            let (behind, ciphertexts_left) =
                ciphertexts.split_at((room - front.len()).min(ciphertexts.len()));
            let mut buf = SectorBuf::zeroed(SectorCount(front.len() as u64));
            for (nth, (payload, bytes)) in
                front.iter().zip(buf.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES)).enumerate()
            {
                let left = u32::try_from(payloads.len() + ciphertexts.len() - nth - 1).unwrap_or(u32::MAX);
                let checksum = self.encode_block(end, left, payload, bytes);
                end.next += 1;
                end.link = Link { session: self.session, checksum };
            }
            let transfer =
                Metadata::from_encoding(buf).followed_by(behind.iter().map(|sealed| sealed.as_slice()));
            device.write_metadata(self.layout.log_block_at(at), &transfer)?;
            at += (front.len() + behind.len()) as u64;
            (payloads, ciphertexts) = (payloads_left, ciphertexts_left);
        }
        self.end = LogEnd { next: at, state: batch.state_after(self.end.state), ..end };
        Ok(())
    }

    fn encode_block(&self, end: LogEnd, left: u32, payload: &[u8], out: &mut [u8]) -> u32 {
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Encoder::new(out)
            .u32(MAGIC)
            .u32(0)
            .u64(end.next)
            .u64(self.session)
            .u64(end.link.session)
            .u32(end.link.checksum)
            .u32(left)
            .u32(payload_bytes)
            .u32(0)
            .bytes(payload);
        let checksum = block_checksum(self.pool, out);
        out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        checksum
    }
}

/// Packs records into the payloads of as many blocks as they need.
#[derive(Debug)]
pub(crate) struct Packer {
    layout: Layout,
    pool: PoolId,
    batch: Batch,
}

impl Packer {
    pub(crate) fn new(layout: Layout, pool: PoolId) -> Self {
        Self { layout, pool, batch: Batch::default() }
    }

    /// Blocks needed so far.
    pub(crate) fn blocks(&self) -> u64 {
        (self.batch.payloads.len() + self.batch.ciphertexts.len()) as u64
    }

    /// Blocks that `record` needs more.
    pub(crate) fn blocks_more(&self, record: &Record) -> u64 {
        let content = matches!(record, Record::Sector { ciphertext: Some(_), .. });
        u64::from(self.opens_a_block(record)) + u64::from(content)
    }

    fn opens_a_block(&self, record: &Record) -> bool {
        let used = self.batch.payloads.last().map_or(PAYLOAD_BYTES, Vec::len);
        used + record.encoded_bytes(self.layout) > PAYLOAD_BYTES
    }

    pub(crate) fn push(&mut self, record: Record) {
        if self.opens_a_block(&record) {
            self.batch.payloads.push(Vec::with_capacity(PAYLOAD_BYTES));
        }
        if let Some(payload) = self.batch.payloads.last_mut() {
            let start = payload.len();
            payload.resize(start + record.encoded_bytes(self.layout), 0);
            record.encode(self.layout, self.pool, &mut payload[start..]);
        }
        if let Record::Sector { ciphertext: Some(sealed), .. } = &record {
            self.batch.ciphertexts.push(Arc::clone(sealed));
        }
        self.batch.records.push(record);
    }

    /// The state behind the batch as it is now.
    pub(crate) fn state_after(&self, before: StateHead) -> StateHead {
        self.batch.state_after(before)
    }

    pub(crate) fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }
}

/// Blocks that so many records of plans take.
pub(crate) fn plan_blocks(pages: u64) -> u64 {
    pages.div_ceil((PAYLOAD_BYTES / (RECORD_HEADER_BYTES + PLAN_BODY_BYTES)) as u64)
}

/// Blocks that so many vouches take more, at most.
pub(crate) fn vouch_blocks(vouches: usize) -> u64 {
    vouches.div_ceil(PAYLOAD_BYTES / (RECORD_HEADER_BYTES + VOUCH_BYTES)) as u64
}

const _: () = assert!(RECORD_HEADER_BYTES + VOLUME_ENTRY_BYTES <= PAYLOAD_BYTES);
/// The longest record: an extent of 64 MiB.
const _: () = assert!(RECORD_HEADER_BYTES + 24 + (64 << 20) / (8 * SECTOR_BYTES) <= PAYLOAD_BYTES);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use device::SimulatedDevice;
    use units::ByteLen;

    use super::*;
    use crate::digest::Tables;
    use crate::entry::BranchId;
    use crate::layout::SectorRecords;

    const LINK: Link = Link { session: 1, checksum: 2 };

    fn superblock(log_start: u64) -> Superblock {
        let layout = Layout::new(ByteLen(64 << 10), ByteLen(64 << 10), SectorRecords::Kept).unwrap();
        Superblock {
            version: crate::FORMAT_VERSION,
            pool: PoolId([3; 16]),
            generation: 1,
            layout,
            device_len: ByteLen(16 << 20),
            compat: 0,
            log_start,
            log_link: LINK,
            extent_pages: 0,
            volume_pages: 0,
            hole_pages: 0,
            digest_pages: 0,
            state: StateHead::BEGINNING,
            root: Tables::default().root(),
            next_sequence: 1,
            moving: None,
        }
    }

    fn device() -> Arc<SimulatedDevice> {
        SimulatedDevice::new(ByteLen(16 << 20))
    }

    fn deleted(serial: u64) -> Replayed {
        let entry = VolumeEntry { serial: BranchId(serial), volume: None };
        Replayed::Volume { slot: 0, entry: Box::new(entry) }
    }

    /// One block a record, whatever its size.
    fn payloads(serials: &[u64]) -> Batch {
        let superblock = superblock(0);
        let payload = |serial: &u64| {
            let mut packer = Packer::new(superblock.layout, superblock.pool);
            let entry = VolumeEntry { serial: BranchId(*serial), volume: None };
            packer.push(Record::Volume { slot: 0, entry: Box::new(entry) });
            packer.take().payloads
        };
        Batch { payloads: serials.iter().flat_map(payload).collect(), ..Batch::default() }
    }

    /// A volume entry, then a sector with its ciphertext, one placed already, and one more with its ciphertext.
    fn sectors() -> Batch {
        let superblock = superblock(0);
        let mut packer = Packer::new(superblock.layout, superblock.pool);
        let entry = VolumeEntry { serial: BranchId(77), volume: None };
        packer.push(Record::Volume { slot: 0, entry: Box::new(entry) });
        for (sector, content) in [(3, true), (4, false), (5, true)] {
            let (record, sealed) = sealed(sector);
            let of = SectorId { extent: 1, sector };
            packer.push(Record::Sector { of, record, ciphertext: content.then_some(sealed) });
        }
        packer.take()
    }

    fn sealed(tag: u32) -> (SectorRecord, Arc<Sealed>) {
        let mut buf = SectorBuf::zeroed(SectorCount(1));
        buf.as_mut_bytes().fill(u8::try_from(tag).unwrap());
        let checksum = crc32c::crc32c(buf.as_bytes());
        let record = SectorRecord { sequence: u64::from(tag), checksum, tag: [9; 16] };
        (record, Arc::new(Sealed::from_cipher(buf, vec![record])))
    }

    /// What replay makes of [`sectors`], whose first ciphertext is in block `first`.
    fn replayed_sectors(blocks: [Option<u64>; 2]) -> Vec<Replayed> {
        let sector = |sector, block| Replayed::Sector {
            of: SectorId { extent: 1, sector },
            record: sealed(sector).0,
            block,
        };
        vec![deleted(77), sector(3, blocks[0]), sector(4, None), sector(5, blocks[1])]
    }

    #[test]
    fn ciphertext_comes_back_with_its_record_wherever_the_ring_ends() {
        for start in 0..16 {
            let (device, superblock) = (device(), superblock(start));
            let mut log =
                Log::new(&superblock, LogEnd { next: start, link: LINK, state: StateHead::BEGINNING }, 9);
            log.append(&*device, &sectors()).unwrap();
            log.append(&*device, &payloads(&[5])).unwrap();
            let mut expected = replayed_sectors([Some(start + 1), Some(start + 2)]);
            expected.push(deleted(5));
            assert_eq!(replayed(&device, &superblock), (expected, log.end()));
            assert_eq!(log.used_blocks(), 4);
        }
    }

    #[test]
    fn a_batch_whose_ciphertext_is_not_there_counts_only_if_another_follows() {
        for lost in [1, 2] {
            let (device, superblock) = (device(), superblock(0));
            let start = LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING };
            let mut log = Log::new(&superblock, start, 9);
            log.append(&*device, &sectors()).unwrap();
            device.edit(sector_of(lost), |block| block[17] ^= 1);
            assert_eq!(replayed(&device, &superblock), (vec![], start), "it was never acknowledged");
            log.append(&*device, &payloads(&[5])).unwrap();
            let mut expected = replayed_sectors([1, 2].map(|block| (block != lost).then_some(block)));
            expected.push(deleted(5));
            assert_eq!(
                replayed(&device, &superblock),
                (expected, log.end()),
                "one sector is lost, not the pool"
            );
        }
    }

    fn replayed(device: &SimulatedDevice, superblock: &Superblock) -> (Vec<Replayed>, LogEnd) {
        let mut records = Vec::new();
        let end = replay(device, superblock, |record| match record {
            Replayed::BatchEnd { .. } => {}
            record => records.push(record),
        });
        let end = end.unwrap();
        (records, end)
    }

    fn sector_of(sequence: u64) -> u64 {
        superblock(0).layout.log_block_at(sequence).0 / SECTOR_BYTES as u64
    }

    fn erase(device: &SimulatedDevice, sequence: u64) {
        device.edit(sector_of(sequence), |block| block.fill(0));
    }

    #[test]
    fn a_whole_lap_of_the_ring_is_read_back_from_any_start() {
        for start in 0..16 {
            let (device, superblock) = (device(), superblock(start));
            let mut log =
                Log::new(&superblock, LogEnd { next: start, link: LINK, state: StateHead::BEGINNING }, 9);
            log.append(&*device, &payloads(&(1..=16).collect::<Vec<_>>())).unwrap();
            assert_eq!((log.used_blocks(), log.free_blocks()), (16, 0));
            let (records, end) = replayed(&device, &superblock);
            assert_eq!(records, (1..=16).map(deleted).collect::<Vec<_>>());
            assert_eq!(end, log.end());
        }
    }

    #[test]
    fn a_batch_that_lacks_any_block_does_not_count() {
        for lost in 1..4 {
            let (device, superblock) = (device(), superblock(0));
            let mut log =
                Log::new(&superblock, LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING }, 9);
            log.append(&*device, &payloads(&[1])).unwrap();
            let before = log.end();
            log.append(&*device, &payloads(&[2, 3, 4])).unwrap();
            erase(&device, lost);
            assert_eq!(replayed(&device, &superblock), (vec![deleted(1)], before));
        }
    }

    #[test]
    fn blocks_of_an_attempt_that_was_lost_do_not_continue_the_next() {
        let (device, superblock) = (device(), superblock(0));
        let start = LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING };
        let mut first = Log::new(&superblock, start, 9);
        first.append(&*device, &payloads(&[1])).unwrap();
        first.append(&*device, &payloads(&[2])).unwrap();
        // Power was cut before a flush, and only the second block arrived.
        erase(&device, 0);
        assert_eq!(replayed(&device, &superblock), (vec![], start));
        // The next opening logs the very same thing, so only its session tells its block from the lost one.
        let mut second = Log::new(&superblock, start, 10);
        second.append(&*device, &payloads(&[1])).unwrap();
        assert_eq!(replayed(&device, &superblock), (vec![deleted(1)], second.end()));
    }

    #[test]
    fn a_damaged_block_ends_the_log_if_it_may_never_have_been_acknowledged() {
        for bit in (0..60 * 8).chain([8 * 4000]) {
            let (device, superblock) = (device(), superblock(0));
            let mut log =
                Log::new(&superblock, LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING }, 9);
            log.append(&*device, &payloads(&[1])).unwrap();
            let end = log.end();
            log.append(&*device, &payloads(&[2, 3, 4])).unwrap();
            device.edit(sector_of(1), |block| block[bit / 8] ^= 1 << (bit % 8));
            assert_eq!(replayed(&device, &superblock), (vec![deleted(1)], end), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_block_with_later_batches_behind_it_is_an_error() {
        for (damaged, at) in [(0, 0), (1, 1), (2, 1), (3, 1)] {
            let (device, superblock) = (device(), superblock(0));
            let mut log =
                Log::new(&superblock, LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING }, 9);
            log.append(&*device, &payloads(&[1])).unwrap();
            log.append(&*device, &payloads(&[2, 3, 4])).unwrap();
            log.append(&*device, &payloads(&[5])).unwrap();
            device.edit(sector_of(damaged), |block| block[100] ^= 1);
            let error = replay(&*device, &superblock, |_| {}).unwrap_err();
            assert!(matches!(error, ReplayError::Block { sequence } if sequence == at), "{error:?}");
        }
    }

    #[test]
    fn a_block_of_another_pool_is_not_read() {
        let device = device();
        let mut log =
            Log::new(&superblock(0), LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING }, 9);
        log.append(&*device, &payloads(&[1])).unwrap();
        let other_pool = Superblock { pool: PoolId([4; 16]), ..superblock(0) };
        assert!(replayed(&device, &other_pool).0.is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_is_an_error_not_an_end() {
        let (device, superblock) = (device(), superblock(0));
        let mut log = Log::new(&superblock, LogEnd { next: 0, link: LINK, state: StateHead::BEGINNING }, 9);
        for payload in
            [vec![9; 8], vec![KIND_EXTENT_FREE, 0, 0, 0, 255, 255, 255, 255], vec![KIND_VOLUME, 0, 0]]
        {
            let at = log.end();
            log.append(&*device, &Batch { payloads: vec![payload], ..Batch::default() }).unwrap();
            let here = Superblock { log_start: at.next, log_link: at.link, ..superblock };
            let error = replay(&*device, &here, |_| {}).unwrap_err();
            assert!(matches!(error, ReplayError::Record { sequence } if sequence == at.next), "{error:?}");
        }
    }
}

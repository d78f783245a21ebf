//! A device in memory that loses power on demand.
//!
//! What it promises is what a disk promises and nothing more: a write that returned is read back until the power
//! is cut, and survives a cut only if a flush was called after it. At a cut every write since the last flush is,
//! by the seed, kept, dropped or torn at 512 bytes, and the survivors are applied in a shuffled order. A discarded
//! range keeps its content or reads zeros, by the same rules.
//!
//! With [`SimulatedDevice::make_flush_a_noop`] it lies as some disks do: a test that cannot tell tests nothing.
//! It is no model of a device whose sectors rot; `edit` is there for damage by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use units::{ByteLen, ByteOffset, SECTOR_BYTES, SectorCount};

use crate::{
    Device, DeviceError, DeviceErrorKind, DeviceInfo, DeviceKind, Metadata, Operation, Sealed, SealedSlice,
    SectorBuf,
};

/// What a disk writes whole: the unit in which a write is torn.
const TEAR_BYTES: usize = 512;

/// What a device is called that has no other name.
const NAME: &str = "simulated device";

type Content = [u8; SECTOR_BYTES];

/// A sector's content without the zeros at its end, which the pages of a large pool's tables are full of. Shared, so that a copy
/// of a device costs little.
#[derive(Clone)]
struct Page(Arc<[u8]>);

impl Page {
    fn of(content: &Content) -> Self {
        let len = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Self(content[..len].into())
    }

    fn content(&self) -> Content {
        let mut content = [0; SECTOR_BYTES];
        content[..self.0.len()].copy_from_slice(&self.0);
        content
    }
}

/// Sectors by number, those that were ever written, so that a device of a TiB costs what was written to it.
type Image = BTreeMap<u64, Page>;

/// An error to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which kind of operation fails.
    pub operation: Operation,
    /// How many more of them succeed first.
    pub after: u64,
    /// The error number it fails with, such as EIO or ENOSPC.
    pub errno: Errno,
    /// Whether the following ones fail as well.
    pub lasting: bool,
}

/// A device in memory that loses power on demand.
pub struct SimulatedDevice {
    path: Arc<str>,
    state: Mutex<State>,
    /// Looked at last, where several things are.
    supply: Mutex<Arc<Mutex<Supply>>>,
}

/// What several devices may hang on.
#[derive(Debug)]
struct Supply {
    power: bool,
    /// Writes, discards and flushes so far.
    operations: u64,
    cut_at: Option<u64>,
}

/// What sectors hold that were never written.
#[derive(Clone, Copy, Debug)]
enum Unwritten {
    Zeros,
    /// What somebody else left there: noise, by the seed.
    Noise(u64),
}

impl Unwritten {
    fn content(self, sector: u64) -> Content {
        let mut page = [0; SECTOR_BYTES];
        if let Self::Noise(seed) = self {
            let mut random = SplitMix64(seed ^ sector.wrapping_mul(0xd134_2543_de82_ef95));
            page.as_chunks_mut().0.iter_mut().for_each(|word| *word = random.next().to_le_bytes());
        }
        page
    }
}

struct State {
    len: u64,
    unwritten: Unwritten,
    /// What survives a power cut whatever happens.
    durable: Image,
    /// What a read returns where it differs from `durable`.
    cached: Image,
    /// Writes since the last flush in the order of their return.
    pending: Vec<PendingWrite>,
    /// Sectors that cannot be read until they are written.
    unreadable: BTreeSet<u64>,
    flush_is_noop: bool,
    /// How many flushes the next write misses, or whether the next flush does nothing.
    misses_flushes: u8,
    failed_flush: Option<Errno>,
    faults: Vec<Fault>,
    reads: u64,
    writes: u64,
    flushes: u64,
}

#[derive(Clone)]
struct PendingWrite {
    first: u64,
    /// `None` for a discard.
    data: Option<Vec<Page>>,
    sectors: u64,
    /// Flushes that leave it out.
    late: u8,
}

/// Which of the writes since the last flush survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    All,
    Nothing,
    /// Some, some in part, and in any order; the same for the same seed.
    Random(u64),
}

impl fmt::Debug for SimulatedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDevice").field("info", &self.info()).finish_non_exhaustive()
    }
}

impl SimulatedDevice {
    /// A device of zeros. A partial last sector is not part of it.
    pub fn new(len: ByteLen) -> Arc<Self> {
        Self::with_image(NAME.into(), len.0 - len.0 % SECTOR_BYTES as u64, Unwritten::Zeros, Image::new())
    }

    /// The same content under another name, all of it durable.
    #[must_use]
    pub fn named(&self, path: &str) -> Arc<Self> {
        let state = self.state();
        let mut image = state.durable.clone();
        image.extend(state.cached.iter().map(|(sector, page)| (*sector, page.clone())));
        Self::with_image(path.into(), state.len, state.unwritten, image)
    }

    /// A device that somebody else has used: every sector of it holds noise, the same for the same seed. What is discarded
    /// before it was ever written keeps it.
    pub fn filled_with_noise(len: ByteLen, seed: u64) -> Arc<Self> {
        Self::with_image(
            NAME.into(),
            len.0 - len.0 % SECTOR_BYTES as u64,
            Unwritten::Noise(seed),
            Image::new(),
        )
    }

    fn with_image(path: Arc<str>, len: u64, unwritten: Unwritten, durable: Image) -> Arc<Self> {
        Arc::new(Self {
            path,
            state: Mutex::new(State {
                len,
                unwritten,
                durable,
                cached: Image::new(),
                pending: Vec::new(),
                unreadable: BTreeSet::new(),
                flush_is_noop: false,
                misses_flushes: 0,
                failed_flush: None,
                faults: Vec::new(),
                reads: 0,
                writes: 0,
                flushes: 0,
            }),
            supply: Mutex::new(Arc::new(Mutex::new(Supply { power: true, operations: 0, cut_at: None }))),
        })
    }

    fn supply(&self) -> Arc<Mutex<Supply>> {
        Arc::clone(&self.supply.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_supply<T>(&self, with: impl FnOnce(&mut Supply) -> T) -> T {
        with(&mut self.supply().lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hangs this device on the power supply of another: their operations are counted together, and they lose power together.
    pub fn share_power_with(&self, other: &Self) {
        let supply = other.supply();
        *self.supply.lock().unwrap_or_else(PoisonError::into_inner) = supply;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a flush reports success and makes nothing durable.
    pub fn make_flush_a_noop(&self) {
        self.state().flush_is_noop = true;
    }

    /// Breaks the order of writes: if what comes next is a write, so many flushes behind it leave it out, and only the one after
    /// those makes it durable; if it is a flush, it reports success and makes nothing durable.
    pub fn miss_flushes(&self, count: u8) {
        self.state().misses_flushes = count;
    }

    /// Writes and discards that no flush has made durable yet.
    pub fn unflushed(&self) -> usize {
        self.state().pending.len()
    }

    /// Makes reads of a sector fail, as of one that went bad, until it is written or made readable.
    pub fn make_unreadable(&self, sector: u64) {
        self.state().unreadable.insert(sector);
    }

    /// The sector can be read again, and holds what it held.
    pub fn make_readable(&self, sector: u64) {
        self.state().unreadable.remove(&sector);
    }

    /// Makes a later operation fail.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Removes all injected errors; a failed flush stays failed.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Writes, discards and flushes so far, whether or not they succeeded.
    pub fn operations(&self) -> u64 {
        self.with_supply(|supply| supply.operations)
    }

    /// Reads so far, whether or not they succeeded.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// Writes so far, whether or not they succeeded.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// Lets power fail during the operation with this number (the first is 0; reads do not count): that operation
    /// and every later one fail. A write it hits may be kept, dropped or torn as any other since the last flush.
    pub fn cut_power_at(&self, operation: u64) {
        self.with_supply(|supply| supply.cut_at = Some(operation));
    }

    /// Whether a cut set by [`Self::cut_power_at`] has happened.
    pub fn has_power(&self) -> bool {
        self.with_supply(|supply| supply.power)
    }

    /// Cuts the power: this device answers nothing from here on, and the one returned holds what survived.
    pub fn power_cut(&self, seed: u64) -> Arc<Self> {
        self.power_cut_leaving(Survivors::Random(seed))
    }

    /// As [`Self::power_cut`], also where all or nothing survived that was not flushed.
    pub fn power_cut_leaving(&self, survivors: Survivors) -> Arc<Self> {
        self.with_supply(|supply| supply.power = false);
        let state = self.state();
        let mut image = state.durable.clone();
        match survivors {
            Survivors::Nothing => {}
            Survivors::All => state.pending.iter().for_each(|write| write.arrive(&mut image)),
            Survivors::Random(seed) => {
                let mut random = SplitMix64(seed);
                let mut order: Vec<&PendingWrite> = state.pending.iter().collect();
                random.shuffle(&mut order);
                let unwritten = state.unwritten;
                order.iter().for_each(|write| write.survive(&mut image, unwritten, &mut random));
            }
        }
        let device = Self::with_image(Arc::clone(&self.path), state.len, state.unwritten, image);
        device.state().unreadable.clone_from(&state.unreadable);
        device
    }

    /// The same content on a new device, as after the process that used it was killed: nothing is lost, and what was
    /// not flushed still may be.
    pub fn reopened(&self) -> Arc<Self> {
        self.with_supply(|supply| supply.power = false);
        let mut state = self.state();
        let device =
            Self::with_image(Arc::clone(&self.path), state.len, state.unwritten, state.durable.clone());
        {
            let mut next = device.state();
            next.cached = state.cached.clone();
            next.pending = std::mem::take(&mut state.pending);
            next.flush_is_noop = state.flush_is_noop;
            next.unreadable.clone_from(&state.unreadable);
        }
        device
    }

    /// A copy of what is readable now, all of it durable: to damage and to open without touching this one.
    pub fn durable_copy(&self) -> Arc<Self> {
        let state = self.state();
        let mut image = state.durable.clone();
        image.extend(state.cached.iter().map(|(sector, page)| (*sector, page.clone())));
        Self::with_image(Arc::clone(&self.path), state.len, state.unwritten, image)
    }

    /// Changes the bytes of one sector on the medium and in the cache.
    ///
    /// # Panics
    ///
    /// Where the device has no such sector.
    pub fn edit(&self, sector: u64, change: impl FnOnce(&mut [u8])) {
        let mut state = self.state();
        assert!((sector + 1) * SECTOR_BYTES as u64 <= state.len, "sector {sector} is past the end");
        let mut content = state.content(sector);
        change(&mut content[..]);
        state.cached.remove(&sector);
        state.durable.insert(sector, Page::of(&content));
    }

    /// Gives the device another length, as when a disk is resized below a running system.
    pub fn set_len(&self, len: ByteLen) {
        let mut state = self.state();
        state.len = len.0 - len.0 % SECTOR_BYTES as u64;
        let end = state.len / SECTOR_BYTES as u64;
        state.durable.retain(|sector, _| *sector < end);
        state.cached.retain(|sector, _| *sector < end);
        state.pending.retain(|write| write.first + write.sectors <= end);
    }

    /// The sectors that were written and are not all zero, in order.
    pub fn content(&self) -> Vec<(u64, Vec<u8>)> {
        let state = self.state();
        let mut sectors: Vec<u64> = state.durable.keys().chain(state.cached.keys()).copied().collect();
        sectors.sort_unstable();
        sectors.dedup();
        let pages = sectors.into_iter().map(|sector| (sector, state.content(sector).to_vec()));
        pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0)).collect()
    }

    /// Range, injected errors and power, before anything is transferred.
    fn begin(
        &self,
        state: &mut State,
        operation: Operation,
        at: ByteOffset,
        len: ByteLen,
    ) -> Result<(), DeviceError> {
        if !self.has_power() {
            return Err(DeviceError::from_errno(Errno::EIO, operation, &self.path).at(at, len));
        }
        if state.failed_flush.is_some() && operation != Operation::Read {
            return Err(DeviceError::new(DeviceErrorKind::Failed, operation, &self.path));
        }
        let inside = at.checked_add(len).is_some_and(|end| end.0 <= state.len);
        if !inside || !at.is_sector_aligned() || !len.is_sector_aligned() {
            return Err(DeviceError::new(DeviceErrorKind::OutOfRange, operation, &self.path).at(at, len));
        }
        if let Some(errno) = state.fault_for(operation) {
            return Err(DeviceError::from_errno(errno, operation, &self.path).at(at, len));
        }
        Ok(())
    }

    /// Counts an operation; the error where power fails during it.
    fn count(&self, operation: Operation) -> Result<(), DeviceError> {
        let cut = self.with_supply(|supply| {
            let number = supply.operations;
            supply.operations += 1;
            let cut = supply.cut_at.is_some_and(|cut| number >= cut);
            supply.power &= !cut;
            cut
        });
        if cut { Err(DeviceError::from_errno(Errno::EIO, operation, &self.path)) } else { Ok(()) }
    }

    fn read_buf(&self, at: ByteOffset, count: SectorCount) -> Result<SectorBuf, DeviceError> {
        let mut state = self.state();
        state.reads += 1;
        self.begin(&mut state, Operation::Read, at, count.byte_len().unwrap_or(ByteLen(u64::MAX)))?;
        let mut buf = SectorBuf::zeroed(count);
        let first = at.0 / SECTOR_BYTES as u64;
        if state.unreadable.range(first..first + count.0).next().is_some() {
            let error = DeviceError::from_errno(Errno::EIO, Operation::Read, &self.path);
            return Err(error.at(at, ByteLen(buf.as_bytes().len() as u64)));
        }
        for (sector, bytes) in (first..).zip(buf.as_mut_bytes().chunks_exact_mut(SECTOR_BYTES)) {
            match (state.written(sector), state.unwritten) {
                (Some(page), _) => bytes[..page.0.len()].copy_from_slice(&page.0),
                (None, Unwritten::Zeros) => {}
                (None, noise) => bytes.copy_from_slice(&noise.content(sector)),
            }
        }
        Ok(buf)
    }

    fn write_bytes(&self, at: ByteOffset, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut state = self.state();
        self.begin(&mut state, Operation::Write, at, ByteLen(bytes.len() as u64))?;
        state.writes += 1;
        let first = at.0 / SECTOR_BYTES as u64;
        let pages: Vec<Page> = bytes.as_chunks::<SECTOR_BYTES>().0.iter().map(Page::of).collect();
        let sectors = pages.len() as u64;
        state.pend(first, sectors, Some(pages.clone()));
        self.count(Operation::Write)?;
        state.cached.extend((first..).zip(pages));
        state.unreadable.retain(|sector| !(first..first + sectors).contains(sector));
        Ok(())
    }
}

impl State {
    fn written(&self, sector: u64) -> Option<&Page> {
        self.cached.get(&sector).or_else(|| self.durable.get(&sector))
    }

    fn content(&self, sector: u64) -> Content {
        self.written(sector).map_or_else(|| self.unwritten.content(sector), Page::content)
    }

    fn pend(&mut self, first: u64, sectors: u64, data: Option<Vec<Page>>) {
        let late = std::mem::take(&mut self.misses_flushes);
        self.pending.push(PendingWrite { first, data, sectors, late });
    }

    /// Makes everything durable but for what is late.
    fn settle(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending.iter().all(|write| write.late == 0) {
            let cached = std::mem::take(&mut self.cached);
            self.durable.extend(cached);
            return;
        }
        for (index, write) in pending.iter().enumerate() {
            if write.late == 0 {
                write.arrive(&mut self.durable);
            } else if !pending[index + 1..].iter().any(|newer| newer.overlaps(write)) {
                self.pending.push(PendingWrite { late: write.late - 1, ..write.clone() });
            }
        }
        let late = |sector: &u64| {
            self.pending.iter().any(|write| (write.first..write.first + write.sectors).contains(sector))
        };
        self.cached.retain(|sector, _| late(sector));
    }

    fn fault_for(&mut self, operation: Operation) -> Option<Errno> {
        let index = self.faults.iter().position(|fault| fault.operation == operation)?;
        let fault = &mut self.faults[index];
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        let errno = fault.errno;
        if !fault.lasting {
            self.faults.remove(index);
        }
        Some(errno)
    }
}

impl PendingWrite {
    fn overlaps(&self, other: &Self) -> bool {
        self.first < other.first + other.sectors && other.first < self.first + self.sectors
    }

    /// Lets all of it reach the image.
    fn arrive(&self, image: &mut Image) {
        match &self.data {
            Some(pages) => image.extend((self.first..).zip(pages.iter().cloned())),
            None => {
                let zeros = Page::of(&[0; SECTOR_BYTES]);
                let range = image.range_mut(self.first..self.first + self.sectors);
                range.for_each(|(_, page)| *page = zeros.clone());
            }
        }
    }

    /// Lets as much of it reach the image as the random numbers say.
    fn survive(&self, image: &mut Image, unwritten: Unwritten, random: &mut SplitMix64) {
        // A quarter of the writes is kept whole, a quarter dropped whole, the rest decided unit by unit.
        match random.below(4) {
            0 => return self.arrive(image),
            1 => return,
            _ => {}
        }
        let Some(pages) = &self.data else {
            // What was never written stays as it was.
            for page in image.range_mut(self.first..self.first + self.sectors).map(|(_, page)| page) {
                *page = Page::of(&mix(&page.content(), &[0; SECTOR_BYTES], random));
            }
            return;
        };
        for (sector, page) in (self.first..).zip(pages) {
            let before = image.get(&sector).map_or_else(|| unwritten.content(sector), Page::content);
            image.insert(sector, Page::of(&mix(&before, &page.content(), random)));
        }
    }
}

/// A sector of which some units are old and some new.
fn mix(old: &Content, new: &Content, random: &mut SplitMix64) -> Content {
    let mut mixed = *old;
    for unit in (0..SECTOR_BYTES).step_by(TEAR_BYTES) {
        if random.below(2) == 0 {
            mixed[unit..unit + TEAR_BYTES].copy_from_slice(&new[unit..unit + TEAR_BYTES]);
        }
    }
    mixed
}

impl Device for SimulatedDevice {
    fn len(&self) -> ByteLen {
        ByteLen(self.state().len)
    }

    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        Ok(self.len())
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            path: self.path.to_string(),
            kind: DeviceKind::Simulated,
            len: self.len(),
            direct: true,
            batched: false,
        }
    }

    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        self.read_buf(at, count).map(Sealed::from_device)
    }

    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.read_buf(at, count).map(Metadata::from_device)
    }

    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        self.write_bytes(at, data.as_bytes())
    }

    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        self.write_bytes(at, data.as_bytes())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let mut state = self.state();
        let begun = self.begin(&mut state, Operation::Flush, ByteOffset(0), ByteLen(0));
        if let Err(error) = begun {
            if self.has_power() && state.failed_flush.is_none() {
                state.failed_flush = Some(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
            }
            return Err(error.with_kind(DeviceErrorKind::Failed));
        }
        self.count(Operation::Flush).map_err(|error| error.with_kind(DeviceErrorKind::Failed))?;
        if std::mem::take(&mut state.misses_flushes) > 0 {
            return Ok(());
        }
        state.flushes += 1;
        if !state.flush_is_noop {
            state.settle();
        }
        Ok(())
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        let mut state = self.state();
        self.begin(&mut state, Operation::Discard, at, len)?;
        let first = at.0 / SECTOR_BYTES as u64;
        let sectors = len.0 / SECTOR_BYTES as u64;
        state.pend(first, sectors, None);
        self.count(Operation::Discard)?;
        let range = first..first + sectors;
        let held = |image: &Image| image.range(range.clone()).map(|(sector, _)| *sector).collect::<Vec<_>>();
        let sectors = [held(&state.durable), held(&state.cached)].concat();
        let zeros = Page::of(&[0; SECTOR_BYTES]);
        state.cached.extend(sectors.into_iter().map(|sector| (sector, zeros.clone())));
        Ok(())
    }

    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        self.begin(&mut self.state(), Operation::Reserve, at, len)
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014). Small and the same everywhere, so a seed
/// replays.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(fill: u8) -> Sealed {
        let mut buf = SectorBuf::zeroed(SectorCount(1));
        buf.as_mut_bytes().fill(fill);
        Sealed::from_device(buf)
    }

    fn first_sector(device: &SimulatedDevice) -> Vec<u8> {
        device.read(ByteOffset(0), SectorCount(1)).unwrap().as_bytes().to_vec()
    }

    /// The first sector after each of many cuts of a device with one flushed and two later writes.
    fn survivors(prepare: impl Fn(&SimulatedDevice)) -> Vec<Vec<u8>> {
        (0..200)
            .map(|seed| {
                let device = SimulatedDevice::new(ByteLen(1 << 20));
                prepare(&device);
                first_sector(&device.power_cut(seed))
            })
            .collect()
    }

    fn write(device: &SimulatedDevice, fill: u8) {
        device.write(ByteOffset(0), sealed(fill).as_slice()).unwrap();
    }

    #[test]
    fn a_flushed_write_survives_every_cut() {
        let all = survivors(|device| {
            write(device, 1);
            device.flush().unwrap();
        });
        assert!(all.iter().all(|page| page.iter().all(|byte| *byte == 1)));
    }

    #[test]
    fn unflushed_writes_are_kept_dropped_torn_and_reordered() {
        let all = survivors(|device| {
            write(device, 1);
            device.flush().unwrap();
            write(device, 2);
            write(device, 3);
        });
        let whole = |fill: u8| all.iter().filter(|page| page.iter().all(|byte| *byte == fill)).count();
        assert!(whole(1) > 0 && whole(2) > 0 && whole(3) > 0);
        assert!(whole(1) + whole(2) + whole(3) < all.len());
        for page in &all {
            for unit in page.chunks(TEAR_BYTES) {
                assert!((1..=3).contains(&unit[0]) && unit.iter().all(|byte| *byte == unit[0]));
            }
        }
    }

    #[test]
    fn with_flush_a_noop_a_flushed_write_is_lost() {
        let all = survivors(|device| {
            device.make_flush_a_noop();
            write(device, 1);
            device.flush().unwrap();
        });
        assert!(all.iter().any(|page| page.iter().all(|byte| *byte == 0)));
    }

    #[test]
    fn power_cut_at_an_operation_ends_it_and_all_later_ones() {
        let device = SimulatedDevice::new(ByteLen(1 << 20));
        device.cut_power_at(2);
        write(&device, 1);
        device.flush().unwrap();
        assert!(device.write(ByteOffset(0), sealed(2).as_slice()).is_err());
        assert!(!device.has_power());
        assert!(device.read(ByteOffset(0), SectorCount(1)).is_err());
        assert_eq!(device.flush().unwrap_err().kind(), DeviceErrorKind::Failed);
        let found = first_sector(&device.power_cut(7));
        assert!(found.chunks(TEAR_BYTES).all(|unit| unit[0] == 1 || unit[0] == 2));
    }

    #[test]
    fn devices_on_one_supply_are_counted_together_and_lose_power_together() {
        let first = SimulatedDevice::new(ByteLen(1 << 20));
        let second = SimulatedDevice::new(ByteLen(1 << 20)).named("the second");
        second.share_power_with(&first);
        first.cut_power_at(2);
        write(&first, 1);
        second.flush().unwrap();
        assert_eq!((first.operations(), second.operations()), (2, 2));
        assert!(second.write(ByteOffset(0), sealed(2).as_slice()).is_err());
        assert!(!first.has_power());
        assert!(first.read(ByteOffset(0), SectorCount(1)).is_err());
        assert!(first.power_cut(1).has_power());
        let second = second.power_cut(1);
        assert!(second.has_power() && second.info().path == "the second");
    }

    #[test]
    fn the_same_seed_leaves_the_same_image() {
        let cut = |seed| {
            let device = SimulatedDevice::new(ByteLen(1 << 20));
            (1..50).for_each(|fill| write(&device, fill));
            device.power_cut(seed).content()
        };
        assert_eq!(cut(5), cut(5));
        assert_ne!(cut(5), cut(6));
    }

    #[test]
    fn injected_errors_hit_what_they_name_and_a_failed_flush_stays_failed() {
        let device = SimulatedDevice::new(ByteLen(1 << 20));
        let fault = |operation, after, errno| Fault { operation, after, errno, lasting: false };
        device.inject(fault(Operation::Write, 1, Errno::ENOSPC));
        write(&device, 1);
        let error = device.write(ByteOffset(0), sealed(2).as_slice()).unwrap_err();
        assert_eq!(error.kind(), DeviceErrorKind::NoSpace);
        write(&device, 3);
        device.inject(fault(Operation::Flush, 0, Errno::EIO));
        assert_eq!(device.flush().unwrap_err().kind(), DeviceErrorKind::Failed);
        device.clear_faults();
        assert_eq!(device.flush().unwrap_err().kind(), DeviceErrorKind::Failed);
        let refused = device.write(ByteOffset(0), sealed(4).as_slice()).unwrap_err();
        assert_eq!(refused.kind(), DeviceErrorKind::Failed);
        assert_eq!(first_sector(&device)[0], 3);
    }

    #[test]
    fn a_killed_process_loses_nothing_but_its_successor_may() {
        let device = SimulatedDevice::new(ByteLen(1 << 20));
        write(&device, 1);
        let next = device.reopened();
        assert_eq!(first_sector(&next)[0], 1);
        let lost = (0..50).any(|seed| {
            let device = SimulatedDevice::new(ByteLen(1 << 20));
            write(&device, 1);
            first_sector(&device.reopened().power_cut(seed))[0] == 0
        });
        assert!(lost);
    }

    #[test]
    fn noise_is_there_until_it_is_written_over_and_through_cuts() {
        let device = SimulatedDevice::filled_with_noise(ByteLen(1 << 20), 5);
        let noise = |device: &SimulatedDevice, sector: u64| {
            device.read(ByteOffset(sector * 4096), SectorCount(1)).unwrap().as_bytes().to_vec()
        };
        let (first, second) = (noise(&device, 0), noise(&device, 1));
        assert!(first != second && first.iter().any(|byte| *byte != 0));
        write(&device, 1);
        let found = noise(&device.power_cut_leaving(Survivors::Nothing), 0);
        assert_eq!(found, first);
        let device = SimulatedDevice::filled_with_noise(ByteLen(1 << 20), 5);
        write(&device, 1);
        device.flush().unwrap();
        let device = device.power_cut(3);
        assert_eq!((noise(&device, 0)[0], noise(&device, 1)), (1, second));
        // A torn write leaves noise beside what is new.
        let torn = (0..50).any(|seed| {
            let device = SimulatedDevice::filled_with_noise(ByteLen(1 << 20), 5);
            write(&device, 1);
            let found = noise(&device.power_cut(seed), 0);
            let mut units = found.chunks(TEAR_BYTES).zip(first.chunks(TEAR_BYTES));
            units.clone().any(|(unit, old)| unit == old)
                && units.any(|(unit, _)| unit[0] == 1 && unit[1] == 1)
        });
        assert!(torn);
    }

    #[test]
    fn a_tebibyte_costs_what_is_written_to_it() {
        let device = SimulatedDevice::new(ByteLen(1 << 40));
        device.write(ByteOffset((1 << 40) - 4096), sealed(9).as_slice()).unwrap();
        assert_eq!(device.content().len(), 1);
    }
}

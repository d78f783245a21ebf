//! The device that a pool is on; while the pool moves to another one, both.
//!
//! Invariants:
//! - What is read comes from the device that the pool is on, and that alone decides what a call returns. The other one takes every
//!   write, discard and flush too, the superblock's sectors excepted: what stands there says which of the two is the pool.
//! - No two changes that lie over each other are on their way at the same time while there are two devices, and copying a range is
//!   one of them. So both devices see the same order, and what is copied never lies over what is newer.
//! - A flush returns only once the other device has flushed too, or has failed. Once it has failed it is written to no more, and
//!   whoever flushed asks whether it has ([`PoolDevice::copy_has_failed`]) before he builds on it.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use device::{Device, DeviceError, DeviceErrorKind, DeviceInfo, Metadata, Sealed, SealedSlice, SectorBuf};
use units::{ByteLen, ByteOffset, SectorCount};

use crate::commit::lock;
use crate::layout::{SECTOR, SUPERBLOCK_SECTORS};

/// What lies before it is each device's own.
const COPIED_FROM: u64 = (SUPERBLOCK_SECTORS[1] + 1) * SECTOR;

/// Where a pool is.
#[derive(Debug)]
pub(crate) struct PoolDevice {
    devices: RwLock<Devices>,
}

#[derive(Debug)]
struct Devices {
    current: Arc<dyn Device>,
    copy: Option<Arc<CopyDevice>>,
}

/// Where a pool is being moved to.
#[derive(Debug)]
pub(crate) struct CopyDevice {
    device: Arc<dyn Device>,
    /// The first error, with which it stopped being a copy.
    failed: OnceLock<DeviceError>,
    turns: Turns,
}

/// What copying a range came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Sectors that the device does not read: they are zeros in the copy.
    pub(crate) unreadable: u64,
}

/// Why a range was not copied.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The device that the pool is on.
    Source(DeviceError),
    /// The other one.
    Copy(DeviceError),
}

impl CopyDevice {
    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    pub(crate) fn failure(&self) -> Option<&DeviceError> {
        self.failed.get()
    }

    /// It lacks something from here on, or cannot say what it has.
    pub(crate) fn fail(&self, error: DeviceError) {
        tracing::error!(device = self.device.info().path, %error, "the device that a pool is being moved to has failed");
        let _ = self.failed.set(error);
    }

    /// Flushes it alone.
    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        self.still_good()?;
        self.device.flush().inspect_err(|error| self.fail(error.clone()))
    }

    fn still_good(&self) -> Result<(), DeviceError> {
        self.failure().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl PoolDevice {
    pub(crate) fn new(current: Arc<dyn Device>, copy: Option<Arc<dyn Device>>) -> Arc<Self> {
        let copy = copy.map(CopyDevice::new);
        Arc::new(Self { devices: RwLock::new(Devices { current, copy }) })
    }

    /// Held through every transfer, so that no device comes or goes in the middle of one.
    fn devices(&self) -> RwLockReadGuard<'_, Devices> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices_alone(&self) -> RwLockWriteGuard<'_, Devices> {
        self.devices.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn copy(&self) -> Option<Arc<CopyDevice>> {
        self.devices().copy.clone()
    }

    /// From when this returns on, everything that is written is written to `device` too.
    pub(crate) fn begin_copying(&self, device: Arc<dyn Device>) -> Arc<CopyDevice> {
        let copy = CopyDevice::new(device);
        self.devices_alone().copy = Some(Arc::clone(&copy));
        copy
    }

    /// And from now on no more.
    pub(crate) fn end_copying(&self) -> Option<Arc<CopyDevice>> {
        self.devices_alone().copy.take()
    }

    /// The copy is what the pool is on from now on; what it was on.
    pub(crate) fn switch(&self) -> Option<Arc<dyn Device>> {
        let mut devices = self.devices_alone();
        let copy = devices.copy.take()?;
        Some(std::mem::replace(&mut devices.current, Arc::clone(&copy.device)))
    }

    /// Whether the copy lacks something that was written.
    pub(crate) fn copy_has_failed(&self) -> bool {
        self.devices().copy.as_ref().is_some_and(|copy| copy.failure().is_some())
    }

    /// Copies a range, while nobody changes it. A sector that the device does not read is zeros in the copy, where `may_lack` says
    /// that this is told from what was there, or that nothing was.
    pub(crate) fn copy_range(
        &self,
        at: ByteOffset,
        sectors: SectorCount,
        may_lack: &dyn Fn(ByteOffset) -> bool,
    ) -> Result<Copied, CopyError> {
        let devices = self.devices();
        let Some(copy) = &devices.copy else { return Ok(Copied::default()) };
        copy.still_good().map_err(CopyError::Copy)?;
        let _turn = copy.turns.take(vec![at.0..at.0 + sectors.0 * SECTOR]);
        let write = |at: ByteOffset, data: SealedSlice<'_>| {
            let written = copy.device.write(at, data).inspect_err(|error| copy.fail(error.clone()));
            written.map_err(CopyError::Copy)
        };
        match devices.current.read(at, sectors) {
            Ok(found) => write(at, found.as_slice()).map(|()| Copied::default()),
            Err(error) if error.kind() != DeviceErrorKind::Io => Err(CopyError::Source(error)),
            Err(_) => {
                let mut copied = Copied::default();
                for sector in 0..sectors.0 {
                    let at = ByteOffset(at.0 + sector * SECTOR);
                    match devices.current.read(at, SectorCount(1)) {
                        Ok(found) => write(at, found.as_slice())?,
                        Err(error) if !may_lack(at) || error.kind() != DeviceErrorKind::Io => {
                            return Err(CopyError::Source(error));
                        }
                        Err(_) => {
                            let zeros = Metadata::from_encoding(SectorBuf::zeroed(SectorCount(1)));
                            let written = copy.device.write_metadata(at, &zeros);
                            written.inspect_err(|error| copy.fail(error.clone())).map_err(CopyError::Copy)?;
                            copied.unreadable += 1;
                        }
                    }
                }
                Ok(copied)
            }
        }
    }
}

impl CopyDevice {
    fn new(device: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self { device, failed: OnceLock::new(), turns: Turns::default() })
    }
}

impl Devices {
    /// Makes a change of these ranges. What the copy says of it is kept, and nobody's error but its own.
    fn change(
        &self,
        ranges: impl Iterator<Item = (ByteOffset, u64)>,
        change: impl Fn(&dyn Device) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Some(copy) = &self.copy else { return change(&*self.current) };
        let ranges: Vec<Range<u64>> = ranges.map(|(at, len)| at.0..at.0.saturating_add(len)).collect();
        // The superblock is written by itself.
        if ranges.iter().any(|range| range.start < COPIED_FROM) {
            return change(&*self.current);
        }
        let _turn = copy.turns.take(ranges);
        change(&*self.current)?;
        if copy.failure().is_none()
            && let Err(error) = change(&*copy.device)
        {
            copy.fail(error);
        }
        Ok(())
    }
}

fn len_of(data: &SealedSlice<'_>) -> u64 {
    data.as_bytes().len() as u64
}

impl Device for PoolDevice {
    fn len(&self) -> ByteLen {
        self.devices().current.len()
    }

    fn refresh_len(&self) -> Result<ByteLen, DeviceError> {
        self.devices().current.refresh_len()
    }

    fn info(&self) -> DeviceInfo {
        self.devices().current.info()
    }

    fn read(&self, at: ByteOffset, count: SectorCount) -> Result<Sealed, DeviceError> {
        self.devices().current.read(at, count)
    }

    fn read_metadata(&self, at: ByteOffset, count: SectorCount) -> Result<Metadata, DeviceError> {
        self.devices().current.read_metadata(at, count)
    }

    fn write(&self, at: ByteOffset, data: SealedSlice<'_>) -> Result<(), DeviceError> {
        let range = std::iter::once((at, len_of(&data)));
        self.devices().change(range, |device| device.write(at, data))
    }

    fn write_metadata(&self, at: ByteOffset, data: &Metadata) -> Result<(), DeviceError> {
        let range = std::iter::once((at, data.as_bytes().len() as u64));
        self.devices().change(range, |device| device.write_metadata(at, data))
    }

    fn write_many(&self, parts: &[(ByteOffset, SealedSlice<'_>)]) -> Result<(), DeviceError> {
        let ranges = parts.iter().map(|(at, data)| (*at, len_of(data)));
        self.devices().change(ranges, |device| device.write_many(parts))
    }

    fn write_metadata_many(&self, parts: &[(ByteOffset, Metadata)]) -> Result<(), DeviceError> {
        let ranges = parts.iter().map(|(at, data)| (*at, data.as_bytes().len() as u64));
        self.devices().change(ranges, |device| device.write_metadata_many(parts))
    }

    fn read_metadata_many(&self, parts: &[(ByteOffset, SectorCount)]) -> Result<Vec<Metadata>, DeviceError> {
        self.devices().current.read_metadata_many(parts)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let devices = self.devices();
        devices.current.flush()?;
        if let Some(copy) = &devices.copy {
            // What it failed with is asked for behind this.
            let _ = copy.flush();
        }
        Ok(())
    }

    fn discard(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        let devices = self.devices();
        let Some(copy) = &devices.copy else { return devices.current.discard(at, len) };
        let _turn = copy.turns.take(vec![at.0..at.0.saturating_add(len.0)]);
        if copy.failure().is_none() {
            // Nothing depends on it.
            let _ = copy.device.discard(at, len);
        }
        devices.current.discard(at, len)
    }

    fn reserve(&self, at: ByteOffset, len: ByteLen) -> Result<(), DeviceError> {
        let range = std::iter::once((at, len.0));
        self.devices().change(range, |device| device.reserve(at, len))
    }
}

/// Who changes what.
#[derive(Debug, Default)]
struct Turns {
    taken: Mutex<Vec<(u64, Vec<Range<u64>>)>>,
    ended: Condvar,
}

struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// Waits until nobody changes any of it. All at once, so that nobody waits for another while he holds something.
    fn take(&self, ranges: Vec<Range<u64>>) -> Turn<'_> {
        let over =
            |range: &Range<u64>, other: &Range<u64>| range.start < other.end && other.start < range.end;
        let mut taken = lock(&self.taken);
        while taken
            .iter()
            .any(|(_, others)| others.iter().any(|other| ranges.iter().any(|own| over(own, other))))
        {
            taken = self.ended.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        let number = taken.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
        taken.push((number, ranges));
        Turn { turns: self, number }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.turns.taken).retain(|(number, _)| *number != self.number);
        self.turns.ended.notify_all();
    }
}

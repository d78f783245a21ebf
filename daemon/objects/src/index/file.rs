//! The index region as the file that redb works on, and the reserve that lets deletes through when the pool is full.
//!
//! Invariants:
//! - Nothing outside the index region, its length sectors and the reserve is touched from here.
//! - `sync_data` is a flush of the whole volume: whatever was written to the volume before it, bodies included, is durable
//!   after it. The commit order of the store rests on this.
//! - The first error that redb was given is kept: redb itself only remembers that there was one.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use units::{ByteLen, ByteOffset};

use crate::layout::{IndexLength, Layout, Region};
use crate::volume::{BlockError, BlockErrorKind, BlockVolume};

/// Steps in which the reserve is filled: a full pool is noticed within one.
const RESERVE_STEP: u64 = 1 << 20;

/// What every handle on the index file shares.
#[derive(Debug)]
pub(crate) struct IndexFile {
    volume: Arc<dyn BlockVolume>,
    region: Region,
    length: Mutex<IndexLength>,
    reserve: Region,
    /// Bytes of the reserve that are known to take up space.
    reserved: Mutex<u64>,
    fault: Mutex<Option<BlockError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every value behind these locks is replaced whole: a panic elsewhere leaves none half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IndexFile {
    pub(crate) fn new(volume: Arc<dyn BlockVolume>, layout: &Layout, length: IndexLength) -> Self {
        Self {
            volume,
            region: layout.index,
            length: Mutex::new(length),
            reserve: layout.reserve,
            reserved: Mutex::new(0),
            fault: Mutex::new(None),
        }
    }

    /// Size of the index file.
    pub(crate) fn len(&self) -> u64 {
        lock(&self.length).bytes()
    }

    /// Bytes of pages that rows may take. The region has room for twice as many, because redb makes its file longer by
    /// doubling it, takes pages at the new end before it takes those in between, and may do so even for a delete.
    pub(crate) fn capacity(&self) -> u64 {
        self.region.len / 2
    }

    /// Whether the file is so short that the rows in it can't have reached the capacity.
    pub(crate) fn is_below_capacity(&self) -> bool {
        self.len() <= self.capacity()
    }

    /// Takes the first error since the last call.
    pub(crate) fn take_fault(&self) -> Option<BlockError> {
        lock(&self.fault).take()
    }

    /// The first error since it was taken last.
    pub(crate) fn fault(&self) -> Option<BlockError> {
        lock(&self.fault).clone()
    }

    /// Forgets the first error where it was a want of space: that is over. Any other explains what redb says from then on.
    pub(crate) fn forget_shortage(&self) {
        lock(&self.fault).take_if(|error| error.kind() == BlockErrorKind::NoSpace);
    }

    /// Finds out how much of the reserve is there; run once, when the store opens.
    pub(crate) fn measure_reserve(&self) -> Result<(), BlockError> {
        let pieces = self.volume.allocated(self.reserve.position(0), ByteLen(self.reserve.len))?;
        let leading = pieces.iter().take_while(|(_, allocated)| *allocated).map(|(len, _)| len.0).sum();
        *lock(&self.reserved) = leading;
        Ok(())
    }

    /// Whether the reserve is complete; a store without it takes no new data.
    pub(crate) fn has_reserve(&self) -> bool {
        *lock(&self.reserved) == self.reserve.len
    }

    /// Fills the reserve as far as the pool has room.
    pub(crate) fn fill_reserve(&self) -> Result<(), BlockError> {
        let mut reserved = lock(&self.reserved);
        while *reserved < self.reserve.len {
            let step = RESERVE_STEP.min(self.reserve.len - *reserved);
            match self.volume.write_allocated_zeros(self.reserve.position(*reserved), ByteLen(step)) {
                Ok(()) => *reserved += step,
                Err(error) if error.kind() == BlockErrorKind::NoSpace => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the reserve back to the pool, so that the commit under way finds room. False if there was none.
    fn release_reserve(&self) -> Result<bool, BlockError> {
        let mut reserved = lock(&self.reserved);
        if *reserved == 0 {
            return Ok(false);
        }
        *reserved = 0;
        tracing::warn!(
            "the pool is full: the object store uses its reserve and takes no new data until there is room"
        );
        self.volume.trim(self.reserve.position(0), ByteLen(self.reserve.len))?;
        // Space is free for others only once giving it up is durable. Flushing early harms nothing: what redb has
        // written so far is not yet referred to by any root.
        self.volume.flush()?;
        Ok(true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let at = self.position(offset, data.len())?;
        match self.volume.write(at, data) {
            Err(error) if error.kind() == BlockErrorKind::NoSpace && self.release_reserve()? => {
                self.volume.write(at, data)
            }
            result => result,
        }
    }

    fn set_len(&self, bytes: u64) -> Result<(), BlockError> {
        if bytes > self.region.len {
            return Err(BlockError::new(BlockErrorKind::NoSpace, "the index fills its region of the volume"));
        }
        let mut length = lock(&self.length);
        let before = length.bytes();
        length.set(&*self.volume, bytes)?;
        if bytes < before {
            // What grows again must read as zeros.
            self.volume.trim(self.region.position(bytes), ByteLen(before - bytes))?;
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), BlockError> {
        let generation = lock(&self.length).generation();
        self.volume.flush()?;
        lock(&self.length).flushed(generation);
        Ok(())
    }

    fn position(&self, offset: u64, len: usize) -> Result<ByteOffset, BlockError> {
        let end = offset.checked_add(len as u64);
        if end.is_some_and(|end| end <= self.region.len) {
            return Ok(self.region.position(offset));
        }
        Err(BlockError::new(BlockErrorKind::NoSpace, "the index fills its region of the volume"))
    }

    fn keep_fault<T>(&self, result: Result<T, BlockError>) -> io::Result<T> {
        result.map_err(|error| {
            lock(&self.fault).get_or_insert_with(|| error.clone());
            io::Error::other(error)
        })
    }
}

/// redb owns its backend; the file is shared with the store, which asks it for faults and for the reserve.
#[derive(Debug)]
pub(crate) struct Backend(pub(crate) Arc<IndexFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = &self.0;
        file.keep_fault(file.position(offset, out.len()).and_then(|at| file.volume.read(at, out)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.keep_fault(self.0.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.keep_fault(self.0.sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.keep_fault(self.0.write(offset, data))
    }
}

#[cfg(all(test, feature = "simulated"))]
mod tests {
    use super::*;
    use crate::simulated::SimulatedVolume;

    #[test]
    fn a_shortage_is_forgotten_and_any_other_first_error_is_kept() {
        let volume: Arc<dyn BlockVolume> = Arc::new(SimulatedVolume::new(ByteLen(1 << 30)));
        let layout = Layout::plan(ByteLen(1 << 30), [1; 16]).unwrap();
        layout.prepare(&*volume).unwrap();
        let length = IndexLength::read(&*volume).unwrap();
        let file = IndexFile::new(volume, &layout, length);
        let meet = |kind| file.keep_fault::<()>(Err(BlockError::new(kind, "met"))).unwrap_err();
        let first = || file.fault().map(|error| error.kind());
        meet(BlockErrorKind::NoSpace);
        file.forget_shortage();
        assert_eq!(first(), None);
        for kind in [BlockErrorKind::KeyGone, BlockErrorKind::Io, BlockErrorKind::Failed] {
            meet(kind);
            meet(BlockErrorKind::NoSpace);
            file.forget_shortage();
            assert_eq!(first(), Some(kind));
            file.take_fault();
        }
    }
}

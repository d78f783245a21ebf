//! Sealing anew what lies under an older epoch of a volume's key.
//!
//! A batch of sectors is locked as a write locks it, read and verified, and written under the present epoch: whoever writes there
//! waits or has been, so what a client wrote is never covered by what was there before.

use device::Sealed;
use pool::PoolError;
use units::{ByteLen, ByteOffset, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch};

use crate::clear::{Bound, Clear, seal};
use crate::error::{Cause, Operation, VolumeError};
use crate::locks::Access;
use crate::volume::{BATCH_SECTORS, Inner, Volume};

const SECTOR: u64 = SECTOR_BYTES as u64;

/// What of a volume was sealed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Everything before this has been looked at.
    pub next: Lba,
    /// So much lies under the present epoch that did not.
    pub moved: ByteLen,
    /// Sectors that are not what was written, and stay as they are.
    pub damaged: u64,
}

impl Volume {
    /// Seals the next sectors anew that lie under an older epoch, from a sector on; `None` where there are none. A sector that is
    /// damaged is reported and left as it is.
    pub fn move_next(&self, from: Lba) -> Result<Option<Moved>, VolumeError> {
        let at = ByteOffset(from.0.saturating_mul(SECTOR));
        let failed =
            |cause: Cause| VolumeError::new(Operation::Rekey, at, ByteLen(BATCH_SECTORS * SECTOR), cause);
        let work = || -> Result<Option<Moved>, Cause> {
            self.check_key()?;
            let found = self.inner.pool.next_outdated(from, SectorCount(BATCH_SECTORS))?;
            let Some((first, count)) = found else { return Ok(None) };
            let end = first.0 + count.0;
            let _held = self.inner.locks.lock(first.0..end, Access::Exclusive);
            let (mut moved, mut damaged) = (SectorCount(0), 0);
            match self.inner.rekey(first, count) {
                Ok(all) => moved = all,
                Err(cause) if cause.is_damage() => {
                    for sector in first.0..end {
                        match self.inner.rekey(Lba(sector), SectorCount(1)) {
                            Ok(one) => moved.0 += one.0,
                            Err(cause) if cause.is_damage() => damaged += 1,
                            Err(cause) => return Err(cause),
                        }
                    }
                }
                Err(cause) => return Err(cause),
            }
            Ok(Some(Moved { next: Lba(end), moved: ByteLen(moved.0 * SECTOR), damaged }))
        };
        work().map_err(failed)
    }
}

impl Inner {
    /// Seals what these sectors, which are locked exclusively, hold under other epochs than the present one.
    fn rekey(&self, first: Lba, count: SectorCount) -> Result<SectorCount, Cause> {
        loop {
            let epoch = self.pool.epoch();
            match self
                .pool
                .rewrite(first, count, epoch, |first, under, data| self.reseal(first, (under, epoch), &data))
            {
                // Yet another one began.
                Err(Cause::Pool(PoolError::WrongEpoch { .. })) => {}
                done => return done,
            }
        }
    }

    /// As every write: 1. encrypt, 2. see that the keys were there throughout; the pool does the third step.
    fn reseal(
        &self,
        first: Lba,
        (under, epoch): (VolumeEpoch, VolumeEpoch),
        data: &Sealed,
    ) -> Result<Sealed, Cause> {
        let mut clear = Clear::to_fill(data.sectors());
        self.unseal(data, under, first.0, clear.as_mut_bytes())?;
        let key = self.key_of(first, epoch)?;
        let bound = Bound { domain: self.domain, epoch };
        let sequence = self.pool.take_sequences(epoch, clear.sectors())?;
        Ok(seal(clear, (&self.keys.keyring, key), bound, (first, sequence))?)
    }
}

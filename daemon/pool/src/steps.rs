//! The crash order: every step at which something reaches the device, numbered, and why none may move.

/// A step of the crash order. The tests cut power at every one of them.
///
/// A flush is steps 2 to 4, step 11 behind them where extents became free, step 16 where much waits for its place. When the
/// log has no room left, steps 16, 17, 18 and 5, 17, 18 and 5 again for the tables, then 6, 3 and 4 and 7 to 10 come between 2
/// and 3. Creating and opening a pool have steps of their own, 12
/// to 15; moving it to another device has 19 to 29, on the new device but for 25, 28 and 29 (`replace.rs`).
///
/// | swapped | what breaks |
/// |---|---|
/// | 1 and 2–4 | a sector is present whose content is still what the extent held before: a stranger's ciphertext |
/// | 2 and 3 | as above, after a cut between them |
/// | 3 and 5 | the table names extents by records that are not durable: a cut leaves half a batch, and a torn table page has no log to mend it |
/// | 4 and 11, or 4 and reuse of a freed extent | the old mapping comes back after a cut and shows what the extent's next owner wrote |
/// | 4 and 16 | the place holds what no durable record says: a cut makes the sector unreadable |
/// | 16 and 6 | the log that alone has the ciphertext is given up before it is in its place |
/// | 6 and 7 | the superblock gives up log records that are the only copy of torn or unwritten table pages |
/// | 17 and 5, or 18 and 5 | a page changes that no durable plan names: after a cut it is neither what its digest says nor known to have changed, so what it is about is lost |
/// | 8 and 9 | one cut tears both copies of the superblock |
/// | 10 and reuse of the log | the second copy, should the first be damaged, names log blocks that are overwritten |
/// | 19, 20 and 21 | one copy of the superblock is of an older pool, the other of this one: neither counts |
/// | 22 and the old device's mark that it copies (7–10) | a device is named as a copy that may hold anything |
/// | 23 and 24, or 24 and 21 | a cut leaves the copy without what its superblock says it has, and the move goes on behind it |
/// | 24 and 25 | what was flushed is not on the device that is about to be the pool |
/// | 25 and 26 | both devices say that they are the pool: opened alone, each goes its own way |
/// | 26 and 27, or 27 and the first write that the old device does not get | after a cut the pool is on the old device, which lacks it |
/// | 27 and 28 | after a cut neither device is the pool |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CrashStep {
    /// Ciphertext of sectors whose place holds nothing goes there. They are not present yet, in memory or on disk.
    DataWrite = 1,
    /// The device flush that covers every write replied to so far.
    DataFlush = 2,
    /// The records of sectors, presence, mappings and unmappings go to the log, with the ciphertext of what was in memory.
    LogWrite = 3,
    /// The device flush that makes them count. After it the callers of `flush` are answered.
    LogFlush = 4,
    /// Checkpoint: logged entries go to their place in the tables.
    TableWrite = 5,
    TableFlush = 6,
    /// The first copy of the superblock, which now starts the log behind those entries.
    FirstSuperblockWrite = 7,
    FirstSuperblockFlush = 8,
    SecondSuperblockWrite = 9,
    /// After it the log's blocks are used again.
    SecondSuperblockFlush = 10,
    /// Freed extents are discarded, then given out again. Nothing depends on what a discard does.
    Discard = 11,
    /// Creation: both places of the superblock are zeroed, so that no older pool is left half replaced.
    CreateErase = 12,
    CreateEraseFlush = 13,
    /// Opening: what a killed predecessor wrote and did not flush is made durable before anything is built on it.
    OpenFlush = 14,
    /// Opening: a damaged or older copy of the superblock is written again, and flushed.
    OpenRepair = 15,
    /// Ciphertext of sectors that held something goes from the log to its place, over what was there.
    PlaceWrite = 16,
    /// Checkpoint: which pages change in their places, and into what, goes to the log.
    PlanWrite = 17,
    PlanFlush = 18,
    /// Moving to another device: both places of the superblock are zeroed on the new device.
    IncomingErase = 19,
    IncomingEraseFlush = 20,
    /// Each copy of the superblock says that the pool is not whole there, and how far it is.
    IncomingWrite = 21,
    IncomingFlush = 22,
    /// What the old device has goes to the same place of the new one.
    CopyWrite = 23,
    /// It is durable there, before the superblock says so, and before the pool is handed over.
    CopyFlush = 24,
    /// The old device's superblock is about to say, by steps 7 to 10, that the pool is being handed over.
    HandOver = 25,
    /// Each copy of the new device's superblock says that the pool is there.
    SuccessorWrite = 26,
    /// After it nothing goes to the old device any more.
    SuccessorFlush = 27,
    /// Each copy of the old device's superblock says that the pool is not there any more.
    RetireWrite = 28,
    RetireFlush = 29,
}

impl CrashStep {
    /// Those of a pool that stays on its device, in order.
    pub const ALL: [Self; 18] = [
        Self::DataWrite,
        Self::DataFlush,
        Self::LogWrite,
        Self::LogFlush,
        Self::TableWrite,
        Self::TableFlush,
        Self::FirstSuperblockWrite,
        Self::FirstSuperblockFlush,
        Self::SecondSuperblockWrite,
        Self::SecondSuperblockFlush,
        Self::Discard,
        Self::CreateErase,
        Self::CreateEraseFlush,
        Self::OpenFlush,
        Self::OpenRepair,
        Self::PlaceWrite,
        Self::PlanWrite,
        Self::PlanFlush,
    ];

    /// Those that moving it to another device adds, in order.
    pub const REPLACING: [Self; 11] = [
        Self::IncomingErase,
        Self::IncomingEraseFlush,
        Self::IncomingWrite,
        Self::IncomingFlush,
        Self::CopyWrite,
        Self::CopyFlush,
        Self::HandOver,
        Self::SuccessorWrite,
        Self::SuccessorFlush,
        Self::RetireWrite,
        Self::RetireFlush,
    ];

    /// Its number in the crash order.
    pub fn number(self) -> u8 {
        self as u8
    }
}

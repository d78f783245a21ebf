//! The crash order: every step at which something reaches the device, numbered, and why none may move.

/// A step of the crash order. The tests cut power at every one of them.
///
/// A flush is steps 2 to 4, step 11 behind them where extents became free, step 16 where much waits for its place. When the
/// log has no room left, steps 16, 17, 18 and 5, 17, 18 and 5 again for the tables, then 6, 3 and 4 and 7 to 10 come between 2
/// and 3. Creating and opening a pool have steps of their own, 12
/// to 15. What folding moves goes to its place in step 19, and is made durable by the flush behind it as a write is.
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
/// | 19 and 2–4 | the extent that had a folded sector is freed, and where it was moved to is what was there before |
/// | 10 and reuse of the log | the second copy, should the first be damaged, names log blocks that are overwritten |
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
    /// Folding: ciphertext of sectors of one extent goes to places of another one that hold nothing. They are present there only
    /// when the extent they came from is taken out of the map.
    FoldWrite = 19,
}

impl CrashStep {
    /// All of them in order.
    pub const ALL: [Self; 19] = [
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
        Self::FoldWrite,
    ];

    /// Its number in the crash order.
    pub fn number(self) -> u8 {
        self as u8
    }
}

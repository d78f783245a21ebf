//! A stack of its own for code that handles keys.
//!
//! Ordinary cryptographic crates keep keys in locals, spill registers and return structures by value; what they leave
//! behind lies on whatever stack they ran on. So they run on this one: locked, undumped, between guard pages, and zeroed
//! when the work is done, whether it returned or panicked.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use crate::error::LockedMemoryError;
use crate::map::{Mapping, MemoryKind, Policy};
use crate::wipe::Flush;

/// Size of the stack for grants. X-Wing and HPKE take under 200 KiB in an unoptimised build; the rest is room.
pub const KEY_STACK_BYTES: usize = 1024 * 1024;

/// A locked stack on which one closure at a time runs, wiped after each.
pub struct KeyStack {
    mapping: Mapping,
    flush: Flush,
    /// Held while the stack is in use. Guards nothing that could be left inconsistent, so poisoning is ignored.
    in_use: Mutex<()>,
}

impl fmt::Debug for KeyStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStack").field("kind", &self.kind()).finish_non_exhaustive()
    }
}

impl KeyStack {
    /// A fresh stack of [`KEY_STACK_BYTES`], resident and all zeros.
    ///
    /// # Errors
    /// There is no such memory, or too little may be locked.
    pub fn new(policy: Policy) -> Result<Self, LockedMemoryError> {
        Self::with_bytes(KEY_STACK_BYTES, policy)
    }

    /// As [`KeyStack::new`], of `bytes`, rounded up to whole pages: a smaller one is wiped sooner.
    ///
    /// # Errors
    /// As [`KeyStack::new`].
    pub fn with_bytes(bytes: usize, policy: Policy) -> Result<Self, LockedMemoryError> {
        let mapping = Mapping::new(bytes, policy)?;
        let stack = Self { mapping, flush: Flush::detect(), in_use: Mutex::new(()) };
        stack.flush.zero(stack.words());
        Ok(stack)
    }

    /// What the stack is made of.
    pub fn kind(&self) -> MemoryKind {
        self.mapping.kind()
    }

    /// Asks the kernel to refuse every later change of the mapping (`mseal`); says whether it did. A sealed stack stays mapped
    /// until the process ends, so this is for programs that make one.
    pub fn seal(&self) -> bool {
        self.mapping.seal()
    }

    /// Whether a closure runs on it at this moment.
    pub fn is_busy(&self) -> bool {
        matches!(self.in_use.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Runs `work` here and wipes the stack before returning its result, or before its panic goes on.
    ///
    /// `work` captures references to secrets, never secrets, and returns none: captures and result pass over the
    /// caller's stack. Waits for another thread's closure to end; from inside a closure it just runs.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        if self.is_current() {
            return work();
        }
        let _in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the mapping is page-aligned, a multiple of the page long, has a guard page below and is used by
        // nobody else while the mutex is held; the callback never unwinds because every panic is caught inside.
        let outcome = unsafe {
            psm::on_stack(self.mapping.base().as_ptr(), self.mapping.len(), || {
                catch_unwind(AssertUnwindSafe(work))
            })
        };
        self.wipe();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Zeroes what was used: from the lowest word that is not zero up to the top.
    fn wipe(&self) {
        let words = self.words();
        let untouched = words.iter().take_while(|word| word.load(Ordering::Relaxed) == 0).count();
        self.flush.zero(&words[untouched..]);
    }

    fn is_current(&self) -> bool {
        let stack_pointer = psm::stack_pointer() as usize;
        let base = self.mapping.base().as_ptr() as usize;
        (base..base + self.mapping.len()).contains(&stack_pointer)
    }

    /// The stack as words; meaningful only while no closure runs on it.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, mapped read-write for as long as `self` lives, any bits are valid; callers hold the mutex
        // or the only reference, so no closure uses the memory as a stack meanwhile.
        unsafe { slice::from_raw_parts(self.mapping.base().as_ptr().cast(), self.mapping.len() / 8) }
    }
}

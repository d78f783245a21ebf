//! Keys that a node has been lent, and the wipe that takes them back.
//!
//! ```text
//!   arena (64 KiB)       slot key | hot set: expanded keys in use | scratch | envelope key | pin
//!                           │           ▲ promote (open)
//!   ordinary heap           └── shelf: every lent key, sealed under the slot key
//! ```
//!
//! Invariants:
//! - Key bytes exist in the arena and, while a grant is opened or a key promoted, on stacks that are wiped. Nobody receives
//!   them: a key is lent to a closure, through a handle that names a slot, the generation it belongs to, and that one
//!   admission.
//! - A wipe of the arena turns everything outside of it into noise: what lies on the shelf opens with the slot key only.
//! - A hot slot is taken for another key only while nobody uses it (`hot.rs`).
//! - A result that was computed while a wipe or the key's withdrawal ran is never handed out (`gate.rs`).
//! - A use checks lease and generation before it touches a key and again after.
//! - Who works with keys says so before it looks whether it may, so that the end of the last such work can be told
//!   (`users.rs`).
//! - `wipe` takes no lock, allocates nothing, waits for nobody and may be called from any thread any number of times.
//! - A handle that went stale stays stale.
//!
//! It decides nothing: when to wipe, what to admit and how long a lease lasts are the lease protocol's business.

mod admission;
mod clock;
mod error;
mod gate;
mod hot;
mod promotion;
mod scratches;
mod shelf;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
mod slots;
#[cfg(test)]
mod slots_tests;
#[cfg(test)]
mod tests;
mod users;
mod sync {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
}

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aes_xts::{Cipher, SCRATCH_WORDS, Scratch, TagSchedule};
use key_hierarchy::SECRET_BYTES;
use lease::envelope;
use lease::message::WipeRecord;
use locked_memory::{
    ARENA_BYTES, Arena, KEY_STACK_BYTES, KeyStack, Layout, LockedMemoryError, MemoryKind, Policy, Span, Spans,
};
use units::{BootInstant, DomainId, VolumeEpoch};

use gate::Gate;
use hot::HotSet;
use scratches::Scratches;
use shelf::{ExpandedKey, KEY_WORDS, Shelf};
use slots::Slots;
use users::Users;

pub use aes_xts::{Kernel, KernelError};
pub use clock::Clock;
pub use error::{AdmitError, EnvelopeKeyError, KeyGone};
pub use key_hierarchy::Integrity;
pub use lease::message::WipeCause;
pub use users::Straggler;

/// Keys that may be lent at once: as many as the lease protocol lets a node hold.
pub const LENT_KEYS_MAX: usize = 4096;

/// Lent keys that lie expanded in the arena, ready for use: as many as fit beside everything else in it.
pub const HOT_KEYS: usize = 35;

/// Stack that keys are promoted on: the cipher's frames, two keys, and room for a panic's message. Small, because wiping it is
/// most of what a promotion costs.
pub const PROMOTION_STACK_BYTES: usize = 64 * 1024;

/// What a keyring locks in memory.
pub const LOCKED_BYTES: usize = ARENA_BYTES + KEY_STACK_BYTES + PROMOTION_STACK_BYTES;

/// Uses of a key that may compute at the same time. Each needs scratch in the arena, which is small; a use beyond that
/// waits for one to end, which is microseconds. Cores of one memory channel saturate it long before there are more.
pub const SCRATCH_SPANS: usize = 4;

/// Words of a 32-byte secret.
const SECRET_WORDS: usize = SECRET_BYTES / 8;

const AFTER_ENVELOPE: (Layout, Span<SECRET_WORDS>) = Layout::new().take();
const AFTER_PIN: (Layout, Span<SECRET_WORDS>) = AFTER_ENVELOPE.0.take();
/// Secret half of the one-time envelope key.
const ENVELOPE_SECRET: Span<SECRET_WORDS> = AFTER_ENVELOPE.1;
/// Public key that grants are signed with: no secret, but nobody may change it. All zeros is no key.
const GRANT_KEY_PIN: Span<SECRET_WORDS> = AFTER_PIN.1;
const AFTER_SCRATCH: (Layout, Spans<SCRATCH_WORDS, SCRATCH_SPANS>) = AFTER_PIN.0.take_many();
/// Where tweaks are while a batch runs: zero before and after, and wiped with the rest.
const SCRATCH: Spans<SCRATCH_WORDS, SCRATCH_SPANS> = AFTER_SCRATCH.1;
const AFTER_SLOT_KEY: (Layout, Span<KEY_WORDS>) = AFTER_SCRATCH.0.take();
/// Random, made with the first key after a wipe; seals every lent key.
const SLOT_KEY: Span<KEY_WORDS> = AFTER_SLOT_KEY.1;
const HOT: Spans<KEY_WORDS, HOT_KEYS> = AFTER_SLOT_KEY.0.take_many().1;

/// Places where keys are worked with: one for each scratch, and the key stack.
const PLACES: usize = SCRATCH_SPANS + 1;
const KEY_STACK_PLACE: usize = SCRATCH_SPANS;

const _: () = assert!(LENT_KEYS_MAX == lease::limits::VOLUMES_MAX);
const _: () = assert!(HOT_KEYS > 2 * PLACES, "a slot to promote into is soon found");

const _: () =
    assert!(envelope::STACK_BYTES + 64 * 1024 <= KEY_STACK_BYTES, "the key stack has room for HPKE");
const _: () = assert!(envelope::SECRET_BYTES == SECRET_BYTES);

/// Names a lent key without containing it. Goes stale at a wipe and when its key is withdrawn, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHandle {
    slot: u16,
    generation: u64,
    serial: u64,
    integrity: Integrity,
}

impl KeyHandle {
    /// What the volume of this key was promised. Not the disk's word for it but the key's.
    pub fn integrity(self) -> Integrity {
        self.integrity
    }
}

/// A key on loan: what a use of it may compute with, and only inside the closure it is lent to.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a key has nothing to print")]
pub struct LentKey<'a> {
    /// Encrypts and decrypts sectors.
    pub cipher: Cipher<'a>,
    /// Tags them.
    pub tags: &'a TagSchedule,
}

/// A grant as the lease protocol hands it over. `info` and `aad` bind everything else to the envelope.
#[derive(Clone, Copy, Debug)]
pub struct SealedGrant<'a> {
    /// Domain whose key is inside.
    pub domain: DomainId,
    /// Volume epoch of that key.
    pub epoch: VolumeEpoch,
    /// Key-check value on record for (domain, epoch).
    pub check: [u8; 16],
    /// HPKE `info`: the hash of the session's transcript.
    pub info: &'a [u8],
    /// HPKE `aad`: volume, domain, epoch, fence, lease and grant id.
    pub aad: &'a [u8],
    /// Encapsulated key and ciphertext; the plaintext is the 32-byte PRK of (domain, epoch).
    pub envelope: &'a [u8],
}

/// A key that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// How to ask for it.
    pub handle: KeyHandle,
    /// The wipe generation it belongs to.
    pub generation: u64,
}

/// What the first stage of a wipe did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WipeReport {
    /// Why.
    pub cause: WipeCause,
    /// When it began, by CLOCK_BOOTTIME.
    pub at: BootInstant,
    /// Generation that began with it.
    pub generation: u64,
    /// From entry to the last zero flushed to memory.
    pub nanos: u64,
    /// Keys that were lent until then.
    pub keys: usize,
    /// Uses of a key and grants being opened that were still running afterwards. Their results are discarded; ask for
    /// [`Keyring::stragglers`] until there are none to know that their registers and stacks are clear too.
    pub in_flight: usize,
}

impl WipeReport {
    /// The part that travels in evidence.
    pub fn record(&self) -> WipeRecord {
        WipeRecord { cause: self.cause, at: self.at, generation: self.generation }
    }
}

/// What the keyring holds, for status and metrics. Nothing in it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyringStatus {
    /// Keys that are lent.
    pub keys: usize,
    /// Keys that can be lent at once.
    pub key_slots: usize,
    /// How many of them lie ready for use at once; any other is opened first.
    pub hot_slots: usize,
    /// Keys opened into the hot set since the start.
    pub promotions: u64,
    /// Where the keys live.
    pub memory: MemoryKind,
    /// Whether the kernel refuses to change the arena's mapping (`mseal`).
    pub memory_sealed: bool,
    /// Number of wipes so far.
    pub generation: u64,
    /// When the lease runs out; `None` where none is set.
    pub deadline: Option<BootInstant>,
    /// When a key was last used and its result handed out.
    pub last_use: Option<BootInstant>,
}

/// The node's lent keys.
pub struct Keyring {
    arena: Arena,
    stack: KeyStack,
    /// Whose turn it is on the key stack.
    stack_turn: Mutex<()>,
    promotion_stack: KeyStack,
    clock: Clock,
    gate: Gate,
    slots: Slots<LENT_KEYS_MAX>,
    shelf: Shelf<LENT_KEYS_MAX>,
    hot: HotSet<HOT_KEYS>,
    /// Where each lent key was promoted to last, to be tried first.
    hints: Box<[AtomicU16]>,
    scratches: Scratches<SCRATCH_SPANS>,
    users: Users<PLACES>,
    kernel: Kernel,
    /// CLOCK_BOOTTIME nanoseconds at which every key is gone; zero where no lease is set.
    deadline: AtomicU64,
    /// One more than the generation that the one-time envelope key belongs to; zero where there is none.
    envelope_key: AtomicU64,
    /// As `envelope_key`, of the slot key.
    slot_key: AtomicU64,
    promotions: AtomicU64,
    /// When a key was last used and its result handed out; zero where none was.
    last_use: AtomicU64,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Keyring {
    /// An empty keyring in memory of its own.
    ///
    /// # Errors
    /// There is no such memory, or too little may be locked.
    pub fn in_fresh_memory(policy: Policy) -> Result<Arc<Self>, LockedMemoryError> {
        Self::new(policy, Clock::Boot, Kernel::fastest())
    }

    /// As [`Keyring::in_fresh_memory`], leases counted by `clock`, encrypting with `kernel`.
    ///
    /// # Errors
    /// As there.
    pub fn new(policy: Policy, clock: Clock, kernel: Kernel) -> Result<Arc<Self>, LockedMemoryError> {
        Ok(Arc::new(Self {
            arena: Arena::new(policy)?,
            stack: KeyStack::new(policy)?,
            stack_turn: Mutex::new(()),
            promotion_stack: KeyStack::with_bytes(PROMOTION_STACK_BYTES, policy)?,
            clock,
            gate: Gate::new(),
            slots: Slots::new(),
            shelf: Shelf::new(),
            hot: HotSet::new(),
            hints: (0..LENT_KEYS_MAX).map(|_| AtomicU16::new(0)).collect(),
            scratches: Scratches::new(),
            users: Users::new(),
            kernel,
            deadline: AtomicU64::new(0),
            envelope_key: AtomicU64::new(0),
            slot_key: AtomicU64::new(0),
            promotions: AtomicU64::new(0),
            last_use: AtomicU64::new(0),
        }))
    }

    /// Asks the kernel to refuse every later change of the stacks' mappings, as the arena's always does where it can. They stay
    /// until the process ends: for programs, which have one keyring.
    pub fn seal_stacks(&self) -> bool {
        self.stack.seal() && self.promotion_stack.seal()
    }

    /// Lends the key to `use_key`. Its result is handed out only if the lease still ran and neither a wipe nor the key's
    /// withdrawal had begun when it was done; otherwise it is dropped, and what the closure wrote elsewhere is garbage
    /// that the caller discards. Keep it short: a wipe's second stage waits for it, and so does a use that finds all
    /// scratch taken. It must not lend a key within itself.
    ///
    /// # Errors
    /// The key is gone, or went meanwhile.
    pub fn with_key<R>(&self, key: KeyHandle, use_key: impl FnOnce(LentKey<'_>) -> R) -> Result<R, KeyGone> {
        // 1. Noted, 2. checked, 3. loaded, 4. cleared, 5. no longer noted, 6. checked again: a wipe that this use does not see
        // in 2 sees this use in its second stage, and one that came since is seen in 6.
        let scratch = self.scratches.claim();
        let user = self.users.enter(scratch.index(), key.generation, this_thread());
        self.check(key)?;
        let hot = self.hold(key, scratch.index())?;
        let lent = hot.key();
        let result = use_key(LentKey { cipher: self.cipher(lent, scratch.index()), tags: lent.tag() });
        drop((hot, user, scratch));
        let used = self.checked_at(key)?;
        self.last_use.fetch_max(used.0, Ordering::Relaxed);
        Ok(result)
    }

    /// Whether the key may be used now. Asked again before a reply leaves.
    pub fn check(&self, key: KeyHandle) -> Result<(), KeyGone> {
        self.checked_at(key).map(|_| ())
    }

    fn checked_at(&self, key: KeyHandle) -> Result<BootInstant, KeyGone> {
        if !self.gate.is_current(key.generation) {
            return Err(KeyGone::Wiped);
        }
        if !self.slots.holds(key.slot, key.serial) {
            // A wipe also empties the slots: then it is the reason.
            return Err(if self.gate.is_current(key.generation) { KeyGone::Stale } else { KeyGone::Wiped });
        }
        let deadline = BootInstant(self.deadline.load(Ordering::SeqCst));
        let now = self.clock.now();
        if now >= deadline { Err(KeyGone::Expired { deadline }) } else { Ok(now) }
    }

    /// Sets when every key is gone, by CLOCK_BOOTTIME. No key is usable before the first call and after a wipe.
    pub fn set_deadline(&self, deadline: BootInstant) {
        self.deadline.store(deadline.0, Ordering::SeqCst);
    }

    /// Takes the lease away: no key is usable until the next [`Keyring::set_deadline`].
    pub fn clear_deadline(&self) {
        self.deadline.store(0, Ordering::SeqCst);
    }

    /// When the lease runs out; `None` where none is set.
    pub fn deadline(&self) -> Option<BootInstant> {
        Some(BootInstant(self.deadline.load(Ordering::SeqCst))).filter(|deadline| deadline.0 != 0)
    }

    /// The clock that leases are counted by.
    pub fn now(&self) -> BootInstant {
        self.clock.now()
    }

    /// Keeps the public key that grants are signed with where nobody can change it, until the next wipe.
    pub fn pin_grant_key(&self, public: &[u8; 32]) {
        self.arena.secret(GRANT_KEY_PIN).write_from(&mut { *public });
    }

    /// The pinned public key; `None` where none was pinned since the last wipe.
    pub fn pinned_grant_key(&self) -> Option<[u8; 32]> {
        let generation = self.gate.enter()?;
        let mut public = [0; 32];
        self.arena.secret(GRANT_KEY_PIN).read_into(&mut public);
        (self.gate.is_current(generation) && public != [0; 32]).then_some(public)
    }

    /// Withdraws one key: its handle is stale before its schedule is zeroed. Does nothing for a handle that is stale already.
    pub fn drop_key(&self, key: KeyHandle) {
        if self.gate.is_current(key.generation) {
            self.withdraw(key.slot, key.serial);
        }
    }

    fn withdraw(&self, slot: u16, serial: u64) {
        self.slots.withdraw(slot, serial, || {
            // Held while it is zeroed, so that it is not another key's by then.
            if let Some(hot) = self.hot.pin_any(serial) {
                self.arena.zero_span(hot_span(hot));
                self.hot.unpin(hot);
            }
            self.shelf.forget(slot);
        });
    }

    /// Takes back all keys at once, and the lease, the slot key, the envelope key and the pin with them: the first stage.
    ///
    /// The order is the point: 1. every handle goes stale, 2. the arena is zeroed and flushed to memory, 3. slots are
    /// free again. A use that ran into the zeros finds itself stale (`gate.rs` says what breaks otherwise).
    pub fn wipe(&self, cause: WipeCause) -> WipeReport {
        let entered = Instant::now();
        let generation = self.gate.begin();
        self.arena.zero();
        let nanos = u64::try_from(entered.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let at = self.clock.now();
        self.deadline.store(0, Ordering::SeqCst);
        self.envelope_key.store(0, Ordering::SeqCst);
        self.slot_key.store(0, Ordering::SeqCst);
        let keys = self.slots.free_all();
        self.gate.finish();
        WipeReport { cause, at, generation, nanos, keys, in_flight: self.stragglers(generation).count() }
    }

    /// Threads that still work with keys from before `generation`, which a wipe began. Once there were none, no register, no
    /// scratch and no stack holds anything of such a key any more: the second stage.
    pub fn stragglers(&self, generation: u64) -> impl Iterator<Item = Straggler> + '_ {
        self.users.before(generation)
    }

    /// Uses of a key and openings of grants that are running now.
    pub fn in_flight(&self) -> usize {
        self.users.count()
    }

    /// What it holds now.
    pub fn status(&self) -> KeyringStatus {
        KeyringStatus {
            keys: self.slots.held(),
            key_slots: LENT_KEYS_MAX,
            hot_slots: HOT_KEYS,
            promotions: self.promotions.load(Ordering::Relaxed),
            memory: self.arena.kind(),
            memory_sealed: self.arena.is_sealed(),
            generation: self.gate.generation(),
            deadline: self.deadline(),
            last_use: Some(BootInstant(self.last_use.load(Ordering::Relaxed))).filter(|at| at.0 != 0),
        }
    }

    /// The cipher kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    fn cipher<'a>(&'a self, key: ExpandedKey<'a>, scratch: usize) -> Cipher<'a> {
        // Indices come from `Scratches::claim`, which counts to SCRATCH_SPANS.
        let span =
            SCRATCH.at(scratch).unwrap_or_else(|| unreachable!("scratch {scratch} of {SCRATCH_SPANS}"));
        Cipher::new(self.kernel, key.schedule(), Scratch::over(self.arena.words(span)))
    }

    fn slot_key(&self) -> ExpandedKey<'_> {
        ExpandedKey::over(self.arena.words(SLOT_KEY))
    }
}

fn hot_span(hot: usize) -> Span<KEY_WORDS> {
    // Numbers come from `HotSet::claim`, which counts to HOT_KEYS.
    HOT.at(hot).unwrap_or_else(|| unreachable!("hot slot {hot} of {HOT_KEYS}"))
}

/// This thread's number for the kernel, asked for once.
fn this_thread() -> u64 {
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(u64::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0));
        }
        number.get()
    })
}

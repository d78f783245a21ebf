//! Keys that a node has been lent, and the wipe that takes them back.
//!
//! Invariants:
//! - Key bytes exist in the arena and, while a grant is opened, on the key stack. Nobody receives them: a key is lent
//!   to a closure, through a handle that names a slot, the generation it belongs to, and that one admission.
//! - A result that was computed while a wipe or the key's withdrawal ran is never handed out (`gate.rs`).
//! - A use checks lease and generation before it touches a key and again after.
//! - `wipe` takes no lock, allocates nothing, waits for nobody and may be called from any thread any number of times.
//! - A handle that went stale stays stale.
//!
//! It decides nothing: when to wipe, what to admit and how long a lease lasts are the lease protocol's business.

mod clock;
mod error;
mod gate;
mod scratches;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
mod slots;
#[cfg(test)]
mod slots_tests;
#[cfg(test)]
mod tests;
mod sync {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
}

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aes_xts::{Cipher, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, TAG_WORDS, TagSchedule, XtsSchedule};
use key_hierarchy::{KeyCheck, Label, SECRET_BYTES};
use lease::envelope::{self, PublicEnvelopeKey};
use lease::message::WipeRecord;
use locked_memory::{
    Arena, KEY_STACK_BYTES, KeyStack, Layout, LockedMemoryError, MemoryKind, Policy, Span, Spans,
};
use units::{BootInstant, DomainId, VolumeEpoch};
use zeroize::Zeroize;

use gate::Gate;
use scratches::Scratches;
use slots::Slots;

pub use aes_xts::{Kernel, KernelError};
pub use clock::Clock;
pub use error::{AdmitError, EnvelopeKeyError, KeyGone};
pub use lease::message::WipeCause;

/// Keys that fit the arena beside everything else in it: a cipher's schedule and a tag's are 1264 bytes.
pub const KEY_SLOTS: usize = 34;

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
const AFTER_SCHEDULES: (Layout, Spans<SCHEDULE_WORDS, KEY_SLOTS>) = AFTER_SCRATCH.0.take_many();
const SCHEDULES: Spans<SCHEDULE_WORDS, KEY_SLOTS> = AFTER_SCHEDULES.1;
const TAG_SCHEDULES: Spans<TAG_WORDS, KEY_SLOTS> = AFTER_SCHEDULES.0.take_many().1;

const _: () =
    assert!(envelope::STACK_BYTES + 64 * 1024 <= KEY_STACK_BYTES, "the key stack has room for HPKE");
const _: () = assert!(envelope::SECRET_BYTES == SECRET_BYTES);

/// Names a lent key without containing it. Goes stale at a wipe and when its key is withdrawn, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHandle {
    slot: u16,
    generation: u64,
    serial: u64,
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
    /// Uses of a key and grants being opened that were still running afterwards. Their results are discarded; ask
    /// [`Keyring::in_flight`] until it is zero to know that their registers and stacks are clear too.
    pub in_flight: u64,
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
    /// Slots that hold a key.
    pub keys: usize,
    /// Slots there are.
    pub key_slots: usize,
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
    clock: Clock,
    gate: Gate,
    slots: Slots<KEY_SLOTS>,
    scratches: Scratches<SCRATCH_SPANS>,
    kernel: Kernel,
    /// CLOCK_BOOTTIME nanoseconds at which every key is gone; zero where no lease is set.
    deadline: AtomicU64,
    /// One more than the generation that the one-time envelope key belongs to; zero where there is none.
    envelope_key: AtomicU64,
    /// Uses of a key and openings of grants that have begun and not ended.
    in_flight: AtomicU64,
    /// When a key was last used and its result handed out; zero where none was.
    last_use: AtomicU64,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Keyring {
    /// An empty keyring in `arena`, which must be fresh, opening grants on `stack`.
    pub fn new(arena: Arena, stack: KeyStack) -> Arc<Self> {
        Self::with_clock(arena, stack, Clock::Boot)
    }

    /// An empty keyring in memory of its own.
    pub fn in_fresh_memory(policy: Policy) -> Result<Arc<Self>, LockedMemoryError> {
        Ok(Self::new(Arena::new(policy)?, KeyStack::new(policy)?))
    }

    /// As [`Keyring::new`], leases counted by `clock`.
    pub fn with_clock(arena: Arena, stack: KeyStack, clock: Clock) -> Arc<Self> {
        Self::with_kernel(arena, stack, clock, Kernel::fastest())
    }

    /// As [`Keyring::with_clock`], encrypting with `kernel`.
    pub fn with_kernel(arena: Arena, stack: KeyStack, clock: Clock, kernel: Kernel) -> Arc<Self> {
        Arc::new(Self {
            arena,
            stack,
            clock,
            gate: Gate::new(),
            slots: Slots::new(),
            scratches: Scratches::new(),
            kernel,
            deadline: AtomicU64::new(0),
            envelope_key: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            last_use: AtomicU64::new(0),
        })
    }

    /// Makes a one-time envelope key pair, the secret half in the arena, in place of any earlier one.
    pub fn fresh_envelope_key(&self) -> Result<PublicEnvelopeKey, EnvelopeKeyError> {
        let _in_flight = InFlight::enter(&self.in_flight);
        let generation = self.gate.enter().ok_or(EnvelopeKeyError::Wiped)?;
        self.stack.run(|| {
            self.envelope_key.store(0, Ordering::SeqCst);
            let made = self.make_envelope_key();
            if made.is_ok() {
                self.envelope_key.store(generation + 1, Ordering::SeqCst);
            }
            // As in `admit`: published first, checked after, so that a wipe in between is either seen here or zeroes.
            if !self.gate.is_current(generation) || made.is_err() {
                self.forget_envelope_key();
            }
            if self.gate.is_current(generation) { made } else { Err(EnvelopeKeyError::Wiped) }
        })
    }

    fn make_envelope_key(&self) -> Result<PublicEnvelopeKey, EnvelopeKeyError> {
        let kept = self.arena.secret(ENVELOPE_SECRET);
        kept.fill_random().map_err(EnvelopeKeyError::Random)?;
        let mut secret = [0; SECRET_BYTES];
        kept.read_into(&mut secret);
        let public = envelope::keypair(&secret);
        secret.zeroize();
        public.map_err(EnvelopeKeyError::Envelope)
    }

    /// Forgets the one-time secret: grants sealed to it can't be opened any more.
    pub fn retire_envelope_key(&self) {
        self.stack.run(|| self.forget_envelope_key());
    }

    fn forget_envelope_key(&self) {
        self.envelope_key.store(0, Ordering::SeqCst);
        self.arena.zero_span(ENVELOPE_SECRET);
    }

    /// Opens a grant on the key stack, checks the key in it and keeps its schedule. Any number of grants can be opened
    /// with one envelope key, until it is retired.
    pub fn admit(&self, grant: &SealedGrant<'_>) -> Result<Admitted, AdmitError> {
        let _in_flight = InFlight::enter(&self.in_flight);
        let generation = self.gate.enter().ok_or(AdmitError::Wiped)?;
        let slot = self.slots.claim().ok_or(AdmitError::TooManyKeys { limit: KEY_SLOTS })?;
        let opened = self.stack.run(|| self.open_into(slot, generation, grant));
        // 1. The key is stored. 2. No wipe has begun: one that begins from here on zeroes the key, so it is safe to
        // 3. publish the slot. 4. Such a wipe may have passed over the slot while it was busy: look again. Without 2, a
        // wipe could zero first, free the slot after 3, and leave the key in it.
        if opened.is_err() || !self.gate.is_current(generation) {
            self.zero_slot(slot);
            self.slots.release(slot);
            return Err(opened.err().unwrap_or(AdmitError::Wiped));
        }
        let serial = self.slots.publish(slot);
        if !self.gate.is_current(generation) {
            self.withdraw(slot, serial);
            return Err(AdmitError::Wiped);
        }
        Ok(Admitted { handle: KeyHandle { slot, generation, serial }, generation })
    }

    fn open_into(&self, slot: u16, generation: u64, grant: &SealedGrant<'_>) -> Result<(), AdmitError> {
        if self.envelope_key.load(Ordering::SeqCst) != generation + 1 {
            return Err(if self.gate.is_current(generation) {
                AdmitError::NoEnvelopeKey
            } else {
                AdmitError::Wiped
            });
        }
        let mut secret = [0; SECRET_BYTES];
        self.arena.secret(ENVELOPE_SECRET).read_into(&mut secret);
        let mut prk = [0; SECRET_BYTES];
        let opened = envelope::open(&secret, grant.info, grant.aad, grant.envelope, &mut prk);
        secret.zeroize();
        // The secret may have been half zeroed while it was read: then the wipe is the reason, not the grant.
        let outcome = match opened {
            _ if !self.gate.is_current(generation) => Err(AdmitError::Wiped),
            Err(error) => Err(AdmitError::Envelope(error)),
            Ok(()) => self.expand_into(slot, &prk, grant),
        };
        prk.zeroize();
        outcome
    }

    fn expand_into(
        &self,
        slot: u16,
        prk: &[u8; SECRET_BYTES],
        grant: &SealedGrant<'_>,
    ) -> Result<(), AdmitError> {
        let actual = key_hierarchy::check_value(prk, &grant.domain, grant.epoch);
        if !actual.matches(&KeyCheck(grant.check)) {
            return Err(AdmitError::WrongKey { domain: grant.domain, epoch: grant.epoch });
        }
        let mut key = [0; 64];
        key_hierarchy::expand(prk, Label::Xts, &grant.domain, grant.epoch, &mut key);
        let expanded = self.schedule(slot).expand(&key);
        key.zeroize();
        expanded.map_err(|aes_xts::XtsKeyError::EqualHalves| AdmitError::EqualHalves)?;
        let (mut hash_key, mut prf_key) = ([0; 16], [0; 32]);
        key_hierarchy::expand(prk, Label::TagHash, &grant.domain, grant.epoch, &mut hash_key);
        key_hierarchy::expand(prk, Label::TagPrf, &grant.domain, grant.epoch, &mut prf_key);
        self.tag_schedule(slot).expand(&hash_key, &prf_key);
        hash_key.zeroize();
        prf_key.zeroize();
        Ok(())
    }

    /// Lends the key to `use_key`. Its result is handed out only if the lease still ran and neither a wipe nor the key's
    /// withdrawal had begun when it was done; otherwise it is dropped, and what the closure wrote elsewhere is garbage
    /// that the caller discards. Keep it short: a wipe's second stage waits for it, and so does a use that finds all
    /// scratch taken. It must not lend a key within itself.
    pub fn with_key<R>(&self, key: KeyHandle, use_key: impl FnOnce(LentKey<'_>) -> R) -> Result<R, KeyGone> {
        // Counted before the check, so that a wipe which this use does not see in its check sees this use.
        let _in_flight = InFlight::enter(&self.in_flight);
        self.check(key)?;
        let scratch = self.scratches.claim();
        let cipher = Cipher::new(self.kernel, self.schedule(key.slot), self.scratch(scratch.index()));
        let result = use_key(LentKey { cipher, tags: self.tag_schedule(key.slot) });
        drop(scratch);
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
        self.slots.withdraw(slot, serial, || self.zero_slot(slot));
    }

    fn zero_slot(&self, slot: u16) {
        self.arena.zero_span(span_of(&SCHEDULES, slot));
        self.arena.zero_span(span_of(&TAG_SCHEDULES, slot));
    }

    /// Takes back all keys at once, and the lease, the envelope key and the pin with them.
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
        let keys = self.slots.free_all();
        self.gate.finish();
        WipeReport { cause, at, generation, nanos, keys, in_flight: self.in_flight() }
    }

    /// Uses of a key and openings of grants that are running now. Once this was seen at zero after a wipe, no thread
    /// computes with a key from before it any more.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// What it holds now.
    pub fn status(&self) -> KeyringStatus {
        KeyringStatus {
            keys: self.slots.held(),
            key_slots: KEY_SLOTS,
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

    fn scratch(&self, index: usize) -> &Scratch {
        // Indices come from `Scratches::claim`, which counts to SCRATCH_SPANS.
        let span = SCRATCH.at(index).unwrap_or_else(|| unreachable!("scratch {index} of {SCRATCH_SPANS}"));
        Scratch::over(self.arena.words(span))
    }

    fn schedule(&self, slot: u16) -> &XtsSchedule {
        XtsSchedule::over(self.arena.words(span_of(&SCHEDULES, slot)))
    }

    fn tag_schedule(&self, slot: u16) -> &TagSchedule {
        TagSchedule::over(self.arena.words(span_of(&TAG_SCHEDULES, slot)))
    }
}

fn span_of<const N: usize>(spans: &Spans<N, KEY_SLOTS>, slot: u16) -> Span<N> {
    // Slot numbers come from `Slots::claim`, which counts to KEY_SLOTS.
    spans.at(usize::from(slot)).unwrap_or_else(|| unreachable!("slot {slot} of {KEY_SLOTS}"))
}

/// Counts one use for as long as it lives, a panic included.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

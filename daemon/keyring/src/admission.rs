//! How a key comes in: the one-time envelope key, a grant opened on the key stack, the shelf.
//!
//! What is made here and put in the arena (envelope key, slot key) is stored first and checked after: a wipe in between is
//! either seen, and what was stored is zeroed, or comes later and zeroes it.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_xts::XtsKeyError;
use key_hierarchy::{Integrity, KeyCheck, Label, SECRET_BYTES};
use lease::envelope::{self, PublicEnvelopeKey};
use zeroize::Zeroize;

use crate::shelf::{self, ExpandedKey, KEY_BYTES, KEY_WORDS, WrappedKey};
use crate::{
    AdmitError, Admitted, ENVELOPE_SECRET, EnvelopeKeyError, KEY_STACK_PLACE, KeyHandle, Keyring,
    LENT_KEYS_MAX, SLOT_KEY, SealedGrant, this_thread,
};

/// Bytes of one (domain, epoch)'s keys, before they are expanded: the cipher's, the tag's hash key, the tag's AES key.
const XTS_KEY_BYTES: usize = Label::Xts.key_bytes();
const TAG_HASH_BYTES: usize = Label::TagHash.key_bytes();
const TAG_PRF_BYTES: usize = Label::TagPrf.key_bytes();

/// Unexpanded keys, on the key stack; zeroed on drop.
struct Keys {
    xts: [u8; XTS_KEY_BYTES],
    tag_hash: [u8; TAG_HASH_BYTES],
    tag_prf: [u8; TAG_PRF_BYTES],
}

impl Keys {
    const EMPTY: Self =
        Self { xts: [0; XTS_KEY_BYTES], tag_hash: [0; TAG_HASH_BYTES], tag_prf: [0; TAG_PRF_BYTES] };

    fn expand(&self, key: ExpandedKey<'_>) -> Result<(), XtsKeyError> {
        key.schedule().expand(&self.xts)?;
        key.tag().expand(&self.tag_hash, &self.tag_prf);
        Ok(())
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.xts.zeroize();
        self.tag_hash.zeroize();
        self.tag_prf.zeroize();
    }
}

impl Keyring {
    /// Runs `work` on the key stack, noted as work with keys of `generation` until that stack is wiped.
    fn on_key_stack<R>(&self, generation: u64, work: impl FnOnce() -> R) -> R {
        let _turn = self.stack_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _user = self.users.enter(KEY_STACK_PLACE, generation, this_thread());
        self.stack.run(work)
    }

    /// Makes a one-time envelope key pair, the secret half in the arena, in place of any earlier one.
    ///
    /// # Errors
    /// No randomness, or a wipe came in between.
    pub fn fresh_envelope_key(&self) -> Result<PublicEnvelopeKey, EnvelopeKeyError> {
        let generation = self.gate.enter().ok_or(EnvelopeKeyError::Wiped)?;
        self.on_key_stack(generation, || {
            // Whoever waited for its turn through a wipe must not replace the key of the generation after it.
            if !self.gate.is_current(generation) {
                return Err(EnvelopeKeyError::Wiped);
            }
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
        self.on_key_stack(self.gate.generation(), || self.forget_envelope_key());
    }

    fn forget_envelope_key(&self) {
        self.envelope_key.store(0, Ordering::SeqCst);
        self.arena.zero_span(ENVELOPE_SECRET);
    }

    /// Opens a grant on the key stack, checks the key in it, and keeps it expanded on the shelf. Any number of grants can be
    /// opened with one envelope key, until it is retired.
    ///
    /// # Errors
    /// The grant does not open, its key is not the volume's, every slot is taken, or a wipe came in between.
    pub fn admit(&self, grant: &SealedGrant<'_>) -> Result<Admitted, AdmitError> {
        let generation = self.gate.enter().ok_or(AdmitError::Wiped)?;
        let (slot, serial) = self.slots.claim().ok_or(AdmitError::TooManyKeys { limit: LENT_KEYS_MAX })?;
        // As far as is known yet.
        let mut handle = KeyHandle { slot, generation, serial, integrity: Integrity::Tagged };
        let opened = self.on_key_stack(generation, || self.open_grant(&mut handle, grant));
        // 1. The key is on the shelf. 2. No wipe has begun: one that begins from here on makes noise of it, so it is safe to
        // 3. publish the slot. 4. Such a wipe may have passed over the slot while it was busy: look again. Without 2 a slot
        // would be held for a key that nobody can open.
        if opened.is_err() || !self.gate.is_current(generation) {
            self.shelf.forget(slot);
            self.slots.release(slot);
            return Err(opened.err().unwrap_or(AdmitError::Wiped));
        }
        self.slots.publish(slot, serial);
        if !self.gate.is_current(generation) {
            self.withdraw(slot, serial);
            return Err(AdmitError::Wiped);
        }
        Ok(Admitted { handle, generation })
    }

    fn open_grant(&self, handle: &mut KeyHandle, grant: &SealedGrant<'_>) -> Result<(), AdmitError> {
        let generation = handle.generation;
        // From here on no newer slot key can be made: that needs this stack.
        if !self.gate.is_current(generation) {
            return Err(AdmitError::Wiped);
        }
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
            Ok(()) => self.derive(handle, &prk, grant),
        };
        prk.zeroize();
        outcome
    }

    fn derive(
        &self,
        handle: &mut KeyHandle,
        prk: &[u8; SECRET_BYTES],
        grant: &SealedGrant<'_>,
    ) -> Result<(), AdmitError> {
        let promised = key_hierarchy::promised(prk, &grant.domain, grant.epoch, KeyCheck(grant.check));
        let wrong = AdmitError::WrongKey { domain: grant.domain, epoch: grant.epoch };
        handle.integrity = promised.ok_or(wrong)?;
        let mut keys = Keys::EMPTY;
        key_hierarchy::expand(prk, Label::Xts, &grant.domain, grant.epoch, &mut keys.xts);
        key_hierarchy::expand(prk, Label::TagHash, &grant.domain, grant.epoch, &mut keys.tag_hash);
        key_hierarchy::expand(prk, Label::TagPrf, &grant.domain, grant.epoch, &mut keys.tag_prf);
        // On the key stack, like everything here.
        let words: [AtomicU64; KEY_WORDS] = std::array::from_fn(|_| AtomicU64::new(0));
        let expanded = ExpandedKey::over(&words);
        keys.expand(expanded).map_err(|XtsKeyError::EqualHalves| AdmitError::EqualHalves)?;
        self.keep(*handle, expanded)
    }

    /// Puts `key` on the shelf, sealed under this generation's slot key.
    fn keep(&self, handle: KeyHandle, key: ExpandedKey<'_>) -> Result<(), AdmitError> {
        self.need_slot_key(handle.generation)?;
        let scratch = self.scratches.claim();
        let slot_key = self.slot_key();
        let mut wrapped = WrappedKey::empty();
        let cipher = self.cipher(slot_key, scratch.index());
        shelf::wrap(cipher, slot_key.tag(), handle.serial, key, &mut wrapped);
        // What was sealed while a wipe zeroed the slot key would open with zeros: it must not leave this stack.
        if !self.gate.is_current(handle.generation) {
            return Err(AdmitError::Wiped);
        }
        self.shelf.put(handle.slot, &wrapped);
        Ok(())
    }

    /// Makes the slot key, unless this generation has one. On the key stack: one thread at a time.
    fn need_slot_key(&self, generation: u64) -> Result<(), AdmitError> {
        if self.slot_key.load(Ordering::SeqCst) == generation + 1 {
            return Ok(());
        }
        let made = self.make_slot_key();
        if made.is_ok() {
            self.slot_key.store(generation + 1, Ordering::SeqCst);
        }
        // As with the envelope key.
        if !self.gate.is_current(generation) || made.is_err() {
            self.slot_key.store(0, Ordering::SeqCst);
            self.arena.zero_span(SLOT_KEY);
        }
        if self.gate.is_current(generation) { made } else { Err(AdmitError::Wiped) }
    }

    fn make_slot_key(&self) -> Result<(), AdmitError> {
        let kept = self.arena.secret(SLOT_KEY);
        kept.fill_random().map_err(AdmitError::Random)?;
        let mut random = [0; KEY_BYTES];
        kept.read_into(&mut random);
        let mut keys = Keys::EMPTY;
        let (xts, rest) = random.split_at(XTS_KEY_BYTES);
        let (tag_hash, rest) = rest.split_at(TAG_HASH_BYTES);
        keys.xts.copy_from_slice(xts);
        keys.tag_hash.copy_from_slice(tag_hash);
        keys.tag_prf.copy_from_slice(&rest[..TAG_PRF_BYTES]);
        let expanded = keys.expand(self.slot_key());
        random.zeroize();
        expanded.map_err(|XtsKeyError::EqualHalves| AdmitError::EqualHalves)
    }
}

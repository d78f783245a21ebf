//! Keys that a node has been lent, and the wipe that takes them back.

mod error;

use std::sync::Arc;

use aes_xts::XtsSchedule;
use lease::envelope::PublicEnvelopeKey;
use locked_memory::{Arena, KeyStack, MemoryKind};
use units::{BootInstant, DomainId, VolumeEpoch};

pub use error::{AdmitError, KeyGone};

/// Names a lent key without containing it. Goes stale at a wipe and when its key is dropped; never comes back to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHandle {
    slot: u16,
    generation: u64,
    serial: u64,
}

/// A grant as the lease protocol hands it over: everything but the sealed bytes is authenticated by the envelope.
#[derive(Clone, Copy, Debug)]
pub struct SealedGrant<'a> {
    /// Domain whose key is inside.
    pub domain: DomainId,
    /// Volume epoch of that key.
    pub epoch: VolumeEpoch,
    /// Key-check value on record for (domain, epoch).
    pub check: [u8; 16],
    /// HPKE `info`: the hash of the session transcript.
    pub info: &'a [u8],
    /// HPKE `aad`: volume, epoch, fence, lease and grant id.
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

/// What a wipe did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WipeReport {
    /// Generation that began with this wipe.
    pub generation: u64,
    /// Time from entry to the last zero flushed out of the caches, by CLOCK_MONOTONIC.
    pub nanos: u64,
    /// Keys that were lent until then.
    pub keys: usize,
    /// Uses of a key that were still running when the arena was already zero; their results are discarded.
    pub in_flight: usize,
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
    /// Number of wipes so far.
    pub generation: u64,
    /// When the lease runs out; `None` where none was ever set or a wipe ended it.
    pub deadline: Option<BootInstant>,
}

/// The node's lent keys.
#[derive(Debug)]
pub struct Keyring {
    _arena: Arena,
    _stack: KeyStack,
}

impl Keyring {
    /// A keyring without keys in `arena`, which must be fresh, opening grants on `stack`.
    pub fn new(arena: Arena, stack: KeyStack) -> Arc<Self> {
        Arc::new(Self { _arena: arena, _stack: stack })
    }

    /// Makes a one-time envelope key pair, the secret half in the arena, and replaces any earlier one.
    pub fn fresh_envelope_key(&self) -> Result<PublicEnvelopeKey, AdmitError> {
        Err(AdmitError::NoEnvelopeKey)
    }

    /// Forgets the one-time secret; grants sealed to it can't be opened any more.
    pub fn retire_envelope_key(&self) {}

    /// Opens a grant, checks the key in it and keeps it.
    pub fn admit(&self, _grant: &SealedGrant<'_>) -> Result<Admitted, AdmitError> {
        Err(AdmitError::NoEnvelopeKey)
    }

    /// Lends the key to `use_key`. The result is handed out only if neither a wipe nor the lease's end came in between.
    pub fn with_key<R>(&self, key: KeyHandle, use_key: impl FnOnce(&XtsSchedule) -> R) -> Result<R, KeyGone> {
        self.check(key)?;
        let _ = use_key;
        Err(KeyGone::Stale)
    }

    /// Whether the key may be used now: cheap, and asked again before a reply leaves.
    pub fn check(&self, _key: KeyHandle) -> Result<(), KeyGone> {
        Err(KeyGone::Wiped)
    }

    /// Sets when the lease runs out, by CLOCK_BOOTTIME; no key is usable before the first call.
    pub fn set_deadline(&self, _deadline: BootInstant) {}

    /// When the lease runs out.
    pub fn deadline(&self) -> Option<BootInstant> {
        None
    }

    /// Takes back one key.
    pub fn drop_key(&self, _key: KeyHandle) {}

    /// Takes back all keys at once: lock-free, allocation-free, from any thread, any number of times.
    pub fn wipe(&self) -> WipeReport {
        WipeReport { generation: 0, nanos: 0, keys: 0, in_flight: 0 }
    }

    /// What it holds now.
    pub fn status(&self) -> KeyringStatus {
        KeyringStatus { keys: 0, key_slots: 0, memory: MemoryKind::MemfdSecret, generation: 0, deadline: None }
    }
}

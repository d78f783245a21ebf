//! The other end of a key push, for tests: what a keyholder does with a node's one-time key.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lease::envelope;
use locked_memory::Policy;
use units::{BootInstant, DomainId, VolumeEpoch};

use key_hierarchy::Integrity;

use crate::{AdmitError, Admitted, Clock, Kernel, Keyring, SealedGrant};

/// A keyring with an endless lease, in whatever locked memory this machine has.
///
/// # Panics
/// If there is none.
pub fn keyring() -> Arc<Keyring> {
    keyring_in(Policy::AllowMlock)
}

/// As [`keyring()`], in the memory that `policy` asks for.
///
/// # Panics
/// If there is none.
pub fn keyring_in(policy: Policy) -> Arc<Keyring> {
    let keyring = Keyring::in_fresh_memory(policy).expect("locked memory");
    keyring.set_deadline(BootInstant(u64::MAX));
    keyring
}

/// As [`keyring()`], on a clock that the test sets, at zero, with a lease until `deadline`.
///
/// # Panics
/// If there is no locked memory.
pub fn keyring_until(deadline: BootInstant) -> (Arc<Keyring>, Arc<AtomicU64>) {
    let now = Arc::new(AtomicU64::new(0));
    let clock = Clock::Manual(Arc::clone(&now));
    let keyring = Keyring::new(Policy::AllowMlock, clock, Kernel::fastest()).expect("locked memory");
    keyring.set_deadline(deadline);
    (keyring, now)
}

/// Holds the key of one (domain, epoch) in ordinary memory, as only a test may.
pub struct Keyholder {
    domain: DomainId,
    epoch: VolumeEpoch,
    prk: [u8; 32],
    integrity: Integrity,
}

impl fmt::Debug for Keyholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyholder").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Keyholder {
    /// A key that follows from `domain` and `epoch`.
    pub fn new(domain: DomainId, epoch: VolumeEpoch) -> Self {
        let mut prk = [0; 32];
        key_hierarchy::extract_prk(
            b"the root secret of a simulation!",
            b"and a domain's secret of its own",
            &mut prk,
        );
        Self { domain, epoch, prk, integrity: Integrity::Tagged }
    }

    /// As [`Keyholder::new`], with this PRK.
    pub fn with_prk(domain: DomainId, epoch: VolumeEpoch, prk: [u8; 32]) -> Self {
        Self { domain, epoch, prk, integrity: Integrity::Tagged }
    }

    /// For a volume that was promised this.
    #[must_use]
    pub fn promising(self, integrity: Integrity) -> Self {
        Self { integrity, ..self }
    }

    /// The XTS key that a node derives from the PRK, for an oracle or a scanner.
    pub fn xts_key(&self) -> [u8; 64] {
        let mut key = [0; 64];
        key_hierarchy::expand(&self.prk, key_hierarchy::Label::Xts, &self.domain, self.epoch, &mut key);
        key
    }

    /// The two keys of the sector tag, for a scanner.
    pub fn tag_keys(&self) -> ([u8; 16], [u8; 32]) {
        let (mut hash, mut prf) = ([0; 16], [0; 32]);
        key_hierarchy::expand(&self.prk, key_hierarchy::Label::TagHash, &self.domain, self.epoch, &mut hash);
        key_hierarchy::expand(&self.prk, key_hierarchy::Label::TagPrf, &self.domain, self.epoch, &mut prf);
        (hash, prf)
    }

    /// The key-check value to create a volume with.
    pub fn check(&self) -> [u8; 16] {
        key_hierarchy::check_value(&self.prk, &self.domain, self.epoch, self.integrity).0
    }

    /// Pushes the key by the full way: one-time key, envelope, admission.
    ///
    /// # Panics
    /// If the one-time key or the envelope can't be made.
    pub fn push(&self, keyring: &Keyring) -> Result<Admitted, AdmitError> {
        let recipient = keyring.fresh_envelope_key().expect("a one-time key");
        let envelope = self.seal_to(&recipient, b"info", b"aad");
        self.admit(keyring, &envelope)
    }

    /// The key, sealed to `recipient`.
    ///
    /// # Panics
    /// If it can't be sealed.
    pub fn seal_to(&self, recipient: &envelope::PublicEnvelopeKey, info: &[u8], aad: &[u8]) -> Vec<u8> {
        let mut randomness = [0; envelope::SEAL_RANDOMNESS_BYTES];
        getrandom::fill(&mut randomness).expect("randomness");
        envelope::seal(recipient, info, aad, &self.prk, &mut randomness).expect("an envelope")
    }

    /// Gives `keyring` an envelope that [`Keyholder::seal_to`] made with the contexts of [`Keyholder::push`].
    pub fn admit(&self, keyring: &Keyring, envelope: &[u8]) -> Result<Admitted, AdmitError> {
        keyring.admit(&SealedGrant {
            domain: self.domain,
            epoch: self.epoch,
            check: self.check(),
            info: b"info",
            aad: b"aad",
            envelope,
        })
    }
}

//! Why a key cannot be used or taken in.

use units::{BootInstant, DomainId, VolumeEpoch};

/// The key is not there any more. Whatever was being computed with it is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum KeyGone {
    /// Everything was wiped.
    #[error("the node is sealed: its keys were wiped; push the key again")]
    Wiped,
    /// The lease ran out.
    #[error("the key's lease ran out at {deadline:?} (boot time); renew it or push the key again")]
    Expired {
        /// When, by this machine's CLOCK_BOOTTIME.
        deadline: BootInstant,
    },
    /// This one key was dropped, for instance because its volume was revoked; others may be there.
    #[error("the volume's key was withdrawn; push it again")]
    Stale,
}

/// Why a grant yielded no key. Nothing of it remains in memory.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// No one-time envelope key is waiting: it was never made, was retired, or was wiped.
    #[error("no one-time envelope key is waiting for a grant; start a new session with the node")]
    NoEnvelopeKey,
    /// The envelope does not open.
    #[error("the grant's envelope does not open; it was made for another session, node or volume")]
    Envelope(#[source] lease::envelope::EnvelopeError),
    /// The key in it is not the one that sealed this volume.
    #[error("the key granted for domain {domain}, epoch {epoch} does not match the volume's check value; \
             the keyholder's root or ledger is not the one that this volume was created under")]
    WrongKey {
        /// Domain the grant names.
        domain: DomainId,
        /// Epoch the grant names.
        epoch: VolumeEpoch,
    },
    /// The two halves of the derived XTS key are equal.
    #[error("the granted key derives equal cipher and tweak keys and must not be used; rotate the volume's key")]
    EqualHalves,
    /// Every slot of the arena is taken.
    #[error("all {limit} key slots are in use; withdraw a volume before granting another")]
    TooManyKeys {
        /// Number of slots.
        limit: usize,
    },
    /// A wipe came in between.
    #[error("a wipe ran while the grant was being opened; push the key again")]
    Wiped,
}

//! Why a key cannot be used or taken in.

use std::io;

use lease::envelope::EnvelopeError;
use units::{BootInstant, DomainId, VolumeEpoch};

/// The key is not there any more. Whatever was being computed with it is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum KeyGone {
    /// Everything was wiped.
    #[error("the node is sealed: its keys were wiped; push the key again")]
    Wiped,
    /// The lease ran out, or none was set.
    #[error("the key's lease ran out (deadline {} ms after boot); renew it or push the key again", .deadline.0 / 1_000_000)]
    Expired {
        /// When, by this machine's CLOCK_BOOTTIME; zero where no lease was set.
        deadline: BootInstant,
    },
    /// This one key was dropped, for instance because its volume was revoked; others may be there.
    #[error("the volume's key was withdrawn; push it again")]
    Stale,
    /// The copy of the key that waits outside of the arena is not what was put there.
    #[error(
        "the key's sealed copy was changed in memory; push the key again, and look for memory errors on this machine"
    )]
    Damaged,
}

/// Why a grant yielded no key. Nothing of it remains in memory.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// No one-time envelope key is waiting: none was made, or it was retired or wiped.
    #[error("no one-time envelope key is waiting for a grant; start a new session with the node")]
    NoEnvelopeKey,
    /// The envelope does not open, or what is in it has the wrong length.
    #[error("the grant's envelope does not open")]
    Envelope(#[source] EnvelopeError),
    /// The key in it is not the one that sealed this volume.
    #[error(
        "the key granted for domain {domain}, epoch {epoch} does not match the volume's check value; restore the \
         root and the ledger under which the volume was created"
    )]
    WrongKey {
        /// Domain that the grant names.
        domain: DomainId,
        /// Epoch that the grant names.
        epoch: VolumeEpoch,
    },
    /// The two halves of the derived XTS key are equal.
    #[error(
        "the granted key derives equal cipher and tweak keys and must not be used; rotate the volume's key"
    )]
    EqualHalves,
    /// The kernel gave no random bytes for the slot key.
    #[error("the kernel gave no random bytes for the key that seals the others")]
    Random(#[source] io::Error),
    /// As many keys are lent as can be.
    #[error("all {limit} key slots are in use; withdraw a volume or move it to another node")]
    TooManyKeys {
        /// Number of slots.
        limit: usize,
    },
    /// A wipe came in between.
    #[error("a wipe ran while the grant was being opened; push the key again")]
    Wiped,
}

/// Why there is no one-time envelope key.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeKeyError {
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes for a one-time key")]
    Random(#[source] io::Error),
    /// The key pair could not be made.
    #[error("the one-time key pair could not be made")]
    Envelope(#[source] EnvelopeError),
    /// A wipe came in between.
    #[error("a wipe ran while the one-time key was being made; start a new session with the node")]
    Wiped,
}

//! What links one entry to the next, and what is signed.

use std::fmt;

use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const LINK: &[u8] = b"nightlatch/audit/2 link";
const ENTRY: &[u8] = b"nightlatch/audit/2 entry";
const SESSION: &[u8] = b"nightlatch/audit/2 session";

macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $length:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serde::Serialize::serialize(&self.0[..], serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    let bytes = Vec::<u8>::deserialize(deserializer)?;
                    let bytes = bytes.try_into().map_err(|_| serde::de::Error::custom("wrong length"))?;
                    Ok(Self(bytes))
                }
            }
        }
    };
}

hex_bytes!(
    /// The hash of an entry with all that stand before it.
    Hash,
    32
);
hex_bytes!(
    /// SHA-256 of what one entry says.
    Digest,
    32
);
hex_bytes!(
    /// Names one trail from its first entry on.
    TrailId,
    16
);

impl Hash {
    /// Stands before the first entry.
    pub const BEGINNING: Self = Self([0; 32]);
}

/// How far a trail has come: all that an outside witness has to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which trail.
    pub trail: TrailId,
    /// Number of its last entry; zero before the first.
    pub seq: u64,
    /// Hash of that entry.
    pub hash: Hash,
}

/// Signs for one trail. The secret stays with whoever implements it.
pub trait Signer: fmt::Debug + Send + Sync {
    /// The Ed25519 public key.
    fn public(&self) -> [u8; 32];

    /// Signs a digest of this crate; `None` where the key is gone, because the program ends.
    fn sign(&self, digest: &[u8; 32]) -> Option<[u8; 64]>;
}

impl<S: Signer + ?Sized> Signer for std::sync::Arc<S> {
    fn public(&self) -> [u8; 32] {
        (**self).public()
    }

    fn sign(&self, digest: &[u8; 32]) -> Option<[u8; 64]> {
        (**self).sign(digest)
    }
}

/// The hash of entry `seq`, whose content has this digest, behind an entry with hash `previous`.
pub fn link(trail: TrailId, previous: Hash, seq: u64, digest: Digest) -> Hash {
    let mut hash = Sha256::new();
    hash.update(LINK);
    hash.update(trail.0);
    hash.update(previous.0);
    hash.update(seq.to_le_bytes());
    hash.update(digest.0);
    Hash(hash.finalize().into())
}

/// What is signed for an entry.
pub fn head_digest(hash: Hash) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(ENTRY);
    digest.update(hash.0);
    digest.finalize().into()
}

/// Where a run of the program begins in its trail, and under which key it signs. Stands in the first entry of the run and of
/// each segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The trail.
    pub trail: TrailId,
    /// The run's public key.
    pub key: [u8; 32],
    /// Number of the run's first entry.
    pub since: u64,
    /// Hash of the entry before it.
    pub previous: Hash,
}

/// What the root's key signs, so that the run's key is believed: the key, and the place in the trail from which it counts.
pub fn certificate_digest(opening: &Opening) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(SESSION);
    digest.update(opening.trail.0);
    digest.update(opening.key);
    digest.update(opening.since.to_le_bytes());
    digest.update(opening.previous.0);
    digest.finalize().into()
}

/// Whether `signature` over `digest` is by `key`.
pub(crate) fn is_signed(key: &[u8; 32], digest: &[u8; 32], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(key)
        .is_ok_and(|key| key.verify_strict(digest, &Signature::from_bytes(signature)).is_ok())
}

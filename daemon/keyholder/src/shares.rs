//! The shares of a root: what is public about a set, a share as its officer keeps it, and a share as its officer sends
//! it.
//!
//! Every share carries the whole public description of its set, with a commitment to each share and to the root. So a
//! wrong, altered or foreign share is named as such when it is submitted, before anything is computed with it, and a
//! keyholder without any memory can tell whether two shares belong together.
//!
//! Commitments are SHA-256 over a label, the set id, the index and the value: shares and root are 32 uniformly random
//! bytes, so a hash hides them.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lease::envelope::{self, EnvelopeError, PublicEnvelopeKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use units::RootEpoch;
use zeroize::{Zeroize, Zeroizing};

use crate::gf256::SECRET_BYTES;

/// Most officers of one set: more than any organisation gathers, and all their shares fit the arena.
pub const OFFICERS_MAX: usize = 16;

/// Longest officer name.
pub const OFFICER_NAME_BYTES_MAX: usize = 64;

/// Version of the share file.
const SHARE_VERSION: u32 = 1;

const ENVELOPE_INFO: &[u8] = b"nightlatch/share/1 envelope";
const SHARE_COMMITMENT: &[u8] = b"nightlatch/share/1 share";
const ROOT_COMMITMENT: &[u8] = b"nightlatch/share/1 root";
const SET_CONTEXT: &[u8] = b"nightlatch/share/1 set";

/// 32 bytes that are public, in hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Commitment(pub [u8; 32]);

impl fmt::Debug for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commitment({})", hex::encode(self.0))
    }
}

impl Serialize for Commitment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&hex::encode(self.0))
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Commitment {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let mut bytes = [0; 32];
            hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
            Ok(Self(bytes))
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// A set of shares, all of it public.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSet {
    /// Random id of the set, hex.
    pub set: SetId,
    /// Which root it restores.
    pub root_epoch: RootEpoch,
    /// Shares needed.
    pub threshold: u8,
    /// Who has one; share number `i + 1` belongs to the officer at `i`.
    pub officers: Vec<ShareHolder>,
    /// Commitment to the root.
    pub root: Commitment,
}

/// The id of a share set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SetId(pub [u8; 16]);

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetId({self})")
    }
}

impl Serialize for SetId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for SetId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let mut bytes = [0; 16];
            hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
            Ok(Self(bytes))
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

/// Who has a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareHolder {
    /// The officer's name.
    pub name: String,
    /// SHA-256 of the officer's public envelope key.
    pub key: Commitment,
    /// Commitment to the share.
    pub share: Commitment,
}

impl ShareSet {
    /// The officer who has the share with this number.
    pub fn holder(&self, index: u8) -> Option<&ShareHolder> {
        self.officers.get(usize::from(index).checked_sub(1)?)
    }

    /// Checks the shape: what a ceremony would not have made is not a set.
    pub fn check(&self) -> Result<(), ShareError> {
        let count = self.officers.len();
        let plausible = count <= OFFICERS_MAX
            && (1..=count).contains(&usize::from(self.threshold))
            && self.officers.iter().all(|officer| officer.name.len() <= OFFICER_NAME_BYTES_MAX);
        if plausible { Ok(()) } else { Err(ShareError::MalformedSet) }
    }

    /// A hash over everything in the set, for envelopes to be bound to.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(SET_CONTEXT);
        hash.update(self.set.0);
        hash.update(self.root_epoch.0.to_le_bytes());
        hash.update([self.threshold]);
        hash.update((self.officers.len() as u64).to_le_bytes());
        for officer in &self.officers {
            hash.update((officer.name.len() as u64).to_le_bytes());
            hash.update(officer.name.as_bytes());
            hash.update(officer.key.0);
            hash.update(officer.share.0);
        }
        hash.update(self.root.0);
        hash.finalize().into()
    }

    fn envelope_aad(&self, index: u8) -> Vec<u8> {
        [self.digest().as_slice(), &[index]].concat()
    }

    pub(crate) fn is_root(&self, root: &[u8; SECRET_BYTES]) -> bool {
        commit(ROOT_COMMITMENT, self.set, 0, root).0.ct_eq(&self.root.0).into()
    }

    pub(crate) fn is_share(&self, index: u8, value: &[u8; SECRET_BYTES]) -> bool {
        self.holder(index).is_some_and(|holder| {
            commit(SHARE_COMMITMENT, self.set, index, value).0.ct_eq(&holder.share.0).into()
        })
    }
}

pub(crate) fn commit_root(set: SetId, root: &[u8; SECRET_BYTES]) -> Commitment {
    commit(ROOT_COMMITMENT, set, 0, root)
}

pub(crate) fn commit_share(set: SetId, index: u8, value: &[u8; SECRET_BYTES]) -> Commitment {
    commit(SHARE_COMMITMENT, set, index, value)
}

fn commit(context: &[u8], set: SetId, index: u8, value: &[u8; SECRET_BYTES]) -> Commitment {
    let mut hash = Sha256::new();
    hash.update(context);
    hash.update(set.0);
    hash.update([index]);
    hash.update(value);
    Commitment(hash.finalize().into())
}

/// What is wrong with a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Written by another version.
    #[error(
        "the share file has version {found}, this program reads {SHARE_VERSION}; use the program that made it"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// The public part is damaged.
    #[error("the share's description of its set is damaged; use the officer's backup of the file")]
    MalformedSet,
    /// The officer's key is another one.
    #[error(
        "this share was encrypted to the key {expected} of officer {officer}, the key given is {given}; use the key \
         file that belongs to it"
    )]
    OtherKey {
        /// The officer it belongs to.
        officer: String,
        /// Fingerprint of the officer's key.
        expected: String,
        /// Fingerprint of the key given.
        given: String,
    },
    /// The envelope does not open.
    #[error("the share does not decrypt: the file is damaged; use the officer's backup of it")]
    Envelope(#[source] EnvelopeError),
    /// The value is not the one that was committed to.
    #[error(
        "share {index} of set {set} is not the one that the ceremony made; use the officer's backup of it"
    )]
    Wrong {
        /// The set.
        set: SetId,
        /// Number of the share.
        index: u8,
    },
}

/// A share as its officer keeps it: encrypted to the officer's key. Safe to store, useless alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedShare {
    /// Version of this file.
    pub version: u32,
    /// The set.
    pub share_set: ShareSet,
    /// Number of the share, from 1.
    pub index: u8,
    /// Whose it is.
    pub officer: String,
    /// HPKE envelope of the value, base64.
    pub envelope: String,
}

impl SealedShare {
    /// Encrypts a share. Runs on the key stack.
    pub(crate) fn seal(
        share_set: &ShareSet,
        index: u8,
        recipient: &PublicEnvelopeKey,
        value: &[u8; SECRET_BYTES],
        randomness: &mut [u8; envelope::SEAL_RANDOMNESS_BYTES],
    ) -> Result<Self, EnvelopeError> {
        let sealed =
            envelope::seal(recipient, ENVELOPE_INFO, &share_set.envelope_aad(index), value, randomness)?;
        Ok(Self {
            version: SHARE_VERSION,
            share_set: share_set.clone(),
            index,
            officer: share_set.holder(index).map(|holder| holder.name.clone()).unwrap_or_default(),
            envelope: BASE64.encode(sealed),
        })
    }

    /// Decrypts the share with the officer's envelope secret. For the officer's own machine.
    pub fn open(&self, officer_secret: &[u8; envelope::SECRET_BYTES]) -> Result<Share, ShareError> {
        if self.version != SHARE_VERSION {
            return Err(ShareError::Version { found: self.version });
        }
        self.share_set.check()?;
        let holder = self.share_set.holder(self.index).ok_or(ShareError::MalformedSet)?;
        let public = envelope::keypair(officer_secret).map_err(ShareError::Envelope)?;
        if public.fingerprint() != holder.key.0 {
            return Err(ShareError::OtherKey {
                officer: holder.name.clone(),
                expected: short_hex(&holder.key.0),
                given: short_hex(&public.fingerprint()),
            });
        }
        let sealed = BASE64.decode(&self.envelope).map_err(|_| ShareError::MalformedSet)?;
        let mut value = Zeroizing::new([0; SECRET_BYTES]);
        let aad = self.share_set.envelope_aad(self.index);
        envelope::open(officer_secret, ENVELOPE_INFO, &aad, &sealed, value.as_mut_slice())
            .map_err(ShareError::Envelope)?;
        let share = Share { share_set: self.share_set.clone(), index: self.index, value: ShareValue(value) };
        share.check()?;
        Ok(share)
    }
}

/// A share in the clear, on its way from its officer to the keyholder.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The set.
    pub share_set: ShareSet,
    /// Number of the share, from 1.
    pub index: u8,
    /// The value.
    pub value: ShareValue,
}

impl Share {
    /// Checks the set's shape and the value against its commitment.
    pub fn check(&self) -> Result<(), ShareError> {
        self.share_set.check()?;
        if self.share_set.is_share(self.index, &self.value.0) {
            Ok(())
        } else {
            Err(ShareError::Wrong { set: self.share_set.set, index: self.index })
        }
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("set", &self.share_set.set)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// The secret of a share; base64 on the wire, zeroed on drop.
pub struct ShareValue(pub(crate) Zeroizing<[u8; SECRET_BYTES]>);

impl fmt::Debug for ShareValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShareValue")
    }
}

impl Serialize for ShareValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(self.0.as_slice())))
    }
}

impl<'de> Deserialize<'de> for ShareValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut value = Zeroizing::new([0; SECRET_BYTES]);
        // One byte over, because the decoder wants room for its last quantum.
        let mut decoded = Zeroizing::new([0; SECRET_BYTES + 3]);
        let wrong = || serde::de::Error::custom("a share's value is 32 bytes in base64");
        let length = BASE64.decode_slice(text.as_bytes(), decoded.as_mut_slice()).map_err(|_| wrong())?;
        if length != SECRET_BYTES {
            return Err(wrong());
        }
        value.copy_from_slice(&decoded[..SECRET_BYTES]);
        decoded.zeroize();
        Ok(Self(value))
    }
}

/// The first eight bytes of a hash, as people compare them.
pub(crate) fn short_hex(hash: &[u8; 32]) -> String {
    hex::encode(&hash[..8])
}

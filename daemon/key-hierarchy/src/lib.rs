//! Which key comes from which secret: HKDF-SHA-256 (RFC 5869) under fixed labels. HIERARCHY.md has the bytes.
//!
//! Invariants:
//! - A key's label, domain and epoch are part of its derivation, each behind its length: no two keys share an input.
//! - Root epoch and volume epoch are different types and never meet in one derivation: rotating one never asks for
//!   the other.
//! - Secrets come in by reference and go out into the caller's memory. What the computation leaves is on the stack:
//!   call everything here on the key stack, except what handles only check values.
//!
//! It stores nothing and knows no file and no wire format.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use units::{DomainId, RootEpoch, VolumeEpoch};
use zeroize::Zeroize;

/// Length of a root secret, a domain secret and a PRK.
pub const SECRET_BYTES: usize = 32;

/// First field of every `info`: a change of anything in this crate changes it.
const VERSION: &[u8] = b"nightlatch hierarchy 1";

/// Salt under which a root secret is extracted for keys of its own; domains use their secret instead.
const ROOT_SALT: &[u8] = b"nightlatch root 1";

/// Longest label; keeps `info` on the stack.
const LABEL_BYTES_MAX: usize = 16;

const INFO_BYTES_MAX: usize = 1 + VERSION.len() + 1 + LABEL_BYTES_MAX + 1 + 16 + 4;

/// What a key of a domain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// AES-256-XTS: cipher key, then tweak key.
    Xts,
    /// POLYVAL key of the sector tag.
    TagHash,
    /// AES-256 key over that hash.
    TagPrf,
    /// The key-check value of a volume whose sectors are not verified; not a secret.
    Check,
    /// The key-check value of a volume that has a tag for every sector; not a secret.
    CheckTagged,
    /// The key-check value of a volume whose sectors have checksums alone; not a secret.
    CheckCrc,
}

impl Label {
    /// Every label, in the order of HIERARCHY.md.
    pub const ALL: [Self; 6] =
        [Self::Xts, Self::TagHash, Self::TagPrf, Self::Check, Self::CheckTagged, Self::CheckCrc];

    /// The text that goes into the derivation.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Xts => "xts",
            Self::TagHash => "tag-hash",
            Self::TagPrf => "tag-prf",
            Self::Check => "check",
            Self::CheckTagged => "check-tagged",
            Self::CheckCrc => "check-crc",
        }
    }

    /// Length of the key.
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Xts => 64,
            Self::TagPrf => 32,
            Self::TagHash | Self::Check | Self::CheckTagged | Self::CheckCrc => 16,
        }
    }
}

/// What a key of the root itself is for. All are 32 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootLabel {
    /// Wraps the ledger key, which wraps the domain secrets.
    LedgerWrap,
    /// Ed25519 seed of the key that signs grants; nodes pin its public half.
    GrantSigning,
    /// Ed25519 seed of the key that certifies the runs which write the audit trail.
    AuditSigning,
}

impl RootLabel {
    /// Every label, in the order of HIERARCHY.md.
    pub const ALL: [Self; 3] = [Self::LedgerWrap, Self::GrantSigning, Self::AuditSigning];

    /// The text that goes into the derivation.
    pub const fn text(self) -> &'static str {
        match self {
            Self::LedgerWrap => "ledger-wrap",
            Self::GrantSigning => "grant-signing",
            Self::AuditSigning => "audit-signing",
        }
    }
}

/// Tells whether a key is the one that a volume was sealed under, without telling anything about the key. Public: it
/// stands on disk and in grants.
#[derive(Clone, Copy)]
pub struct KeyCheck(pub [u8; 16]);

impl KeyCheck {
    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyCheck(")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// PRK of one domain and epoch: HKDF-Extract(salt = the domain's secret of that epoch, IKM = root secret).
pub fn extract_prk(
    root: &[u8; SECRET_BYTES],
    domain_secret: &[u8; SECRET_BYTES],
    out: &mut [u8; SECRET_BYTES],
) {
    let (mut prk, _) = Hkdf::<Sha256>::extract(Some(domain_secret), root);
    out.copy_from_slice(&prk);
    prk.as_mut_slice().zeroize();
}

/// The key for `label` in (`domain`, `epoch`).
///
/// # Panics
/// If `out` is not [`Label::key_bytes`] long: the caller's invariant.
pub fn expand(prk: &[u8; SECRET_BYTES], label: Label, domain: &DomainId, epoch: VolumeEpoch, out: &mut [u8]) {
    assert_eq!(out.len(), label.key_bytes(), "a {} key has a fixed length", label.text());
    expand_with(prk, &Info::new(label.text(), &domain.0, epoch.0), out);
}

/// What a volume was promised when it was made. Whoever has the key learns it from the key-check value, which nobody
/// without the key can change from one to the other: a disk cannot take the promise back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// Sectors are not verified.
    Unverified,
    /// Every sector has a tag, and is nothing without it.
    Tagged,
    /// Every sector has a checksum, which tells rot and no tampering, and is nothing without it.
    Checksummed,
}

impl Integrity {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Unverified, Self::Tagged, Self::Checksummed];

    /// What the key-check value is derived for.
    pub const fn label(self) -> Label {
        match self {
            Self::Unverified => Label::Check,
            Self::Tagged => Label::CheckTagged,
            Self::Checksummed => Label::CheckCrc,
        }
    }
}

/// The key-check value of (`domain`, `epoch`) for a volume of this integrity.
pub fn check_value(
    prk: &[u8; SECRET_BYTES],
    domain: &DomainId,
    epoch: VolumeEpoch,
    integrity: Integrity,
) -> KeyCheck {
    let mut check = [0; 16];
    expand(prk, integrity.label(), domain, epoch, &mut check);
    KeyCheck(check)
}

/// Which integrity a key-check value promises; `None` where it is not this key's.
pub fn promised(
    prk: &[u8; SECRET_BYTES],
    domain: &DomainId,
    epoch: VolumeEpoch,
    check: KeyCheck,
) -> Option<Integrity> {
    Integrity::ALL.into_iter().find(|integrity| check_value(prk, domain, epoch, *integrity).matches(&check))
}

/// A key that belongs to the root secret itself, under its own epoch.
pub fn expand_root(
    root: &[u8; SECRET_BYTES],
    label: RootLabel,
    epoch: RootEpoch,
    out: &mut [u8; SECRET_BYTES],
) {
    let mut prk = [0; SECRET_BYTES];
    let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(ROOT_SALT), root);
    prk.copy_from_slice(&extracted);
    extracted.as_mut_slice().zeroize();
    expand_with(&prk, &Info::new(label.text(), &[], epoch.0), out);
    prk.zeroize();
}

fn expand_with(prk: &[u8; SECRET_BYTES], info: &Info, out: &mut [u8]) {
    let expanded = Hkdf::<Sha256>::from_prk(prk).map(|hkdf| hkdf.expand(info.bytes(), out));
    // The PRK has the length of the hash and no key comes near 255 hashes.
    assert!(matches!(expanded, Ok(Ok(()))), "HKDF takes a 32-byte PRK and keys of up to 8160 bytes");
}

/// HKDF `info`: version, label and domain, each behind a length byte, then the epoch as 32 bits, big-endian.
struct Info {
    bytes: [u8; INFO_BYTES_MAX],
    used: usize,
}

impl Info {
    fn new(label: &str, domain: &[u8], epoch: u32) -> Self {
        let mut info = Self { bytes: [0; INFO_BYTES_MAX], used: 0 };
        for field in [VERSION, label.as_bytes(), domain] {
            // Fields are constants of this crate and 16-byte identifiers: a length always fits a byte.
            info.push(&[u8::try_from(field.len()).unwrap_or(u8::MAX)]);
            info.push(field);
        }
        info.push(&epoch.to_be_bytes());
        info
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

//! Clear sectors, and the two steps through the door: `seal` and `unseal`.

use std::fmt;
use std::mem;

use aes_xts::{BatchError, Binding, Direction, Record, Sectors};
use device::{Sealed, SectorBuf, SectorRecord};
use keyring::{Integrity, KeyGone, KeyHandle, Keyring};
use units::{DomainId, Lba, SECTOR_BYTES, SectorCount, VolumeEpoch};
use zeroize::Zeroize;

/// Whole sectors of plaintext. No device takes it: the only way to storage is [`seal`], which consumes it. Zeroed
/// on drop.
pub struct Clear(SectorBuf);

impl Clear {
    /// `count` sectors of zeros.
    pub fn zeroed(count: SectorCount) -> Self {
        Self(SectorBuf::zeroed(count))
    }

    /// `count` sectors of ciphertext that some buffer before held: for whoever fills all of them.
    pub(crate) fn to_fill(count: SectorCount) -> Self {
        Self(SectorBuf::to_fill(count))
    }

    /// The plaintext.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The plaintext, to fill in.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }

    /// How many.
    pub fn sectors(&self) -> SectorCount {
        self.0.sectors()
    }
}

impl fmt::Debug for Clear {
    /// Says how much, never what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clear({} sectors)", self.sectors().0)
    }
}

impl Drop for Clear {
    fn drop(&mut self) {
        self.0.as_mut_bytes().zeroize();
    }
}

/// Of a sector whose checksum is all that there is.
const NO_TAG: [u8; 16] = [0; 16];

/// What the sectors of a volume are bound to, beside their numbers and sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Key domain.
    pub domain: DomainId,
    /// Volume epoch.
    pub epoch: VolumeEpoch,
}

/// Encrypts `clear` in place for the sectors from `first` on, and makes their records, under the sequences from `sequence`
/// on. The tags of a volume that was promised checksums alone stay zero.
///
/// A buffer that was being encrypted while the key went is neither plaintext nor ciphertext: it is zeroed and the
/// answer is [`KeyGone`].
pub fn seal(
    clear: Clear,
    keys: (&Keyring, KeyHandle),
    bound: Bound,
    at: (Lba, u64),
) -> Result<Sealed, KeyGone> {
    seal_within(clear, None, keys, bound, at)
}

/// As [`seal`], of whole sectors that stay where they are: they are encrypted into a buffer of their own.
pub(crate) fn seal_bytes(
    clear: &[u8],
    keys: (&Keyring, KeyHandle),
    bound: Bound,
    at: (Lba, u64),
) -> Result<Sealed, KeyGone> {
    let count = SectorCount((clear.len() / SECTOR_BYTES) as u64);
    seal_within(Clear::to_fill(count), Some(clear), keys, bound, at)
}

/// Encrypts what is in `clear`, or else all of `source` into it.
fn seal_within(
    mut clear: Clear,
    source: Option<&[u8]>,
    (keyring, key): (&Keyring, KeyHandle),
    bound: Bound,
    (first, sequence): (Lba, u64),
) -> Result<Sealed, KeyGone> {
    let sequences: Vec<u64> = (sequence..sequence.saturating_add(clear.sectors().0)).collect();
    let sectors = sectors_from(first);
    if key.integrity() == Integrity::Checksummed {
        keyring.with_key(key, |key| {
            whole(match source {
                None => key.cipher.apply(Direction::Encrypt, sectors, clear.as_mut_bytes()),
                Some(source) => {
                    key.cipher.apply_into(Direction::Encrypt, sectors, (source, clear.as_mut_bytes()))
                }
            });
        })?;
        let checksums = clear.as_bytes().chunks_exact(SECTOR_BYTES).map(crc32c::crc32c);
        let records = sequences.iter().zip(checksums);
        let records = records
            .map(|(sequence, checksum)| SectorRecord { sequence: *sequence, checksum, tag: NO_TAG })
            .collect();
        return Ok(sealed(&mut clear, records));
    }
    let mut made = vec![Record::default(); sequences.len()];
    keyring.with_key(key, |key| {
        let binding = bound.binding(&sequences);
        whole(match source {
            None => key.cipher.seal(key.tags, sectors, binding, clear.as_mut_bytes(), &mut made),
            Some(source) => {
                let ends = (source, clear.as_mut_bytes());
                key.cipher.seal_into(key.tags, sectors, binding, ends, &mut made)
            }
        });
    })?;
    let records = sequences.iter().zip(&made).map(|(sequence, made)| SectorRecord {
        sequence: *sequence,
        checksum: made.checksum,
        tag: *made.tag.bytes(),
    });
    Ok(sealed(&mut clear, records.collect()))
}

/// What the cipher has just made of `clear`.
fn sealed(clear: &mut Clear, records: Vec<SectorRecord>) -> Sealed {
    Sealed::from_cipher(mem::replace(&mut clear.0, SectorBuf::zeroed(SectorCount(0))), records)
}

/// Decrypts `sealed`, which was read from the sectors from `first` on, into `out` of the same length, and compares each
/// sector with its record.
///
/// When the key goes meanwhile, or a sector is not what was sealed, `out` is zeroed.
///
/// # Panics
/// If the lengths differ: the caller's invariant.
pub fn unseal(
    sealed: &Sealed,
    (keyring, key): (&Keyring, KeyHandle),
    bound: Bound,
    first: Lba,
    out: &mut [u8],
) -> Result<(), UnsealError> {
    let opened = match (sealed.records(), key.integrity()) {
        ([], Integrity::Unverified) => open_unverified(sealed, (keyring, key), first, out),
        (_, Integrity::Checksummed) if !sealed.records().is_empty() => {
            let rotten = sealed.first_misfit().map(|nth| Lba(first.0 + nth));
            match rotten {
                None => open_unverified(sealed, (keyring, key), first, out),
                Some(first) => Err(UnsealError::Damaged { first, damage: Damage::Checksum }),
            }
        }
        ([], Integrity::Tagged | Integrity::Checksummed) => {
            Err(UnsealError::Damaged { first, damage: Damage::NoRecord })
        }
        (records, _) => open_verified(sealed, records, (keyring, key), bound, first, out),
    };
    if opened.is_err() {
        out.zeroize();
    }
    opened
}

fn open_unverified(
    sealed: &Sealed,
    (keyring, key): (&Keyring, KeyHandle),
    first: Lba,
    out: &mut [u8],
) -> Result<(), UnsealError> {
    let lent = keyring.with_key(key, |key| {
        let ends = (sealed.as_bytes(), &mut *out);
        whole(key.cipher.apply_into(Direction::Decrypt, sectors_from(first), ends));
    });
    lent.map_err(UnsealError::KeyGone)
}

fn open_verified(
    sealed: &Sealed,
    records: &[SectorRecord],
    (keyring, key): (&Keyring, KeyHandle),
    bound: Bound,
    first: Lba,
    out: &mut [u8],
) -> Result<(), UnsealError> {
    let sequences: Vec<u64> = records.iter().map(|record| record.sequence).collect();
    let mut found = vec![Record::default(); records.len()];
    let lent = keyring.with_key(key, |key| {
        let ends = (sealed.as_bytes(), &mut *out);
        whole(key.cipher.open(key.tags, sectors_from(first), bound.binding(&sequences), ends, &mut found));
    });
    lent.map_err(UnsealError::KeyGone)?;
    for ((record, found), nth) in records.iter().zip(&found).zip(0..) {
        let damage = match found.tag.verify(&record.tag) {
            Ok(()) if found.checksum == record.checksum => continue,
            Err(_) if found.checksum == record.checksum => Damage::Tag,
            _ => Damage::Checksum,
        };
        return Err(UnsealError::Damaged { first: Lba(first.0 + nth), damage });
    }
    Ok(())
}

/// Why there is no plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsealError {
    /// The key is gone, or went meanwhile.
    KeyGone(KeyGone),
    /// The sector is not what was sealed.
    Damaged { first: Lba, damage: Damage },
}

/// How a sector differs from what was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Damage {
    /// Its ciphertext does not have the checksum of its record: the device let it rot, or somebody changed it without care.
    Checksum,
    /// It has the checksum and not the tag: somebody changed, moved or put back ciphertext and record alike.
    Tag,
    /// The volume was made with records, and the pool says that it keeps none.
    NoRecord,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "its ciphertext does not match its checksum",
            Self::Tag => "its checksum matches and its tag does not",
            Self::NoRecord => "its record is missing",
        })
    }
}

impl Bound {
    fn binding(self, sequences: &[u64]) -> Binding<'_> {
        Binding { domain: self.domain.0, epoch: self.epoch.0, sequences }
    }
}

/// The tweak is the sector's number in its key domain.
fn sectors_from(first: Lba) -> Sectors {
    Sectors { first: u128::from(first.0), bytes: SECTOR_BYTES }
}

/// A buffer of whole sectors is never refused; anything else is a bug of the caller.
fn whole(done: Result<u64, BatchError>) -> u64 {
    done.unwrap_or_else(|error| panic!("sectors for the cipher: {error}"))
}

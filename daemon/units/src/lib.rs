//! The block and key units that every crate speaks: sectors, bytes, identifiers, epochs, fences, boot time.
//!
//! Invariants:
//! - A raw integer becomes a unit at a codec edge and nowhere else; arithmetic that could leave the range is
//!   `checked_*` and returns `None`.
//! - A sector is 4096 bytes everywhere above and below the door. Protocol sectors of 512 bytes exist only inside
//!   the head that speaks them.
//! - Identifiers are random, carry no meaning, and print as 32 lower-case hex digits.
//!
//! This crate holds no secret and does no input or output.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in a sector: the unit of encryption (the XTS data unit), of presence, and of a device transfer.
pub const SECTOR_BYTES: usize = 4096;

/// `SECTOR_BYTES` as the `u64` that offsets are computed in.
const SECTOR_BYTES_U64: u64 = 4096;

/// Highest sector count that any address space may have: 1 PiB of 4 KiB sectors.
pub const SECTORS_MAX: u64 = (1 << 50) / SECTOR_BYTES_U64;

/// A sector number inside a volume or a key domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lba(pub u64);

impl Lba {
    /// The sector that holds byte `offset`.
    pub const fn containing(offset: ByteOffset) -> Self {
        Self(offset.0 / SECTOR_BYTES_U64)
    }

    /// The first byte of this sector, `None` past the end of the 64-bit byte space.
    pub fn byte_offset(self) -> Option<ByteOffset> {
        self.0.checked_mul(SECTOR_BYTES_U64).map(ByteOffset)
    }

    /// The sector `count` further on.
    pub fn checked_add(self, count: SectorCount) -> Option<Self> {
        self.0.checked_add(count.0).map(Self)
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}", self.0)
    }
}

/// A number of sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SectorCount(pub u64);

impl SectorCount {
    /// The sectors needed to hold `len` bytes, the last one perhaps partly used.
    pub const fn holding(len: ByteLen) -> Self {
        Self(len.0.div_ceil(SECTOR_BYTES_U64))
    }

    /// Length in bytes, `None` where it does not fit 64 bits.
    pub fn byte_len(self) -> Option<ByteLen> {
        self.0.checked_mul(SECTOR_BYTES_U64).map(ByteLen)
    }
}

/// A byte position on a device or in a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteOffset(pub u64);

impl ByteOffset {
    /// The position `len` bytes further on.
    pub fn checked_add(self, len: ByteLen) -> Option<Self> {
        self.0.checked_add(len.0).map(Self)
    }

    /// Whether the position is the first byte of a sector.
    pub const fn is_sector_aligned(self) -> bool {
        self.0.is_multiple_of(SECTOR_BYTES_U64)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}", self.0)
    }
}

/// A length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteLen(pub u64);

impl ByteLen {
    /// Whether the length is a whole number of sectors.
    pub const fn is_sector_aligned(self) -> bool {
        self.0.is_multiple_of(SECTOR_BYTES_U64)
    }

    /// Whole sectors in this length; a partial last sector is not counted.
    pub const fn whole_sectors(self) -> SectorCount {
        SectorCount(self.0 / SECTOR_BYTES_U64)
    }
}

impl fmt::Display for ByteLen {
    /// Binary units with one decimal, the exact number below 1 KiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut tenths = u128::from(self.0) * 10 / 1024;
        let mut unit = UNITS[0];
        for next in &UNITS[1..] {
            if tenths < 10 * 1024 {
                break;
            }
            tenths /= 1024;
            unit = next;
        }
        if tenths.is_multiple_of(10) {
            write!(f, "{} {unit}", tenths / 10)
        } else {
            write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

/// Why a size such as `10G` could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a size: write a whole number of bytes, or one with K, M, G, T or P (powers of 1024), as in 64M or 1TiB"
)]
pub struct InvalidSize(String);

impl FromStr for ByteLen {
    type Err = InvalidSize;

    /// `4096`, `4K`, `4KiB`, `10G`, `1TiB`: powers of 1024, suffix in either case.
    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let invalid = || InvalidSize(text.to_owned());
        let trimmed = text.trim();
        let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (digits, suffix) = trimmed.split_at(digits_end);
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        let shift = match suffix.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            _ => return Err(invalid()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(invalid)
    }
}

/// Why an identifier could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an identifier: expected 32 hexadecimal digits")]
pub struct InvalidId(String);

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidId(text.to_owned()))?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

identifier!(
    /// A volume, unique over all pools; the only name a volume has on disk.
    VolumeId
);
identifier!(
    /// A key domain: the scope of one key and of one tweak address space.
    DomainId
);
identifier!(
    /// A pool, which is one device.
    PoolId
);
identifier!(
    /// A storage node, fixed at enrolment.
    NodeId
);
identifier!(
    /// One boot of a node: the kernel's boot id.
    BootId
);
identifier!(
    /// One key grant.
    GrantId
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next value, `None` at the end of the range.
            pub fn next(self) -> Option<Self> {
                self.0.checked_add(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter!(
    /// Which root secret a key comes from. Rotating it re-wraps the ledger and touches no data.
    RootEpoch(u32)
);
counter!(
    /// Which of a domain's random secrets a sector was sealed under. Rotating it rewrites data.
    VolumeEpoch(u32)
);
counter!(
    /// Monotonic per volume; a grant with a lower one than the highest seen is stale.
    Fence(u64)
);

/// A point on CLOCK_BOOTTIME in nanoseconds: suspend included, the wall clock not consulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootInstant(pub u64);

impl BootInstant {
    /// The instant `duration_ms` later; the end of time where that does not fit.
    pub const fn saturating_add_ms(self, duration_ms: u64) -> Self {
        Self(self.0.saturating_add(duration_ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds from `earlier` to `self`, zero where `earlier` is later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_in_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("4K", 4096), ("1TiB", 1 << 40), (" 2 g ", 2 << 30)] {
            assert_eq!(text.parse(), Ok(ByteLen(bytes)), "{text}");
        }
        for text in ["", "K", "-1", "1.5G", "4X", "99999999999P"] {
            assert!(text.parse::<ByteLen>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_with_one_decimal() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (5 << 30, "5 GiB")]
        {
            assert_eq!(ByteLen(bytes).to_string(), text);
        }
    }

    #[test]
    fn identifiers_survive_text_and_refuse_other_lengths() {
        let id = VolumeId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("a5".parse::<VolumeId>().is_err());
        assert!("g".repeat(32).parse::<VolumeId>().is_err());
    }

    #[test]
    fn arithmetic_at_the_edge_returns_none() {
        assert_eq!(Lba(u64::MAX).byte_offset(), None);
        assert_eq!(SectorCount(u64::MAX).byte_len(), None);
        assert_eq!(ByteOffset(u64::MAX).checked_add(ByteLen(1)), None);
        assert_eq!(Fence(u64::MAX).next(), None);
    }
}

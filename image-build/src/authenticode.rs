//! The hash by which firmware knows an executable (Microsoft, "Windows Authenticode Portable Executable Signature Format"): all of
//! the file but its checksum, the entry that points at its signatures, and the signatures.
//!
//! So a signed image has the hash of the unsigned one, and Secure Boot and PCR 4 can be told in advance.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{ImageError, Reason, Result};

/// Signatures begin at multiples of this; an image that ends at one stays as it is when it is signed.
pub(crate) const ALIGNMENT: usize = 8;

/// Where in a PE32+ file what matters here stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    pub(crate) optional_header: usize,
    pub(crate) checksum: usize,
    certificates: usize,
}

const PE32_PLUS: u16 = 0x20B;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl Offsets {
    pub(crate) fn find(pe: &[u8]) -> Option<Self> {
        let header = usize::try_from(u32_at(pe, 0x3C)?).ok()?;
        let optional_header = header.checked_add(24)?;
        let is_pe = pe.get(header..)?.starts_with(b"PE\0\0") && u16_at(pe, optional_header)? == PE32_PLUS;
        // The fifth data directory.
        is_pe.then(|| Self {
            optional_header,
            checksum: optional_header + 64,
            certificates: optional_header + 112 + 4 * 8,
        })
    }
}

/// Where the signatures begin: the end of the file where there are none.
fn signatures_at(pe: &[u8], offsets: Offsets) -> Option<usize> {
    match usize::try_from(u32_at(pe, offsets.certificates)?).ok()? {
        0 => Some(pe.len()),
        at if at > offsets.certificates + 8 && at <= pe.len() => Some(at),
        _ => None,
    }
}

/// The hash.
///
/// # Errors
/// Where `pe`, which was read from `path`, is no executable of UEFI's.
pub(crate) fn hash(path: &Path, pe: &[u8]) -> Result<[u8; 32]> {
    let parts = || {
        let offsets = Offsets::find(pe)?;
        let end = signatures_at(pe, offsets)?;
        Some([
            pe.get(..offsets.checksum)?,
            pe.get(offsets.checksum + 4..offsets.certificates)?,
            pe.get(offsets.certificates + 8..end)?,
        ])
    };
    let parts = parts().ok_or_else(|| {
        ImageError::malformed(path, "an executable for UEFI", Reason::Words("it has no whole PE32+ header"))
    })?;
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    Ok(hash.finalize().into())
}

/// Whether it carries signatures. Whose, only firmware that has the keys can say.
pub(crate) fn is_signed(pe: &[u8]) -> bool {
    Offsets::find(pe).and_then(|offsets| signatures_at(pe, offsets)).is_some_and(|at| at < pe.len())
}

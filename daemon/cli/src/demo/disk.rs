//! What a thief would find: the pool's bytes, measured and searched.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use units::{ByteLen, SECTOR_BYTES};

use crate::demo::traffic::NEEDLE;
use crate::failure::{Done, Failure};

/// The demonstration's own choice of the pool's two numbers, from which its layout follows (FORMAT.md of `pool`).
pub(super) const EXTENT: ByteLen = ByteLen(1 << 20);
pub(super) const LOG: ByteLen = ByteLen(16 << 20);

/// Where the first extent lies: superblocks and volume table take 2 MiB, then the log, then one extent of table.
/// Everything before it is the pool's own metadata, which is no secret and is not sealed.
const DATA_AT: u64 = (2 << 20) + LOG.0 + EXTENT.0;

/// How much is looked at: what the demonstration writes, several times over. Enough that an entropy of noise comes
/// out within 0.0001 bits of 8.
const LOOKED_AT_MAX: u64 = 256 << 20;

/// Read at once.
const PIECE: usize = 1 << 20;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Findings {
    /// Bytes of sectors that have ever been written.
    pub(super) bytes: u64,
    /// Their Shannon entropy, bits a byte; 8 is noise.
    pub(super) entropy: f64,
    /// How often the text that clients wrote was found.
    pub(super) needles: u64,
}

/// Reads the pool's data and measures it.
pub(super) fn look(path: &Path) -> Done<Findings> {
    measure(path).map_err(|error| Failure::file("read", path, &error))
}

fn measure(path: &Path) -> io::Result<Findings> {
    let file = File::open(path)?;
    let mut counts = [0_u64; 256];
    let mut findings = Findings { bytes: 0, entropy: 0.0, needles: 0 };
    let mut piece = vec![0; PIECE];
    // The end of the last piece, so that a text across two pieces is found.
    let mut carried: Vec<u8> = Vec::new();
    let mut at = DATA_AT;
    while findings.bytes < LOOKED_AT_MAX {
        let Some(data_at) = next_data(&file, at)? else { break };
        if data_at != at {
            carried.clear();
            at = data_at;
        }
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            break;
        }
        for sector in piece[..read].chunks(SECTOR_BYTES).filter(|sector| sector.iter().any(|byte| *byte != 0))
        {
            findings.bytes += sector.len() as u64;
            for byte in sector {
                counts[usize::from(*byte)] += 1;
            }
        }
        carried.extend_from_slice(&piece[..read]);
        findings.needles += occurrences(&carried, NEEDLE.as_bytes());
        carried.drain(..carried.len().saturating_sub(NEEDLE.len() - 1));
        at += read as u64;
    }
    findings.entropy = entropy(&counts);
    Ok(findings)
}

/// The next position at or after `at` that is not in a hole; `None` past the last one. Block devices have no holes.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let Ok(offset) = i64::try_from(at) else { return Ok(None) };
    match lseek(file, offset, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).ok().map(|found| found.max(at))),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn occurrences(haystack: &[u8], needle: &[u8]) -> u64 {
    haystack.windows(needle.len()).filter(|window| *window == needle).count() as u64
}

/// Shannon entropy of a byte histogram, in bits a byte.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn entropy(counts: &[u64; 256]) -> f64 {
    let total: u64 = counts.iter().sum();
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = *count as f64 / total as f64;
            -share * share.log2()
        })
        .sum()
}

/// The entropy of a text.
pub(super) fn entropy_of(bytes: &[u8]) -> f64 {
    let mut counts = [0; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    entropy(&counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::traffic;

    #[test]
    fn noise_measures_eight_bits_and_text_far_less() {
        let mut noise = vec![0; 4 << 20];
        getrandom::fill(&mut noise).unwrap();
        assert!(entropy_of(&noise) > 7.999, "{}", entropy_of(&noise));
        let text = traffic::text(0, 1 << 20);
        assert!(entropy_of(&text) < 5.0, "{}", entropy_of(&text));
        assert_eq!(entropy_of(&[7; 100]), 0.0);
    }

    #[test]
    fn a_text_that_lies_open_on_the_disk_is_found_everywhere_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(look(&path).unwrap(), Findings { bytes: 0, entropy: 0.0, needles: 0 });
        // In the first data sector, across two pieces, and far out after a hole.
        for at in [DATA_AT, DATA_AT + PIECE as u64 - 5, (1 << 30) - 4096] {
            file.write_all_at(NEEDLE.as_bytes(), at).unwrap();
        }
        // The pool's own metadata is not looked at.
        file.write_all_at(NEEDLE.as_bytes(), 0).unwrap();
        assert_eq!(look(&path).unwrap().needles, 3);
    }
}

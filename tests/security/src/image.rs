//! Looks for needles in a file that holds memory: a core, a swap file, a dump of a whole machine.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::memory::{Finding, Scan};
use crate::needles::{Needles, WINDOW_BYTES};

/// Bytes read at once; consecutive reads overlap by a window less one byte.
const READ_BYTES: usize = 4 << 20;

/// Looks for `needles` in all of the file at `path`. A finding's address is its place in the file.
///
/// # Errors
/// Where the file cannot be read, or is empty.
pub fn search(path: &Path, needles: &Needles) -> Result<Scan> {
    ensure!(!needles.is_empty(), "nothing to look for");
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("opening {name}"))?;
    let mut scan = Scan::default();
    let mut buffer = vec![0_u8; READ_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at).with_context(|| format!("reading {name}"))?;
        needles.search(&buffer[..read], |position, label| {
            scan.findings.push(Finding {
                label: label.clone(),
                address: at + position as u64,
                mapping: name.clone(),
            });
        });
        // What was read a second time, so that no window falls between two reads, counts once.
        scan.bytes_read = at + read as u64;
        if read < WINDOW_BYTES {
            break;
        }
        at += (read - (WINDOW_BYTES - 1)) as u64;
    }
    ensure!(scan.bytes_read > 0, "{name} is empty: the search proves nothing");
    Ok(scan)
}

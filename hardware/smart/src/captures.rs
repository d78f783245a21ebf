//! The files that are left.

use std::fs;
use std::io;
use std::path::Path;

use health::{Capture, Disk, capture_name};

/// Replaces a disk's capture.
pub(crate) fn leave(output: &Path, disk: &str, capture: &Capture) -> io::Result<()> {
    let path = output.join(capture_name(disk));
    let unfinished = path.with_extension("new");
    // 1. Whoever reads sees the old one until 2. puts the new in its place, whole. It lies in memory: nothing to flush.
    fs::write(&unfinished, capture.encode())?;
    fs::rename(&unfinished, &path)
}

/// Removes captures of disks that are not there any more.
pub(crate) fn keep_only(output: &Path, disks: &[Disk]) -> io::Result<()> {
    for entry in fs::read_dir(output)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_capture = Path::new(&name).extension().is_some_and(|end| end == "smart");
        if is_capture && !disks.iter().any(|disk| *capture_name(&disk.name) == *name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

//! Files of the state directory that are replaced as a whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file, durably: a cut leaves the old one or the new one.
///
/// Crash order: 1. The new file, durable. 2. Its name. 3. The directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

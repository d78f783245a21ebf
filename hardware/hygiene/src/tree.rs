//! A root directory below which the kernel's files are read: the machine's, or a recorded one.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest file a probe reads. `/proc/cpuinfo` of a large server is the longest of them, and only its first processor is
/// of interest.
const PROBE_BYTES_MAX: u64 = 64 * 1024;

pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The start of a file, `None` where it is missing or unreadable.
    pub(crate) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.root.join(path)).ok()?;
        file.take(PROBE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The start of a file as text, `None` where it is missing or unreadable.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether there is no such file in a directory that can be read.
    pub(crate) fn is_missing(&self, path: &str) -> bool {
        let path = self.root.join(path);
        let is_absent =
            fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        is_absent && path.parent().is_some_and(|parent| fs::read_dir(parent).is_ok())
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The names in a directory in order, `None` where there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Option<Vec<String>> {
        let entries = fs::read_dir(self.root.join(path)).ok()?;
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Some(names)
    }

    /// A word of the kernel's command line, by its beginning.
    pub(crate) fn boot_option(&self, start: &str) -> Option<String> {
        let line = self.text("proc/cmdline")?;
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix(start)).map(str::to_owned)
    }
}

//! A directory below which the kernel's files are read: the machine's, or a recorded one.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest attribute that is read: the kernel's are a page at most.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;

/// Most entries of a directory that are looked at. The largest storage machines have some hundred disks.
const ENTRIES_MAX: usize = 2048;

/// A root of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Paths are below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where something is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The start of a file, `None` where it is missing or unreadable.
    pub(crate) fn bytes(&self, path: &str, bytes_max: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.path(path)).ok()?;
        file.take(bytes_max).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// An attribute as text in one piece; `None` where it is missing, unreadable or empty.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.bytes(path, ATTRIBUTE_BYTES_MAX).and_then(|bytes| cleaned(&bytes))
    }

    /// An attribute that is a number.
    pub(crate) fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// What a path is once its links are followed.
    pub(crate) fn real(&self, path: &str) -> Option<PathBuf> {
        fs::canonicalize(self.path(path)).ok()
    }

    /// The last part of what a path is once its links are followed.
    pub(crate) fn real_name(&self, path: &str) -> Option<String> {
        Some(self.real(path)?.file_name()?.to_string_lossy().into_owned())
    }

    /// The names in a directory, in order of their letters and numbers.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<_> = entries
            .flatten()
            .take(ENTRIES_MAX)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }
}

/// Text for people out of bytes that a device may have made up: no control characters, no space at the ends.
pub(crate) fn cleaned(bytes: &[u8]) -> Option<String> {
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

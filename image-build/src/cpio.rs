//! An initial root file system: the kernel's `newc` archive (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Owners are root, times are zero, and inode numbers count from one: the same entries in the same order give the same bytes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;

/// A character device's number: major and minor.
type Device = (u32, u32);

const NO_DEVICE: Device = (0, 0);

/// An archive in the making. Folders come by themselves before what lies in them; what is added twice counts once.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<PathBuf>,
}

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with these contents and permissions.
    ///
    /// # Errors
    /// Where the path has no place in an archive, or the file is larger than 4 GiB.
    pub fn file(&mut self, at: &Path, contents: &[u8], permissions: u32) -> io::Result<()> {
        self.entry(at, FILE | permissions, contents, NO_DEVICE)
    }

    /// An empty folder.
    ///
    /// # Errors
    /// Where the path has no place in an archive.
    pub fn folder(&mut self, at: &Path) -> io::Result<()> {
        self.entry(at, FOLDER | 0o755, &[], NO_DEVICE)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// Where the path has no place in an archive.
    pub fn link(&mut self, at: &Path, target: &str) -> io::Result<()> {
        self.entry(at, LINK | 0o777, target.as_bytes(), NO_DEVICE)
    }

    /// A character device, its owner's alone.
    ///
    /// # Errors
    /// Where the path has no place in an archive.
    pub fn device(&mut self, at: &Path, device: Device) -> io::Result<()> {
        self.entry(at, CHARACTERS | 0o600, &[], device)
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, &[], 0, NO_DEVICE);
        self.bytes
    }

    fn entry(&mut self, at: &Path, mode: u32, contents: &[u8], device: Device) -> io::Result<()> {
        let relative: PathBuf = at.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let name = relative.to_str().filter(|name| !name.is_empty());
        let len = u32::try_from(contents.len()).ok();
        let (Some(name), Some(len)) = (name, len) else {
            let what = format!("{} has no place in an archive", at.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        if let Some(parent) = relative.parent().filter(|parent| *parent != Path::new("")) {
            self.entry(parent, FOLDER | 0o755, &[], NO_DEVICE)?;
        }
        if !self.names.contains(&relative) {
            let name = name.to_owned();
            self.names.insert(relative);
            self.write(&name, mode, contents, len, device);
        }
        Ok(())
    }

    fn write(&mut self, name: &str, mode: u32, contents: &[u8], len: u32, device: Device) {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let inode = number(self.names.len());
        // inode, mode, user, group, links, time, size, device and special device (two each), name's length, check.
        let (major, minor) = device;
        let fields = [inode, mode, 0, 0, 1, 0, len, 0, 0, major, minor, number(name.len() + 1), 0];
        let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend_from_slice(fields.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_kernels_form() {
        let mut archive = Archive::new();
        archive.file(Path::new("/a/b"), b"12345", 0o640).unwrap();
        archive.link(Path::new("/a/c"), "b").unwrap();
        archive.file(Path::new("/a/b"), b"again", 0o640).unwrap();
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4, "a folder, a file, a link and the end");
        assert!(text.contains("000081a0") && text.contains("12345") && !text.contains("again"));
        assert_eq!(&bytes[..14], b"07070100000001");
        // Header of 110 bytes, `a` and its zero, one pair of zeros.
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..118], b"070701");
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        for path in ["", "/", "..", "."] {
            assert!(Archive::new().folder(Path::new(path)).is_err(), "{path}");
        }
    }
}

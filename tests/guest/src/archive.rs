//! An initial root file system: the kernel's `newc` archive (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use harness::client::{client, run};

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// An archive in the making. Folders come by themselves before what lies in them; what is added twice counts once.
#[derive(Debug, Default)]
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
    /// # Panics
    /// Where the path has no place in an archive, or the file is larger than 4 GiB.
    pub fn file(&mut self, at: &Path, contents: &[u8], permissions: u32) {
        self.entry(at, FILE | permissions, contents);
    }

    /// An empty folder.
    ///
    /// # Panics
    /// Where the path has no place in an archive.
    pub fn folder(&mut self, at: &Path) {
        self.entry(at, FOLDER | 0o755, &[]);
    }

    /// A symbolic link.
    ///
    /// # Panics
    /// Where the path has no place in an archive.
    pub fn link(&mut self, at: &Path, target: &str) {
        self.entry(at, LINK | 0o777, target.as_bytes());
    }

    /// A file, or a folder with all below it, as it is outside, at the same path or another.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn copy(&mut self, from: &Path, at: &Path) {
        let found = fs::metadata(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        if found.is_dir() {
            self.folder(at);
            for entry in fs::read_dir(from).expect("a readable folder") {
                let entry = entry.expect("an entry");
                self.copy(&entry.path(), &at.join(entry.file_name()));
            }
        } else if found.is_file() {
            let contents = fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            self.file(at, &contents, found.permissions().mode() & 0o7777);
        }
        // Sockets and devices of outside mean nothing inside.
    }

    /// A program without its debugging information, and the libraries that it is loaded with.
    ///
    /// # Panics
    /// Where it cannot be read, or a library is not found.
    pub fn program(&mut self, program: &Path, at: &Path) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let stripped = folder.path().join("program");
        run(client("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program)).expect_success();
        self.file(at, &fs::read(stripped).expect("our own"), 0o755);
        for library in libraries(program) {
            self.copy(&library, &library);
        }
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, at: &Path, mode: u32, contents: &[u8]) {
        let relative: PathBuf = at.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        assert!(relative != Path::new(""), "{} has no place in an archive", at.display());
        if let Some(parent) = relative.parent().filter(|parent| *parent != Path::new("")) {
            self.entry(parent, FOLDER | 0o755, &[]);
        }
        let name = relative.to_str().expect("a path in UTF-8").to_owned();
        if self.names.insert(relative) {
            self.write(&name, mode, contents);
        }
    }

    fn write(&mut self, name: &str, mode: u32, contents: &[u8]) {
        let len = u32::try_from(contents.len()).expect("a file of less than 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("a short name");
        let inode = u32::try_from(self.names.len()).expect("fewer files than that");
        // inode, mode, user, group, links, time, size, device and special device (two each), name's length, check.
        let fields = [inode, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
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

/// What the loader maps beside a program, the loader itself included.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd comes with the C library");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("not found"), "{}\n{text}", program.display());
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_kernels_form() {
        let mut archive = Archive::new();
        archive.file(Path::new("/a/b"), b"12345", 0o640);
        archive.link(Path::new("/a/c"), "b");
        archive.file(Path::new("/a/b"), b"again", 0o640);
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
}

//! A directory below which the kernel's files are read: the machine's, or a recorded one.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{AT_FDCWD, readlinkat};

/// Longest attribute that is read: the kernel's are a page at most.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;

/// Most entries of a directory that are looked at. The largest storage machines have some hundred disks.
const ENTRIES_MAX: usize = 2048;

/// Most links on the way of a path, as the kernel has it.
const LINKS_MAX: usize = 40;

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

    /// A file to be read piece by piece.
    pub(crate) fn open(&self, path: &str) -> Option<fs::File> {
        fs::File::open(self.path(path)).ok()
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

    /// What a path is once its links are followed; `None` where it leads nowhere.
    pub(crate) fn real(&self, path: &str) -> Option<PathBuf> {
        resolved(&self.path(path)).filter(|path| path.exists())
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

/// Follows links part by part. The C library's `realpath` makes a system call of its own on some processors, which a confined
/// thread may not; this one is the same on all.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut done = PathBuf::from("/");
    let mut ahead: Vec<PathBuf> = vec![std::path::absolute(path).ok()?];
    let mut links = 0;
    while let Some(next) = ahead.pop() {
        let mut parts = next.components();
        let Some(part) = parts.next() else { continue };
        ahead.push(parts.as_path().to_owned());
        match part {
            Component::Prefix(_) | Component::RootDir => done = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => drop(done.pop()),
            Component::Normal(name) => {
                let here = done.join(name);
                match readlinkat(AT_FDCWD, &here) {
                    Ok(_) if links == LINKS_MAX => return None,
                    Ok(target) => {
                        links += 1;
                        ahead.push(PathBuf::from(target));
                    }
                    Err(_) => done = here,
                }
            }
        }
    }
    Some(done)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_as_the_c_library_does_and_those_that_lead_in_a_circle_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join("links")).unwrap();
        let links = [
            ("up", "../a/b"),
            ("whole", root.join("a").to_str().unwrap()),
            ("two", "whole/b/../b/c"),
            ("no", "x"),
        ]
        .map(|(name, target)| (name, target.to_owned()));
        for (name, target) in &links {
            symlink(target, root.join("links").join(name)).unwrap();
        }
        symlink("circle", root.join("links/circle")).unwrap();
        let tree = Tree::new(&root);
        for path in [
            "a",
            "links/up",
            "links/up/c",
            "links/whole/b",
            "links/two",
            "links/two/../.",
            "links/no",
            "links/circle",
            "x",
        ] {
            assert_eq!(tree.real(path), fs::canonicalize(root.join(path)).ok(), "{path}");
        }
        assert_eq!(tree.real_name("links/two").as_deref(), Some("c"));
    }
}

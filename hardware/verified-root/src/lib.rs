//! A root file system whose every block is verified as it is read (dm-verity): the kernel compares it with a tree of hashes, and
//! the tree's root is handed in by whoever opens it, from a place that is verified itself.
//!
//! Invariants:
//! - What is mapped can be read only. A block that does not match is an I/O error for whoever reads it, never data.
//! - Nothing about the tree is taken from where the tree lies: root, salt and length come from the caller.
#![expect(unsafe_code, reason = "ioctls of the device mapper and of loop devices: UNSAFE.md")]

mod attach;
mod mapper;

use std::fs::File;
use std::io::{self, Read};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use attach::attach_file;

/// Of data and of tree.
pub const BLOCK_BYTES: u64 = 4096;

/// What proves a root. Its text is the hash, the salt and the number of blocks, divided by spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootHash {
    hash: String,
    salt: String,
    blocks: u64,
}

/// A text that is no [`RootHash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRootHash;

impl std::fmt::Display for InvalidRootHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no root hash: 64 hexadecimal digits, as many of the salt, and the number of blocks")
    }
}

impl std::error::Error for InvalidRootHash {}

impl FromStr for RootHash {
    type Err = InvalidRootHash;

    fn from_str(text: &str) -> Result<Self, InvalidRootHash> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [hash, salt, blocks] = words[..] else { return Err(InvalidRootHash) };
        let is_digest = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let blocks = blocks.parse().map_err(|_| InvalidRootHash)?;
        if !is_digest(hash) || !is_digest(salt) || blocks == 0 || blocks > u64::MAX / BLOCK_BYTES {
            return Err(InvalidRootHash);
        }
        Ok(Self { hash: hash.to_owned(), salt: salt.to_owned(), blocks })
    }
}

impl RootHash {
    /// The first `digits` of the hash.
    pub fn prefix(&self, digits: usize) -> &str {
        &self.hash[..digits.min(self.hash.len())]
    }

    /// As the kernel takes it (Documentation/admin-guide/device-mapper/verity.rst). The tree begins behind its superblock.
    fn table(&self, data: (u32, u32), tree: (u32, u32)) -> String {
        let Self { hash, salt, blocks } = self;
        format!(
            "1 {}:{} {}:{} {BLOCK_BYTES} {BLOCK_BYTES} {blocks} 1 sha256 {hash} {salt}",
            data.0, data.1, tree.0, tree.1
        )
    }
}

/// Maps `data`, a block device, as a device that yields only what `tree`, another, and `root` vouch for; its path comes back.
///
/// # Errors
/// Where the kernel refuses: a device is missing or too short, or dm-verity is.
pub fn map(name: &str, data: &Path, tree: &Path, root: &RootHash) -> io::Result<PathBuf> {
    let number = |path: &Path| -> io::Result<(u32, u32)> {
        let device = std::fs::metadata(path)?.st_rdev();
        Ok((libc::major(device), libc::minor(device)))
    };
    mapper::map(name, root.blocks * BLOCK_BYTES, &root.table(number(data)?, number(tree)?))
}

/// Reads all of a mapped device: what does not verify shows here, and not when it is first needed.
///
/// # Errors
/// At the first block that does not verify.
pub fn read_whole(device: &Path) -> io::Result<u64> {
    let mut file = File::open(device)?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            read => total += read as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_hash_is_parsed_or_refused() {
        let digest = "ab".repeat(32);
        let root: RootHash = format!("{digest} {digest} 17\n").parse().unwrap();
        assert_eq!(root.prefix(4), "abab");
        assert_eq!(
            root.table((254, 1), (254, 2)),
            format!("1 254:1 254:2 4096 4096 17 1 sha256 {digest} {digest}")
        );
        for text in [
            String::new(),
            digest.clone(),
            format!("{digest} {digest} 0"),
            format!("{digest} {digest} -1"),
            format!("{digest} {digest} {}", u64::MAX),
            format!("{digest} {} 17", "g".repeat(64)),
            format!("{digest} {digest} 17 more"),
        ] {
            assert_eq!(text.parse::<RootHash>(), Err(InvalidRootHash), "{text}");
        }
    }
}

//! The hash tree over the root (Documentation/admin-guide/device-mapper/verity.rst): SHA-256, blocks of 4 KiB, salted,
//! behind the superblock that `veritysetup` writes and reads.
//!
//! The root hash stands in the initramfs, which is part of the signed image: whoever changes a block of the root would have to
//! change the image too.

use sha2::{Digest, Sha256};

/// Of data and of tree.
pub(crate) const BLOCK_BYTES: usize = 4096;

const HASH_BYTES: usize = 32;
/// As the superblock has them.
const BLOCK_BYTES_FIELD: u32 = 4096;
const SALT_BYTES_FIELD: u16 = 32;
const HASHES_PER_BLOCK: usize = BLOCK_BYTES / HASH_BYTES;

/// What the tree is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(pub(crate) [u8; HASH_BYTES]);

/// A tree, with its superblock in front.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) bytes: Vec<u8>,
    pub(crate) root: [u8; HASH_BYTES],
}

fn hash_block(salt: &Salt, block: &[u8]) -> [u8; HASH_BYTES] {
    Sha256::new().chain_update(salt.0).chain_update(block).finalize().into()
}

/// The next level up: a hash for each block, packed into blocks and padded with zeros.
fn level_above(salt: &Salt, level: &[u8]) -> Vec<u8> {
    let mut above = Vec::with_capacity(level.len() / HASHES_PER_BLOCK + BLOCK_BYTES);
    level.chunks(BLOCK_BYTES).for_each(|block| above.extend_from_slice(&hash_block(salt, block)));
    above.resize(above.len().next_multiple_of(BLOCK_BYTES), 0);
    above
}

/// Builds the tree over `data`, whose length is a multiple of [`BLOCK_BYTES`].
pub(crate) fn build(data: &[u8], salt: &Salt, uuid: [u8; 16]) -> Tree {
    debug_assert!(data.len().is_multiple_of(BLOCK_BYTES) && !data.is_empty());
    let mut levels: Vec<Vec<u8>> = Vec::new();
    let root = loop {
        let top = levels.last().map_or(data, Vec::as_slice);
        if top.len() <= BLOCK_BYTES {
            break hash_block(salt, top);
        }
        levels.push(level_above(salt, top));
    };
    let mut bytes = superblock(data.len() / BLOCK_BYTES, salt, uuid);
    levels.iter().rev().for_each(|level| bytes.extend_from_slice(level));
    Tree { bytes, root }
}

/// As cryptsetup's lib/verity/verity.c has it, in a block of its own.
fn superblock(data_blocks: usize, salt: &Salt, uuid: [u8; 16]) -> Vec<u8> {
    let block_bytes = BLOCK_BYTES_FIELD.to_le_bytes();
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend_from_slice(b"verity\0\0");
    bytes.extend_from_slice(&1_u32.to_le_bytes()); // version
    bytes.extend_from_slice(&1_u32.to_le_bytes()); // hash type: salt first
    bytes.extend_from_slice(&uuid);
    bytes.extend_from_slice(b"sha256");
    bytes.resize(64, 0);
    bytes.extend_from_slice(&block_bytes);
    bytes.extend_from_slice(&block_bytes);
    bytes.extend_from_slice(&(data_blocks as u64).to_le_bytes());
    bytes.extend_from_slice(&SALT_BYTES_FIELD.to_le_bytes()); // the salt's length
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&salt.0);
    bytes.resize(BLOCK_BYTES, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `veritysetup format` of cryptsetup 2.6 makes of blocks that count up, one byte's value a block: root, and SHA-256 of
    /// superblock and tree.
    const ROOTS: [(usize, &str, &str); 4] = [
        (
            1,
            "69ecf24343646bcbcebaad0b41765fd203dfb85bb15c25d51e4d92ca4fdb1b7b",
            "3aa09916f1061779a812331705d16bbf3f01c539a50536db728bf829636037a8",
        ),
        (
            128,
            "b42c824ef787a446a7473b6f23f609c41b4810182f600c784a489481f2af4ab0",
            "6e280f1aa76cdcbab002ce2ccd0ea1805dfb91fd69d0eefa233f0954eb6b8719",
        ),
        (
            129,
            "6a6639a88083454395c2e0f5715ca85ce7f674f633fa5cc56336f9c015a9ed73",
            "e932034b960dc88de16fe4ce73c0a4d8be796fc1f06d9cd3f4bdcc77046386f1",
        ),
        (
            300,
            "b8ffa765996661defb86b0f7cbf6b0c405897f168e11f8b9307032e57bebd630",
            "5f15cbbbb728d64fa2e0fb749fccfaba7ce2910225d67c29029c6dc72847a8d8",
        ),
    ];

    #[test]
    fn trees_are_those_of_veritysetup() {
        for (blocks, root, tree) in ROOTS {
            let data: Vec<u8> =
                (0..blocks).flat_map(|block| vec![block.to_le_bytes()[0]; BLOCK_BYTES]).collect();
            let built = build(&data, &Salt([7; 32]), [1; 16]);
            assert_eq!(hex::encode(built.root), root, "{blocks} blocks");
            assert_eq!(hex::encode(Sha256::digest(&built.bytes)), tree, "{blocks} blocks");
        }
    }

    #[test]
    fn any_flipped_bit_is_another_root() {
        let salt = Salt([7; 32]);
        let mut data = vec![0; 200 * BLOCK_BYTES];
        let root = build(&data, &salt, [1; 16]).root;
        for at in [0, 4095, 4096, data.len() - 1] {
            data[at] ^= 1;
            assert_ne!(build(&data, &salt, [1; 16]).root, root);
            data[at] ^= 1;
        }
        assert_ne!(build(&data, &Salt([8; 32]), [1; 16]).root, root);
    }
}

//! Content that says where it came from.

use harness::random::mix;

/// Bytes in which block content is tracked: what a disk writes whole.
pub const UNIT_BYTES: usize = 512;

/// Which write a unit came from. Zeros carry [`ZEROS`].
pub type Tag = u64;

/// The tag of never-written, trimmed or zeroed units.
pub const ZEROS: Tag = 0;

/// Fills `unit` with what the write `tag` puts at unit number `position`.
pub fn fill(unit: &mut [u8], tag: Tag, position: u64) {
    if tag == ZEROS {
        unit.fill(0);
        return;
    }
    for (index, word) in (0_u64..).zip(unit.chunks_exact_mut(8)) {
        let value = if index == 0 { tag } else { mix(tag ^ mix(position) ^ index) };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The tag of `unit` at `position`, `None` where its content is no write's.
pub fn identify(unit: &[u8], position: u64) -> Option<Tag> {
    let tag = Tag::from_le_bytes(unit[..8].try_into().expect("a unit is longer than a word"));
    let mut expected = [0_u8; UNIT_BYTES];
    fill(&mut expected, tag, position);
    (expected[..] == *unit).then_some(tag)
}

/// An object's body: `len` bytes of the write `tag`.
pub fn body(tag: Tag, len: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; len.next_multiple_of(UNIT_BYTES)];
    for (position, unit) in (0_u64..).zip(bytes.chunks_exact_mut(UNIT_BYTES)) {
        fill(unit, tag, position);
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_at_another_place_or_with_a_flipped_bit_is_nobodys() {
        let mut unit = [0_u8; UNIT_BYTES];
        fill(&mut unit, 77, 5);
        assert_eq!(identify(&unit, 5), Some(77));
        assert_eq!(identify(&unit, 6), None);
        unit[400] ^= 1;
        assert_eq!(identify(&unit, 5), None);
        assert_eq!(identify(&[0; UNIT_BYTES], 9), Some(ZEROS));
    }
}

//! Lent keys outside of the arena: expanded, and each sealed under the slot key by the cipher's own seal.
//!
//! AES-256-XTS under a fresh slot key, the admission's serial as the data unit's number, and the sector tag over
//! ciphertext and serial. No serial is used twice, so no tweak is. Without the slot key what lies here is noise; under
//! another serial, or changed, it does not open.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_xts::{
    Binding, Cipher, Record, SCHEDULE_WORDS, Sectors, TAG_BYTES, TAG_WORDS, TagSchedule, XtsSchedule,
};
use zeroize::Zeroize;

/// Words of one expanded key: the cipher's schedule and the tag's.
pub(crate) const KEY_WORDS: usize = SCHEDULE_WORDS + TAG_WORDS;

pub(crate) const KEY_BYTES: usize = 8 * KEY_WORDS;

/// The domain of wrapped keys: no volume's, and under no volume's key.
const WRAP_DOMAIN: [u8; 16] = *b"nightlatch slot\0";

const TAG_KEY_WORDS: usize = TAG_BYTES / 8;

/// An expanded key, wherever its words are: in the arena, or on the key stack while it is made.
#[derive(Clone, Copy)]
pub(crate) struct ExpandedKey<'a>(&'a [AtomicU64; KEY_WORDS]);

impl<'a> ExpandedKey<'a> {
    pub(crate) fn over(words: &'a [AtomicU64; KEY_WORDS]) -> Self {
        Self(words)
    }

    pub(crate) fn schedule(self) -> &'a XtsSchedule {
        let Some(words) = self.0.first_chunk() else { unreachable!("a key begins with its schedule") };
        XtsSchedule::over(words)
    }

    pub(crate) fn tag(self) -> &'a TagSchedule {
        let Some(words) = self.0.last_chunk() else { unreachable!("a key ends with its tag key") };
        TagSchedule::over(words)
    }

    fn read_into(self, out: &mut [u8; KEY_BYTES]) {
        for (word, bytes) in self.0.iter().zip(out.as_chunks_mut().0) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    fn write_from(self, bytes: &[u8; KEY_BYTES]) {
        for (word, bytes) in self.0.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }
}

/// A key sealed by [`wrap`], not yet on the shelf.
pub(crate) struct WrappedKey {
    bytes: [u8; KEY_BYTES],
    tag: [u8; TAG_BYTES],
}

/// The keys of `COUNT` slots. An entry is written by the thread that has its slot claimed; whoever reads while it is written
/// gets what does not open.
pub(crate) struct Shelf<const COUNT: usize> {
    /// Made when first needed, then kept.
    entries: Box<[OnceLock<Box<Entry>>]>,
}

struct Entry {
    words: [AtomicU64; KEY_WORDS],
    tag: [AtomicU64; TAG_KEY_WORDS],
}

impl<const COUNT: usize> Shelf<COUNT> {
    pub(crate) fn new() -> Self {
        Self { entries: (0..COUNT).map(|_| OnceLock::new()).collect() }
    }

    pub(crate) fn put(&self, slot: u16, wrapped: &WrappedKey) {
        let entry = self.entries[usize::from(slot)].get_or_init(Box::default);
        ExpandedKey(&entry.words).write_from(&wrapped.bytes);
        for (word, bytes) in entry.tag.iter().zip(wrapped.tag.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// What was put there last, whole or not.
    pub(crate) fn take_copy(&self, slot: u16, out: &mut WrappedKey) {
        let Some(entry) = self.entries[usize::from(slot)].get() else { return };
        ExpandedKey(&entry.words).read_into(&mut out.bytes);
        for (word, bytes) in entry.tag.iter().zip(out.tag.as_chunks_mut().0) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// Empties one entry: the slot key that opens it may still be there.
    pub(crate) fn forget(&self, slot: u16) {
        if let Some(entry) = self.entries[usize::from(slot)].get() {
            entry.words.iter().chain(&entry.tag).for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Changes one bit of what lies there.
    #[cfg(test)]
    pub(crate) fn spoil(&self, slot: u16) {
        self.entries[usize::from(slot)].get().unwrap().words[0].fetch_xor(1, Ordering::Relaxed);
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            tag: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl WrappedKey {
    pub(crate) fn empty() -> Self {
        Self { bytes: [0; KEY_BYTES], tag: [0; TAG_BYTES] }
    }
}

/// Seals `key` under the slot key: `cipher` and `tag_key`. Call it on the key stack; it is the caller's to find out whether the
/// slot key was there throughout before the result leaves that stack.
pub(crate) fn wrap(
    cipher: Cipher<'_>,
    tag_key: &TagSchedule,
    serial: u64,
    key: ExpandedKey<'_>,
    wrapped: &mut WrappedKey,
) {
    key.read_into(&mut wrapped.bytes);
    let mut records = [Record::default()];
    let sealed = cipher.seal(tag_key, sector(serial), binding(&[serial]), &mut wrapped.bytes, &mut records);
    // An expanded key is whole blocks and within a sector's bounds.
    sealed.unwrap_or_else(|error| unreachable!("a key for the cipher: {error}"));
    wrapped.tag = *records[0].tag.bytes();
}

/// Opens `wrapped` into `key`. `false` where it is not what was wrapped under this serial and slot key; `key` is untouched then.
/// Call it on a stack that is wiped.
pub(crate) fn unwrap(
    cipher: Cipher<'_>,
    tag_key: &TagSchedule,
    serial: u64,
    wrapped: &WrappedKey,
    key: ExpandedKey<'_>,
) -> bool {
    let mut clear = [0; KEY_BYTES];
    let mut records = [Record::default()];
    let from_into = (wrapped.bytes.as_slice(), clear.as_mut_slice());
    let opened = cipher.open(tag_key, sector(serial), binding(&[serial]), from_into, &mut records);
    opened.unwrap_or_else(|error| unreachable!("a key for the cipher: {error}"));
    let intact = records[0].tag.verify(&wrapped.tag).is_ok();
    if intact {
        key.write_from(&clear);
    }
    clear.zeroize();
    intact
}

fn sector(serial: u64) -> Sectors {
    Sectors { first: u128::from(serial), bytes: KEY_BYTES }
}

fn binding(serial: &[u64; 1]) -> Binding<'_> {
    Binding { domain: WRAP_DOMAIN, epoch: 0, sequences: serial }
}

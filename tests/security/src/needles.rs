//! What the scanner looks for: every eight-byte window of every form of every secret.

use std::collections::HashMap;

use crate::{polyval, schedule};

/// Bytes in a window: half a vector register, the smallest piece in which keys have been seen to linger.
pub const WINDOW_BYTES: usize = 8;

/// Bits of a window that index the prefilter: 128 KiB, which stays in the second-level cache.
const FILTER_BITS: u32 = 20;

/// Which secret a window belongs to, in which form, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The secret's name, such as `volume key`.
    pub secret: String,
    /// The form's name, such as `decryption round keys, byte-swapped words`.
    pub form: String,
    /// The window's first byte within that form.
    pub offset: usize,
}

/// A set of windows that is cheap to probe at every byte of a process.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "holds secrets")]
pub struct Needles {
    windows: HashMap<u64, Label>,
    filter: Vec<u64>,
}

impl Needles {
    /// Looks for nothing yet.
    pub fn new() -> Self {
        Self { windows: HashMap::new(), filter: vec![0; 1 << (FILTER_BITS - 6)] }
    }

    /// Adds a secret as it is, byte-swapped, and xored with HMAC's inner and outer pads.
    pub fn add_secret(&mut self, name: &str, secret: &[u8]) {
        self.add_orders(name, "as it is", secret);
        for (pad, form) in [(0x36, "HMAC inner pad"), (0x5c, "HMAC outer pad")] {
            let padded: Vec<u8> = secret.iter().map(|byte| byte ^ pad).collect();
            self.add_form(name, form, &padded);
        }
    }

    /// Adds what clients store, as it is: every window of a text or page.
    pub fn add_text(&mut self, name: &str, bytes: &[u8]) {
        self.add_form(name, "as it is", bytes);
    }

    /// Adds an AES-256 key and the round keys that it expands to, in both directions.
    pub fn add_aes_key(&mut self, name: &str, key: &[u8; 32]) {
        self.add_secret(name, key);
        let schedules = schedule::expand(key);
        self.add_orders(name, "encryption round keys", &schedules.encryption.concat());
        self.add_orders(name, "decryption round keys", &schedules.decryption.concat());
        // A schedule that is kept for decryption in encryption's order: the same blocks, other seams.
        let mut reversed = schedules.decryption;
        reversed.reverse();
        self.add_orders(name, "decryption round keys, stored last first", &reversed.concat());
    }

    /// Adds a POLYVAL key and its powers, whole and as the sums of their halves.
    pub fn add_hash_key(&mut self, name: &str, key: &[u8; 16]) {
        self.add_secret(name, key);
        for (power, sum) in polyval::powers(key) {
            self.add_orders(name, "powers of a hash key", &power);
            self.add_orders(name, "sums of the halves of powers", &sum);
        }
    }

    /// How many windows are looked for.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Calls `found` with the position and label of each window that stands in `bytes`.
    pub fn search(&self, bytes: &[u8], mut found: impl FnMut(usize, &Label)) {
        let mut window = 0_u64;
        for (position, byte) in bytes.iter().enumerate() {
            window = (window >> 8) | (u64::from(*byte) << 56);
            if position + 1 < WINDOW_BYTES || !self.may_hold(window) {
                continue;
            }
            if let Some(label) = self.windows.get(&window) {
                found(position + 1 - WINDOW_BYTES, label);
            }
        }
    }

    fn may_hold(&self, window: u64) -> bool {
        let (word, bit) = filter_slot(window);
        self.filter[word] >> bit & 1 != 0
    }

    fn add_orders(&mut self, name: &str, form: &str, bytes: &[u8]) {
        self.add_form(name, form, bytes);
        for (width, order) in [(4, "32-bit"), (8, "64-bit"), (16, "128-bit")] {
            let swapped: Vec<u8> = bytes.chunks(width).flat_map(|word| word.iter().rev().copied()).collect();
            self.add_form(name, &format!("{form}, {order} words byte-swapped"), &swapped);
        }
    }

    fn add_form(&mut self, name: &str, form: &str, bytes: &[u8]) {
        for (offset, window) in bytes.windows(WINDOW_BYTES).enumerate() {
            let window = u64::from_le_bytes(window.try_into().expect("windows are eight bytes"));
            let (word, bit) = filter_slot(window);
            self.filter[word] |= 1 << bit;
            self.windows.entry(window).or_insert_with(|| Label {
                secret: name.to_owned(),
                form: form.to_owned(),
                offset,
            });
        }
    }
}

/// Where the prefilter keeps a window's bit: a multiplicative hash of all of it.
fn filter_slot(window: u64) -> (usize, u32) {
    let slot = window.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FILTER_BITS);
    let word = usize::try_from(slot >> 6).expect("a slot is 20 bits");
    (word, u32::try_from(slot & 63).expect("six bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = *b"an ordinary key of thirty-two B.";

    fn hits(needles: &Needles, bytes: &[u8]) -> usize {
        let mut count = 0;
        needles.search(bytes, |_, _| count += 1);
        count
    }

    #[test]
    fn half_a_round_key_at_an_odd_address_is_found() {
        let mut needles = Needles::new();
        needles.add_aes_key("key", &KEY);
        let round = schedule::expand(&KEY).decryption[7];
        let mut memory = vec![0xA5; 1001];
        memory[333..341].copy_from_slice(&round[8..]);
        assert_eq!(hits(&needles, &memory), 1);
    }

    #[test]
    fn seven_bytes_of_a_key_are_not_a_window() {
        let mut needles = Needles::new();
        needles.add_secret("key", &KEY);
        let mut memory = vec![0xA5; 100];
        memory[10..17].copy_from_slice(&KEY[..7]);
        assert_eq!(hits(&needles, &memory), 0);
        memory[17] = KEY[7];
        assert_eq!(hits(&needles, &memory), 1);
    }
}

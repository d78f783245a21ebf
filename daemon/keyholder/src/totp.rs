//! Time-based one-time passwords (RFC 6238 over RFC 4226): HMAC-SHA-1, six digits, 30 seconds, as every authenticator has them.
//!
//! The secret is 32 random bytes, kept wrapped like every secret of the ledger; a code is computed on the key stack.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// Seconds for which a code is good.
pub(crate) const STEP_S: u64 = 30;

/// Steps before and after now whose codes count: for clocks that are a little off (RFC 6238, 5.2).
const SKEW: u64 = 1;

/// Digits of a code.
const DIGITS: u32 = 6;

/// The step of a moment.
pub(crate) const fn step_at(unix_s: u64) -> u64 {
    unix_s / STEP_S
}

/// Steps whose codes count at `now`, from the last one that was used on: none is used twice (RFC 6238, 5.2).
pub(crate) fn steps(now: u64, last_used: u64) -> impl Iterator<Item = u64> {
    (now.saturating_sub(SKEW)..=now.saturating_add(SKEW)).filter(move |step| *step > last_used)
}

/// The code of one step. Run it on a stack that is wiped.
pub(crate) fn code(secret: &[u8], step: u64) -> u32 {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(secret) else { return u32::MAX };
    mac.update(&step.to_be_bytes());
    let hash = mac.finalize().into_bytes();
    let offset = usize::from(hash[19] & 0x0f);
    let word = u32::from_be_bytes([hash[offset], hash[offset + 1], hash[offset + 2], hash[offset + 3]]);
    (word & 0x7fff_ffff) % 10_u32.pow(DIGITS)
}

/// Reads what a person typed; blanks between the digits do not matter.
pub(crate) fn parse(text: &str) -> Option<u32> {
    let digits: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
    let fits = digits.len() == DIGITS as usize && digits.bytes().all(|byte| byte.is_ascii_digit());
    if fits { digits.parse().ok() } else { None }
}

/// Base32 without padding (RFC 4648, 6), as authenticators take a secret.
pub(crate) fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut buffer, mut bits) = (0_u32, 0);
    for byte in bytes {
        buffer = buffer << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(buffer >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(buffer << (5 - bits) & 31) as usize]));
    }
    text
}

/// The code that an authenticator shows at a moment for a secret in base32; `None` where that is none. For programs that enrol a
/// second factor of their own; nothing of it is wiped.
pub fn authenticator_code(secret: &str, unix_s: u64) -> Option<String> {
    let (mut bytes, mut buffer, mut bits) = (Vec::with_capacity(secret.len() * 5 / 8), 0_u32, 0);
    for letter in secret.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'2'..=b'7' => letter - b'2' + 26,
            _ => return None,
        };
        buffer = buffer << 5 | u32::from(value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 0xff) as u8);
        }
    }
    Some(format!("{:06}", code(&bytes, step_at(unix_s))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B, with its eight digits cut to six.
    #[test]
    fn codes_are_those_of_the_standard() {
        for (unix_s, expected) in [
            (59, 287_082),
            (1_111_111_109, 81_804),
            (1_111_111_111, 50_471),
            (1_234_567_890, 5_924),
            (2_000_000_000, 279_037),
            (20_000_000_000, 353_130),
        ] {
            assert_eq!(code(b"12345678901234567890", step_at(unix_s)), expected, "{unix_s}");
        }
    }

    /// RFC 4648, section 10.
    #[test]
    fn base32_is_that_of_the_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_program_computes_the_codes_of_a_secret_in_base32() {
        let secret = base32(b"12345678901234567890");
        assert_eq!(authenticator_code(&secret, 59).as_deref(), Some("287082"));
        assert_eq!(authenticator_code(&secret, 1_234_567_890).as_deref(), Some("005924"));
        for wrong in ["mzxq", "M0", "M=", "M Z"] {
            assert_eq!(authenticator_code(wrong, 59), None);
        }
    }

    #[test]
    fn a_step_counts_once_and_one_step_around_now() {
        assert_eq!(steps(100, 0).collect::<Vec<_>>(), [99, 100, 101]);
        assert_eq!(steps(100, 100).collect::<Vec<_>>(), [101]);
        assert_eq!(steps(100, 101).count(), 0);
    }

    #[test]
    fn what_is_no_code_is_none() {
        assert_eq!(parse("012 345"), Some(12_345));
        for text in ["", "12345", "1234567", "12345a", "-12345", "١٢٣٤٥٦"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

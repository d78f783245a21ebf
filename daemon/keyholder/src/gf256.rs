//! Shamir's secret sharing over GF(2^8), byte by byte, without a branch or a table index that depends on a secret.
//!
//! The field is that of AES: reduction polynomial x^8 + x^4 + x^3 + x + 1 (0x11b). Shares are the values at x = 1, 2, …
//! of a random polynomial whose constant term is the secret (Shamir, "How to share a secret", 1979). Fewer than
//! `threshold` shares say nothing about it.
//!
//! Runs on the key stack; wipes nothing itself.

/// Bytes of a secret and of each share.
pub(crate) const SECRET_BYTES: usize = 32;

/// Product in the field: eight shift-and-add steps, each always taken.
const fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    let mut shifted = a;
    let mut bit = 0;
    while bit < 8 {
        product ^= shifted & (0u8.wrapping_sub((b >> bit) & 1));
        let carry = 0u8.wrapping_sub(shifted >> 7);
        shifted = (shifted << 1) ^ (0x1b & carry);
        bit += 1;
    }
    product
}

/// Inverse in the field, as the 254th power; zero gives zero.
const fn invert(a: u8) -> u8 {
    // 254 = 0b11111110: the product of the squares a^2, a^4, …, a^128.
    let mut power = multiply(a, a);
    let mut product = power;
    let mut step = 0;
    while step < 6 {
        power = multiply(power, power);
        product = multiply(product, power);
        step += 1;
    }
    product
}

/// Writes the share at `x`, which is not zero. `coefficients` are the random ones, for x^1, x^2, …: one fewer than the
/// threshold.
pub(crate) fn share_at(
    x: u8,
    secret: &[u8; SECRET_BYTES],
    coefficients: &[[u8; SECRET_BYTES]],
    out: &mut [u8; SECRET_BYTES],
) {
    debug_assert_ne!(x, 0, "the value at zero is the secret");
    for (position, byte) in out.iter_mut().enumerate() {
        // Horner's rule, highest coefficient first.
        let highest_first = coefficients.iter().rev().map(|coefficient| coefficient[position]);
        let value = highest_first.fold(0, |value, coefficient| multiply(value ^ coefficient, x));
        *byte = value ^ secret[position];
    }
}

/// Adds to `out`, all zeros at first, what the share at `x` contributes to the secret. `all` are the x of every share
/// that takes part, each once, `x` among them. After the last share `out` is the secret.
pub(crate) fn add_contribution(x: u8, share: &[u8; SECRET_BYTES], all: &[u8], out: &mut [u8; SECRET_BYTES]) {
    // The Lagrange basis polynomial of x at zero: the product of other / (other - x). Public values only.
    let weight = all
        .iter()
        .filter(|other| **other != x)
        .fold(1, |weight, other| multiply(weight, multiply(*other, invert(*other ^ x))));
    for (byte, value) in out.iter_mut().zip(share) {
        *byte ^= multiply(*value, weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_inverses_are_those_of_fips_197() {
        assert_eq!(multiply(0x57, 0x83), 0xc1, "FIPS 197, section 4.2");
        assert_eq!(multiply(0x57, 0x13), 0xfe, "FIPS 197, section 4.2.1");
        assert_eq!(invert(0x53), 0xca);
        assert_eq!(invert(0), 0);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
        }
    }

    /// Made by an independent implementation with logarithm tables (tests/vectors/shamir.py).
    #[test]
    fn committed_vector() {
        let secret: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let coefficients = [[0x1f; 32], std::array::from_fn(|i| u8::try_from(255 - 3 * i).unwrap())];
        let expected = [VECTOR_1, VECTOR_2, VECTOR_5];
        for (x, expected) in [1, 2, 5].into_iter().zip(expected) {
            let mut out = [0; 32];
            share_at(x, &secret, &coefficients, &mut out);
            assert_eq!(hex::encode(out), expected, "share {x}");
        }
    }

    const VECTOR_1: &str = "e0e2e4eae8eaf4f2f0f2f4cac8cac4c2c0c2c4cac8cab4b2b0b2b4aaa8aaa4a2";
    const VECTOR_2: &str = "efe2f5c8dbd6a1bc878a9d60737e49543f3225180b06eaf7ccc1d6abb8b5829f";
    const VECTOR_5: &str = "f5c7916f3d0fdaac7e4c1af9ab994731f8ca9c623002ed9b497b2dd88ab86610";

    #[test]
    fn every_choice_of_threshold_shares_gives_the_secret_and_fewer_do_not() {
        let secret = [0xa7; 32];
        let coefficients = [[0x31; 32], [0xee; 32]];
        let shares: Vec<[u8; 32]> = (1..=5)
            .map(|x| {
                let mut out = [0; 32];
                share_at(x, &secret, &coefficients, &mut out);
                out
            })
            .collect();
        let combine = |chosen: &[u8]| {
            let mut out = [0; 32];
            for x in chosen {
                add_contribution(*x, &shares[usize::from(*x) - 1], chosen, &mut out);
            }
            out
        };
        for a in 1..=5 {
            for b in a + 1..=5 {
                assert_ne!(combine(&[a, b]), secret, "two of three");
                for c in b + 1..=5 {
                    assert_eq!(combine(&[c, a, b]), secret);
                }
            }
        }
        assert_eq!(combine(&[1, 2, 3, 4, 5]), secret, "more than needed does no harm");
    }
}

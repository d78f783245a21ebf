//! POLYVAL, straight from RFC 8452, and the powers of its key that a sector tag's kernels keep, for the scanner to look for.
//!
//! Written for clarity and for independence from the code under test: one bit at a time.

/// x^127 + x^126 + x^121 + 1: what is left of x^128 in the field.
const REDUCTION: u128 = 1 << 127 | 1 << 126 | 1 << 121 | 1;

/// The highest power that a kernel keeps: sixteen vectors of four blocks share a reduction.
const HIGHEST: usize = 64;

/// H, H^2 and so on to H^64 as they lie in memory, and the sum of each one's halves, which Karatsuba's products take.
pub fn powers(key: &[u8; 16]) -> Vec<([u8; 16], [u8; 8])> {
    let key = u128::from_le_bytes(*key);
    let powers = std::iter::successors(Some(key), |power| Some(dot(*power, key)));
    powers.take(HIGHEST).map(|power| (power.to_le_bytes(), sum_of_halves(power))).collect()
}

/// POLYVAL of whole blocks.
///
/// # Panics
/// Where they are not whole.
pub fn hash(key: &[u8; 16], blocks: &[u8]) -> [u8; 16] {
    let key = u128::from_le_bytes(*key);
    let sum = blocks
        .chunks(16)
        .fold(0, |sum, block| dot(sum ^ u128::from_le_bytes(block.try_into().expect("whole blocks")), key));
    sum.to_le_bytes()
}

fn sum_of_halves(power: u128) -> [u8; 8] {
    let bytes = power.to_le_bytes();
    std::array::from_fn(|at| bytes[at] ^ bytes[at + 8])
}

/// RFC 8452, section 3: a · b · x^-128.
fn dot(a: u128, b: u128) -> u128 {
    (0..128).fold(0, |sum, bit| divide_by_x(sum ^ if b >> bit & 1 == 0 { 0 } else { a }))
}

fn divide_by_x(element: u128) -> u128 {
    // An odd element is divisible once the field's polynomial is added; its x^128 becomes x^127.
    if element & 1 == 0 { element >> 1 } else { (element ^ REDUCTION) >> 1 | 1 << 127 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8452, appendix A.
    #[test]
    fn the_worked_example_of_rfc_8452_holds() {
        let key = hex::decode("25629347589242761d31f826ba4b757b").unwrap().try_into().unwrap();
        let blocks = hex::decode("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362").unwrap();
        assert_eq!(hex::encode(hash(&key, &blocks)), "f7a3b47b846119fae5b7866cf5e5b77e");
    }

    #[test]
    fn the_first_power_is_the_key_and_the_order_of_factors_does_not_matter() {
        let key: [u8; 16] = std::array::from_fn(|at| u8::try_from(at * 16 + 3).unwrap());
        let powers = powers(&key);
        let at = |exponent: usize| u128::from_le_bytes(powers[exponent - 1].0);
        assert_eq!((powers.len(), powers[0].0), (64, key));
        assert_eq!(dot(at(16), at(48)), at(64));
        assert_eq!(dot(at(3), at(4)), dot(at(4), at(3)));
    }
}

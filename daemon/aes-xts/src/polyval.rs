//! POLYVAL (RFC 8452, 3) without carry-less multiplication: for processors that have none, and for the powers of a key.
//!
//! Multiplication by masks that leave holes for carries (after BearSSL's `ctmul64`): no table, no branch, so constant time
//! wherever a 64-bit multiplication is.

/// The product of two elements times x^-128, which is what POLYVAL calls `dot`.
pub(crate) fn dot(a: u128, b: u128) -> u128 {
    let [(a0, a1), (b0, b1)] = [a, b].map(halves);
    let low = multiply(a0, b0);
    let high = multiply(a1, b1);
    let middle = multiply(a0 ^ a1, b0 ^ b1) ^ low ^ high;
    reduce(low ^ middle << 64, high ^ middle >> 64)
}

/// Divides a 256-bit product by x^128 modulo x^128+x^127+x^126+x^121+1.
fn reduce(low: u128, high: u128) -> u128 {
    let [(v0, v1), (v2, v3)] = [low, high].map(halves);
    let (v1, v2) = (v1 ^ v0 << 63 ^ v0 << 62 ^ v0 << 57, v2 ^ v0 ^ v0 >> 1 ^ v0 >> 2 ^ v0 >> 7);
    let (v2, v3) = (v2 ^ v1 << 63 ^ v1 << 62 ^ v1 << 57, v3 ^ v1 ^ v1 >> 1 ^ v1 >> 2 ^ v1 >> 7);
    u128::from(v2) | u128::from(v3) << 64
}

#[expect(clippy::cast_possible_truncation, reason = "takes the halves")]
fn halves(number: u128) -> (u64, u64) {
    (number as u64, (number >> 64) as u64)
}

/// The carry-less product.
fn multiply(a: u64, b: u64) -> u128 {
    let low = multiply_low(a, b);
    let high = multiply_low(a.reverse_bits(), b.reverse_bits()).reverse_bits() >> 1;
    u128::from(low) | u128::from(high) << 64
}

/// The low half of the carry-less product: every fourth bit apart, no carry reaches the next.
fn multiply_low(a: u64, b: u64) -> u64 {
    const EVERY_FOURTH: u64 = 0x1111_1111_1111_1111;
    let part = |number: u64, at: usize| number & EVERY_FOURTH << at;
    (0..4).fold(0, |sum, at| {
        let products = (0..4).fold(0, |sum, i| sum ^ part(a, i).wrapping_mul(part(b, (at + 4 - i) % 4)));
        sum | products & EVERY_FOURTH << at
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8452, appendix A.
    #[test]
    fn the_worked_example_of_rfc_8452_holds() {
        let number = |hex: &str| {
            let mut bytes = [0; 16];
            hex::decode_to_slice(hex, &mut bytes).unwrap();
            u128::from_le_bytes(bytes)
        };
        let key = number("25629347589242761d31f826ba4b757b");
        let first = dot(number("4f4f95668c83dfb6401762bb2d01a262"), key);
        let second = dot(first ^ number("d1a24ddd2721d006bbe45f20d3c9f362"), key);
        assert_eq!(second, number("f7a3b47b846119fae5b7866cf5e5b77e"));
    }
}

//! AES-256 round keys of both directions, straight from FIPS 197, for the scanner to look for.
//!
//! Written for clarity and for independence from the code under test. Never used to encrypt.

/// Rounds of AES-256.
const ROUNDS: usize = 14;

/// The encryption schedule and the equivalent inverse cipher's schedule.
#[expect(missing_debug_implementations, reason = "holds round keys")]
pub struct Schedules {
    /// Round keys in the order in which encryption uses them; the first two are the key itself.
    pub encryption: [[u8; 16]; ROUNDS + 1],
    /// Round keys in the order in which decryption uses them, `InvMixColumns` applied to all but the ends.
    pub decryption: [[u8; 16]; ROUNDS + 1],
}

/// Both schedules of `key`.
pub fn expand(key: &[u8; 32]) -> Schedules {
    let sbox = sbox();
    let mut words = [[0_u8; 4]; 4 * (ROUNDS + 1)];
    for (word, bytes) in words.iter_mut().zip(key.chunks_exact(4)) {
        word.copy_from_slice(bytes);
    }
    let mut round_constant = 1_u8;
    for index in 8..words.len() {
        let mut word = words[index - 1];
        if index % 8 == 0 {
            word.rotate_left(1);
        }
        if index % 4 == 0 {
            word = word.map(|byte| sbox[usize::from(byte)]);
        }
        if index % 8 == 0 {
            word[0] ^= round_constant;
            round_constant = double(round_constant);
        }
        for (byte, earlier) in word.iter_mut().zip(words[index - 8]) {
            *byte ^= earlier;
        }
        words[index] = word;
    }
    let mut encryption = [[0_u8; 16]; ROUNDS + 1];
    for (round, four) in encryption.iter_mut().zip(words.chunks_exact(4)) {
        round.copy_from_slice(&four.concat());
    }
    let mut decryption = encryption;
    decryption.reverse();
    for round in &mut decryption[1..ROUNDS] {
        *round = inverse_mix_columns(round);
    }
    Schedules { encryption, decryption }
}

/// Multiplication by x in GF(2^8).
fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b }
}

/// Multiplication in GF(2^8).
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

/// The S-box of FIPS 197 section 5.1.1: the inverse in GF(2^8), then the affine map.
fn sbox() -> [u8; 256] {
    let mut table = [0_u8; 256];
    for (input, output) in (0..=255_u8).zip(table.iter_mut()) {
        let inverse = (1..=255_u8).find(|candidate| multiply(input, *candidate) == 1).unwrap_or(0);
        let turned = (1..5).fold(inverse, |sum, by| sum ^ inverse.rotate_left(by));
        *output = turned ^ 0x63;
    }
    table
}

fn inverse_mix_columns(round: &[u8; 16]) -> [u8; 16] {
    const ROW: [u8; 4] = [14, 11, 13, 9];
    let mut mixed = [0_u8; 16];
    for (column, out) in round.chunks_exact(4).zip(mixed.chunks_exact_mut(4)) {
        for (row, byte) in out.iter_mut().enumerate() {
            for (position, input) in column.iter().enumerate() {
                *byte ^= multiply(*input, ROW[(position + 4 - row) % 4]);
            }
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        hex::encode(bytes)
    }

    /// FIPS 197 appendix A.3 gives the schedule of this key, word by word.
    #[test]
    fn the_encryption_schedule_is_the_one_of_fips_197_a3() {
        let key = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
        let schedules = expand(&key.try_into().unwrap());
        assert_eq!(hex(&schedules.encryption[2]), "9ba354118e6925afa51a8b5f2067fcde");
        assert_eq!(hex(&schedules.encryption[14]), "fe4890d1e6188d0b046df344706c631e");
    }

    /// FIPS 197 appendix C.3, the equivalent inverse cipher's `ik_sch` lines.
    #[test]
    fn the_decryption_schedule_is_the_one_of_fips_197_c3() {
        let key: Vec<u8> = (0..32).collect();
        let schedules = expand(&key.try_into().unwrap());
        assert_eq!(hex(&schedules.decryption[0]), "24fc79ccbf0979e9371ac23c6d68de36");
        assert_eq!(hex(&schedules.decryption[1]), "34f1d1ffbfceaa2ffce9e25f2558016e");
        assert_eq!(hex(&schedules.decryption[14]), "000102030405060708090a0b0c0d0e0f");
    }
}

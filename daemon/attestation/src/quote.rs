//! A quote: the TPM's signature over the contents of its registers and over what the verifier asked for.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use subtle::ConstantTimeEq;

use crate::key::{KeyRole, PublicKey};
use crate::register::{Digest, QUOTED, Registers};
use crate::wire::constant::{ALG_ECDSA, ALG_SHA256, ATTEST_QUOTE, GENERATED};
use crate::wire::{Malformed, Reader, Writer};

/// Longest statement (TPMS_ATTEST) that is looked at; a quote of [`QUOTED`] has about 145 bytes.
pub const STATEMENT_BYTES_MAX: usize = 512;

/// Longest signature (TPMT_SIGNATURE); one of P-256 has 72 bytes.
pub const SIGNATURE_BYTES_MAX: usize = 128;

/// A quote as it came.
#[derive(Clone, Copy, Debug)]
pub struct Quote<'a> {
    /// What was signed (TPMS_ATTEST).
    pub statement: &'a [u8],
    /// The signature (TPMT_SIGNATURE).
    pub signature: &'a [u8],
    /// What the registers hold, by whoever sent the quote.
    pub registers: Registers,
}

/// The TPM's own clock and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// How often the TPM was reset, which is how often the machine was started.
    pub resets: u32,
    /// How often it went on after a suspend or a partial reset.
    pub restarts: u32,
}

/// What a quote proves, once it was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// What the registers held.
    pub registers: Registers,
    /// The counters at that moment.
    pub clock: Clock,
    /// The TPM's firmware.
    pub firmware: u64,
}

/// Why a quote proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Not a quote.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Not made with this key.
    #[error("the quote was not signed by this attestation key")]
    Signature,
    /// Made with this key in another place of the TPM.
    #[error("the quote names another key than the one that signed it")]
    OtherSigner,
    /// Made for another session, at another time, or for another verifier.
    #[error("the quote was made for another session: it was relayed or sent again")]
    OtherSession,
    /// Over other registers.
    #[error("the quote is over other registers than those that were asked for")]
    OtherSelection,
    /// The registers that came with it are not those that were signed.
    #[error("the registers that came with the quote are not those that the TPM signed")]
    OtherRegisters,
}

impl Quote<'_> {
    /// Verifies that `key` signed these registers for `expected`.
    pub fn verify(&self, key: &PublicKey, expected: &Digest) -> Result<Quoted, QuoteError> {
        if key.role() != KeyRole::Attestation || self.statement.len() > STATEMENT_BYTES_MAX {
            return Err(QuoteError::Malformed(Malformed { what: "quote" }));
        }
        let signature = fixed(self.signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point())
            .verify(self.statement, &signature)
            .map_err(|_| QuoteError::Signature)?;
        let statement = Statement::parse(self.statement)?;
        if statement.signer != key.name().qualified() {
            return Err(QuoteError::OtherSigner);
        }
        if !bool::from(statement.extra.ct_eq(expected)) {
            return Err(QuoteError::OtherSession);
        }
        if statement.selection != selection() {
            return Err(QuoteError::OtherSelection);
        }
        if statement.digest != self.registers.digest() {
            return Err(QuoteError::OtherRegisters);
        }
        Ok(Quoted { registers: self.registers, clock: statement.clock, firmware: statement.firmware })
    }
}

/// The registers of [`QUOTED`] as a TPM is asked for them (TPML_PCR_SELECTION).
pub fn selection() -> Vec<u8> {
    let mut bits = [0_u8; 3];
    for register in QUOTED {
        if let Some(byte) = bits.get_mut(usize::from(register.number() / 8)) {
            *byte |= 1 << (register.number() % 8);
        }
    }
    Writer::new().u32(1).u16(ALG_SHA256).u8(3).bytes(&bits).finish()
}

struct Statement<'a> {
    signer: &'a [u8],
    extra: &'a [u8],
    clock: Clock,
    firmware: u64,
    selection: &'a [u8],
    digest: &'a [u8],
}

impl<'a> Statement<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "quote");
        if reader.u32()? != GENERATED || reader.u16()? != ATTEST_QUOTE {
            return Err(reader.malformed());
        }
        let signer = reader.sized()?;
        let extra = reader.sized()?;
        let _milliseconds = reader.u64()?;
        let clock = Clock { resets: reader.u32()?, restarts: reader.u32()? };
        let _safe = reader.u8()?;
        let firmware = reader.u64()?;
        let selection = reader.bytes(selection().len())?;
        let digest = reader.sized()?;
        reader.finish()?;
        Ok(Self { signer, extra, clock, firmware, selection, digest })
    }
}

/// A signature as two numbers of 32 bytes.
fn fixed(signature: &[u8]) -> Result<[u8; 64], Malformed> {
    let mut reader = Reader::new(signature, "signature");
    if reader.u16()? != ALG_ECDSA || reader.u16()? != ALG_SHA256 {
        return Err(reader.malformed());
    }
    let mut both = [0; 64];
    for end in [32, 64] {
        let number = reader.sized()?;
        // Without leading zeros or with them; more than 32 bytes are no number of the curve.
        let start = (number.len() <= 32).then_some(end - number.len().min(32));
        let place = start.and_then(|start| both.get_mut(start..end));
        place.ok_or(reader.malformed())?.copy_from_slice(number);
    }
    reader.finish()?;
    Ok(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    const EXPECTED: Digest = [9; 32];
    const REGISTERS: Registers = Registers([[3; 32]; QUOTED.len()]);

    /// A key pair that stands for a TPM's attestation key, and its public half.
    fn key() -> (EcdsaKeyPair, PublicKey) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let template = crate::attestation_template();
        let area = Writer::new().bytes(&template[..template.len() - 68]).sized(x).sized(y).finish();
        let public = PublicKey::parse(KeyRole::Attestation, &area).unwrap();
        (pair, public)
    }

    /// A statement in parts, to be put together with one of them changed.
    struct Parts {
        magic: u32,
        kind: u16,
        signer: Vec<u8>,
        extra: Vec<u8>,
        selection: Vec<u8>,
        digest: Vec<u8>,
        more: Vec<u8>,
    }

    fn parts(key: &PublicKey) -> Parts {
        Parts {
            magic: GENERATED,
            kind: ATTEST_QUOTE,
            signer: key.name().qualified(),
            extra: EXPECTED.to_vec(),
            selection: selection(),
            digest: REGISTERS.digest().to_vec(),
            more: Vec::new(),
        }
    }

    fn judged(pair: &EcdsaKeyPair, key: &PublicKey, parts: &Parts) -> Result<Quoted, QuoteError> {
        let clock = Writer::new().u32(0).u32(5).u32(7).u32(2).u8(1).u32(0).u32(6);
        let statement = Writer::new()
            .u32(parts.magic)
            .u16(parts.kind)
            .sized(&parts.signer)
            .sized(&parts.extra)
            .bytes(&clock.finish())
            .bytes(&parts.selection)
            .sized(&parts.digest)
            .bytes(&parts.more)
            .finish();
        let signed = pair.sign(&SystemRandom::new(), &statement).unwrap();
        let (r, s) = signed.as_ref().split_at(32);
        let signature = Writer::new().u16(ALG_ECDSA).u16(ALG_SHA256).sized(r).sized(s).finish();
        Quote { statement: &statement, signature: &signature, registers: REGISTERS }.verify(key, &EXPECTED)
    }

    #[test]
    fn a_statement_signed_by_the_key_counts_when_every_part_of_it_is_as_it_should_be() {
        let (pair, key) = key();
        let good = judged(&pair, &key, &parts(&key)).unwrap();
        assert_eq!((good.clock, good.firmware), (Clock { resets: 7, restarts: 2 }, 6));
        let malformed = QuoteError::Malformed(Malformed { what: "quote" });
        let other_name = crate::Name([1; 32]);
        for (parts, expected) in [
            (Parts { magic: GENERATED ^ 1, ..parts(&key) }, malformed),
            // What a TPM signs of a key (TPM_ST_ATTEST_CERTIFY).
            (Parts { kind: 0x8017, ..parts(&key) }, malformed),
            (Parts { signer: other_name.qualified(), ..parts(&key) }, QuoteError::OtherSigner),
            (Parts { signer: key.name().encoded(), ..parts(&key) }, QuoteError::OtherSigner),
            (Parts { extra: vec![8; 32], ..parts(&key) }, QuoteError::OtherSession),
            (Parts { extra: EXPECTED[..31].to_vec(), ..parts(&key) }, QuoteError::OtherSession),
            (Parts { digest: vec![0; 32], ..parts(&key) }, QuoteError::OtherRegisters),
            (Parts { more: vec![0], ..parts(&key) }, malformed),
        ] {
            assert_eq!(judged(&pair, &key, &parts), Err(expected));
        }
        // One register fewer; as many of another bank.
        for (byte, bit) in [(7, 1), (5, 7)] {
            let mut selection = selection();
            selection[byte] ^= bit;
            let parts = Parts { selection, ..parts(&key) };
            assert_eq!(judged(&pair, &key, &parts), Err(QuoteError::OtherSelection));
        }
    }

    #[test]
    fn a_signature_is_two_numbers_of_the_curve() {
        let write =
            |r: &[u8], s: &[u8]| Writer::new().u16(ALG_ECDSA).u16(ALG_SHA256).sized(r).sized(s).finish();
        let both = fixed(&write(&[1; 31], &[2; 32])).unwrap();
        assert_eq!((both[0], both[1], both[32]), (0, 1, 2));
        assert!(fixed(&write(&[], &[])).is_ok(), "zero is refused by whoever verifies");
        for bad in [
            write(&[1; 33], &[2; 32]),
            write(&[1; 32], &[2; 33]),
            [write(&[1; 32], &[2; 32]), vec![0]].concat(),
        ] {
            assert_eq!(fixed(&bad), Err(Malformed { what: "signature" }));
        }
    }
}

//! How a TPM writes its structures (TPM 2.0 Library, part 2): integers big-endian, buffers behind a 16-bit length.

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no {what} of a TPM")]
pub struct Malformed {
    /// What was to be read.
    pub what: &'static str,
}

/// Reads structures from the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which should be a `what`.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The error that says what this is not.
    pub const fn malformed(&self) -> Malformed {
        Malformed { what: self.what }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(self.malformed())?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    /// An integer of 16 bits.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// An integer of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// An integer of 64 bits.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A buffer behind its length (TPM2B).
    pub fn sized(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.bytes(usize::from(length))
    }

    /// Refuses another value than `expected`.
    pub fn expect(&mut self, expected: &[u8]) -> Result<(), Malformed> {
        if self.bytes(expected.len())? == expected { Ok(()) } else { Err(self.malformed()) }
    }

    /// What has not been read.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Refuses what is left over.
    pub const fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

/// Writes structures. What is written is this program's own, and short; a buffer that 16 bits cannot count is cut to
/// nothing, which no TPM takes.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// One byte.
    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    /// An integer of 16 bits.
    #[must_use]
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// An integer of 32 bits.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Bytes as they are.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A buffer behind its length (TPM2B).
    #[must_use]
    pub fn sized(self, bytes: &[u8]) -> Self {
        match u16::try_from(bytes.len()) {
            Ok(length) => self.u16(length).bytes(bytes),
            Err(_) => self.u16(0),
        }
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Algorithms and constants of TPM 2.0 Library, part 2, that are used here.
pub mod constant {
    /// AES.
    pub const ALG_AES: u16 = 0x0006;
    /// SHA-256.
    pub const ALG_SHA256: u16 = 0x000b;
    /// None.
    pub const ALG_NULL: u16 = 0x0010;
    /// ECDSA.
    pub const ALG_ECDSA: u16 = 0x0018;
    /// Elliptic curves.
    pub const ALG_ECC: u16 = 0x0023;
    /// Cipher feedback.
    pub const ALG_CFB: u16 = 0x0043;
    /// NIST P-256.
    pub const CURVE_P256: u16 = 0x0003;
    /// What a TPM writes before everything that it signs with a restricted key.
    pub const GENERATED: u32 = 0xff54_4347;
    /// A quote.
    pub const ATTEST_QUOTE: u16 = 0x8018;
    /// The endorsement hierarchy.
    pub const RH_ENDORSEMENT: u32 = 0x4000_000b;
}

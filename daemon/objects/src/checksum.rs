//! The digests of a body: MD5 for the entity tag, and the one checksum that a client may choose.
//!
//! S3's rules ("Checking object integrity in Amazon S3"): a checksum of a multipart object covers either the whole
//! object (CRCs only, combined from those of the parts) or the concatenated checksums of its parts (composite).

use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::Sha256;

use crate::error::{DigestKind, StoreError};

/// The checksum algorithms of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    /// CRC-32/ISO-HDLC.
    Crc32,
    /// CRC-32/ISCSI.
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl ChecksumAlgorithm {
    /// Length of its values in bytes.
    pub fn value_len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn crc(self) -> Option<crc_fast::CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(crc_fast::CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(crc_fast::CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(crc_fast::CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    /// What S3 takes for a multipart upload that names the algorithm and no type.
    pub fn default_kind(self) -> ChecksumKind {
        match self {
            Self::Crc64Nvme => ChecksumKind::FullObject,
            _ => ChecksumKind::Composite,
        }
    }

    /// Whether a multipart object may have this kind of this checksum.
    pub fn allows(self, kind: ChecksumKind) -> bool {
        match kind {
            ChecksumKind::FullObject => self.crc().is_some(),
            ChecksumKind::Composite => self != Self::Crc64Nvme,
        }
    }
}

/// What a checksum covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChecksumKind {
    /// The object's bytes.
    FullObject,
    /// The checksums of its parts.
    Composite,
}

/// A checksum value of an object or a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checksum {
    /// How it was made.
    pub algorithm: ChecksumAlgorithm,
    /// Big-endian for the CRCs; [`ChecksumAlgorithm::value_len`] bytes.
    pub value: Vec<u8>,
    /// Number of parts of a composite checksum; 0 for one over the bytes themselves.
    pub parts: u16,
}

impl Checksum {
    /// A checksum over bytes; `None` if the length of the value is not the algorithm's.
    pub fn of_bytes(algorithm: ChecksumAlgorithm, value: Vec<u8>) -> Option<Self> {
        (value.len() == algorithm.value_len()).then_some(Self { algorithm, value, parts: 0 })
    }

    /// What it covers.
    pub fn kind(&self) -> ChecksumKind {
        if self.parts == 0 { ChecksumKind::FullObject } else { ChecksumKind::Composite }
    }
}

enum Running {
    Crc(ChecksumAlgorithm, crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
}

/// Digests of a body in the making.
pub(crate) struct BodyDigest {
    md5: Md5,
    checksum: Option<Running>,
}

/// Digests of a whole body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BodyDigests {
    pub(crate) md5: [u8; 16],
    pub(crate) checksum: Option<Checksum>,
}

impl BodyDigest {
    pub(crate) fn new(algorithm: Option<ChecksumAlgorithm>) -> Self {
        let checksum = algorithm.map(|algorithm| match (algorithm.crc(), algorithm) {
            (Some(crc), _) => Running::Crc(algorithm, crc_fast::Digest::new(crc)),
            (None, ChecksumAlgorithm::Sha1) => Running::Sha1(Sha1::new()),
            (None, _) => Running::Sha256(Sha256::new()),
        });
        Self { md5: Md5::new(), checksum }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        match &mut self.checksum {
            None => {}
            Some(Running::Crc(_, digest)) => digest.update(bytes),
            Some(Running::Sha1(digest)) => digest.update(bytes),
            Some(Running::Sha256(digest)) => digest.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> BodyDigests {
        let checksum = self.checksum.map(|running| {
            let (algorithm, value) = match running {
                Running::Crc(algorithm, digest) => (algorithm, crc_value(algorithm, digest.finalize())),
                Running::Sha1(digest) => (ChecksumAlgorithm::Sha1, digest.finalize().to_vec()),
                Running::Sha256(digest) => (ChecksumAlgorithm::Sha256, digest.finalize().to_vec()),
            };
            Checksum { algorithm, value, parts: 0 }
        });
        BodyDigests { md5: self.md5.finalize().into(), checksum }
    }
}

impl BodyDigests {
    /// Compares with what the client declared.
    pub(crate) fn verify(
        &self,
        md5: Option<[u8; 16]>,
        checksum: Option<&Checksum>,
    ) -> Result<(), StoreError> {
        if md5.is_some_and(|declared| declared != self.md5) {
            return Err(StoreError::DigestMismatch(DigestKind::Md5));
        }
        if checksum.is_some() && checksum != self.checksum.as_ref() {
            return Err(StoreError::DigestMismatch(DigestKind::Checksum));
        }
        Ok(())
    }
}

fn crc_value(algorithm: ChecksumAlgorithm, value: u64) -> Vec<u8> {
    value.to_be_bytes()[8 - algorithm.value_len()..].to_vec()
}

fn crc_number(value: &[u8]) -> u64 {
    value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// MD5 of the concatenated MD5s of the parts: the entity tag of a multipart object.
pub(crate) fn md5_of_parts(parts: impl Iterator<Item = [u8; 16]>) -> [u8; 16] {
    let mut md5 = Md5::new();
    parts.for_each(|part| md5.update(part));
    md5.finalize().into()
}

/// The checksum of an object made of `parts`: each part's own checksum and length.
pub(crate) fn checksum_of_parts(
    algorithm: ChecksumAlgorithm,
    kind: ChecksumKind,
    parts: &[(&Checksum, u64)],
) -> Result<Checksum, StoreError> {
    if !algorithm.allows(kind) || parts.iter().any(|(part, _)| part.algorithm != algorithm || part.parts != 0)
    {
        return Err(StoreError::InvalidChecksum);
    }
    if kind == ChecksumKind::Composite {
        let mut digest = BodyDigest::new(Some(algorithm));
        parts.iter().for_each(|(part, _)| digest.update(&part.value));
        let checksum = digest.finish().checksum.ok_or(StoreError::InvalidChecksum)?;
        let parts = u16::try_from(parts.len()).map_err(|_| StoreError::InvalidPartNumber)?;
        return Ok(Checksum { parts, ..checksum });
    }
    let crc = algorithm.crc().ok_or(StoreError::InvalidChecksum)?;
    let combined = parts.iter().fold(None, |whole, (part, len)| {
        let value = crc_number(&part.value);
        Some(whole.map_or(value, |whole| crc_fast::checksum_combine(crc, whole, value, *len)))
    });
    let value = crc_value(algorithm, combined.ok_or(StoreError::InvalidPartOrder)?);
    Ok(Checksum { algorithm, value, parts: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> BodyDigests {
        let mut digest = BodyDigest::new(Some(algorithm));
        digest.update(bytes);
        digest.finish()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn values_are_those_of_the_published_check_strings() {
        let check = b"123456789";
        for (algorithm, expected) in [
            (ChecksumAlgorithm::Crc32, "cbf43926"),
            (ChecksumAlgorithm::Crc32c, "e3069283"),
            (ChecksumAlgorithm::Crc64Nvme, "ae8b14860a799888"),
            (ChecksumAlgorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (ChecksumAlgorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ] {
            let found = digests(algorithm, check);
            assert_eq!(hex(&found.checksum.unwrap().value), expected, "{algorithm:?}");
            assert_eq!(hex(&found.md5), "25f9e794323b453885f5181f1b624d0b");
        }
    }

    #[test]
    fn a_crc_of_the_whole_is_combined_from_those_of_the_parts() {
        let body: Vec<u8> = (0..200_000_u32).map(|n| (n * 31 % 251) as u8).collect();
        for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme] {
            let whole = digests(algorithm, &body).checksum.unwrap();
            let parts: Vec<_> = body
                .chunks(70_001)
                .map(|part| (digests(algorithm, part).checksum.unwrap(), part.len()))
                .collect();
            let parts: Vec<_> = parts.iter().map(|(sum, len)| (sum, *len as u64)).collect();
            assert_eq!(checksum_of_parts(algorithm, ChecksumKind::FullObject, &parts).unwrap(), whole);
        }
    }

    #[test]
    fn kinds_that_s3_does_not_know_are_refused() {
        let sha = digests(ChecksumAlgorithm::Sha256, b"x").checksum.unwrap();
        let crc64 = digests(ChecksumAlgorithm::Crc64Nvme, b"x").checksum.unwrap();
        for (sum, kind) in [(&sha, ChecksumKind::FullObject), (&crc64, ChecksumKind::Composite)] {
            let result = checksum_of_parts(sum.algorithm, kind, &[(sum, 1)]);
            assert!(matches!(result, Err(StoreError::InvalidChecksum)));
        }
        assert!(
            checksum_of_parts(ChecksumAlgorithm::Sha256, ChecksumKind::Composite, &[(&crc64, 1)]).is_err()
        );
    }
}

//! The two keys of a TPM that matter here, by their public areas: what they are allowed to do is part of their name.

use sha2::{Digest, Sha256};

use crate::wire::constant::{
    ALG_AES, ALG_CFB, ALG_ECC, ALG_ECDSA, ALG_NULL, ALG_SHA256, CURVE_P256, RH_ENDORSEMENT,
};
use crate::wire::{Malformed, Reader, Writer};

/// Longest public area that is looked at; one of P-256 has at most 122 bytes.
pub const PUBLIC_BYTES_MAX: usize = 256;

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const ENDORSEMENT_ATTRIBUTES: u32 = 0x0003_00b2;

/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign.
const ATTESTATION_ATTRIBUTES: u32 = 0x0005_0472;

/// PolicySecret with the endorsement hierarchy's authorisation (EK Credential Profile 2.5, B.3.3, "PolicyA").
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// Sets this program's attestation key apart from what others make from the same seed.
const ATTESTATION_UNIQUE: &[u8] = b"nightlatch attestation key 1";

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRole {
    /// Made by the TPM from the seed that its maker put there: it decrypts credentials and nothing else.
    Endorsement,
    /// Signs what the TPM itself has made, and nothing else.
    Attestation,
}

impl KeyRole {
    const fn name(self) -> &'static str {
        match self {
            Self::Endorsement => "an endorsement key",
            Self::Attestation => "an attestation key",
        }
    }

    /// Everything of the public area but the point.
    fn prefix(self) -> Vec<u8> {
        let area = Writer::new().u16(ALG_ECC).u16(ALG_SHA256);
        let area = match self {
            Self::Endorsement => area
                .u32(ENDORSEMENT_ATTRIBUTES)
                .sized(&ENDORSEMENT_POLICY)
                .u16(ALG_AES)
                .u16(128)
                .u16(ALG_CFB)
                .u16(ALG_NULL),
            Self::Attestation => {
                area.u32(ATTESTATION_ATTRIBUTES).sized(&[]).u16(ALG_NULL).u16(ALG_ECDSA).u16(ALG_SHA256)
            }
        };
        area.u16(CURVE_P256).u16(ALG_NULL).finish()
    }
}

/// Why a public area is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No public area of P-256.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A key that may do other things than its role needs: one that signs anything could sign a forged quote.
    #[error("the key is not {}: its attributes allow it other things", role.name())]
    OtherAttributes {
        /// What it should be.
        role: KeyRole,
    },
}

/// Names a key: the algorithm, and the hash of its public area.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub [u8; 32]);

impl Name {
    /// The name of the key with this public area, whatever it may do.
    pub fn of(area: &[u8]) -> Self {
        Self(Sha256::digest(area).into())
    }

    /// As a TPM writes it.
    pub fn encoded(&self) -> Vec<u8> {
        Writer::new().u16(ALG_SHA256).bytes(&self.0).finish()
    }

    /// The name of a primary key of the endorsement hierarchy, with the hierarchy's in it.
    pub(crate) fn qualified(&self) -> Vec<u8> {
        let hash =
            Sha256::new().chain_update(RH_ENDORSEMENT.to_be_bytes()).chain_update(self.encoded()).finalize();
        Writer::new().u16(ALG_SHA256).bytes(&hash).finish()
    }
}

impl std::fmt::Display for Name {
    /// Its first eight bytes, which people compare.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Name({self})")
    }
}

/// A key's public area, found to be what its role wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    role: KeyRole,
    point: [u8; 65],
    name: Name,
}

impl PublicKey {
    /// Reads a public area (TPMT_PUBLIC). Everything but the point has to be as this program's template has it.
    pub fn parse(role: KeyRole, area: &[u8]) -> Result<Self, KeyError> {
        let mut reader = Reader::new(area, "public key");
        if area.len() > PUBLIC_BYTES_MAX {
            return Err(reader.malformed().into());
        }
        let prefix = role.prefix();
        if reader.bytes(prefix.len())? != prefix {
            return Err(KeyError::OtherAttributes { role });
        }
        let point = uncompressed(reader.sized()?, reader.sized()?).ok_or(reader.malformed())?;
        reader.finish()?;
        Ok(Self { role, point, name: Name::of(area) })
    }

    /// What it is for.
    pub const fn role(&self) -> KeyRole {
        self.role
    }

    /// Its name.
    pub const fn name(&self) -> Name {
        self.name
    }

    /// Its point, uncompressed (SEC 1).
    pub(crate) const fn point(&self) -> &[u8; 65] {
        &self.point
    }
}

/// A point as SEC 1 has it; coordinates come without their leading zeros or with them.
fn uncompressed(x: &[u8], y: &[u8]) -> Option<[u8; 65]> {
    let mut point = [0; 65];
    point[0] = 4;
    place(&mut point, 33, x)?;
    place(&mut point, 65, y)?;
    Some(point)
}

fn place(point: &mut [u8; 65], end: usize, coordinate: &[u8]) -> Option<()> {
    if coordinate.len() > 32 {
        return None;
    }
    point.get_mut(end - coordinate.len()..end)?.copy_from_slice(coordinate);
    Some(())
}

/// The public area from which a TPM makes its endorsement key (EK Credential Profile 2.5, template L-2): the one that its maker
/// certified.
pub fn endorsement_template() -> Vec<u8> {
    Writer::new().bytes(&KeyRole::Endorsement.prefix()).sized(&[0; 32]).sized(&[0; 32]).finish()
}

/// The public area from which a TPM makes this program's attestation key: the same one each time, so that nothing of it has to be
/// stored.
pub fn attestation_template() -> Vec<u8> {
    let unique = Sha256::digest(ATTESTATION_UNIQUE);
    Writer::new().bytes(&KeyRole::Attestation.prefix()).sized(&unique).sized(&[0; 32]).finish()
}

/// What CreatePrimary takes beside the handle: no authorisation, no data, the template, nothing else.
pub fn primary_parameters(template: &[u8]) -> Vec<u8> {
    let sensitive = Writer::new().sized(&[]).sized(&[]).finish();
    Writer::new().sized(&sensitive).sized(template).sized(&[]).u32(0).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(role: KeyRole) -> Vec<u8> {
        Writer::new().bytes(&role.prefix()).sized(&[7; 32]).sized(&[8; 31]).finish()
    }

    #[test]
    fn a_public_area_is_taken_for_its_role_only() {
        let key = PublicKey::parse(KeyRole::Attestation, &area(KeyRole::Attestation)).unwrap();
        assert_eq!(key.point()[33], 0, "a coordinate without its leading zero is the same point");
        assert_eq!(
            PublicKey::parse(KeyRole::Attestation, &area(KeyRole::Endorsement)),
            Err(KeyError::OtherAttributes { role: KeyRole::Attestation })
        );
    }

    #[test]
    fn a_key_that_may_sign_anything_is_no_attestation_key() {
        let good = area(KeyRole::Attestation);
        for byte in 0..KeyRole::Attestation.prefix().len() {
            for bit in 0..8 {
                let mut other = good.clone();
                other[byte] ^= 1 << bit;
                assert!(PublicKey::parse(KeyRole::Attestation, &other).is_err(), "bit {bit} of byte {byte}");
            }
        }
    }

    #[test]
    fn an_area_cut_or_prolonged_is_none() {
        let good = area(KeyRole::Endorsement);
        for end in 0..good.len() {
            assert!(PublicKey::parse(KeyRole::Endorsement, &good[..end]).is_err(), "cut at {end}");
        }
        assert!(PublicKey::parse(KeyRole::Endorsement, &[good, vec![0]].concat()).is_err());
        let wide =
            Writer::new().bytes(&KeyRole::Endorsement.prefix()).sized(&[7; 33]).sized(&[8; 32]).finish();
        assert!(PublicKey::parse(KeyRole::Endorsement, &wide).is_err());
    }
}

//! The node's Ed25519 identity key: what it signs evidence and receipts with, and what the keyholder pins.
//!
//! It proves which machine speaks, and opens nothing: no volume key is ever derived from it or encrypted to it.
//! The file is PKCS#8 in PEM (RFC 5958, RFC 8410), so `openssl pkey` reads it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::SigningKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::credentials::PrivateFile;
use crate::error::IdentityError;

/// PKCS#8 version 1 header of an Ed25519 seed: SEQUENCE, version 0, OID 1.3.101.112, OCTET STRING in OCTET STRING.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Room for the whole PEM text, so that building it leaves no copy behind.
const PEM_BYTES: usize = 128;

/// A node's signing key pair.
pub struct NodeKey(SigningKey);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey(public {})", hex::encode(self.public()))
    }
}

impl NodeKey {
    /// Makes a new key and writes it to `path`, which must not exist.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(IdentityError::Random)?;
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&PKCS8_PREFIX);
        der[16..].copy_from_slice(seed.as_slice());
        let mut text = Zeroizing::new(String::with_capacity(PEM_BYTES));
        text.push_str("-----BEGIN PRIVATE KEY-----\n");
        BASE64.encode_string(der.as_slice(), &mut text);
        text.push_str("\n-----END PRIVATE KEY-----\n");
        PrivateFile::create(path, text.as_bytes())?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads the key back. Accepts version 1 and version 2 (with the public key behind the seed).
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let pem = PrivateFile::read(path, "node key")?;
        let not_a_key = || IdentityError::NotANodeKey { path: path.to_owned() };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| not_a_key())?;
        // Version 1 ends with the seed; version 2 differs in total length and version number only, before the seed.
        let mut header = der.secret_pkcs8_der().get(..PKCS8_PREFIX.len()).ok_or_else(not_a_key)?.to_vec();
        header[1] = PKCS8_PREFIX[1];
        header[4] = 0;
        let seed: Option<&[u8; 32]> = der
            .secret_pkcs8_der()
            .get(PKCS8_PREFIX.len()..PKCS8_PREFIX.len() + 32)
            .and_then(|seed| seed.try_into().ok());
        match seed {
            Some(seed) if header == PKCS8_PREFIX => Ok(Self(SigningKey::from_bytes(seed))),
            _ => Err(not_a_key()),
        }
    }

    /// The key to sign with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.0
    }

    /// The public half: what the keyholder pins.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_openssl_sees_the_same_public_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let made = NodeKey::create(&path).unwrap();
        assert_eq!(NodeKey::load(&path).unwrap().public(), made.public());
        let shown = std::process::Command::new("openssl")
            .args(["pkey", "-noout", "-text", "-in"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        let text = String::from_utf8(shown.stdout).unwrap();
        let digits: String =
            text.split("pub:").nth(1).unwrap().chars().filter(char::is_ascii_hexdigit).collect();
        assert_eq!(digits, hex::encode(made.public()));
        assert!(!format!("{made:?}").contains(&hex::encode(made.signing_key().as_bytes())));
    }

    #[test]
    fn a_second_key_is_not_written_over_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        NodeKey::create(&path).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(NodeKey::create(&path), Err(IdentityError::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn other_key_types_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for text in [p256.as_str(), "", "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n"] {
            let _ = std::fs::remove_file(&path);
            PrivateFile::create(&path, text.as_bytes()).unwrap();
            assert!(matches!(NodeKey::load(&path), Err(IdentityError::NotANodeKey { .. })), "{text}");
        }
    }

    #[test]
    fn a_version_2_key_is_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        PrivateFile::create(&path, pair.serialize_pem().as_bytes()).unwrap();
        assert_eq!(NodeKey::load(&path).unwrap().public().as_slice(), pair.public_key_raw());
    }
}

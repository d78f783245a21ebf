//! Who made an image: a signature over the manifest's bytes (ed25519, under a label of its own), and the keys for it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::artefacts::{FORMAT, MANIFEST, Manifest, SIGNATURE};
use crate::error::{ImageError, Reason, Result, read, read_text, write};

/// In front of the manifest's bytes, so that a signature over anything else is none over an image.
const LABEL: &[u8] = b"nightlatch image manifest v1\0";

/// Signs images. Its file holds the seed in hexadecimal digits, and is its owner's alone.
pub struct ReleaseKey(SigningKey);

impl std::fmt::Debug for ReleaseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReleaseKey").finish_non_exhaustive()
    }
}

/// Believes images. Its file holds the public key in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedKey(VerifyingKey);

impl ReleaseKey {
    /// Makes one at `path`, and the file for those who are to believe it beside it; neither is replaced.
    ///
    /// # Errors
    /// Where a file is there already, or cannot be written.
    pub fn create(path: &Path) -> Result<(Self, PathBuf)> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|error| {
            ImageError::file("make a random key for", path)(std::io::Error::other(error.to_string()))
        })?;
        let key = SigningKey::from_bytes(&seed);
        let public = path.with_extension("pub");
        let create = |path: &Path, mode: u32, text: &str| {
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
            file.and_then(|mut file| writeln!(file, "{text}")).map_err(ImageError::file("make", path))
        };
        create(path, 0o600, &Zeroizing::new(hex::encode(*seed)))?;
        create(&public, 0o644, &hex::encode(key.verifying_key().as_bytes()))?;
        Ok((Self(key), public))
    }

    /// Reads one.
    ///
    /// # Errors
    /// Where it cannot be read, or is none.
    pub fn load(path: &Path) -> Result<Self> {
        let text = Zeroizing::new(read_text(path)?);
        let mut seed = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), seed.as_mut_slice())
            .map_err(|error| ImageError::malformed(path, "a release key", error))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// What believes its signatures.
    pub fn trusted(&self) -> TrustedKey {
        TrustedKey(self.0.verifying_key())
    }

    /// Signs the manifest in `folder`.
    pub(crate) fn sign(&self, folder: &Path) -> Result {
        let signature = self.0.sign(&[LABEL, &read(&folder.join(MANIFEST))?].concat());
        write(&folder.join(SIGNATURE), format!("{}\n", hex::encode(signature.to_bytes())).as_bytes())
    }
}

impl TrustedKey {
    /// Reads one.
    ///
    /// # Errors
    /// Where it cannot be read, or is none.
    pub fn load(path: &Path) -> Result<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(read_text(path)?.trim(), &mut bytes)
            .map_err(|error| ImageError::malformed(path, "a release key's public half", error))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| {
            ImageError::malformed(
                path,
                "a release key's public half",
                Reason::Words("it is no point of the curve"),
            )
        })?;
        Ok(Self(key))
    }

    /// The manifest in `folder`, if its signature is this key's. Nothing of it is looked at before.
    pub(crate) fn read(&self, folder: &Path) -> Result<Manifest> {
        let path = folder.join(SIGNATURE);
        let untrusted = |reason| ImageError::Untrusted { path: path.clone(), reason };
        if !path.is_file() {
            return Err(untrusted("is missing: the image was never signed"));
        }
        let mut signature = [0; 64];
        hex::decode_to_slice(read_text(&path)?.trim(), &mut signature)
            .map_err(|_| untrusted("is no signature"))?;
        let manifest = read(&folder.join(MANIFEST))?;
        let signed = [LABEL, &manifest].concat();
        self.0
            .verify_strict(&signed, &Signature::from_bytes(&signature))
            .map_err(|_| untrusted("is not this key's over this manifest"))?;
        parse(&folder.join(MANIFEST), &manifest)
    }
}

/// Reads a manifest's bytes.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest> {
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|error| ImageError::malformed(path, "a manifest", error))?;
    if manifest.format != FORMAT {
        let reason = Reason::Words("its format is another; use the release of nightlatch that made it");
        return Err(ImageError::malformed(path, "a manifest", reason));
    }
    Ok(manifest)
}

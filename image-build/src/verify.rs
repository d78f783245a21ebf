//! Whether artefacts are what somebody signed. Everything that the manifest says is computed again.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::artefacts::{BootImage, MANIFEST, Manifest, ROOT, SIGNED, TREE};
use crate::authenticode;
use crate::error::{ImageError, Reason, Result, read};
use crate::manifest::TrustedKey;
use crate::measure::{boot_services_measurement, image_measurement};
use crate::uki;
use crate::verity::{self, BLOCK_BYTES, Salt};

/// An image that was signed by a key that is trusted, and is whole.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What it says.
    pub manifest: Manifest,
    /// The images that carry signatures for Secure Boot. Whose, the firmware that knows the keys decides.
    pub signed_for_secure_boot: Vec<String>,
}

/// Verifies the artefacts in `folder`.
///
/// # Errors
/// At the first thing that is not as the manifest says, or where that is signed by nobody or somebody else.
pub fn verify(folder: &Path, trusted: &TrustedKey) -> Result<Verified> {
    let manifest = trusted.read(folder)?;
    let signed_for_secure_boot = verify_artefacts(folder, &manifest)?;
    Ok(Verified { manifest, signed_for_secure_boot })
}

pub(crate) fn verify_artefacts(folder: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    for artefact in &manifest.artefacts {
        artefact.read(folder)?;
    }
    verify_root(folder, manifest)?;
    let mut signed = Vec::new();
    for image in &manifest.images {
        let bytes = manifest.read(folder, &image.name)?;
        verify_image(&folder.join(&image.name), &bytes, image, manifest)?;
        let path = folder.join(SIGNED).join(&image.name);
        if path.is_file() {
            let bytes = read(&path)?;
            verify_image(&path, &bytes, image, manifest)?;
            if !authenticode::is_signed(&bytes) {
                return Err(ImageError::Untrusted { path, reason: "carries no signature" });
            }
            signed.push(image.name.clone());
        }
    }
    Ok(signed)
}

fn same(what: impl Into<String>, expected: &str, found: &str) -> Result {
    if expected == found {
        return Ok(());
    }
    Err(ImageError::Mismatch {
        what: what.into(),
        record: "the manifest",
        expected: expected.to_owned(),
        found: found.to_owned(),
        next: "the file was changed after it was built: build or fetch the image again",
    })
}

fn verify_root(folder: &Path, manifest: &Manifest) -> Result {
    let root = manifest.read(folder, ROOT)?;
    let malformed = |reason: Reason| ImageError::malformed(&folder.join(MANIFEST), "a manifest", reason);
    if root.is_empty() || !root.len().is_multiple_of(BLOCK_BYTES) {
        return Err(malformed(Reason::Words("its root is not made of whole blocks")));
    }
    let mut salt = [0; 32];
    hex::decode_to_slice(&manifest.root.salt, &mut salt).map_err(|error| malformed(error.into()))?;
    let tree = manifest.read(folder, TREE)?;
    // The superblock's identifier is ours to choose and proves nothing.
    let uuid = tree.get(16..32).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    let built = verity::build(&root, &Salt(salt), uuid);
    same("the root's hash", &manifest.root.hash, &hex::encode(built.root))?;
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    same("the root's hash tree", &digest(&built.bytes), &digest(&tree))
}

fn verify_image(path: &Path, bytes: &[u8], image: &BootImage, manifest: &Manifest) -> Result {
    let name = path.display();
    let hash = hex::encode(authenticode::hash(path, bytes)?);
    same(format!("the hash of {name}"), &image.authenticode, &hash)?;
    let pcr4 = hex::encode(boot_services_measurement(path, bytes)?);
    same(format!("PCR 4 of {name}"), &image.pcr4, &pcr4)?;
    same(format!("PCR 11 of {name}"), &image.pcr11, &hex::encode(image_measurement(bytes)))?;
    let command_line = uki::section(bytes, ".cmdline").unwrap_or_default();
    same(
        format!("the command line of {name}"),
        &manifest.command_line,
        &String::from_utf8_lossy(command_line),
    )
}

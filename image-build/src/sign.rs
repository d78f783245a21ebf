//! Signatures, in a step of their own: over the manifest with a release key, and of the images for Secure Boot.

use std::path::{Path, PathBuf};

use crate::artefacts::{MANIFEST, Manifest, SIGNED};
use crate::error::{ImageError, Result, make_dir, read};
use crate::manifest::{ReleaseKey, parse};
use crate::store::{Store, run};
use crate::verify::verify_artefacts;

/// What firmware believes: a key and its certificate, as PEM files.
#[derive(Clone, Debug)]
pub struct SecureBootKey {
    /// The private key.
    pub key: PathBuf,
    /// The certificate that stands in the firmware's `db`.
    pub certificate: PathBuf,
}

/// Signs what was built into `folder`, after it was compared with its manifest.
///
/// # Errors
/// Where the artefacts are not what the manifest says, or a key cannot be used.
pub fn sign(
    folder: &Path,
    key: &ReleaseKey,
    secure_boot: Option<(&SecureBootKey, &Store)>,
) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let manifest = parse(&path, &read(&path)?)?;
    verify_artefacts(folder, &manifest)?;
    if let Some((secure_boot, store)) = secure_boot {
        let signed = folder.join(SIGNED);
        make_dir(&signed)?;
        for image in &manifest.images {
            let new = signed.join(format!("{}.new", image.name));
            let mut command = store.tool("sbsign")?;
            command.arg("--key").arg(&secure_boot.key).arg("--cert").arg(&secure_boot.certificate);
            run(command.arg("--output").arg(&new).arg(folder.join(&image.name)), "sbsign")?;
            let done = signed.join(&image.name);
            std::fs::rename(&new, &done).map_err(ImageError::file("make", &done))?;
        }
    }
    key.sign(folder)?;
    Ok(manifest)
}

//! What a build leaves in its folder, and the manifest that says so. The format is in `MANIFEST.md`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{ImageError, Result, read};

/// The manifest's file.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Its signature's.
pub(crate) const SIGNATURE: &str = "manifest.sig";
/// The root file system.
pub(crate) const ROOT: &str = "root.erofs";
/// The hash tree over it.
pub(crate) const TREE: &str = "root.verity";
/// The image that finds its root on a disk.
pub(crate) const DISK_IMAGE: &str = "disk.efi";
/// The image that carries its root.
pub(crate) const NETWORK_IMAGE: &str = "network.efi";
/// For machines without UEFI, whose start nobody measures.
pub(crate) const KERNEL: &str = "vmlinuz";
/// See [`KERNEL`].
pub(crate) const INITRD: &str = "initrd";
/// The bill of materials.
pub(crate) const SBOM: &str = "sbom.cdx.json";
/// The folder of images with signatures for Secure Boot.
pub(crate) const SIGNED: &str = "signed";

/// The manifest's format that this program writes and reads.
pub(crate) const FORMAT: u32 = 1;

/// A file of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of it.
    pub sha256: String,
}

/// What proves the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootHash {
    /// The root of the hash tree.
    pub hash: String,
    /// What it was made with.
    pub salt: String,
    /// How many blocks of 4 KiB the tree covers.
    pub blocks: u64,
}

/// An image that firmware starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootImage {
    /// Its name in the folder; with signatures for Secure Boot it lies in `signed/` under the same.
    pub name: String,
    /// The hash by which firmware knows it, signed or not.
    pub authenticode: String,
    /// What PCR 4 holds when firmware has started it.
    pub pcr4: String,
    /// What PCR 11 holds when it has started the kernel.
    pub pcr11: String,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's number.
    pub format: u32,
    /// The profile.
    pub profile: String,
    /// The release of Nightlatch.
    pub release: String,
    /// Counts images: an update to a smaller number is refused.
    pub sequence: u64,
    /// The kernel's version.
    pub kernel: String,
    /// The kernel's command line.
    pub command_line: String,
    /// The root.
    pub root: RootHash,
    /// What firmware starts.
    pub images: Vec<BootImage>,
    /// Every file but the manifest and its signature.
    pub artefacts: Vec<Artefact>,
}

impl Artefact {
    /// Looks at `folder/name`.
    pub(crate) fn of(folder: &Path, name: &str) -> Result<Self> {
        let bytes = read(&folder.join(name))?;
        Ok(Self {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(&bytes)),
        })
    }

    /// Reads the file, which has to be what the manifest says.
    pub(crate) fn read(&self, folder: &Path) -> Result<Vec<u8>> {
        let bytes = read(&folder.join(&self.name))?;
        let found = hex::encode(Sha256::digest(&bytes));
        if found == self.sha256 {
            return Ok(bytes);
        }
        Err(ImageError::Mismatch {
            what: self.name.clone(),
            record: "the signed manifest",
            expected: self.sha256.clone(),
            found,
            next: "the file was changed after it was built: build or fetch the image again",
        })
    }
}

impl Manifest {
    /// The artefact `name`, verified.
    pub(crate) fn read(&self, folder: &Path, name: &str) -> Result<Vec<u8>> {
        let artefact = self.artefacts.iter().find(|artefact| artefact.name == name);
        let artefact = artefact.ok_or_else(|| ImageError::Missing {
            what: "artefact in the manifest",
            name: name.to_owned(),
            next: "build the image again",
        })?;
        artefact.read(folder)
    }
}

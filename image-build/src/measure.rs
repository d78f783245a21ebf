//! What a TPM's registers will hold when an image has been started, computed from the image alone.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::authenticode;
use crate::error::Result;
use crate::uki::section;

/// The stub measures the sections that are there in this order (systemd 257, `src/fundamental/uki.h`); not `.pcrsig`.
const MEASURED: &[&str] = &[
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
    ".profile", ".dtbauto", ".hwids",
];

/// One bank's register.
#[derive(Clone, Copy, Debug, Default)]
struct Register([u8; 32]);

impl Register {
    fn extend(&mut self, digest: [u8; 32]) {
        self.0 = Sha256::new().chain_update(self.0).chain_update(digest).finalize().into();
    }

    fn measure(&mut self, what: &[u8]) {
        self.extend(Sha256::digest(what).into());
    }
}

/// PCR 11: every section of the image, its name with the zero behind it first. Nothing else extends it.
pub fn image_measurement(image: &[u8]) -> [u8; 32] {
    let mut register = Register::default();
    for name in MEASURED {
        if let Some(contents) = section(image, name) {
            register.measure(format!("{name}\0").as_bytes());
            register.measure(contents);
        }
    }
    register.0
}

/// PCR 4, where firmware starts the image itself: that it went on to start something, a separator, the image, and the kernel in it
/// (TCG PC Client Platform Firmware Profile, 3.3.4.5).
///
/// # Errors
/// Where `image`, which was read from `path`, is no executable for UEFI with a kernel.
pub fn boot_services_measurement(path: &Path, image: &[u8]) -> Result<[u8; 32]> {
    let mut register = Register::default();
    register.measure(b"Calling EFI Application from Boot Option");
    register.measure(&[0; 4]);
    register.extend(authenticode::hash(path, image)?);
    if let Some(kernel) = section(image, ".linux") {
        register.extend(authenticode::hash(path, kernel)?);
    }
    Ok(register.0)
}

//! `packages.lock`: the packages that an image may be made of and built with, by version and hash.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{ImageError, Result, read_text};

/// What a package is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// The kernel and its modules.
    Kernel,
    /// Something else of which files enter an image.
    Image,
    /// What runs on the build machine.
    Tool,
}

/// One package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is there for.
    #[serde(rename = "use")]
    pub purpose: Use,
    /// Where it comes from.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of the file, as the archive's signed index had it.
    pub sha256: String,
}

/// All of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    #[serde(rename = "package")]
    packages: Vec<Package>,
}

impl Lock {
    /// Reads it.
    ///
    /// # Errors
    /// Where it cannot be read, or is no lock.
    pub fn load(path: &Path) -> Result<Self> {
        toml::from_str(&read_text(path)?)
            .map_err(|error| ImageError::malformed(path, "a lock of packages", error))
    }

    /// The package of this name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(&self, name: &str) -> Result<&Package> {
        self.packages.iter().find(|package| package.name == name).ok_or_else(|| ImageError::Missing {
            what: "locked package",
            name: name.to_owned(),
            next: "add it to image-build/lock.sh and run that",
        })
    }

    /// The kernel's package.
    ///
    /// # Errors
    /// Where there is none.
    pub fn kernel(&self) -> Result<&Package> {
        self.of(Use::Kernel).next().ok_or_else(|| ImageError::Missing {
            what: "locked package",
            name: "linux-image".to_owned(),
            next: "run image-build/lock.sh",
        })
    }

    /// The packages of one use.
    pub fn of(&self, purpose: Use) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(move |package| package.purpose == purpose)
    }
}

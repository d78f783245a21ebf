//! `keyholder.toml`: the configuration of `nightlatch-keyholder`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use identity::PeerName;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, Invalid};
use crate::tls::{ControlTls, resolve};
use crate::{Validate, load, parse};

/// Leases a keyholder may give: under a second, renewal traffic and scheduling decide; over a day, a stolen node
/// serves for a day.
pub(crate) const LEASE_MS: RangeInclusive<u64> = 1_000..=86_400_000;

/// What the keyholder needs to know before it starts. Nodes and volumes are not here: they live in its ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyholderConfig {
    /// This keyholder's name, as in its certificate.
    pub name: PeerName,
    /// Where the ledger and the keyholder's other files live; made with mode 0700 where missing.
    pub state_dir: PathBuf,
    /// How long a node may use a key after it asked for a renewal, in milliseconds.
    #[serde(default = "lease_ms_default")]
    pub lease_ms: u64,
    /// Keep the root secret in mlocked memory where the kernel has no memfd_secret. Such memory is readable by
    /// root and not wiped when the process is killed.
    #[serde(default)]
    pub allow_mlock: bool,
    /// Dial nodes on this machine's loopback addresses only: for drills with a restored ledger, whose nodes are
    /// somebody's real ones.
    #[serde(default)]
    pub dial_loopback_only: bool,
    /// Where to listen.
    pub listen: KeyholderListen,
    /// Certificates.
    pub tls: ControlTls,
}

/// The keyholder's only port; it dials the nodes and nobody dials it for keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyholderListen {
    /// The administration port (JSON over mutual TLS).
    pub admin: SocketAddr,
}

fn lease_ms_default() -> u64 {
    30_000
}

impl KeyholderConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        load(path)
    }

    /// Checks a text as if it stood in `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse(text, path, path.parent().unwrap_or(Path::new("")))
    }
}

impl Validate for KeyholderConfig {
    fn resolve(&mut self, dir: &Path) {
        resolve(&mut self.state_dir, dir);
        self.tls.resolve(dir);
    }

    fn validate(&self) -> Result<(), Invalid> {
        if !LEASE_MS.contains(&self.lease_ms) {
            return Err(Invalid::new(
                "lease_ms",
                format!("a lease of {} ms is out of range", self.lease_ms),
                format!("give {} to {} ms; 30000 suits most", LEASE_MS.start(), LEASE_MS.end()),
            ));
        }
        Ok(())
    }
}

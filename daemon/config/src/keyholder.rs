//! `keyholder.toml`: the configuration of `nightlatch-keyholder`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use identity::{Credentials, Endpoint, IdentityError, PeerName};
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, Invalid};
use crate::oidc::OidcConfig;
use crate::tls::{ControlTls, resolve};
use crate::webhook::{self, WebhookConfig};
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
    /// Longest lease that any node may be given, in milliseconds. A keyholder whose ledger was restored from a backup grants nothing for
    /// so long: it cannot know what its predecessor granted after the backup.
    #[serde(default = "lease_ms_max_default")]
    pub lease_ms_max: u64,
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
    /// The etcd that this keyholder shares with others. Without it everything is in `state_dir`, and no other keyholder can hold the
    /// same root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdConfig>,
    /// Where people may log in who have no certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcConfig>,
    /// Who is told of what happens.
    #[serde(default, rename = "webhook", skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookConfig>,
}

/// Where the ledger and the lease records of several keyholders are: the same for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// The client ports of etcd's members. Their names must be in the members' certificates.
    pub endpoints: Vec<Endpoint>,
    /// The issuer of the members' certificates (PEM).
    pub ca: PathBuf,
    /// What this keyholder shows them (PEM). Anybody with a certificate of that issuer can write there: use one of its own.
    pub cert: PathBuf,
    /// Its private key (PEM, mode 0600).
    pub key: PathBuf,
    /// What the name of every value begins with.
    #[serde(default = "prefix_default")]
    pub prefix: String,
    /// This keyholder's administration port, as people and other keyholders reach it.
    pub advertise: Endpoint,
    /// How much longer than its lease a key is recorded to be held, in milliseconds. Renewals go on for so long when no quorum of etcd
    /// answers, and after the loss of a keyholder other nodes wait so much longer for a volume of a node that was lost with it.
    #[serde(default = "record_ahead_ms_default")]
    pub record_ahead_ms: u64,
}

fn prefix_default() -> String {
    "/nightlatch/".to_owned()
}

fn record_ahead_ms_default() -> u64 {
    60_000
}

/// How far ahead may be recorded: under a second etcd would be written to with each renewal, and over a day a lost keyholder keeps a
/// volume from other nodes for a day.
const RECORD_AHEAD_MS: RangeInclusive<u64> = 1_000..=86_400_000;

/// Members of etcd that are asked, one after the other: more than an etcd has in practice.
const ENDPOINTS_MAX: usize = 9;

const PREFIX_BYTES_MAX: usize = 128;

impl EtcdConfig {
    /// Reads what this keyholder shows the members.
    pub fn credentials(&self) -> Result<Credentials, IdentityError> {
        Credentials::load(&self.cert, &self.key)
    }

    fn resolve(&mut self, dir: &Path) {
        for path in [&mut self.ca, &mut self.cert, &mut self.key] {
            resolve(path, dir);
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        if !(1..=ENDPOINTS_MAX).contains(&self.endpoints.len()) {
            return Err(Invalid::new(
                "endpoints",
                format!("{} members are named", self.endpoints.len()),
                format!("name 1 to {ENDPOINTS_MAX} client ports of etcd, as https://HOST:2379"),
            ));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
        let prefix = &self.prefix;
        if !prefix.ends_with('/') || !prefix.chars().all(is_name) || prefix.len() > PREFIX_BYTES_MAX {
            return Err(Invalid::new(
                "prefix",
                format!("`{prefix}` is not what names can begin with"),
                "use letters, digits, `.`, `-`, `_` and `/`, and end with `/`".to_owned(),
            ));
        }
        if !RECORD_AHEAD_MS.contains(&self.record_ahead_ms) {
            return Err(Invalid::new(
                "record_ahead_ms",
                format!("{} ms is out of range", self.record_ahead_ms),
                format!("give {} to {} ms; 60000 suits most", RECORD_AHEAD_MS.start(), RECORD_AHEAD_MS.end()),
            ));
        }
        Ok(())
    }
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

/// What a node takes at most where its own configuration says nothing else.
pub(crate) fn lease_ms_max_default() -> u64 {
    300_000
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
        if let Some(etcd) = &mut self.etcd {
            etcd.resolve(dir);
        }
        self.oidc.iter_mut().for_each(|oidc| oidc.resolve(dir));
        self.webhooks.iter_mut().for_each(|webhook| webhook.resolve(dir));
    }

    fn validate(&self) -> Result<(), Invalid> {
        if !LEASE_MS.contains(&self.lease_ms) {
            return Err(Invalid::new(
                "lease_ms",
                format!("a lease of {} ms is out of range", self.lease_ms),
                format!("give {} to {} ms; 30000 suits most", LEASE_MS.start(), LEASE_MS.end()),
            ));
        }
        if !(self.lease_ms..=*LEASE_MS.end()).contains(&self.lease_ms_max) {
            return Err(Invalid::new(
                "lease_ms_max",
                format!("a longest lease of {} ms is out of range", self.lease_ms_max),
                format!("give {} (lease_ms) to {} ms", self.lease_ms, LEASE_MS.end()),
            ));
        }
        self.oidc.as_ref().map_or(Ok(()), OidcConfig::validate)?;
        webhook::validate(&self.webhooks)?;
        self.etcd.as_ref().map_or(Ok(()), EtcdConfig::validate)
    }
}

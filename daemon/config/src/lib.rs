//! The configuration files of the node and the keyholder, as types.
//!
//! Invariants:
//! - A file becomes a whole, valid configuration or one error that names the file, the line, the key, what is wrong
//!   and what to do. Unknown keys are errors: a misspelt safety setting must not be silently off.
//! - Relative paths are relative to the file's directory, so that a directory can be moved as a whole.
//! - Safe by default: what weakens the node (keys in swappable-by-root memory, heads without TLS) must be written out.
//! - No secret stands in a configuration file; key files are named, never contained.
//!
//! What it is not: it opens no port and reads no certificate; only [`read_public_key`] reads another file.

mod error;
mod health;
mod keyholder;
mod locate;
mod node;
mod oidc;
mod peers;
mod s3_webhook;
mod sources;
mod tls;
mod webhook;

pub use error::{ConfigError, ConfigErrorKind};
pub use health::HealthConfig;
pub use keyholder::{EtcdConfig, KeyholderConfig, KeyholderListen};
pub use node::{
    NodeConfig, NodeKeys, NodeListen, PoolConfig, RekeyConfig, S3Config, ScrubConfig, TpmConfig,
    memory_overwrite_default,
};
pub use oidc::OidcConfig;
pub use peers::{InvalidKeyHash, KeyHash, PeerConfig, ReplicationConfig};
pub use s3_webhook::{InvalidWebhookUrl, S3WebhookConfig, WebhookUrl};
pub use sources::{
    ApcupsdConfig, BmcConfig, ButtonConfig, ChassisConfig, ClockConfig, GpioConfig, HygieneConfig,
    KernelEventConfig, LineBias, LineLevel, LogindConfig, NutConfig, PowerSupplyConfig, Reaction,
    ReactionKind, SourcesConfig, WatchdogConfig,
};
pub use tls::{ControlTls, NodeTls, ServerCertificate};
pub use webhook::{WEBHOOKS_MAX, WebhookConfig};

use std::path::Path;

/// Longest configuration file that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The values that cannot be checked by their type alone.
trait Validate {
    /// Makes relative paths absolute, against the directory that holds the file.
    fn resolve(&mut self, dir: &Path);
    /// Checks what must fit together.
    fn validate(&self) -> Result<(), error::Invalid>;
}

fn load<C: serde::de::DeserializeOwned + Validate>(path: &Path) -> Result<C, ConfigError> {
    let unreadable = |source| ConfigError::unreadable(path, &source);
    let text = std::fs::File::open(path)
        .and_then(|file| {
            use std::io::Read;
            let mut text = String::new();
            file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map(|_| text)
        })
        .map_err(unreadable)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > CONFIG_BYTES_MAX) {
        return Err(unreadable(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            "the file is larger than 1 MiB",
        )));
    }
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    parse(&text, path, absolute.parent().unwrap_or(Path::new("/")))
}

fn parse<C: serde::de::DeserializeOwned + Validate>(
    text: &str,
    path: &Path,
    dir: &Path,
) -> Result<C, ConfigError> {
    let mut config: C = toml::from_str(text).map_err(|error| ConfigError::unparsable(path, text, &error))?;
    config.resolve(dir);
    config.validate().map_err(|invalid| ConfigError::invalid(path, text, invalid))?;
    Ok(config)
}

/// Reads a file with one 32-byte public key as 64 hexadecimal digits, as written at enrolment.
pub fn read_public_key(path: &Path) -> Result<[u8; 32], ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::unreadable(path, &source))?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|error| ConfigError::bad_key_file(path, &error))?;
    Ok(key)
}

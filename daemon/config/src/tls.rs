//! The `[tls]` tables: which certificate to show and which issuers to believe.

use std::path::{Path, PathBuf};

use identity::{Credentials, IdentityError, TlsFloor, Trust, TrustDomain, TrustFiles};
use serde::{Deserialize, Serialize};

/// Joins `path` onto `dir` where it is relative.
pub(crate) fn resolve(path: &mut PathBuf, dir: &Path) {
    // `join` keeps an absolute `path` as it is.
    *path = dir.join(&*path);
}

/// The `[tls]` table of a keyholder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlTls {
    /// The organisation's name in every certificate.
    pub trust_domain: TrustDomain,
    /// This machine's certificate, followed by its issuer (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM, mode 0600).
    pub key: PathBuf,
    /// Issuers of operators, storage administrators, security officers, auditors and monitoring (PEM).
    pub people_issuer: PathBuf,
    /// Issuers of keyholders and nodes (PEM).
    pub machines_issuer: PathBuf,
    /// Issuers of NBD clients (PEM); known everywhere so that none of them is ever taken for another class.
    pub clients_issuer: PathBuf,
}

/// The `[tls]` table of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeTls {
    /// The organisation's name in every certificate.
    pub trust_domain: TrustDomain,
    /// This machine's certificate, followed by its issuer (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM, mode 0600).
    pub key: PathBuf,
    /// Issuers of operators, storage administrators, security officers, auditors and monitoring (PEM).
    pub people_issuer: PathBuf,
    /// Issuers of keyholders and nodes (PEM).
    pub machines_issuer: PathBuf,
    /// Issuers of NBD clients (PEM).
    pub clients_issuer: PathBuf,
    /// Oldest TLS version for NBD clients: "1.3", or "1.2" for nbd-client up to 3.24, which has no other; a client's certificate then
    /// crosses the network in clear.
    #[serde(default)]
    pub nbd_min: TlsFloor,
    /// Oldest TLS version for S3 clients: "1.3", or "1.2" for those that cannot do better.
    #[serde(default)]
    pub s3_min: TlsFloor,
    /// Host certificates of the NBD and S3 heads, the preferred one first; give ECDSA and RSA so that every client
    /// finds one that it can check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server: Vec<ServerCertificate>,
}

/// One host certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerCertificate {
    /// The certificate, followed by its issuer (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM, mode 0600).
    pub key: PathBuf,
}

macro_rules! control_tls {
    ($name:ident) => {
        impl $name {
            /// Reads this machine's certificate and key.
            pub fn credentials(&self) -> Result<Credentials, IdentityError> {
                Credentials::load(&self.cert, &self.key)
            }

            /// Reads the issuers.
            pub fn trust(&self) -> Result<Trust, IdentityError> {
                Trust::load(&TrustFiles {
                    trust_domain: self.trust_domain.clone(),
                    people: self.people_issuer.clone(),
                    machines: self.machines_issuer.clone(),
                    clients: self.clients_issuer.clone(),
                })
            }

            fn resolve_control(&mut self, dir: &Path) {
                for path in [
                    &mut self.cert,
                    &mut self.key,
                    &mut self.people_issuer,
                    &mut self.machines_issuer,
                    &mut self.clients_issuer,
                ] {
                    resolve(path, dir);
                }
            }
        }
    };
}

control_tls!(ControlTls);
control_tls!(NodeTls);

impl ControlTls {
    pub(crate) fn resolve(&mut self, dir: &Path) {
        self.resolve_control(dir);
    }
}

impl NodeTls {
    pub(crate) fn resolve(&mut self, dir: &Path) {
        self.resolve_control(dir);
        for server in &mut self.server {
            resolve(&mut server.cert, dir);
            resolve(&mut server.key, dir);
        }
    }

    /// Reads the host certificates of the heads.
    pub fn server_credentials(&self) -> Result<Vec<Credentials>, IdentityError> {
        self.server.iter().map(|pair| Credentials::load(&pair.cert, &pair.key)).collect()
    }
}

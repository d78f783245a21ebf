//! Reading the few facts that matter out of an X.509 certificate.

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::IdentityError;
use crate::spiffe::{PeerName, Role, SpiffeId, TrustDomain};

/// Who was proved to be at the other end of a connection.
///
/// Holding one says that the listener's verifier accepted the certificate and that the peer signed the handshake
/// with its key. It says nothing about what the peer may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// What the peer is.
    pub role: Role,
    /// Which one.
    pub name: PeerName,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo (RFC 5280, 4.1): the peer's key, across renewals.
    pub spki_sha256: [u8; 32],
}

impl PeerIdentity {
    /// The identity of the peer of a finished handshake. `origin` names the peer in errors.
    ///
    /// The connection must come from a configuration of this crate, whose verifier has matched role and issuer.
    pub fn from_connection(
        connection: &rustls::CommonState,
        trust_domain: &TrustDomain,
        origin: &str,
    ) -> Result<Self, IdentityError> {
        let leaf = connection
            .peer_certificates()
            .and_then(<[_]>::first)
            .ok_or_else(|| IdentityError::NoSpiffeId { origin: origin.to_owned(), found: 0 })?;
        let facts = CertificateFacts::read(leaf, origin)?;
        let id = facts.spiffe_id(origin)?;
        if id.trust_domain != *trust_domain {
            return Err(IdentityError::BadSpiffeId {
                origin: origin.to_owned(),
                source: crate::InvalidName {
                    text: id.to_string(),
                    expected: "a name in this installation's trust domain",
                },
            });
        }
        Ok(Self { role: id.role, name: id.name, spki_sha256: facts.spki_sha256 })
    }

    /// The key's hash in lower-case hex, as pins are written in files and shown to people.
    pub fn spki_hex(&self) -> String {
        hex::encode(self.spki_sha256)
    }
}

/// The key of somebody who showed a certificate that names nobody.
///
/// Holding one says that the peer signed the handshake with this key, and nothing of who that is: it lets them prove that in another way,
/// and be known by the key from then on (RFC 8705, 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestKey {
    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
}

impl GuestKey {
    /// The key of the peer of a finished handshake, where its certificate is a guest's.
    pub(crate) fn from_connection(connection: &rustls::CommonState) -> Option<Self> {
        let leaf = connection.peer_certificates()?.first()?;
        let facts = CertificateFacts::read(leaf, "the peer").ok()?;
        facts.names_nobody().then_some(Self { spki_sha256: facts.spki_sha256 })
    }
}

/// What this crate reads from a certificate.
#[derive(Clone, Debug)]
pub struct CertificateFacts {
    /// All URI names, in order.
    pub uris: Vec<String>,
    /// First valid second, Unix time.
    pub not_before: i64,
    /// Last valid second, Unix time.
    pub not_after: i64,
    /// Whether basic constraints mark it as an authority.
    pub is_authority: bool,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
}

impl CertificateFacts {
    /// Reads the first certificate in a file (PEM).
    pub fn load(path: &std::path::Path) -> Result<Self, IdentityError> {
        let origin = path.display().to_string();
        let certificates = crate::credentials::read_certificates(path)?;
        let first = certificates.first().ok_or_else(|| IdentityError::NotACertificate {
            origin: origin.clone(),
            reason: "there is none in it".to_owned(),
        })?;
        Self::read(first, &origin)
    }

    /// Reads a certificate. `origin` names its file or peer in errors.
    pub fn read(der: &CertificateDer<'_>, origin: &str) -> Result<Self, IdentityError> {
        let damaged = |reason: String| IdentityError::NotACertificate { origin: origin.to_owned(), reason };
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|error| damaged(error.to_string()))?;
        if !rest.is_empty() {
            return Err(damaged("bytes follow the certificate".to_owned()));
        }
        let names = certificate.subject_alternative_name().map_err(|error| damaged(error.to_string()))?;
        let uris = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        let constraints = certificate.basic_constraints().map_err(|error| damaged(error.to_string()))?;
        Ok(Self {
            uris,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            is_authority: constraints.is_some_and(|extension| extension.value.ca),
            spki_sha256: Sha256::digest(certificate.public_key().raw).into(),
        })
    }

    /// Whether it is a guest's: no name that anybody could take for a role.
    pub(crate) fn names_nobody(&self) -> bool {
        self.uris.is_empty() && !self.is_authority
    }

    /// The one SPIFFE name; an error where there is none or more than one URI.
    pub fn spiffe_id(&self, origin: &str) -> Result<SpiffeId, IdentityError> {
        let [uri] = self.uris.as_slice() else {
            return Err(IdentityError::NoSpiffeId { origin: origin.to_owned(), found: self.uris.len() });
        };
        uri.parse().map_err(|source| IdentityError::BadSpiffeId { origin: origin.to_owned(), source })
    }
}

/// A moment as people read it, in UTC.
pub(crate) fn utc(unix_seconds: i64) -> String {
    const SHAPE: &[time::format_description::BorrowedFormatItem<'_>] =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    time::OffsetDateTime::from_unix_timestamp(unix_seconds)
        .ok()
        .and_then(|moment| moment.format(SHAPE).ok())
        .unwrap_or_else(|| format!("Unix second {unix_seconds}"))
}

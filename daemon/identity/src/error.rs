//! What can be wrong with certificate and key files, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::spiffe::{InvalidName, IssuerClass};

/// A file of the identity is missing, unreadable or unfit. Each message ends with the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read.
    #[error("cannot read {what} {path}: {source}; check the path in the configuration and the file's owner")]
    Read {
        /// What the file is for.
        what: &'static str,
        /// Where it was expected.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file or directory could not be made.
    #[error("cannot write {path}: {source}; check that the directory exists and that you may write there")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is there already; keys and certificates are never replaced silently.
    #[error("{path} exists already and is not replaced; move it away or choose another directory or name")]
    Exists {
        /// The existing file.
        path: PathBuf,
    },
    /// Other users of the machine may read a private key.
    #[error(
        "private key {path} is readable by every user (mode {mode:03o}); run `chmod 600 {path}`, and replace the \
         key if someone may have read it",
        path = path.display()
    )]
    KeyReadableByOthers {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A PEM file does not hold what it should.
    #[error("{path} holds no {what} in PEM form; expected a `-----BEGIN ...-----` block")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A certificate is damaged.
    #[error("{origin} is not a readable X.509 certificate: {reason}; issue it again")]
    NotACertificate {
        /// The file or peer it came from.
        origin: String,
        /// The decoder's reason.
        reason: String,
    },
    /// Certificate and key do not belong together.
    #[error(
        "the key {key} does not belong to the certificate {cert}: {reason}; use the pair that was issued together"
    )]
    KeyMismatch {
        /// Certificate file.
        cert: PathBuf,
        /// Key file.
        key: PathBuf,
        /// The TLS library's reason.
        reason: String,
    },
    /// A certificate's time is over.
    #[error(
        "certificate {path} expired on {not_after}; issue a new one, for example with `nightlatch pki issue`"
    )]
    Expired {
        /// The certificate file.
        path: PathBuf,
        /// Its last valid moment.
        not_after: String,
    },
    /// A certificate's time has not come.
    #[error("certificate {path} is valid only from {not_before}; check this machine's clock")]
    NotYetValid {
        /// The certificate file.
        path: PathBuf,
        /// Its first valid moment.
        not_before: String,
    },
    /// The certificate names nobody.
    #[error(
        "the certificate of {origin} must have exactly one URI name of the form spiffe://<trust-domain>/<role>/<name>, \
         it has {found}; issue it again, for example with `nightlatch pki issue`"
    )]
    NoSpiffeId {
        /// The file or peer it came from.
        origin: String,
        /// How many URI names it has.
        found: usize,
    },
    /// The certificate's name is malformed.
    #[error("the certificate of {origin} has an unusable name: {source}")]
    BadSpiffeId {
        /// The file or peer it came from.
        origin: String,
        /// What is wrong with the name.
        source: InvalidName,
    },
    /// Two classes of certificates share an issuer.
    #[error(
        "the {first} and {second} issuers are the same authority; a client certificate could then carry an \
         administrator's role: use one issuing authority per class"
    )]
    SharedIssuer {
        /// One class.
        first: IssuerClass,
        /// The other.
        second: IssuerClass,
    },
    /// A file that should hold an issuing authority holds something else.
    #[error(
        "{path} is not an issuing authority (basic constraints CA is not set); give the issuer's certificate, not a leaf's"
    )]
    NotAnIssuer {
        /// The file.
        path: PathBuf,
    },
    /// Signing or key generation failed.
    #[error("cannot make the certificate: {0}")]
    Signing(#[from] rcgen::Error),
    /// A role, name or host does not fit where it is used.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A server certificate needs host names.
    #[error(
        "a server certificate needs at least one host name or address; give --host NAME or --host ADDRESS"
    )]
    NoHosts,
    /// A host is neither a DNS name nor an address.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    InvalidHost(String),
    /// A lifetime is out of range.
    #[error("a lifetime of {days} days is out of range; give 1 to {max} days")]
    InvalidLifetime {
        /// What was asked.
        days: u32,
        /// The most that is allowed.
        max: u32,
    },
    /// TLS settings do not fit together.
    #[error("the TLS settings are unusable: {0}")]
    Tls(#[from] rustls::Error),
    /// A node key file is damaged.
    #[error(
        "{path} is not an Ed25519 private key in PKCS#8 PEM form; restore it, or enrol the node again with `nightlatch node init`"
    )]
    NotANodeKey {
        /// The file.
        path: PathBuf,
    },
    /// The system's random source failed.
    #[error("the system's random source failed: {0}")]
    Random(getrandom::Error),
}

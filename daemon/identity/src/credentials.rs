//! Certificate and key files: reading them with every check that can be made before a connection, and writing
//! private ones so that nobody else can read them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::certificate::{CertificateFacts, utc};
use crate::error::IdentityError;
use crate::spiffe::{IssuerClass, SpiffeId, TrustDomain};
use crate::tls::provider;

/// Longest certificate, bundle or key file that is read: a chain of a few certificates is under 10 KiB.
const PEM_FILE_BYTES_MAX: u64 = 1 << 20;

/// Permission bits that let users other than owner and group read or change a file.
const MODE_OTHERS: u32 = 0o007;

/// Files that hold secrets: mode 0600, never replaced, refused when the world can read them.
#[derive(Debug)]
pub struct PrivateFile;

impl PrivateFile {
    /// Writes a new file with mode 0600 and makes it durable; fails where one exists.
    pub fn create(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
        create_new(path, content, 0o600)
    }

    /// Reads a file, wiping the buffer when the caller drops it. `what` names it in errors.
    pub fn read(path: &Path, what: &'static str) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        let unreadable = |source| IdentityError::Read { what, path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & MODE_OTHERS != 0 {
            return Err(IdentityError::KeyReadableByOthers { path: path.to_owned(), mode });
        }
        read_limited(&file).map(Zeroizing::new).map_err(unreadable)
    }
}

/// Writes a new public file (mode 0644) durably.
pub(crate) fn create_public(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    create_new(path, content, 0o644)
}

fn create_new(path: &Path, content: &[u8], mode: u32) -> Result<(), IdentityError> {
    let unwritable = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => IdentityError::Exists { path: path.to_owned() },
        _ => IdentityError::Write { path: path.to_owned(), source },
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(unwritable)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(unwritable)
}

fn read_limited(file: &File) -> io::Result<Vec<u8>> {
    // Room for the whole file at once: growing would leave copies of a secret in freed memory.
    let len = file.metadata()?.len().min(PEM_FILE_BYTES_MAX);
    let mut content = Vec::with_capacity(usize::try_from(len).map_or(0, |len| len + 1));
    file.take(PEM_FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|len| len > PEM_FILE_BYTES_MAX) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "file is larger than 1 MiB"));
    }
    Ok(content)
}

/// The certificates in a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let content = File::open(path)
        .and_then(|file| read_limited(&file))
        .map_err(|source| IdentityError::Read { what: "certificate", path: path.to_owned(), source })?;
    let not_pem = || IdentityError::NotPem { path: path.to_owned(), what: "certificate" };
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&content).collect::<Result<_, _>>().map_err(|_| not_pem())?;
    if certificates.is_empty() { Err(not_pem()) } else { Ok(certificates) }
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn check_validity(path: &Path, facts: &CertificateFacts) -> Result<(), IdentityError> {
    let now = unix_now();
    if now > facts.not_after {
        return Err(IdentityError::Expired { path: path.to_owned(), not_after: utc(facts.not_after) });
    }
    if now < facts.not_before {
        return Err(IdentityError::NotYetValid { path: path.to_owned(), not_before: utc(facts.not_before) });
    }
    Ok(())
}

/// A certificate chain with its private key, ready for TLS.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) certified: Arc<CertifiedKey>,
    facts: CertificateFacts,
    origin: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads a chain (leaf first) and its key, and checks that they belong together and are valid now.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let chain = read_certificates(cert)?;
        let origin = cert.display().to_string();
        let facts = CertificateFacts::read(&chain[0], &origin)?;
        check_validity(cert, &facts)?;
        let pem = PrivateFile::read(key, "private key")?;
        let der = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| IdentityError::NotPem { path: key.to_owned(), what: "private key" })?;
        let certified =
            CertifiedKey::from_der(chain, der, &provider()).map_err(|error| IdentityError::KeyMismatch {
                cert: cert.to_owned(),
                key: key.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Self { certified: Arc::new(certified), facts, origin })
    }

    /// The SPIFFE name in the certificate.
    pub fn spiffe_id(&self) -> Result<SpiffeId, IdentityError> {
        self.facts.spiffe_id(&self.origin)
    }

    /// What the leaf certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }
}

/// Where the issuers' certificates are. Each file may hold several certificates while an authority is replaced.
#[derive(Clone, Debug)]
pub struct TrustFiles {
    /// The organisation's trust domain.
    pub trust_domain: TrustDomain,
    /// Issuers of operators, storage administrators, officers, auditors and monitoring.
    pub people: PathBuf,
    /// Issuers of keyholders and nodes.
    pub machines: PathBuf,
    /// Issuers of NBD clients.
    pub clients: PathBuf,
}

/// The issuers that are believed, by class.
#[derive(Clone, Debug)]
pub struct Trust {
    trust_domain: TrustDomain,
    people: Vec<Authority>,
    machines: Vec<Authority>,
    clients: Vec<Authority>,
}

/// One believed issuer.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    spki_sha256: [u8; 32],
}

impl Trust {
    /// Reads the issuers and checks that each is an authority, valid now, and of one class only.
    pub fn load(files: &TrustFiles) -> Result<Self, IdentityError> {
        let trust = Self {
            trust_domain: files.trust_domain.clone(),
            people: read_authorities(&files.people)?,
            machines: read_authorities(&files.machines)?,
            clients: read_authorities(&files.clients)?,
        };
        let classes = [IssuerClass::People, IssuerClass::Machines, IssuerClass::Clients];
        for (position, first) in classes.into_iter().enumerate() {
            for second in classes.into_iter().skip(position + 1) {
                let shared = trust.issuers(first).iter().any(|authority| {
                    trust.issuers(second).iter().any(|other| other.spki_sha256 == authority.spki_sha256)
                });
                if shared {
                    return Err(IdentityError::SharedIssuer { first, second });
                }
            }
        }
        Ok(trust)
    }

    /// The organisation.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The believed issuers of a class; none for [`IssuerClass::Servers`], whose certificates clients check by
    /// host name against the root.
    pub(crate) fn issuers(&self, class: IssuerClass) -> &[Authority] {
        match class {
            IssuerClass::People => &self.people,
            IssuerClass::Machines => &self.machines,
            IssuerClass::Clients => &self.clients,
            IssuerClass::Servers => &[],
        }
    }
}

fn read_authorities(path: &Path) -> Result<Vec<Authority>, IdentityError> {
    let origin = path.display().to_string();
    read_certificates(path)?
        .into_iter()
        .map(|certificate| {
            let facts = CertificateFacts::read(&certificate, &origin)?;
            if !facts.is_authority {
                return Err(IdentityError::NotAnIssuer { path: path.to_owned() });
            }
            check_validity(path, &facts)?;
            Ok(Authority { certificate, spki_sha256: facts.spki_sha256 })
        })
        .collect()
}

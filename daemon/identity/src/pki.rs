//! A certificate authority for those who have none: one root, one issuing authority per class, and leaf
//! certificates with the names that the verifiers ask for. An organisation's own authority works as well, as long
//! as its certificates carry the same names and each class has an issuer of its own.
//!
//! Files under the authority's directory (all PEM; keys 0600, never written over):
//!
//! ```text
//! trust-domain                          the organisation's name, one line
//! root/ca.pem, root/ca.key              the root; its key is only needed to make new issuers: keep it offline
//! issuers/CLASS.pem, issuers/CLASS.key  people, machines, clients, servers
//! ca-cert.pem                           root and all issuers: what S3 and NBD clients trust
//! ROLE/NAME/cert.pem, key.pem           leaf (followed by its issuer) and key
//! nbd-client/NAME/ca-cert.pem, client-cert.pem, client-key.pem
//!                                       the same, under the names that libnbd, nbdkit and QEMU look for
//! server/NAME/rsa.pem, rsa.key, ecdsa.pem, ecdsa.key
//!                                       host certificates of a head, one for each kind of client
//! ```

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, RsaKeySize, SanType,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::certificate::CertificateFacts;
use crate::credentials::{PrivateFile, TrustFiles, create_public, read_certificates};
use crate::error::IdentityError;
use crate::spiffe::{InvalidName, IssuerClass, PeerName, Role, SpiffeId, TrustDomain};

/// Lifetime of the root: replacing it means visiting every machine.
const ROOT_DAYS: i64 = 3650;

/// Lifetime of an issuing authority.
const ISSUER_DAYS: i64 = 1825;

/// Lifetime of a leaf unless said otherwise.
pub const LEAF_DAYS_DEFAULT: u32 = 365;

/// Longest lifetime of a leaf: the TLS ecosystem's former limit of 825 days, which some clients still enforce.
pub const LEAF_DAYS_MAX: u32 = 825;

/// How far back a certificate's validity begins, so that a machine whose clock is a little slow accepts it.
const BACKDATE: Duration = Duration::hours(1);

const TRUST_DOMAIN_FILE: &str = "trust-domain";
const BUNDLE_FILE: &str = "ca-cert.pem";

/// An authority in a directory.
#[derive(Clone, Debug)]
pub struct Authority {
    dir: PathBuf,
    trust_domain: TrustDomain,
}

/// Where an issued certificate and its key were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, followed by its issuer.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The two host certificates of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedServer {
    /// ECDSA P-256: small and fast.
    pub ecdsa: Issued,
    /// RSA-3072: for clients that insist on it.
    pub rsa: Issued,
}

#[derive(Clone, Copy)]
enum KeyKind {
    P256,
    P384,
    Rsa3072,
}

impl KeyKind {
    fn generate(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Self::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Self::Rsa3072 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        }
    }
}

impl Authority {
    /// Makes a new authority in `dir`, which may exist but may hold none yet.
    pub fn create(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, IdentityError> {
        make_dir(dir)?;
        // First, so that a second run into the same directory stops before it has made anything.
        create_public(&dir.join(TRUST_DOMAIN_FILE), format!("{trust_domain}\n").as_bytes())?;
        make_dir(&dir.join("root"))?;
        make_dir(&dir.join("issuers"))?;

        let key = KeyKind::P384.generate()?;
        let params = authority_params(&format!("{trust_domain} root"), ROOT_DAYS, 1, &[]);
        let certificate = params.self_signed(&key)?;
        create_public(&dir.join("root/ca.pem"), certificate.pem().as_bytes())?;
        write_key(&dir.join("root/ca.key"), &key)?;
        let mut bundle = certificate.pem();
        let root = Issuer::new(params, key);

        for class in IssuerClass::ALL {
            let key = KeyKind::P384.generate()?;
            let name = format!("{trust_domain} {class} issuer");
            let certificate =
                authority_params(&name, ISSUER_DAYS, 0, purposes(class)).signed_by(&key, &root)?;
            create_public(&dir.join(format!("issuers/{class}.pem")), certificate.pem().as_bytes())?;
            write_key(&dir.join(format!("issuers/{class}.key")), &key)?;
            bundle.push_str(&certificate.pem());
        }
        create_public(&dir.join(BUNDLE_FILE), bundle.as_bytes())?;
        Ok(Self { dir: dir.to_owned(), trust_domain: trust_domain.clone() })
    }

    /// Opens the authority in `dir`.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(TRUST_DOMAIN_FILE);
        let text = fs::read_to_string(&path).map_err(|source| IdentityError::Read {
            what: "the certificate authority's trust domain",
            path,
            source,
        })?;
        Ok(Self { dir: dir.to_owned(), trust_domain: text.trim_end().parse()? })
    }

    /// The organisation.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The files that a node, a keyholder or a command line needs to know the issuers.
    pub fn trust_files(&self) -> TrustFiles {
        TrustFiles {
            trust_domain: self.trust_domain.clone(),
            people: self.dir.join("issuers/people.pem"),
            machines: self.dir.join("issuers/machines.pem"),
            clients: self.dir.join("issuers/clients.pem"),
        }
    }

    /// Root and issuers in one file: what S3 and NBD clients trust.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join(BUNDLE_FILE)
    }

    /// Where the certificate of a role and name is, issued or not.
    pub fn leaf_files(&self, role: Role, name: &PeerName) -> Issued {
        let dir = self.dir.join(role.as_str()).join(name.as_str());
        match role {
            Role::NbdClient => Issued { cert: dir.join("client-cert.pem"), key: dir.join("client-key.pem") },
            _ => Issued { cert: dir.join("cert.pem"), key: dir.join("key.pem") },
        }
    }

    /// Issues a certificate for a role. NBD clients get an RSA key, since QEMU up to version 10 wants the usage
    /// bit for key encipherment, which only RSA keys may have; all others get ECDSA P-256.
    pub fn issue(&self, role: Role, name: &PeerName, days: u32) -> Result<Issued, IdentityError> {
        let id = SpiffeId { trust_domain: self.trust_domain.clone(), role, name: name.clone() };
        let uri = id
            .to_string()
            .try_into()
            .map_err(|_| InvalidName { text: id.to_string(), expected: "a name in ASCII" })?;
        let kind = if role == Role::NbdClient { KeyKind::Rsa3072 } else { KeyKind::P256 };
        let issued = self.leaf_files(role, name);
        let class = role.issuer_class();
        self.issue_leaf(class, name.as_str(), vec![SanType::URI(uri)], days, kind, &issued)?;
        if role == Role::NbdClient
            && let Some(dir) = issued.cert.parent()
        {
            let bundle = fs::read(self.bundle()).map_err(|source| IdentityError::Read {
                what: "the bundle of authorities",
                path: self.bundle(),
                source,
            })?;
            create_public(&dir.join(BUNDLE_FILE), &bundle)?;
        }
        Ok(issued)
    }

    /// Where the host certificates of a head are, issued or not.
    pub fn server_files(&self, name: &PeerName) -> IssuedServer {
        let dir = self.dir.join("server").join(name.as_str());
        let pair = |kind: &str| Issued {
            cert: dir.join(format!("{kind}.pem")),
            key: dir.join(format!("{kind}.key")),
        };
        IssuedServer { ecdsa: pair("ecdsa"), rsa: pair("rsa") }
    }

    /// Issues the host certificates of a head, for DNS names and addresses.
    pub fn issue_server(
        &self,
        name: &PeerName,
        hosts: &[String],
        days: u32,
    ) -> Result<IssuedServer, IdentityError> {
        if hosts.is_empty() {
            return Err(IdentityError::NoHosts);
        }
        let sans = hosts.iter().map(|host| host_name(host)).collect::<Result<Vec<_>, _>>()?;
        let issued = self.server_files(name);
        for (kind, pair) in [(KeyKind::P256, &issued.ecdsa), (KeyKind::Rsa3072, &issued.rsa)] {
            self.issue_leaf(IssuerClass::Servers, name.as_str(), sans.clone(), days, kind, pair)?;
        }
        Ok(issued)
    }

    fn issue_leaf(
        &self,
        class: IssuerClass,
        common_name: &str,
        sans: Vec<SanType>,
        days: u32,
        kind: KeyKind,
        issued: &Issued,
    ) -> Result<(), IdentityError> {
        if !(1..=LEAF_DAYS_MAX).contains(&days) {
            return Err(IdentityError::InvalidLifetime { days, max: LEAF_DAYS_MAX });
        }
        let (issuer_pem, issuer_end, issuer) = self.load_issuer(class)?;
        let key = kind.generate()?;
        let mut params = base_params(common_name, i64::from(days));
        // A leaf that outlived its issuer would fail at a date that nobody sees in it.
        params.not_after = params.not_after.min(issuer_end);
        params.subject_alt_names = sans;
        params.key_usages = match kind {
            KeyKind::Rsa3072 => vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment],
            KeyKind::P256 | KeyKind::P384 => vec![KeyUsagePurpose::DigitalSignature],
        };
        params.extended_key_usages = purposes(class).to_vec();
        params.use_authority_key_identifier_extension = true;
        let certificate: Certificate = params.signed_by(&key, &issuer)?;

        if let Some(dir) = issued.cert.parent() {
            make_dir(dir)?;
        }
        // The key first: a certificate without its key is of no use, and its file would block another try.
        write_key(&issued.key, &key)?;
        create_public(&issued.cert, format!("{}{issuer_pem}", certificate.pem()).as_bytes())
    }

    fn load_issuer(
        &self,
        class: IssuerClass,
    ) -> Result<(String, OffsetDateTime, Issuer<'static, KeyPair>), IdentityError> {
        let cert = self.dir.join(format!("issuers/{class}.pem"));
        let key_path = self.dir.join(format!("issuers/{class}.key"));
        let chain = read_certificates(&cert)?;
        let facts = CertificateFacts::read(&chain[0], &cert.display().to_string())?;
        let end = OffsetDateTime::from_unix_timestamp(facts.not_after).map_err(|error| {
            IdentityError::NotACertificate { origin: cert.display().to_string(), reason: error.to_string() }
        })?;
        if end < OffsetDateTime::now_utc() {
            return Err(IdentityError::Expired {
                path: cert,
                not_after: crate::certificate::utc(facts.not_after),
            });
        }
        let pem = PrivateFile::read(&key_path, "issuer key")?;
        let not_pem = || IdentityError::NotPem { path: key_path.clone(), what: "private key" };
        let key = KeyPair::from_pem(std::str::from_utf8(&pem).map_err(|_| not_pem())?)?;
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        let text = fs::read_to_string(&cert).map_err(|source| IdentityError::Read {
            what: "issuer",
            path: cert,
            source,
        })?;
        Ok((text, end, issuer))
    }
}

/// Makes a key and a certificate for it that names nobody, valid for ten years, as `key.pem` and `cert.pem` in `dir`: for people who
/// log in at an OpenID provider. Those that are there are taken.
pub fn guest_files(dir: &Path) -> Result<Issued, IdentityError> {
    let issued = Issued { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    if issued.cert.exists() && issued.key.exists() {
        return Ok(issued);
    }
    make_dir(dir)?;
    let key = KeyKind::P256.generate()?;
    let mut params = base_params("nightlatch guest", ROOT_DAYS);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key)?;
    write_key(&issued.key, &key)?;
    create_public(&issued.cert, certificate.pem().as_bytes())?;
    Ok(issued)
}

/// What certificates of a class are for. NBD clients and people never act as servers, heads never as clients.
fn purposes(class: IssuerClass) -> &'static [ExtendedKeyUsagePurpose] {
    match class {
        IssuerClass::People | IssuerClass::Clients => &[ExtendedKeyUsagePurpose::ClientAuth],
        IssuerClass::Machines => &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        IssuerClass::Servers => &[ExtendedKeyUsagePurpose::ServerAuth],
    }
}

fn base_params(common_name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn authority_params(
    common_name: &str,
    days: i64,
    authorities_below: u8,
    purposes: &[ExtendedKeyUsagePurpose],
) -> CertificateParams {
    let mut params = base_params(common_name, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(authorities_below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = purposes.to_vec();
    params.use_authority_key_identifier_extension = true;
    params
}

fn host_name(host: &str) -> Result<SanType, IdentityError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let invalid = || IdentityError::InvalidHost(host.to_owned());
    rustls_pki_types::DnsName::try_from(host.strip_prefix("*.").unwrap_or(host)).map_err(|_| invalid())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| invalid())?))
}

fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    // Others may pass through and read certificates; keys have their own mode.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|source| IdentityError::Write { path: dir.to_owned(), source })
}

fn write_key(path: &Path, key: &KeyPair) -> Result<(), IdentityError> {
    let pem = Zeroizing::new(key.serialize_pem());
    PrivateFile::create(path, pem.as_bytes())
}

//! The TLS settings of every listener and every outgoing connection.
//!
//! | connection | versions | key exchange | client certificate |
//! |---|---|---|---|
//! | key port, admin ports | 1.3 | X25519MLKEM768 | required; people or machines issuer |
//! | NBD head | 1.3, or 1.2 and 1.3 | all of the provider's | required; clients issuer |
//! | S3 head | 1.3, or 1.2 and 1.3 | all of the provider's | none (requests are signed) |
//!
//! No listener hands out a ticket, resumes a session or takes early data.

use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WantsServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ConfigBuilder, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::certificate::utc;
use crate::credentials::{Credentials, Trust, read_certificates};
use crate::error::IdentityError;
use crate::spiffe::Role;
use crate::verify::{ClientRoleVerifier, ExpectedPeer, ServerRoleVerifier};

const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
const TLS12_AND_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The oldest TLS version that a head takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsFloor {
    /// TLS 1.2, for clients that cannot do better.
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[default]
    #[serde(rename = "1.3")]
    Tls13,
}

impl TlsFloor {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => TLS12_AND_13,
            Self::Tls13 => TLS13,
        }
    }
}

/// The protocols an S3 head can offer by ALPN, the preferred one first.
pub const S3_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Everything the provider has: for heads, whose clients are of all kinds.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Hybrid post-quantum key exchange and TLS 1.3 suites only: for our own programs, which all have it.
fn control_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        ..aws_lc_rs::default_provider()
    })
}

/// What both ends of one TLS connection know, and nobody else (RFC 9266, with a label of ours): whoever signs it speaks on this very
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelBinding(pub [u8; 32]);

impl ChannelBinding {
    const LABEL: &[u8] = b"EXPORTER-nightlatch-control-1";

    pub(crate) fn of<Data>(connection: &rustls::ConnectionCommon<Data>) -> Result<Self, rustls::Error> {
        connection.export_keying_material([0; 32], Self::LABEL, None).map(Self)
    }
}

/// For a key or admin port: clients must have one of `accepted` roles.
pub fn control_server(
    credentials: &Credentials,
    trust: &Trust,
    accepted: &[Role],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = ClientRoleVerifier::new(trust, accepted, &control_provider())?;
    control_server_with(credentials, verifier)
}

/// The same, for a port where people may log in who have no certificate: they show one that they made themselves
/// ([`crate::GuestKey`]).
pub fn control_server_with_guests(
    credentials: &Credentials,
    trust: &Trust,
    accepted: &[Role],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = ClientRoleVerifier::new(trust, accepted, &control_provider())?;
    control_server_with(credentials, verifier.with_guests())
}

fn control_server_with(
    credentials: &Credentials,
    verifier: ClientRoleVerifier,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let provider = control_provider();
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(TLS13)?
        .with_client_cert_verifier(Arc::new(verifier));
    Ok(Arc::new(finish_server(builder, vec![credentials.clone()])))
}

/// For an outgoing control plane connection: the server must be `expected`.
pub fn control_client(
    credentials: &Credentials,
    trust: &Trust,
    expected: ExpectedPeer,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let provider = control_provider();
    let verifier = ServerRoleVerifier::new(trust, expected, &provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(TLS13)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(OneCertificate(credentials.certified.clone())));
    no_resumption(&mut config);
    Ok(Arc::new(config))
}

/// For the NBD head: clients must have a certificate of the clients issuer with the role nbd-client. `servers` are
/// the host certificates; the first whose key suits the client's signature algorithms is used.
pub fn nbd_server(
    servers: &[Credentials],
    trust: &Trust,
    floor: TlsFloor,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let provider = provider();
    let verifier = ClientRoleVerifier::new(trust, &[Role::NbdClient], &provider)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(floor.versions())?
        .with_client_cert_verifier(Arc::new(verifier));
    Ok(Arc::new(finish_server(builder, servers.to_vec())))
}

/// For the S3 head: no client certificates, since requests are signed.
pub fn s3_server(
    servers: &[Credentials],
    floor: TlsFloor,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(floor.versions())?
        .with_no_client_auth();
    let mut config = finish_server(builder, servers.to_vec());
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// For a client of the NBD head that presents a certificate; the server is checked by host name against `roots`.
pub fn nbd_client(
    credentials: &Credentials,
    roots: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS13)?
        .with_webpki_verifier(host_verifier(roots)?);
    let mut config =
        builder.with_client_cert_resolver(Arc::new(OneCertificate(credentials.certified.clone())));
    no_resumption(&mut config);
    Ok(Arc::new(config))
}

/// For a client of the S3 head; the server is checked by host name against `roots`.
pub fn s3_client(roots: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS12_AND_13)?
        .with_webpki_verifier(host_verifier(roots)?)
        .with_no_client_auth();
    no_resumption(&mut config);
    Ok(Arc::new(config))
}

/// For a client of somebody else's server (etcd; a log server, RFC 5425; a receiver of webhooks; an OpenID provider), which is checked
/// by host name against the issuers in `ca`.
pub fn private_client(
    ca: &Path,
    credentials: Option<&Credentials>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS12_AND_13)?
        .with_webpki_verifier(host_verifier(&read_certificates(ca)?)?);
    let mut config = match credentials {
        Some(own) => builder.with_client_cert_resolver(Arc::new(OneCertificate(own.certified.clone()))),
        None => builder.with_no_client_auth(),
    };
    no_resumption(&mut config);
    Ok(Arc::new(config))
}

fn host_verifier(roots: &[CertificateDer<'static>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

fn finish_server(
    builder: ConfigBuilder<ServerConfig, WantsServerCert>,
    credentials: Vec<Credentials>,
) -> ServerConfig {
    let mut config = builder.with_cert_resolver(Arc::new(BySignatureAlgorithm(credentials)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

fn no_resumption(config: &mut ClientConfig) {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
}

/// Offers the first certificate whose key can sign in a way that the client understands.
#[derive(Debug)]
struct BySignatureAlgorithm(Vec<Credentials>);

impl ResolvesServerCert for BySignatureAlgorithm {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0
            .iter()
            .map(|credentials| &credentials.certified)
            .find(|certified| certified.key.choose_scheme(hello.signature_schemes()).is_some())
            .cloned()
    }
}

/// Presents one certificate whatever issuers the server hints at: the server's refusal then names the reason,
/// while presenting none would only say that one is required.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for OneCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).is_some().then(|| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a failed handshake means for people, with the next step. `None` where the error is no certificate or
/// version matter and its own text says all there is.
pub fn handshake_advice(error: &rustls::Error) -> Option<String> {
    let text = match error {
        rustls::Error::InvalidCertificate(reason) => certificate_advice(reason)?,
        rustls::Error::NoCertificatesPresented => {
            "the peer presented no certificate; give it one issued for its role".to_owned()
        }
        rustls::Error::AlertReceived(alert) => alert_advice(*alert)?.to_owned(),
        rustls::Error::PeerIncompatible(reason) => format!(
            "the peer's TLS does not fit ({reason:?}); the control plane speaks TLS 1.3 with X25519MLKEM768 only"
        ),
        rustls::Error::InvalidMessage(_) => {
            "the peer does not speak TLS on this port; check the address and port".to_owned()
        }
        _ => return None,
    };
    Some(text)
}

fn certificate_advice(reason: &CertificateError) -> Option<String> {
    Some(match reason {
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "the peer's certificate expired on {}; issue a new one",
            utc(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX))
        ),
        CertificateError::Expired => "the peer's certificate has expired; issue a new one".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the peer's certificate is not valid yet; check the clocks of both machines".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the peer's certificate is foreign: none of the issuers configured for this port signed it; have it \
             issued by the right issuer, or add its issuer to the configuration"
                .to_owned()
        }
        CertificateError::Other(other) => other.0.to_string(),
        _ => return None,
    })
}

fn alert_advice(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::CertificateExpired => {
            "the peer says that this side's certificate has expired or is not valid yet; issue a new one, and check \
             the clocks"
        }
        AlertDescription::UnknownCA => {
            "the peer does not know the issuer of this side's certificate for this port; use a certificate of the \
             issuer class that the port accepts"
        }
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "the peer does not accept this side's certificate on this port: its role, name or trust domain is not \
             one that may connect there; the peer's log says which"
        }
        AlertDescription::CertificateRequired => {
            "the peer requires a certificate and this side presented none"
        }
        AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion => {
            "the peer does not offer TLS 1.3 with the required key exchange; check that the address is the right port"
        }
        _ => return None,
    })
}

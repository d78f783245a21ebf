//! The rustls verifiers: which issuer class may sign which role, on which listener.
//!
//! Each class is tried on its own with only its own issuers as trust anchors. The class whose issuer signed the
//! certificate is what it is believed to be; the URI may then only name a role of that class, and the listener must
//! accept the role. The issuing certificates themselves are the anchors, so no chain reaches over the common root
//! from one class into another.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::CertificateFacts;
use crate::credentials::Trust;
use crate::error::IdentityError;
use crate::spiffe::{IssuerClass, PeerName, Role, TrustDomain};

/// Why a certificate that chains correctly is still refused here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unacceptable {
    #[error("the certificate claims the role {role}, which the {class} issuer may not give; have it issued by the {} issuer", role.issuer_class())]
    WrongIssuer { role: Role, class: IssuerClass },
    #[error("a certificate with the role {role} is not accepted on this port; accepted here: {accepted}")]
    RoleNotAccepted { role: Role, accepted: String },
    #[error("the certificate is of the trust domain {found}, this installation is {expected}")]
    ForeignDomain { found: TrustDomain, expected: TrustDomain },
    #[error("the peer is {found}, but {expected} was expected; check the address")]
    WrongName { found: PeerName, expected: PeerName },
    #[error(
        "the peer's key is not the pinned one (its SHA-256 is {found}); if it was replaced on purpose, enrol it again"
    )]
    WrongKey { found: String },
    #[error("{0}")]
    Unreadable(String),
}

impl From<Unacceptable> for rustls::Error {
    fn from(reason: Unacceptable) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
    }
}

impl From<IdentityError> for Unacceptable {
    fn from(error: IdentityError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// Who the other end must be, beyond a valid certificate.
#[derive(Clone, Debug)]
pub struct ExpectedPeer {
    /// Accepted roles.
    pub roles: Vec<Role>,
    /// The one accepted name, if only one is.
    pub name: Option<PeerName>,
    /// The one accepted key (SHA-256 of its SubjectPublicKeyInfo), if it is pinned.
    pub spki_sha256: Option<[u8; 32]>,
}

impl ExpectedPeer {
    /// Any peer with this role.
    pub fn role(role: Role) -> Self {
        Self { roles: vec![role], name: None, spki_sha256: None }
    }

    /// Only the peer with this role and name.
    pub fn named(role: Role, name: PeerName) -> Self {
        Self { roles: vec![role], name: Some(name), spki_sha256: None }
    }

    /// Additionally only with this key.
    #[must_use]
    pub fn pinned(self, spki_sha256: [u8; 32]) -> Self {
        Self { spki_sha256: Some(spki_sha256), ..self }
    }

    fn classes(&self) -> Vec<IssuerClass> {
        let mut classes: Vec<_> = self.roles.iter().map(|role| role.issuer_class()).collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }
}

/// The rules for the name in a certificate, shared by both directions.
#[derive(Debug)]
struct NameRules {
    trust_domain: TrustDomain,
    expected: ExpectedPeer,
}

impl NameRules {
    /// Checks a certificate whose chain was verified against the issuers of `class`.
    fn check(&self, certificate: &CertificateDer<'_>, class: IssuerClass) -> Result<(), Unacceptable> {
        const ORIGIN: &str = "the peer";
        let facts = CertificateFacts::read(certificate, ORIGIN)?;
        let id = facts.spiffe_id(ORIGIN)?;
        if id.trust_domain != self.trust_domain {
            return Err(Unacceptable::ForeignDomain {
                found: id.trust_domain,
                expected: self.trust_domain.clone(),
            });
        }
        if id.role.issuer_class() != class {
            return Err(Unacceptable::WrongIssuer { role: id.role, class });
        }
        if !self.expected.roles.contains(&id.role) {
            let accepted: Vec<_> = self.expected.roles.iter().map(|role| role.as_str()).collect();
            return Err(Unacceptable::RoleNotAccepted { role: id.role, accepted: accepted.join(", ") });
        }
        if let Some(expected) = &self.expected.name
            && *expected != id.name
        {
            return Err(Unacceptable::WrongName { found: id.name, expected: expected.clone() });
        }
        if let Some(pinned) = self.expected.spki_sha256
            && pinned != facts.spki_sha256
        {
            return Err(Unacceptable::WrongKey { found: hex::encode(facts.spki_sha256) });
        }
        Ok(())
    }
}

fn anchors(trust: &Trust, class: IssuerClass) -> Result<RootCertStore, rustls::Error> {
    let mut store = RootCertStore::empty();
    for authority in trust.issuers(class) {
        store.add(authority.certificate.clone())?;
    }
    Ok(store)
}

/// Checks the certificates of connecting clients.
#[derive(Debug)]
pub(crate) struct ClientRoleVerifier {
    classes: Vec<(IssuerClass, Arc<dyn ClientCertVerifier>)>,
    hints: Vec<DistinguishedName>,
    names: NameRules,
    algorithms: WebPkiSupportedAlgorithms,
    guests: bool,
}

impl ClientRoleVerifier {
    pub(crate) fn new(
        trust: &Trust,
        roles: &[Role],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let expected = ExpectedPeer { roles: roles.to_vec(), name: None, spki_sha256: None };
        let mut classes = Vec::new();
        let mut hints = Vec::new();
        for class in expected.classes() {
            let verifier = WebPkiClientVerifier::builder_with_provider(
                Arc::new(anchors(trust, class)?),
                provider.clone(),
            )
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
            hints.extend_from_slice(verifier.root_hint_subjects());
            classes.push((class, verifier));
        }
        Ok(Self {
            classes,
            hints,
            names: NameRules { trust_domain: trust.trust_domain().clone(), expected },
            algorithms: provider.signature_verification_algorithms,
            guests: false,
        })
    }

    /// Lets in as well who shows a certificate that names nobody ([`crate::GuestKey`]).
    pub(crate) fn with_guests(self) -> Self {
        Self { guests: true, ..self }
    }

    fn is_guest(&self, certificate: &CertificateDer<'_>) -> bool {
        let facts = || CertificateFacts::read(certificate, "the peer");
        self.guests && facts().is_ok_and(|facts| facts.names_nobody())
    }
}

/// Of two refusals, the one that says more: that another class's issuer is unknown says nothing.
fn more_telling(first: Option<rustls::Error>, second: rustls::Error) -> rustls::Error {
    let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
    // A chain that does not verify under an issuer of the same name is as foreign as one of an unknown name.
    let second = match second {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => unknown.clone(),
        other => other,
    };
    match first {
        Some(first) if first != unknown => first,
        _ => second,
    }
}

impl ClientCertVerifier for ClientRoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.is_guest(end_entity) {
            // Its key is what counts, and the handshake's signature proves that.
            return Ok(ClientCertVerified::assertion());
        }
        let mut refusal = None;
        for (class, verifier) in &self.classes {
            match verifier.verify_client_cert(end_entity, intermediates, now) {
                Ok(verified) => {
                    self.names.check(end_entity, *class)?;
                    return Ok(verified);
                }
                Err(error) => refusal = Some(more_telling(refusal, error)),
            }
        }
        Err(refusal.unwrap_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks the certificate of a control plane server by its role and name; host names play no part, because
/// machines are known by what they are and not by where they are.
pub(crate) struct ServerRoleVerifier {
    classes: Vec<(IssuerClass, RootCertStore)>,
    names: NameRules,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ServerRoleVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerRoleVerifier").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ServerRoleVerifier {
    pub(crate) fn new(
        trust: &Trust,
        expected: ExpectedPeer,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let classes = expected
            .classes()
            .into_iter()
            .map(|class| Ok((class, anchors(trust, class)?)))
            .collect::<Result<_, rustls::Error>>()?;
        Ok(Self {
            classes,
            names: NameRules { trust_domain: trust.trust_domain().clone(), expected },
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for ServerRoleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let mut refusal = None;
        for (class, anchors) in &self.classes {
            let verified = verify_server_cert_signed_by_trust_anchor(
                &parsed,
                anchors,
                intermediates,
                now,
                self.algorithms.all,
            );
            match verified {
                Ok(()) => {
                    self.names.check(end_entity, *class)?;
                    return Ok(ServerCertVerified::assertion());
                }
                Err(error) => refusal = Some(more_telling(refusal, error)),
            }
        }
        Err(refusal.unwrap_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

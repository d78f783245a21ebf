//! Where TLS is required nothing is told in clear, and only clients with a certificate of the right issuer get in.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd_server::client::{Client, ClientError, Endpoint};
use nbd_server::{Limits, OnSeal};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use tokio_rustls::TlsAcceptor;

use crate::metrics::counter;
use crate::raw::*;
use crate::rig::{MIB, PATIENCE, Rig, Setup, eventually};

/// An issuer, a certificate for the server and one for a client, RSA as qemu wants it.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    server: (String, KeyPair),
    client: (String, KeyPair),
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_RSA_SHA256).expect("an RSA key")
}

fn params(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![usage];
    params
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "NBD clients");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(authority, key()).expect("an issuer");
        let issue = |name: &str, usage| {
            let key = key();
            (params(name, usage).signed_by(&key, &issuer).expect("a certificate").pem(), key)
        };
        let server = issue("node", ExtendedKeyUsagePurpose::ServerAuth);
        let client = issue("client", ExtendedKeyUsagePurpose::ClientAuth);
        Self { issuer, server, client }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("the issuer");
        roots
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots())).build().expect("a verifier");
        let (chain, key) = chain(&self.server);
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("a server configuration");
        TlsAcceptor::from(Arc::new(config))
    }

    fn client(&self, certificate: Option<&(String, KeyPair)>) -> Arc<ClientConfig> {
        let config = ClientConfig::builder().with_root_certificates(self.roots());
        Arc::new(match certificate {
            Some(certificate) => {
                let (chain, key) = chain(certificate);
                config.with_client_auth_cert(chain, key).expect("a client configuration")
            }
            None => config.with_no_client_auth(),
        })
    }

    /// The client's certificate.
    pub(crate) fn client_der(&self) -> CertificateDer<'static> {
        chain(&self.client).0.remove(0)
    }

    /// An endpoint to be reached with it.
    pub(crate) fn certified(&self, endpoint: Endpoint) -> Endpoint {
        endpoint.with_tls(self.client(Some(&self.client)), name())
    }

    /// The files as libnbd and qemu want them in a folder.
    pub(crate) fn write_client_files(&self, folder: &Path) {
        fs::write(folder.join("ca-cert.pem"), self.issuer.pem()).unwrap();
        fs::write(folder.join("client-cert.pem"), &self.client.0).unwrap();
        fs::write(folder.join("client-key.pem"), self.client.1.serialize_pem()).unwrap();
    }
}

fn chain((pem, key): &(String, KeyPair)) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    use rustls::pki_types::pem::PemObject;
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    (vec![certificate], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

fn rig(pki: &Pki) -> Rig {
    Rig::with(Setup { tls: Some(pki.acceptor()), ..Setup::default() })
}

fn endpoint(rig: &Rig, config: Arc<ClientConfig>) -> Endpoint {
    rig.endpoint().with_tls(config, name())
}

#[test]
fn nothing_is_told_in_clear() {
    let pki = Pki::new();
    let rig = rig(&pki);
    let mut raw = Raw::greeted(&rig.socket);
    for (option, data) in [
        (OPT_LIST, vec![]),
        (OPT_GO, go("disk")),
        (OPT_GO, go("nothing")),
        (OPT_STRUCTURED_REPLY, vec![]),
        (99, vec![]),
    ] {
        raw.option(option, &data);
        assert_eq!(raw.option_reply().1, REP_ERR_TLS_REQD, "option {option}");
    }
    raw.option(OPT_EXPORT_NAME, b"disk");
    raw.expect_end();
    let refused = Client::connect(&rig.endpoint(), "disk").unwrap_err();
    assert!(refused.to_string().contains("TLS"), "{refused}");
    assert!(Client::list(&rig.endpoint()).is_err());
}

#[test]
fn a_certified_client_is_served() {
    let pki = Pki::new();
    let rig = rig(&pki);
    let endpoint = endpoint(&rig, pki.client(Some(&pki.client)));
    assert_eq!(Client::list(&endpoint).unwrap(), ["disk"]);
    let mut client = Client::connect(&endpoint, "disk").unwrap();
    let data: Vec<u8> = (0_u32..9 << 20).map(|index| index.to_be_bytes()[2]).collect();
    client.write(1234, &data, true).unwrap();
    let mut read = vec![0; data.len()];
    client.read(1234, &mut read).unwrap();
    assert!(read == data);
    assert!(!client.block_status(0, MIB).unwrap().is_empty());
    client.disconnect().unwrap();
}

#[test]
fn tls_runs_over_tcp_as_well() {
    let pki = Pki::new();
    let rig = rig(&pki);
    let listener = rig.runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (server, acceptor) = (rig.server.clone(), pki.acceptor());
    rig.runtime().spawn(async move { server.serve_tcp(listener, Some(acceptor)).await });
    let tcp = Endpoint::tcp(address).with_timeout(PATIENCE);
    assert!(Client::connect(&tcp, "disk").is_err());
    let mut client = Client::connect(&tcp.with_tls(pki.client(Some(&pki.client)), name()), "disk").unwrap();
    client.write(0, &[3; 100_000], false).unwrap();
    client.flush().unwrap();
}

#[test]
fn strangers_get_no_further_than_the_handshake() {
    let pki = Pki::new();
    let rig = rig(&pki);
    let foreign = Pki::new();
    for config in [pki.client(None), pki.client(Some(&foreign.client))] {
        let refused = Client::connect(&endpoint(&rig, config), "disk").unwrap_err();
        assert!(matches!(refused, ClientError::Closed { during: None, .. }), "{refused}");
    }
    // A server that the client does not know.
    let refused =
        Client::connect(&endpoint(&rig, foreign.client(Some(&foreign.client))), "disk").unwrap_err();
    assert!(matches!(refused, ClientError::Closed { during: None, .. }), "{refused}");
    assert_eq!(rig.connections(), 0);
    Client::connect(&endpoint(&rig, pki.client(Some(&pki.client))), "disk").unwrap();
}

#[test]
fn what_is_smuggled_in_behind_starttls_is_not_an_option() {
    let pki = Pki::new();
    let rig = rig(&pki);
    let mut raw = Raw::greeted(&rig.socket);
    let mut bytes = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    raw.send(&bytes);
    assert_eq!(raw.option_reply().1, REP_ACK);
    // The handshake breaks on it: an alert perhaps, then the end.
    assert!(raw.rest() < 64);
}

#[test]
fn a_tls_handshake_has_a_time_limit() {
    let pki = Pki::new();
    let limits = Limits { negotiation_time_max: Duration::from_secs(5), ..Limits::default() };
    let rig = Rig::with(Setup { limits, tls: Some(pki.acceptor()), ..Setup::default() });
    let mut raw = Raw::greeted(&rig.socket);
    raw.option(OPT_STARTTLS, &[]);
    assert_eq!(raw.option_reply().1, REP_ACK);
    raw.stream.write_all(&[22, 3, 1]).unwrap();
    raw.expect_end();
}

#[test]
fn a_seal_is_the_same_under_tls() {
    let pki = Pki::new();
    for on_seal in [OnSeal::Hold, OnSeal::Fail] {
        let limits = Limits { seal_answer_time: PATIENCE, ..Limits::default() };
        let rig = Rig::with(Setup { tls: Some(pki.acceptor()), on_seal, limits, ..Setup::default() });
        let endpoint = endpoint(&rig, pki.client(Some(&pki.client)));
        let mut client = Client::connect(&endpoint, "disk").unwrap();
        client.write(0, &[1; 4096], false).unwrap();
        rig.seal();
        let error = client.read(0, &mut [0; 4096]).unwrap_err();
        match on_seal {
            OnSeal::Hold => assert!(error.outcome_unknown(), "{error}"),
            OnSeal::Fail => assert_eq!(error.errno(), Some(nbd_server::Errno::Shutdown), "{error}"),
        }
    }
}

#[test]
fn a_reply_that_waits_under_tls_does_not_leave_after_the_seal() {
    let pki = Pki::new();
    for on_seal in [OnSeal::Hold, OnSeal::Fail] {
        let rig = Rig::with(Setup { tls: Some(pki.acceptor()), on_seal, ..Setup::default() });
        let endpoint = endpoint(&rig, pki.client(Some(&pki.client)));
        Client::connect(&endpoint, "disk").unwrap().write(0, &vec![5; 8 << 20], false).unwrap();

        let mut raw = Raw::greeted(&rig.socket);
        raw.option(OPT_STARTTLS, &[]);
        assert_eq!(raw.option_reply().1, REP_ACK);
        let mut session = ClientConnection::new(pki.client(Some(&pki.client)), name()).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut raw.stream).unwrap();
        }
        let mut stream = StreamOwned::new(session, raw.stream);
        let mut bytes = b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk".to_vec();
        bytes.extend_from_slice(&request(READ, 0, 1, 0, 8 << 20));
        stream.write_all(&bytes).unwrap();
        stream.flush().unwrap();
        // Size, flags, padding; then the reply is on its way out.
        let mut begun = [0; 8 + 2 + 16];
        stream.read_exact(&mut begun).unwrap();
        rig.seal();
        eventually("the connection is closed", || counter(&rig, "nbd_export_connections", "") == 0);
        let mut received = Vec::new();
        // Cut without a goodbye.
        drop(stream.read_to_end(&mut received));
        assert!(received.len() < 8 << 20, "{} bytes came", received.len());
    }
}

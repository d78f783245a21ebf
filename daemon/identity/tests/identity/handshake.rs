//! Who gets in where, over real connections.

use std::sync::Arc;

use crate::support::{Installation, read};
use identity::{
    ClientError, Credentials, ExpectedPeer, HttpsClient, IssuerClass, Role, TlsFloor, control_client,
    control_server, nbd_client, nbd_server, s3_server,
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HOUR: i64 = 3600;

/// Runs a handshake and one byte each way; gives the server's and the client's view of the outcome.
async fn handshake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
) -> (Result<rustls::ServerConnection, String>, Result<rustls::ClientConnection, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(server).accept(stream).await.map_err(|e| e.to_string())?;
        stream.write_all(b"x").await.map_err(|e| e.to_string())?;
        stream.flush().await.map_err(|e| e.to_string())?;
        Ok(stream.into_inner().1)
    });
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, stream).await.map_err(|e| e.to_string())?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|e| e.to_string())?;
        Ok(stream.into_inner().1)
    };
    let client = connecting.await;
    (serving.await.unwrap(), client)
}

fn roots(installation: &Installation) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(installation.authority.bundle()).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn each_role_gets_in_exactly_where_it_is_accepted() {
    let installation = Installation::new();
    let holders: Vec<_> =
        Role::ALL.into_iter().map(|role| (role, installation.issue(role, "someone"))).collect();
    for accepted in Role::ALL {
        let server = installation.serve(&[accepted]).await;
        for (role, credentials) in &holders {
            let answer = installation.client(credentials, &server).get::<String>("/whoami").await;
            match answer {
                Ok(name) => {
                    assert_eq!((*role, name), (accepted, format!("{accepted} someone")));
                }
                Err(ClientError::Untrusted { .. }) => assert_ne!(*role, accepted),
                Err(other) => panic!("{role} at a port for {accepted}: {other}"),
            }
        }
        server.stop.cancel();
        server.ended.await.unwrap();
    }
}

#[tokio::test]
async fn a_role_signed_by_another_class_of_issuer_is_refused() {
    let installation = Installation::new();
    let only_people = installation.serve(&[Role::Operator]).await;
    let every_class = installation.serve(&Role::ALL).await;
    for role in Role::ALL {
        let uri = format!("spiffe://test.example/{role}/mallory");
        for class in IssuerClass::ALL {
            let (cert, key) = installation.craft(class.as_str(), &[&uri], -HOUR..HOUR);
            let credentials = Credentials::load(&cert, &key).unwrap();
            let people = installation.client(&credentials, &only_people).get::<String>("/whoami").await;
            let wanted = role == Role::Operator && class == IssuerClass::People;
            assert_eq!(people.is_ok(), wanted, "{role} by {class} at the operators' port");
            // A port that knows every class still holds each role to its own.
            let every = installation.client(&credentials, &every_class).get::<String>("/whoami").await;
            assert_eq!(every.is_ok(), class == role.issuer_class(), "{role} by {class}");
        }
    }
}

#[tokio::test]
async fn a_chain_over_the_common_root_does_not_cross_classes() {
    let installation = Installation::new();
    let server = installation.serve(&[Role::Operator]).await;
    let (cert, key) = installation.craft("clients", &["spiffe://test.example/operator/mallory"], -HOUR..HOUR);
    // The whole authority as intermediates: the root signed them all, and must not help.
    let chain = read(&cert) + &read(&installation.authority.bundle());
    std::fs::write(&cert, chain).unwrap();
    let credentials = Credentials::load(&cert, &key).unwrap();
    let refused = installation.client(&credentials, &server).get::<String>("/whoami").await.unwrap_err();
    assert!(refused.to_string().contains("does not know the issuer"), "{refused}");
}

#[tokio::test]
async fn certificates_without_exactly_one_good_name_are_refused() {
    let installation = Installation::new();
    let server = installation.serve(&[Role::Operator]).await;
    let good = "spiffe://test.example/operator/alice";
    for uris in [
        &[][..],
        &[good, "spiffe://test.example/operator/bob"],
        &[good, "https://example.com/"],
        &["spiffe://other.example/operator/alice"],
        &["spiffe://test.example/operator/alice/more"],
        &["spiffe://test.example/root/alice"],
    ] {
        let (cert, key) = installation.craft("people", uris, -HOUR..HOUR);
        let credentials = Credentials::load(&cert, &key).unwrap();
        let answer = installation.client(&credentials, &server).get::<String>("/whoami").await;
        assert!(matches!(answer, Err(ClientError::Untrusted { .. })), "{uris:?}: {answer:?}");
    }
    let (cert, key) = installation.craft("people", &[good], -HOUR..HOUR);
    let credentials = Credentials::load(&cert, &key).unwrap();
    assert_eq!(
        installation.client(&credentials, &server).get::<String>("/whoami").await.unwrap(),
        "operator alice"
    );
}

#[tokio::test]
async fn foreign_certificates_are_refused_by_both_sides() {
    let installation = Installation::new();
    // Of the same name, so that only its keys tell it apart; then of another.
    for foreign in [Installation::new(), Installation::of_domain("other.example")] {
        refuses_foreign(&installation, &foreign).await;
    }
}

async fn refuses_foreign(installation: &Installation, foreign: &Installation) {
    let node = installation.issue(Role::Node, &format!("node-facing-{}", foreign.authority.trust_domain()));
    let server = control_server(&node, &installation.trust(), &[Role::Operator]).unwrap();

    let alice = foreign.issue(Role::Operator, "alice");
    let client = control_client(&alice, &installation.trust(), ExpectedPeer::role(Role::Node)).unwrap();
    let (at_server, at_client) = handshake(server.clone(), client).await;
    assert!(at_server.unwrap_err().contains("UnknownIssuer"));
    assert!(at_client.unwrap_err().contains("UnknownCA"));

    // The other direction: a client that trusts another authority refuses the server.
    let client = control_client(&alice, &foreign.trust(), ExpectedPeer::role(Role::Node)).unwrap();
    let (_, at_client) = handshake(server, client).await;
    assert!(at_client.unwrap_err().contains("UnknownIssuer"));
}

#[tokio::test]
async fn a_certificate_that_expires_while_loaded_is_refused_with_its_date() {
    let installation = Installation::new();
    let server = installation.serve(&[Role::Operator]).await;
    let (cert, key) = installation.craft("people", &["spiffe://test.example/operator/alice"], -HOUR..10);
    let credentials = Credentials::load(&cert, &key).unwrap();
    let end = std::time::UNIX_EPOCH
        + std::time::Duration::from_secs(credentials.facts().not_after.unsigned_abs() + 1);
    while std::time::SystemTime::now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let refused = installation.client(&credentials, &server).get::<String>("/whoami").await.unwrap_err();
    assert!(refused.to_string().contains("expired"), "{refused}");
}

#[tokio::test]
async fn the_control_plane_speaks_hybrid_tls_13_without_resumption() {
    let installation = Installation::new();
    let node = installation.issue(Role::Node, "node-1");
    let alice = installation.issue(Role::Operator, "alice");
    let trust = installation.trust();
    let server = control_server(&node, &trust, &[Role::Operator]).unwrap();
    let client = control_client(&alice, &trust, ExpectedPeer::role(Role::Node)).unwrap();
    for _ in 0..2 {
        let (at_server, at_client) = handshake(server.clone(), client.clone()).await;
        let (at_server, at_client) = (at_server.unwrap(), at_client.unwrap());
        assert_eq!(at_client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(at_server.handshake_kind(), Some(rustls::HandshakeKind::Full));
        let group = at_client.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(at_client.tls13_tickets_received(), 0);
    }
}

/// A client of the S3 or control port with chosen weaknesses; it trusts any server, since only the server's
/// behaviour is looked at.
fn weak_client(
    installation: &Installation,
    provider: rustls::crypto::CryptoProvider,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<rustls::ClientConfig> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots(installation) {
        store.add(root).unwrap();
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    Arc::new(config)
}

#[tokio::test]
async fn classical_key_exchange_and_tls_12_are_refused_on_the_control_plane() {
    let installation = Installation::new();
    let node = installation.issue(Role::Node, "node-1");
    let server = control_server(&node, &installation.trust(), &[Role::Operator]).unwrap();
    let classical = rustls::crypto::CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519],
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let client = weak_client(&installation, classical, &rustls::version::TLS13);
    assert!(handshake(server.clone(), client).await.0.is_err());
    let old = rustls::crypto::aws_lc_rs::default_provider();
    let client = weak_client(&installation, old, &rustls::version::TLS12);
    assert!(handshake(server, client).await.0.is_err());
}

#[tokio::test]
async fn the_s3_head_takes_tls_12_only_when_told_to() {
    let installation = Installation::new();
    let files =
        installation.authority.issue_server(&"head".parse().unwrap(), &["localhost".into()], 30).unwrap();
    let servers = [Credentials::load(&files.ecdsa.cert, &files.ecdsa.key).unwrap()];
    for (floor, accepted) in [(TlsFloor::Tls13, false), (TlsFloor::Tls12, true)] {
        let server = s3_server(&servers, floor, &[]).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let client = weak_client(&installation, provider, &rustls::version::TLS12);
        assert_eq!(handshake(server, client).await.1.is_ok(), accepted, "{floor:?}");
    }
}

#[tokio::test]
async fn the_head_presents_the_certificate_that_the_client_can_check() {
    let installation = Installation::new();
    let files =
        installation.authority.issue_server(&"head".parse().unwrap(), &["localhost".into()], 30).unwrap();
    let ecdsa = Credentials::load(&files.ecdsa.cert, &files.ecdsa.key).unwrap();
    let rsa = Credentials::load(&files.rsa.cert, &files.rsa.key).unwrap();
    let server = s3_server(&[ecdsa.clone(), rsa.clone()], TlsFloor::Tls13, &[b"http/1.1"]).unwrap();

    let rsa_only = |mut provider: rustls::crypto::CryptoProvider| {
        let all = provider.signature_verification_algorithms;
        let mapping: Vec<_> = all
            .mapping
            .iter()
            .filter(|(scheme, _)| format!("{scheme:?}").starts_with("RSA"))
            .copied()
            .collect();
        provider.signature_verification_algorithms =
            rustls::crypto::WebPkiSupportedAlgorithms { all: all.all, mapping: mapping.leak() };
        provider
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider;
    for (provider, expected) in [(provider(), &ecdsa), (rsa_only(provider()), &rsa)] {
        let client = weak_client(&installation, provider, &rustls::version::TLS13);
        let at_client = handshake(server.clone(), client).await.1.unwrap();
        let leaf = &at_client.peer_certificates().unwrap()[0];
        let facts = identity::CertificateFacts::read(leaf, "head").unwrap();
        assert_eq!(facts.spki_sha256, expected.facts().spki_sha256);
    }
}

#[tokio::test]
async fn only_nbd_clients_reach_the_nbd_head_and_see_a_server_they_can_name() {
    let installation = Installation::new();
    let files = installation
        .authority
        .issue_server(&"head".parse().unwrap(), &["localhost".into(), "127.0.0.1".into()], 30)
        .unwrap();
    let servers = [Credentials::load(&files.ecdsa.cert, &files.ecdsa.key).unwrap()];
    let server = nbd_server(&servers, &installation.trust(), TlsFloor::Tls13).unwrap();
    for role in Role::ALL {
        let client = nbd_client(&installation.issue(role, "x"), &roots(&installation)).unwrap();
        let (at_server, at_client) = handshake(server.clone(), client).await;
        assert_eq!(
            (at_server.is_ok(), at_client.is_ok()),
            (role == Role::NbdClient, role == Role::NbdClient)
        );
    }
    // A head that shows a machine's certificate has no host name that a client could check.
    let machine = installation.issue(Role::Node, "node-9");
    let server = nbd_server(&[machine], &installation.trust(), TlsFloor::Tls13).unwrap();
    let client = nbd_client(&installation.issue(Role::NbdClient, "y"), &roots(&installation)).unwrap();
    assert!(handshake(server, client).await.1.is_err());
}

#[tokio::test]
async fn a_client_that_expects_another_role_name_or_key_turns_away() {
    let installation = Installation::new();
    let alice = installation.issue(Role::Operator, "alice");
    let server = installation.serve(&[Role::Operator]).await;
    let node = installation.authority.leaf_files(Role::Node, &"node-1".parse().unwrap());
    let pin = Credentials::load(&node.cert, &node.key).unwrap().facts().spki_sha256;
    let named = |name: &str| ExpectedPeer::named(Role::Node, name.parse().unwrap());
    for (expected, refusal) in [
        (ExpectedPeer::role(Role::Node), None),
        (named("node-1").pinned(pin), None),
        (ExpectedPeer::role(Role::Keyholder), Some("accepted here: keyholder")),
        (ExpectedPeer::role(Role::Operator), Some("foreign")),
        (named("node-2"), Some("node-2 was expected")),
        (named("node-1").pinned([7; 32]), Some("not the pinned one")),
    ] {
        let tls = control_client(&alice, &installation.trust(), expected.clone()).unwrap();
        let answer = HttpsClient::new(server.address.into(), tls).get::<String>("/whoami").await;
        match (answer, refusal) {
            (Ok(_), None) => {}
            (Err(ClientError::Untrusted { reason, .. }), Some(part)) => {
                assert!(reason.contains(part), "{expected:?}: {reason}");
            }
            (answer, _) => panic!("{expected:?}: {answer:?}"),
        }
    }
}

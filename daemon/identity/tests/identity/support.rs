//! An authority in a temporary directory, certificates that the product would never issue, and a server that says
//! who connected.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use identity::pki::Authority;
use identity::{
    Credentials, ExpectedPeer, HttpsClient, PeerIdentity, Problem, Role, ServeLimits, Trust, control_client,
    control_server, serve_https,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long what must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Installation {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl Installation {
    pub(crate) fn new() -> Self {
        Self::of_domain("test.example")
    }

    pub(crate) fn of_domain(domain: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("pki"), &domain.parse().unwrap()).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::load(&self.authority.trust_files()).unwrap()
    }

    pub(crate) fn issue(&self, role: Role, name: &str) -> Credentials {
        let files = self.authority.issue(role, &name.parse().unwrap(), 30).unwrap();
        Credentials::load(&files.cert, &files.key).unwrap()
    }

    /// A certificate by the issuer of `class` with the given URIs, valid from and to the given seconds from now.
    pub(crate) fn craft(
        &self,
        class: &str,
        uris: &[&str],
        valid: std::ops::Range<i64>,
    ) -> (PathBuf, PathBuf) {
        let issuer_pem = read(&self.pki().join(format!("issuers/{class}.pem")));
        let issuer_key = KeyPair::from_pem(&read(&self.pki().join(format!("issuers/{class}.key")))).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&issuer_pem, issuer_key).unwrap();
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::seconds(valid.start);
        params.not_after = now + time::Duration::seconds(valid.end);
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        let stem = format!("{}-{}", class, hex::encode(&key.public_key_raw()[..8]));
        let (cert_path, key_path) =
            (self.dir.path().join(format!("{stem}.pem")), self.dir.path().join(format!("{stem}.key")));
        std::fs::write(&cert_path, cert.pem() + &issuer_pem).unwrap();
        identity::PrivateFile::create(&key_path, key.serialize_pem().as_bytes()).unwrap();
        (cert_path, key_path)
    }

    /// Starts a control plane server of the node `node-1` that accepts `roles`.
    pub(crate) async fn serve(&self, roles: &[Role]) -> Server {
        self.serve_with(roles, ServeLimits::default()).await
    }

    pub(crate) async fn serve_with(&self, roles: &[Role], limits: ServeLimits) -> Server {
        let node = self.authority.leaf_files(Role::Node, &"node-1".parse().unwrap());
        let credentials = if node.cert.exists() {
            Credentials::load(&node.cert, &node.key).unwrap()
        } else {
            self.issue(Role::Node, "node-1")
        };
        let tls = control_server(&credentials, &self.trust(), roles).unwrap();
        Server::start(tls, self, limits).await
    }

    pub(crate) fn client(&self, credentials: &Credentials, server: &Server) -> HttpsClient {
        let tls = control_client(credentials, &self.trust(), ExpectedPeer::role(Role::Node)).unwrap();
        HttpsClient::new(server.address.into(), tls).with_timeout(PATIENCE)
    }
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) ended: tokio::task::JoinHandle<()>,
    /// Held requests wait for this.
    pub(crate) release: Arc<tokio::sync::Notify>,
    /// Told when a held request has arrived.
    pub(crate) held: Arc<tokio::sync::Notify>,
}

impl Server {
    async fn start(tls: Arc<rustls::ServerConfig>, installation: &Installation, limits: ServeLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (release, held) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let router = router(release.clone(), held.clone());
        let domain = installation.authority.trust_domain().clone();
        let ended =
            tokio::spawn(serve_https(listener, tls, domain, router, limits, stop.clone().cancelled_owned()));
        Self { address, stop, ended, release, held }
    }
}

fn router(release: Arc<tokio::sync::Notify>, held: Arc<tokio::sync::Notify>) -> Router {
    Router::new()
        .route(
            "/whoami",
            get(|Extension(peer): Extension<PeerIdentity>| async move {
                Json(format!("{} {}", peer.role, peer.name))
            }),
        )
        .route("/length", post(|body: axum::body::Bytes| async move { Json(body.len()) }))
        .route(
            "/refuse",
            get(|| async {
                let problem = Problem::new("sealed", "the node is sealed", "push its keys");
                (axum::http::StatusCode::CONFLICT, Json(problem))
            }),
        )
        .route("/text", get(|| async { "not JSON" }))
        .route("/empty", get(|| async {}))
        .route(
            "/hold",
            get(move || async move {
                held.notify_one();
                release.notified().await;
                Json("released")
            }),
        )
        .layer(axum::extract::DefaultBodyLimit::disable())
}

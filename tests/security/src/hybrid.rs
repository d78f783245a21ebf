//! A client of TLS 1.3 that exchanges keys by X25519MLKEM768 and nothing else, and tells what came of it: the shared secret, of
//! which no key log has a line, and the session's secrets.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, SharedSecret, SupportedKxGroup, aws_lc_rs};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, KeyLog, NamedGroup, RootCertStore, StreamOwned};

use crate::needles::Needles;
use crate::tls::add_key_log;

/// What the shared secret is called among the findings.
pub const SHARED_SECRET: &str = "shared secret";

/// ML-KEM-768's half of 32 bytes, then X25519's: draft-ietf-tls-ecdhe-mlkem.
const SHARED_BYTES: usize = 64;

/// Long enough for an answer on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What one session's two ends know and nobody else.
#[derive(Clone, Default)]
#[expect(missing_debug_implementations, reason = "holds secrets")]
pub struct Secrets {
    /// The shared secret.
    pub shared: Vec<u8>,
    /// The others, as lines of a key log.
    log: String,
}

impl Secrets {
    /// Adds all of them, and the keys of the session's data.
    ///
    /// # Panics
    /// Where the client logs what is no key log.
    pub fn add_to(&self, needles: &mut Needles) {
        needles.add_secret(SHARED_SECRET, &self.shared);
        assert_eq!(add_key_log(needles, &self.log).expect("a key log"), 1, "one session");
    }
}

/// An open connection.
#[expect(missing_debug_implementations, reason = "holds secrets")]
pub struct HybridClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    host: String,
    secrets: Secrets,
}

impl HybridClient {
    /// Connects to an endpoint as `https://localhost:443`, whose certificate somebody in the file `roots` has issued.
    ///
    /// # Errors
    /// Where there is no connection, or none with these terms.
    pub fn connect(endpoint: &str, roots: &Path) -> Result<Self> {
        let host = endpoint.strip_prefix("https://").context("an endpoint with TLS")?;
        let (name, _) = host.split_once(':').context("an endpoint with a port")?;
        let told = Arc::new(Told::default());
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
            // One client uses it once: it lives as long as the test.
            kx_groups: vec![Box::leak(Box::new(Overheard(Arc::clone(&told))))],
            ..aws_lc_rs::default_provider()
        };
        let mut trusted = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(roots).context("the roots")? {
            trusted.add(root?)?;
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        config.key_log = Arc::clone(&told) as _;
        let connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
        let address = host.to_socket_addrs()?.find(std::net::SocketAddr::is_ipv4).context("no address")?;
        let tcp = TcpStream::connect(address)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let secrets = told.lock().clone();
        ensure!(secrets.shared.len() == SHARED_BYTES, "a shared secret of {} bytes", secrets.shared.len());
        Ok(Self { stream, host: host.to_owned(), secrets })
    }

    /// What this session's ends know.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Sends a request for `url`, which is one of this endpoint; the answer's body. The connection stays open.
    ///
    /// # Errors
    /// Where there is no answer, or it is not 200.
    pub fn ask(&mut self, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Vec<u8>> {
        let prefix = format!("https://{}", self.host);
        let target = url.strip_prefix(&prefix).with_context(|| format!("{url} is not of {prefix}"))?;
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n",
            self.host,
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(body)?;
        self.stream.flush()?;
        let (head, mut rest) = self.read_head()?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{method} was answered with\n{head}");
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(Ok(0), |(_, length)| length.trim().parse())?;
        let had = rest.len();
        ensure!(had <= length, "more than {length} bytes of body");
        rest.resize(length, 0);
        self.stream.read_exact(&mut rest[had..])?;
        Ok(rest)
    }

    /// An answer's head, and what came with it of the body.
    fn read_head(&mut self) -> Result<(String, Vec<u8>)> {
        const END: &[u8] = b"\r\n\r\n";
        let mut read = Vec::new();
        loop {
            if let Some(at) = read.windows(END.len()).position(|window| window == END) {
                let rest = read.split_off(at + END.len());
                return Ok((String::from_utf8(read)?, rest));
            }
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk)?;
            ensure!(count > 0, "the connection ended before an answer");
            read.extend_from_slice(&chunk[..count]);
        }
    }
}

/// Where group and key log write what they see.
#[derive(Default)]
struct Told(Mutex<Secrets>);

impl Told {
    fn lock(&self) -> std::sync::MutexGuard<'_, Secrets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told(..)")
    }
}

impl KeyLog for Told {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let line = format!("{label} {} {}\n", hex::encode(client_random), hex::encode(secret));
        self.lock().log.push_str(&line);
    }
}

/// The provider's hybrid group, whose outcome is written down.
#[derive(Debug)]
struct Overheard(Arc<Told>);

impl SupportedKxGroup for Overheard {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        let exchange = aws_lc_rs::kx_group::X25519MLKEM768.start()?;
        Ok(Box::new(Exchange { exchange, told: Arc::clone(&self.0) }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

struct Exchange {
    exchange: Box<dyn ActiveKeyExchange>,
    told: Arc<Told>,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer_pub_key: &[u8]) -> Result<SharedSecret, rustls::Error> {
        let secret = self.exchange.complete(peer_pub_key)?;
        self.told.lock().shared = secret.secret_bytes().to_vec();
        Ok(secret)
    }

    fn pub_key(&self) -> &[u8] {
        self.exchange.pub_key()
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        self.exchange.group()
    }
}

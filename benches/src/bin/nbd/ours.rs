//! Our server in a process of its own: a pool in a file, a volume with a lent key, and the node's head over them, on a
//! runtime made as the node makes its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use device::{Device, FileDevice, OpenOptions};
use keyring::simulated::Keyholder;
use nbd_server::{Access, Export, Limits, NbdServer, OnSeal};
use pool::{CreateOptions, Pool, VolumeKind, VolumeSpec};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sealing::{Snapshots, Volume};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use units::{ByteLen, DomainId, VolumeEpoch, VolumeId};

use crate::rivals::SIZE_BYTES;

/// First argument of the process that serves.
pub(crate) const SERVE: &str = "serve";

const TEND_PATIENCE: Duration = Duration::from_secs(1);

/// A small disk, sparse: the log is as long as on a large one.
const POOL_BYTES: u64 = 16 << 30;

/// `pool unix PATH`, `pool tcp PORT` or `pool tls PORT FOLDER`.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [pool, how @ ..] = words.as_slice() else { bail!("which pool?") };
    let server = NbdServer::new(Limits::default());
    let (pool, volume) = volume(Path::new(pool))?;
    let snapshots = Snapshots::of(pool, volume.id());
    let (on_seal, access) = (OnSeal::Hold, Access::default());
    server.insert("disk", Export { volume, snapshots, read_only: false, on_seal, access })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match how {
            ["unix", path] => server.serve_unix(UnixListener::bind(path)?, None).await,
            ["tcp", port] => server.serve_tcp(listen(port).await?, None).await,
            ["tls", port, folder] => {
                let acceptor = TlsAcceptor::from(tls(Path::new(folder))?);
                server.serve_tcp(listen(port).await?, Some(acceptor)).await;
            }
            _ => bail!("how to listen?"),
        }
        Ok(())
    })
}

async fn listen(port: &str) -> Result<TcpListener> {
    Ok(TcpListener::bind(("127.0.0.1", port.parse()?)).await?)
}

fn volume(path: &Path) -> Result<(Arc<Pool>, Volume)> {
    let options = OpenOptions { create_len: Some(ByteLen(POOL_BYTES)), ..OpenOptions::default() };
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(path, options)?);
    let pool = Pool::create(device, CreateOptions::default())?;
    let (id, domain, epoch) = (VolumeId([7; 16]), DomainId([9; 16]), VolumeEpoch(1));
    let keyholder = Keyholder::new(domain, epoch);
    let sectors = ByteLen(SIZE_BYTES).whole_sectors();
    pool.create_volume(VolumeSpec {
        id,
        sectors,
        domain,
        epoch,
        check: keyholder.check(),
        kind: VolumeKind::Block,
    })?;
    let keyring = keyring::simulated::keyring();
    let key = keyholder.push(&keyring)?.handle;
    let volume = Volume::open(pool.volume(id)?, keyring, key);
    tend(&pool);
    Ok((pool, volume))
}

/// As the node does beside its clients.
fn tend(pool: &Arc<Pool>) {
    let pool = Arc::downgrade(pool);
    std::thread::spawn(move || {
        while let Some(pool) = pool.upgrade() {
            if pool.tend(TEND_PATIENCE).is_err() {
                return;
            }
        }
    });
}

fn tls(folder: &Path) -> Result<Arc<ServerConfig>> {
    let file = |name: &str| -> PathBuf { folder.join(name) };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(file("ca-cert.pem"))?)?)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let certificate = CertificateDer::from_pem_slice(&fs::read(file("server-cert.pem"))?)?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(file("server-key.pem"))?)?;
    let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .context("a certificate that was just made")?;
    Ok(Arc::new(config))
}

//! The task that keeps a connection to one peer, and does there what the sender asks for.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool::{Manifest, PoolError, PoolErrorKind};
use replication::{FrameBuffer, Halt, Portion, Sender, SenderEffect, Unreadable};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use units::{Lba, SectorCount, VolumeId};

use super::dial::Dialler;
use super::{Peer, lock};
use crate::boot_clock;
use crate::node::Node;

/// A TLS handshake takes milliseconds; a peer under load gets this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that takes nothing for so long is gone. It may be at the beginning of an epoch, which gives a replica its content again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time from the end of a connection to the next attempt, doubled with each that fails.
const REDIAL_FIRST: Duration = Duration::from_millis(500);
const REDIAL_MAX: Duration = Duration::from_secs(30);

/// How often the sender is told the time: what a bandwidth limit is shared out by.
const TICK: Duration = Duration::from_millis(100);

/// Sectors of ciphertext in a portion: 1 MiB.
const PORTION: SectorCount = SectorCount(256);

const READ_BYTES: usize = 16 * 1024;

/// Everything that is sent to one peer.
pub(super) struct Way {
    dialler: Dialler,
    tls: Arc<rustls::ClientConfig>,
    host: String,
    pub(super) sender: Mutex<Sender>,
    /// The sender has something to do that no frame brought.
    pub(super) woken: Notify,
    /// Why there is no connection.
    pub(super) trouble: Mutex<Option<String>>,
}

impl Way {
    pub(super) fn open(
        peer: &str,
        address: &str,
        tls: Arc<rustls::ClientConfig>,
        sender: Sender,
    ) -> io::Result<Self> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        Ok(Self {
            dialler: Dialler::start(peer, address)?,
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            sender: Mutex::new(sender),
            woken: Notify::new(),
            trouble: Mutex::new(Some("not connected yet".to_owned())),
        })
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::from_std(self.dialler.dial().await?)?;
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let connecting = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                let advice = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                    .and_then(identity::handshake_advice);
                Err(advice.map_or(error, io::Error::other))
            }
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")),
        }
    }
}

/// Keeps a peer connected until `stop`.
pub(crate) async fn keep(node: Arc<Node>, peer: Arc<Peer>, stop: CancellationToken) {
    let Some(way) = &peer.outgoing else { return };
    let name = &peer.config.name;
    let mut pause = REDIAL_FIRST;
    loop {
        let ended = stop.run_until_cancelled(session(&node, way)).await;
        let was_connected = lock(&way.sender).is_connected();
        lock(&way.sender).disconnect();
        let Some(Err(error)) = ended else { return };
        let told = lock(&way.trouble).replace(error.to_string());
        if told != Some(error.to_string()) {
            tracing::info!(peer = %name, %error, "a peer is not connected");
        }
        pause = if was_connected { REDIAL_FIRST } else { (pause * 2).min(REDIAL_MAX) };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn session(node: &Arc<Node>, way: &Way) -> io::Result<()> {
    let mut stream = way.connect().await?;
    lock(&way.sender).on_connected(boot_clock::now());
    let mut incoming = FrameBuffer::default();
    let mut chunk = vec![0; READ_BYTES];
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        carry_out(node, way, &mut stream).await?;
        tokio::select! {
            // What the peer has said lies there while this task was at something long: it is heard before the peer is called silent.
            biased;
            read = stream.read(&mut chunk) => {
                let read = read?;
                if read == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"));
                }
                incoming.push(&chunk[..read]);
                while let Some(frame) = incoming.next_frame().map_err(io::Error::other)? {
                    let taken = lock(&way.sender).on_frame(boot_clock::now(), &frame);
                    taken.map_err(io::Error::other)?;
                }
                if lock(&way.sender).is_connected() {
                    lock(&way.trouble).take();
                }
            }
            () = way.woken.notified() => {}
            _ = tick.tick() => {}
        }
        lock(&way.sender).on_time(boot_clock::now()).map_err(io::Error::other)?;
    }
}

/// Does everything that the sender wants done now.
async fn carry_out(node: &Arc<Node>, way: &Way, stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    loop {
        let effect = lock(&way.sender).poll();
        match effect {
            None => break,
            Some(SenderEffect::Send(bytes)) => {
                let written = tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await;
                written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing"))??;
            }
            Some(SenderEffect::Find { volume, snapshot }) => {
                let is_there = is_of(node, volume, snapshot);
                lock(&way.sender).on_found(volume, snapshot, is_there);
            }
            Some(SenderEffect::ReadManifest { volume, snapshot, since }) => {
                let manifest = in_pool(node, volume, move |pool| pool.manifest(snapshot, since)).await;
                lock(&way.sender).on_manifest(volume, manifest.map(|manifest| told(&manifest)));
            }
            Some(SenderEffect::ReadPortion { manifest, from }) => {
                let portion = read_portion(node, manifest, from).await;
                lock(&way.sender).on_portion(manifest.volume, manifest.snapshot, from, portion);
            }
            Some(SenderEffect::Acknowledged { volume, epoch }) => {
                tracing::debug!(%volume, number = epoch.key.number, "a peer has an epoch");
                node.replication.is_pruning_due.store(true, Ordering::Relaxed);
            }
            Some(SenderEffect::Stopped { volume, why: why @ Halt::Unreadable(Unreadable::Rotating) }) => {
                tracing::info!(%volume, %why, "a volume is sent later");
            }
            Some(SenderEffect::Stopped { volume, why }) => {
                tracing::warn!(%volume, %why, "a volume is not sent to a peer for now");
            }
        }
    }
    stream.flush().await
}

fn is_of(node: &Node, volume: VolumeId, snapshot: VolumeId) -> bool {
    let pool = node.find_volume(volume).map(|(open, _)| &open.pool);
    let found = pool.and_then(|pool| pool.snapshot(snapshot).ok());
    found.is_some_and(|found| found.origin() == Some(volume))
}

async fn read_portion(
    node: &Arc<Node>,
    manifest: replication::Manifest,
    from: Lba,
) -> Result<Portion, Unreadable> {
    let manifest = asked(&manifest);
    let portion = in_pool(node, manifest.volume, move |pool| pool.send(&manifest, from, PORTION)).await?;
    Ok(Portion { bytes: portion.bytes, next: portion.next })
}

/// On a thread that may wait for the disk.
async fn in_pool<T: Send + 'static>(
    node: &Arc<Node>,
    volume: VolumeId,
    work: impl FnOnce(&pool::Pool) -> Result<T, PoolError> + Send + 'static,
) -> Result<T, Unreadable> {
    let node = Arc::clone(node);
    let done = tokio::task::spawn_blocking(move || {
        let (open, _) = node.find_volume(volume).ok_or(Unreadable::Gone)?;
        work(&open.pool).map_err(|error| {
            let why = unreadable(&error);
            // Said again and again, and over when the volume is sealed anew.
            match why {
                Unreadable::Rotating => tracing::debug!(%volume, %error, "an epoch cannot be sent yet"),
                _ => tracing::warn!(%volume, %error, "an epoch cannot be read"),
            }
            why
        })
    });
    // A panic in there has ended the process.
    done.await.unwrap_or(Err(Unreadable::Failed))
}

fn unreadable(error: &PoolError) -> Unreadable {
    match error {
        // Once the volume is sealed anew, an epoch is of one key again.
        PoolError::TwoEpochs { .. } => Unreadable::Rotating,
        error => match error.kind() {
            PoolErrorKind::NoSuchVolume => Unreadable::Gone,
            PoolErrorKind::Damaged => Unreadable::Damaged,
            _ => Unreadable::Failed,
        },
    }
}

/// A manifest in the protocol's form.
fn told(manifest: &Manifest) -> replication::Manifest {
    let Manifest { volume, snapshot, since, created_s, sectors, domain, epoch, check, blocks, .. } =
        *manifest;
    let kind = match manifest.kind {
        pool::VolumeKind::Block => replication::VolumeKind::Block,
        pool::VolumeKind::Objects => replication::VolumeKind::Objects,
    };
    replication::Manifest { volume, snapshot, since, created_s, sectors, domain, epoch, check, kind, blocks }
}

/// A manifest in the pool's form.
pub(super) fn asked(manifest: &replication::Manifest) -> Manifest {
    let replication::Manifest {
        volume,
        snapshot,
        since,
        created_s,
        sectors,
        domain,
        epoch,
        check,
        blocks,
        ..
    } = *manifest;
    let kind = match manifest.kind {
        replication::VolumeKind::Block => pool::VolumeKind::Block,
        replication::VolumeKind::Objects => pool::VolumeKind::Objects,
    };
    Manifest { volume, snapshot, since, created_s, sectors, domain, epoch, check, kind, blocks }
}

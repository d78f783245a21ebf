//! The port for peers: what they send is taken in, one thing after the other on each connection.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use identity::{Handshakes, PeerIdentity};
use pool::PoolErrorKind;
use replication::{
    Allowed, EpochKey, FrameBuffer, Generation, Local, Manifest, Reason, Receiver, ReceiverEffect,
    ReceiverParams, Role, SessionError,
};
use thread_wipe::on_clean_stack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use units::{Fence, Lba, VolumeId};

use super::outgoing::asked;
use super::{Peer, lock, protocol_id, reason};
use crate::boot_clock;
use crate::node::Node;

/// Sessions of one peer: it needs one, and a connection that broke off may be here until its silence ends it. The newest ends the
/// oldest, so that no peer keeps out another, or itself.
const SESSIONS_PER_PEER: usize = 4;

/// Connections in their handshake: strangers, until they have shown a certificate.
const HANDSHAKES_MAX: usize = 64;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that takes no answer for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A sender says that it is there every three seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// What takes longer is accompanied by a sign of life this often.
const ALIVE: Duration = Duration::from_secs(3);

const READ_BYTES: usize = 64 * 1024;

/// How often it is written down that a session was heard.
const HEARD: Duration = Duration::from_secs(1);

/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves peers until `stop`.
pub(crate) async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let mut handshakes = Handshakes::new(HANDSHAKES_MAX);
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = sessions.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the port for peers cannot accept; check the limit on open files");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (node, acceptor, stop) = (Arc::clone(&node), acceptor.clone(), stop.clone());
        let place = handshakes.begin();
        sessions.spawn(on_clean_stack(async move {
            let Some(Some(stream)) = place.run(handshake(&acceptor, stream, address)).await else { return };
            let ended = stop.run_until_cancelled(run(&node, stream, address)).await;
            if let Some(Err(error)) = ended {
                tracing::info!(%address, %error, "a peer's session ended");
            }
        }));
    }
    // What a pool is at it ends.
    while sessions.join_next().await.is_some() {}
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            let advice = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .and_then(identity::handshake_advice);
            tracing::info!(%address, %error, advice, "a handshake on the port for peers failed");
            None
        }
        Err(_) => {
            tracing::info!(%address, "a handshake on the port for peers took too long");
            None
        }
    }
}

/// What ends the sessions of one peer, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<VecDeque<CancellationToken>>);

impl Sessions {
    /// One more, and what ends it.
    fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        let mut sessions = lock(&self.0);
        sessions.push_back(token.clone());
        if sessions.len() > SESSIONS_PER_PEER
            && let Some(oldest) = sessions.pop_front()
        {
            oldest.cancel();
        }
        token
    }

    fn end(&self, ended: &CancellationToken) {
        // Each is ended by itself too: what is cancelled here runs no more.
        ended.cancel();
        lock(&self.0).retain(|session| !session.is_cancelled());
    }
}

/// One connection of a peer.
struct Session {
    node: Arc<Node>,
    peer: Arc<Peer>,
    receiver: Receiver,
    stream: TlsStream<TcpStream>,
    /// Volumes that it offers and this node takes of it.
    taken: BTreeSet<VolumeId>,
    /// When it was last written down that they are heard of.
    heard_at: Option<Instant>,
}

async fn run(node: &Arc<Node>, stream: TlsStream<TcpStream>, address: SocketAddr) -> io::Result<()> {
    let replication = &node.replication;
    let origin = address.to_string();
    let identity = PeerIdentity::from_connection(stream.get_ref().1, &replication.trust_domain, &origin)
        .map_err(io::Error::other)?;
    let is_it = |peer: &&Arc<Peer>| {
        peer.config.name == identity.name && peer.config.key_sha256.0 == identity.spki_sha256
    };
    let Some(peer) = replication.peers.iter().find(is_it) else {
        let (name, key) = (identity.name.to_string(), identity.spki_hex());
        tracing::warn!(%address, name, key, "a node that is no peer came to the port for peers; name it in [[peers]] if it should be one");
        let fields = [("name", name.into()), ("key_sha256", key.into())];
        note(node, "peer-refused", fields).await;
        return Ok(());
    };
    let mut session = [0; 8];
    getrandom::fill(&mut session).map_err(|error| io::Error::other(error.to_string()))?;
    let volumes = &peer.config.volumes;
    let params = ReceiverParams {
        node: replication.id,
        peer: protocol_id(peer.config.key_sha256.0),
        allowed: match (peer.config.receive, volumes.is_empty()) {
            (false, _) => Allowed::These(BTreeSet::new()),
            (true, true) => Allowed::Any,
            (true, false) => Allowed::These(volumes.iter().copied().collect()),
        },
        session: u64::from_le_bytes(session),
    };
    tracing::info!(%address, peer = %peer.config.name, "a peer has connected");
    let receiver = Receiver::new(params);
    let token = peer.sessions.begin();
    let (taken, heard_at) = (BTreeSet::new(), None);
    let mut session =
        Session { node: Arc::clone(node), peer: Arc::clone(peer), receiver, stream, taken, heard_at };
    let ended = token.run_until_cancelled(session.run()).await;
    peer.sessions.end(&token);
    ended.unwrap_or_else(|| Err(io::Error::other("the peer has connected anew, too often")))
}

async fn note<const N: usize>(
    node: &Arc<Node>,
    event: &'static str,
    fields: [(&'static str, serde_json::Value); N],
) {
    let node = Arc::clone(node);
    // A panic in there has ended the process.
    let _ = tokio::task::spawn_blocking(move || node.trail.note_refusal(event, fields)).await;
}

impl Session {
    async fn run(&mut self) -> io::Result<()> {
        let mut incoming = FrameBuffer::default();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let read = tokio::time::timeout(SILENCE, self.stream.read(&mut chunk)).await;
            let read =
                read.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer says nothing"))??;
            if read == 0 {
                return Ok(());
            }
            incoming.push(&chunk[..read]);
            self.note_heard();
            loop {
                let taken = match incoming.next_frame() {
                    Ok(None) => break,
                    Ok(Some(frame)) => self.receiver.on_frame(&frame),
                    Err(error) => {
                        self.receiver.end(error);
                        Err(error)
                    }
                };
                self.carry_out().await?;
                taken.map_err(io::Error::other)?;
            }
        }
    }

    /// Something came: the volumes that it offers are not forgotten.
    fn note_heard(&mut self) {
        if self.taken.is_empty() || self.heard_at.is_some_and(|at| at.elapsed() < HEARD) {
            return;
        }
        self.heard_at = Some(Instant::now());
        let now = boot_clock::now();
        let mut arrivals = lock(&self.node.replication.arrivals);
        for volume in &self.taken {
            arrivals.entry(*volume).or_default().heard_at = Some(now);
        }
    }

    async fn carry_out(&mut self) -> io::Result<()> {
        while let Some(effect) = self.receiver.poll() {
            match effect {
                ReceiverEffect::Send(bytes) => self.send(&bytes).await?,
                ReceiverEffect::Look { volume, fence, generation } => {
                    let local = self.in_pool(move |node| node.look(volume, fence, generation)).await?;
                    if local.is_ok_and(|local| local.role != Role::Writer) {
                        self.taken.insert(volume);
                    }
                    self.receiver.on_local(volume, local);
                }
                ReceiverEffect::Begin { key, manifest } => {
                    let begun = self.in_pool(move |node| node.begin_epoch(&key, &manifest)).await?;
                    self.receiver.on_begun(manifest.volume, begun);
                }
                ReceiverEffect::Take { key, volume, portion } => {
                    let took = self.in_pool(move |node| node.take_portion(&key, volume, &portion)).await?;
                    self.receiver.on_took(volume, took);
                }
                ReceiverEffect::Commit { key, manifest } => {
                    let committed = self.in_pool(move |node| node.commit_epoch(&key, &manifest)).await?;
                    self.receiver.on_committed(manifest.volume, committed);
                }
                ReceiverEffect::Prune { key, volume, keep } => {
                    self.in_pool(move |node| node.prune_received(&key, volume, &keep)).await?;
                }
                ReceiverEffect::Refused { volume, reason } => self.note_refusal(volume, reason).await,
                ReceiverEffect::AuditSession(error) => self.audit_session(error).await,
            }
        }
        self.stream.flush().await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(bytes)).await;
        written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer takes no answer"))?
    }

    /// On a thread that may wait for the disk; the sender hears meanwhile that there is somebody.
    async fn in_pool<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> io::Result<T> {
        let node = Arc::clone(&self.node);
        let mut working = tokio::task::spawn_blocking(move || work(&node));
        loop {
            tokio::select! {
                done = &mut working => return done.map_err(io::Error::other),
                () = tokio::time::sleep(ALIVE) => {
                    let alive = self.receiver.alive();
                    self.send(&alive).await?;
                    self.stream.flush().await?;
                }
            }
        }
    }

    async fn note_refusal(&mut self, volume: VolumeId, reason: Reason) {
        self.taken.remove(&volume);
        *lock(&self.node.replication.refused).entry(reason.label()).or_default() += 1;
        if !reason.is_suspicious() {
            return;
        }
        let peer = self.peer.config.name.to_string();
        tracing::warn!(peer, %volume, why = reason.label(), "a peer's volume was refused");
        let fields =
            [("peer", peer.into()), ("volume", volume.to_string().into()), ("why", reason.label().into())];
        note(&self.node, "replication-refused", fields).await;
    }

    async fn audit_session(&self, error: SessionError) {
        let peer = self.peer.config.name.to_string();
        tracing::warn!(peer, %error, "a peer's session was ended");
        let fields = [("peer", peer.into()), ("why", error.to_string().into())];
        note(&self.node, "replication-session-refused", fields).await;
    }
}

impl Node {
    /// The volume's own fence: of a replica, which is granted no key, none.
    fn own_fence(&self, volume: VolumeId) -> Fence {
        self.find_volume(volume).map_or(Fence(0), |(_, found)| found.info().fence)
    }

    fn look(&self, volume: VolumeId, fence: Fence, generation: Generation) -> Result<Local, Reason> {
        self.replication.state.check_writer(volume, self.own_fence(volume), (fence, generation))?;
        let Some((open, found)) = self.find_volume(volume) else {
            return Ok(Local { role: Role::Absent, newest: None, receiving: None });
        };
        Ok(Local {
            role: if found.info().replica { Role::Replica } else { Role::Writer },
            newest: open.pool.last_snapshot(volume).map(|newest| newest.id),
            receiving: open.pool.receiving(volume),
        })
    }

    fn begin_epoch(&self, key: &EpochKey, manifest: &Manifest) -> Result<Lba, Reason> {
        let volume = manifest.volume;
        let turn = self.replication.turn(volume);
        let _turn = lock(&turn);
        let own = self.own_fence(volume);
        // 1. Who sends, by what is remembered. 2. What the pool would refuse, without a change of it: what is refused leaves nothing
        // behind. 3. Who sends is written down. 4. The pool.
        self.replication.state.judge(volume, own, key)?;
        let found = self.find_volume(volume);
        let is_new = found.is_none();
        let open = match found {
            Some((open, found)) => {
                let has_arrived = open.pool.snapshot(manifest.snapshot).is_ok();
                let newest = open.pool.last_snapshot(volume).map(|newest| newest.id);
                match (found.info().replica, has_arrived || newest == manifest.since) {
                    (true, true) => open,
                    (true, false) => return Err(Reason::Diverged),
                    (false, _) => return Err(Reason::NotAReplica),
                }
            }
            None if manifest.since.is_some() => return Err(Reason::Diverged),
            None => self.roomiest_pool().map_err(|error| {
                tracing::error!(%volume, error = error.message, "a peer's volume finds no pool");
                Reason::Failed
            })?,
        };
        self.replication.state.begin(volume, own, key)?;
        let begun = open.pool.begin_receiving(&asked(manifest)).map_err(|error| match reason(&error) {
            Reason::Damaged => Reason::OtherVolume,
            reason => self.note_failed(volume, &error, reason),
        });
        if is_new && begun.is_ok() {
            tracing::info!(%volume, "a replica begins");
            self.volumes_changed();
        }
        begun
    }

    fn take_portion(&self, key: &EpochKey, volume: VolumeId, portion: &[u8]) -> Result<Lba, Reason> {
        let turn = self.replication.turn(volume);
        let _turn = lock(&turn);
        if !self.replication.state.is_current(volume, key) {
            return Err(Reason::LowerFence);
        }
        let (open, _) = self.find_volume(volume).ok_or(Reason::Failed)?;
        open.pool.receive(volume, key.snapshot, portion).map_err(|error| {
            if error.kind() == PoolErrorKind::NoSpace {
                self.refused_full.fetch_add(1, Ordering::Relaxed);
            }
            self.note_failed(volume, &error, reason(&error))
        })
    }

    fn commit_epoch(&self, key: &EpochKey, manifest: &Manifest) -> Result<(), Reason> {
        let volume = manifest.volume;
        let turn = self.replication.turn(volume);
        let _turn = lock(&turn);
        if !self.replication.state.is_current(volume, key) {
            return Err(Reason::LowerFence);
        }
        let (open, _) = self.find_volume(volume).ok_or(Reason::Failed)?;
        let ended = open.pool.end_receiving(&asked(manifest));
        ended.map_err(|error| self.note_failed(volume, &error, reason(&error)))?;
        tracing::debug!(%volume, snapshot = %key.snapshot, number = key.number, "an epoch has arrived");
        lock(&self.replication.arrivals).entry(volume).or_default().newest_at = Some(boot_clock::now());
        self.schedules.wake();
        Ok(())
    }

    fn note_failed(&self, volume: VolumeId, error: &pool::PoolError, reason: Reason) -> Reason {
        // A pool that has no space, or another volume's content, is told of in status and metrics.
        if reason == Reason::Failed {
            tracing::warn!(%volume, %error, "an epoch was not taken in");
        }
        reason
    }

    fn prune_received(&self, key: &EpochKey, volume: VolumeId, keep: &[VolumeId]) {
        let turn = self.replication.turn(volume);
        let _turn = lock(&turn);
        // What a writer that was superseded wants kept is not what its successor does.
        if !self.replication.state.is_current(volume, key) {
            return;
        }
        // It may have been promoted meanwhile: then its epochs are its own.
        let Some((open, found)) = self.find_volume(volume) else { return };
        if found.info().replica {
            self.prune_epochs(open, volume, |snapshot| !keep.contains(&snapshot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_too_many_of_a_peer_ends_its_oldest_and_nobody_elses() {
        let (one, other) = (Sessions::default(), Sessions::default());
        let of_other = other.begin();
        let mut begun: VecDeque<_> = (0..SESSIONS_PER_PEER).map(|_| one.begin()).collect();
        assert!(begun.iter().all(|session| !session.is_cancelled()));
        for _ in 0..3 {
            begun.push_back(one.begin());
            assert!(begun.pop_front().is_some_and(|oldest| oldest.is_cancelled()));
            assert!(begun.iter().all(|session| !session.is_cancelled()));
        }
        // Those that have ended make room.
        one.end(&begun[0]);
        one.begin();
        assert!(!begun[1].is_cancelled() && !of_other.is_cancelled());
    }
}

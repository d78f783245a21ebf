//! The port on which keyholders dial in: the sockets and threads around the lease protocol's state machines.
//!
//! Invariants:
//! - A session's machine is driven by one task. What blocks (making a key pair, taking a key in) runs on blocking
//!   threads, and its outcome comes back to that task.
//! - A wipe asked for by the machine happens in this task, before anything else it asked for.
//! - A connection that ends leaves its keys in force until their deadline; what it was still taking in is reported to
//!   the machine before the task ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lease::frame::FrameBuffer;
use lease::node::{GrantToAdmit, NodeEffect, NodeNote, NodeSession, NodeSessionParams};
use lease::{EXPORTER_BYTES, EXPORTER_LABEL, GrantRefusal, SessionError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use units::{GrantId, VolumeId};

use crate::boot_clock;
use crate::node::{Node, WipeNotice};

/// Keyholders are two or three; the rest is room for reconnects and for strangers who fail their handshake.
const CONNECTIONS_MAX: usize = 32;

/// A TLS handshake takes milliseconds; a stranger gets this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that does not take what it is sent for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes read from a connection at once.
const READ_BYTES: usize = 16 * 1024;

/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves keyholders until `stop`.
pub(crate) async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = sessions.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the key port cannot accept; check the limit on open files");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            tracing::info!(%peer, "too many connections on the key port; closed one");
            continue;
        };
        let (node, acceptor, stop) = (Arc::clone(&node), acceptor.clone(), stop.clone());
        sessions.spawn(async move {
            if let Some(stream) = handshake(&acceptor, stream, peer).await {
                run(node, stream, peer, stop).await;
            }
            drop(permit);
        });
    }
    // Receipts of the wipe that ends the program are still on their way.
    while sessions.join_next().await.is_some() {}
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    peer: std::net::SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            let advice = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .and_then(identity::handshake_advice);
            tracing::info!(%peer, %error, advice, "a handshake on the key port failed");
            None
        }
        Err(_) => {
            tracing::info!(%peer, "a handshake on the key port took too long");
            None
        }
    }
}

/// What came of taking a key in.
struct Admission {
    volume: VolumeId,
    grant: GrantId,
    result: Result<(), GrantRefusal>,
}

struct Session {
    node: Arc<Node>,
    /// The generation it began in: news of earlier wipes is none to it.
    since: u64,
    machine: NodeSession,
    admissions: JoinSet<Admission>,
    outbox: Vec<u8>,
    closing: bool,
}

async fn run(
    node: Arc<Node>,
    mut stream: TlsStream<TcpStream>,
    peer: std::net::SocketAddr,
    stop: CancellationToken,
) {
    let mut wipes = node.subscribe_wipes();
    let since = node.keyring.status().generation;
    let pinning = Arc::clone(&node);
    let _ = tokio::task::spawn_blocking(move || pinning.refresh_pin()).await;
    let Some(params) = session_params(&stream) else {
        tracing::error!(%peer, "no session: the system gave no random bytes or TLS no exporter");
        return;
    };
    let machine = NodeSession::new(&mut node.lease(), boot_clock::now(), params);
    let admissions = JoinSet::new();
    let mut session = Session { node, since, machine, admissions, outbox: Vec::new(), closing: false };
    let mut incoming = FrameBuffer::default();
    let mut chunk = vec![0; READ_BYTES];
    while !session.closing {
        let event = session.next_event(&mut stream, &mut chunk, &mut wipes, &stop).await;
        let outcome = match event {
            Event::Read(0) | Event::Gone => break,
            Event::Read(count) => session.on_bytes(&mut incoming, &chunk[..count]).await,
            Event::Admitted(admission) => session.on_admission(admission).await,
            Event::Wiped(notice) => session.on_wiped(notice).await,
            Event::Time => session.on_time().await,
        };
        if let Err(error) = outcome {
            tracing::warn!(%peer, %error, "a keyholder's session ended");
            session.outbox.extend(NodeSession::refusal(&error));
            session.closing = true;
        }
        if !session.send(&mut stream).await {
            break;
        }
    }
    session.finish().await;
    let _ = tokio::time::timeout(WRITE_TIMEOUT, stream.shutdown()).await;
}

fn session_params(stream: &TlsStream<TcpStream>) -> Option<NodeSessionParams> {
    let exporter = [0; EXPORTER_BYTES];
    let exporter = stream.get_ref().1.export_keying_material(exporter, EXPORTER_LABEL, None).ok()?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).ok()?;
    Some(NodeSessionParams { exporter, seed })
}

enum Event {
    Read(usize),
    Admitted(Admission),
    Wiped(WipeNotice),
    Time,
    Gone,
}

impl Session {
    async fn next_event(
        &mut self,
        stream: &mut TlsStream<TcpStream>,
        chunk: &mut [u8],
        wipes: &mut broadcast::Receiver<WipeNotice>,
        stop: &CancellationToken,
    ) -> Event {
        let timeout = self.machine.next_timeout(&self.node.lease());
        let wait = timeout.map(|at| Duration::from_nanos(at.0.saturating_sub(boot_clock::now().0)));
        tokio::select! {
            // A wipe's receipt goes out before anything that arrived meanwhile is looked at.
            biased;
            notice = wipes.recv() => match notice {
                Ok(notice) => Event::Wiped(notice),
                // Lagging: several wipes at once; any of them has voided this session.
                Err(_) => Event::Gone,
            },
            () = stop.cancelled() => Event::Gone,
            Some(admission) = self.admissions.join_next() => match admission {
                Ok(admission) => Event::Admitted(admission),
                Err(_) => Event::Gone,
            },
            count = stream.read(chunk) => count.map_or(Event::Gone, Event::Read),
            () = sleep(wait) => Event::Time,
        }
    }

    async fn on_bytes(&mut self, incoming: &mut FrameBuffer, bytes: &[u8]) -> Result<(), SessionError> {
        incoming.push(bytes);
        while let Some(frame) = incoming.next_frame()? {
            let effects = self.machine.on_frame(&mut self.node.lease(), boot_clock::now(), &frame)?;
            self.perform(effects).await?;
        }
        Ok(())
    }

    async fn on_admission(&mut self, admission: Admission) -> Result<(), SessionError> {
        let Admission { volume, grant, result } = admission;
        let now = boot_clock::now();
        let effects = self.machine.on_admitted(&mut self.node.lease(), now, volume, grant, result);
        self.perform(effects).await
    }

    async fn on_wiped(&mut self, notice: WipeNotice) -> Result<(), SessionError> {
        if notice.report.record.generation <= self.since {
            return Ok(());
        }
        let effects = self.machine.on_wiped(&self.node.lease(), &notice.report, notice.ended);
        self.perform(effects).await
    }

    async fn on_time(&mut self) -> Result<(), SessionError> {
        let effects = self.machine.on_time(&mut self.node.lease(), boot_clock::now());
        self.perform(effects).await
    }

    async fn perform(&mut self, effects: Vec<NodeEffect>) -> Result<(), SessionError> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                NodeEffect::Wipe(cause) => {
                    self.node.wiper.wipe(cause);
                }
                NodeEffect::Send(bytes) => self.outbox.extend(bytes),
                NodeEffect::NeedEvidence => effects.extend(self.evidence().await?),
                NodeEffect::AdmitGrant(grant) => self.admit(grant),
                NodeEffect::SetDeadline(_) => self.node.apply_deadline(),
                NodeEffect::DropVolume { volume, grant, cause } => {
                    let node = Arc::clone(&self.node);
                    let dropped = tokio::task::spawn_blocking(move || node.drop_volume(volume, grant, cause));
                    let Ok(report) = dropped.await else { return Err(SessionError::Closed) };
                    effects.extend(self.machine.on_dropped(&mut self.node.lease(), volume, grant, &report));
                }
                NodeEffect::Note(note @ NodeNote::GrantRefused { .. }) => tracing::warn!("{note}"),
                NodeEffect::Note(note) => tracing::info!("{note}"),
                NodeEffect::Close => self.closing = true,
            }
        }
        Ok(())
    }

    async fn evidence(&mut self) -> Result<Vec<NodeEffect>, SessionError> {
        let node = Arc::clone(&self.node);
        let gathered = tokio::task::spawn_blocking(move || node.evidence()).await;
        let Ok(Ok(input)) = gathered else {
            tracing::error!("no evidence: a one-time key could not be made");
            return Err(SessionError::Closed);
        };
        self.machine.on_evidence(&mut self.node.lease(), boot_clock::now(), input)
    }

    fn admit(&mut self, grant: Box<GrantToAdmit>) {
        let node = Arc::clone(&self.node);
        self.admissions.spawn_blocking(move || {
            let result = node.admit(&grant);
            Admission { volume: grant.volume, grant: grant.grant, result }
        });
    }

    /// Writes what is waiting. `false` where the peer does not take it.
    async fn send(&mut self, stream: &mut TlsStream<TcpStream>) -> bool {
        if self.outbox.is_empty() {
            return true;
        }
        let bytes = std::mem::take(&mut self.outbox);
        let write = async {
            stream.write_all(&bytes).await?;
            stream.flush().await
        };
        matches!(tokio::time::timeout(WRITE_TIMEOUT, write).await, Ok(Ok(())))
    }

    /// The connection is gone: keys stay until their deadline, and what was being taken in is accounted for.
    async fn finish(mut self) {
        self.machine.on_closed(&mut self.node.lease());
        while let Some(admission) = self.admissions.join_next().await {
            if let Ok(admission) = admission {
                // Nothing can be sent any more; drops and deadlines still have to happen.
                let _ = self.on_admission(admission).await;
            }
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

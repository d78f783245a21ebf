//! The port on which keyholders dial in: the sockets and threads around the lease protocol's state machines.
//!
//! Invariants:
//! - A session's machine is driven by one task. What blocks (making a key pair, taking a key in) runs on blocking
//!   threads, and its outcome comes back to that task.
//! - A receipt of a drop waits for no disk: the trail's entry follows it, and the session ends after it.
//! - A wipe asked for by the machine happens in this task, before anything else it asked for.
//! - A connection that ends leaves its keys in force until their deadline; what it was still taking in is reported to
//!   the machine before the task ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lease::frame::FrameBuffer;
use lease::message::{Attestation, CredentialOpened, StateVerdict};
use lease::node::{EpochToAdmit, GrantToAdmit, NodeEffect, NodeNote, NodeSession, NodeSessionParams};
use lease::{EXPORTER_BYTES, EXPORTER_LABEL, GrantRefusal, SessionError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use units::{GrantId, VolumeEpoch, VolumeId};

use crate::attestor::Attestor;
use crate::boot_clock;
use crate::node::{Node, WipeNotice};

/// Keyholders are two or three; the rest is room for reconnects.
const SESSIONS_MAX: usize = 32;

/// Connections in their handshake: strangers, until they have shown a certificate.
const HANDSHAKES_MAX: usize = 64;

/// A TLS handshake takes milliseconds; a stranger gets this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that does not take what it is sent for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Taking a key in takes as long as a pool needs to make its fence durable; the keyholder waits for evidence for ten seconds.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two looks at whether it has been.
const SETTLE_LOOK: Duration = Duration::from_millis(5);

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
    let permits = Arc::new(Semaphore::new(SESSIONS_MAX));
    let mut handshakes = identity::Handshakes::new(HANDSHAKES_MAX);
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
        let (node, acceptor, stop) = (Arc::clone(&node), acceptor.clone(), stop.clone());
        let (place, permits) = (handshakes.begin(), Arc::clone(&permits));
        sessions.spawn(async move {
            let Some(Some(stream)) = place.run(handshake(&acceptor, stream, peer)).await else { return };
            let Ok(_permit) = permits.try_acquire_owned() else {
                return tracing::warn!(%peer, "too many keyholders' sessions on the key port; closed one");
            };
            run(node, stream, peer, stop).await;
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
    result: Result<StateVerdict, GrantRefusal>,
}

/// What was done for a session elsewhere: by threads that may wait.
enum Errand {
    Admission(Admission),
    Attestation(Attestation),
    Credential(CredentialOpened),
    Epoch { volume: VolumeId, grant: GrantId, epoch: VolumeEpoch, result: Result<(), GrantRefusal> },
}

struct Session {
    node: Arc<Node>,
    machine: NodeSession,
    errands: JoinSet<Errand>,
    /// Entries of the trail that no receipt waits for.
    notes: TaskTracker,
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
    let pinning = Arc::clone(&node);
    let _ = tokio::task::spawn_blocking(move || pinning.refresh_pin()).await;
    let Some(params) = session_params(&stream) else {
        tracing::error!(%peer, "no session: the system gave no random bytes or TLS no exporter");
        return;
    };
    let machine = NodeSession::new(&mut node.lease(), boot_clock::now(), params);
    let errands = JoinSet::new();
    let notes = TaskTracker::new();
    let mut session = Session { node, machine, errands, notes, outbox: Vec::new(), closing: false };
    let mut incoming = FrameBuffer::default();
    let mut chunk = vec![0; READ_BYTES];
    while !session.closing {
        let event = session.next_event(&mut stream, &mut chunk, &mut wipes, &stop).await;
        let outcome = match event {
            Event::Read(0) | Event::Gone => break,
            Event::Read(count) => session.on_bytes(&mut incoming, &chunk[..count]).await,
            Event::Done(errand) => session.on_errand(errand).await,
            Event::Wiped(notice) => session.on_wiped(notice).await,
            Event::Time => session.on_time().await,
        };
        if let Err(error) = outcome {
            tracing::warn!(%peer, %error, "a keyholder's session ended");
            session.note_refusal(peer, &error);
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
    Done(Errand),
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
            Some(errand) = self.errands.join_next() => match errand {
                Ok(errand) => Event::Done(errand),
                Err(_) => Event::Gone,
            },
            count = stream.read(chunk) => count.map_or(Event::Gone, Event::Read),
            () = sleep(wait) => Event::Time,
        }
    }

    async fn on_bytes(&mut self, incoming: &mut FrameBuffer, bytes: &[u8]) -> Result<(), SessionError> {
        incoming.push(bytes);
        while let Some(frame) = incoming.next_frame()? {
            let effects = self.machine.on_frame(&mut self.node.lease_to_tell(), boot_clock::now(), &frame)?;
            self.perform(effects).await?;
        }
        Ok(())
    }

    async fn on_errand(&mut self, errand: Errand) -> Result<(), SessionError> {
        let effects = match errand {
            Errand::Admission(admission) => return self.on_admission(admission).await,
            Errand::Attestation(said) => self.machine.on_attestation(&self.node.lease(), &said),
            Errand::Credential(opened) => self.machine.on_credential_opened(&self.node.lease(), &opened),
            Errand::Epoch { volume, grant, epoch, result } => {
                self.machine.on_epoch_admitted(&self.node.lease(), (volume, grant, epoch), result)
            }
        };
        self.perform(effects).await
    }

    async fn on_admission(&mut self, admission: Admission) -> Result<(), SessionError> {
        let Admission { volume, grant, result } = admission;
        let now = boot_clock::now();
        let effects = self.machine.on_admitted(&mut self.node.lease_to_tell(), now, volume, grant, result);
        self.perform(effects).await
    }

    async fn on_wiped(&mut self, notice: WipeNotice) -> Result<(), SessionError> {
        let effects = self.machine.on_wiped(&self.node.lease_to_tell(), &notice.report, notice.ended);
        self.perform(effects).await
    }

    async fn on_time(&mut self) -> Result<(), SessionError> {
        let effects = self.machine.on_time(&mut self.node.lease_to_tell(), boot_clock::now());
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
                NodeEffect::NeedAttestation(for_whom) => self.ask_tpm(move |attestor| {
                    let said = attestor.attest(for_whom);
                    async { Errand::Attestation(said.await) }
                }),
                NodeEffect::OpenCredential(credential) => self.ask_tpm(move |attestor| {
                    let opened = attestor.open_credential(credential);
                    async { Errand::Credential(opened.await) }
                }),
                NodeEffect::AdmitGrant(grant) => self.admit(grant),
                NodeEffect::AdmitEpoch(given) => self.admit_epoch(given),
                NodeEffect::SetDeadline(_) => self.node.apply_deadline(),
                NodeEffect::DropVolume { volume, grant, cause } => {
                    let node = Arc::clone(&self.node);
                    let dropped = tokio::task::spawn_blocking(move || node.drop_volume(volume, grant, cause));
                    let Ok((report, was_held)) = dropped.await else { return Err(SessionError::Closed) };
                    if was_held {
                        let node = Arc::clone(&self.node);
                        self.notes.spawn_blocking(move || node.note_drop(volume, grant, cause));
                    }
                    effects.extend(self.machine.on_dropped(
                        &mut self.node.lease_to_tell(),
                        volume,
                        grant,
                        &report,
                    ));
                }
                NodeEffect::Note(note @ NodeNote::GrantRefused { grant, volume, reason }) => {
                    tracing::warn!("{note}");
                    let node = Arc::clone(&self.node);
                    self.notes.spawn_blocking(move || node.note_refused_grant(volume, grant, reason));
                }
                NodeEffect::Note(note @ NodeNote::KeyRefused { .. }) => tracing::warn!("{note}"),
                NodeEffect::Note(note) => tracing::info!("{note}"),
                NodeEffect::Close => self.closing = true,
            }
        }
        Ok(())
    }

    /// Writes down a peer that is not what it claims to be, or says what it may not.
    fn note_refusal(&self, peer: std::net::SocketAddr, error: &SessionError) {
        use lease::SessionRefusal::{Closed, Silent, Superseded};
        if matches!(error.refusal(), Closed | Silent | Superseded) {
            return;
        }
        let (node, why) = (Arc::clone(&self.node), error.to_string());
        self.notes.spawn_blocking(move || {
            let fields = [("peer", peer.ip().to_string().into()), ("why", why.into())];
            node.trail.note_refusal("session-refused", fields);
        });
    }

    async fn evidence(&mut self) -> Result<Vec<NodeEffect>, SessionError> {
        self.settle().await;
        let node = Arc::clone(&self.node);
        let gathered = tokio::task::spawn_blocking(move || node.evidence()).await;
        let Ok(Ok(input)) = gathered else {
            tracing::error!("no evidence: a one-time key could not be made");
            return Err(SessionError::Closed);
        };
        self.machine.on_evidence(&mut self.node.lease(), boot_clock::now(), input)
    }

    /// A TPM takes its time, and a wipe's receipt does not wait for it.
    fn ask_tpm<F>(&mut self, ask: impl FnOnce(&Attestor) -> F)
    where
        F: Future<Output = Errand> + Send + 'static,
    {
        if let Some(attestor) = &self.node.attestor {
            self.errands.spawn(ask(attestor));
        }
    }

    /// Waits for the keys that the session before is still taking in or dropping. Where that takes too long the machine sends no
    /// evidence, and the keyholder dials again.
    async fn settle(&self) {
        let settled = async {
            while !self.node.lease().is_settled() {
                tokio::time::sleep(SETTLE_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, settled).await;
    }

    fn admit_epoch(&mut self, given: Box<EpochToAdmit>) {
        let node = Arc::clone(&self.node);
        self.errands.spawn_blocking(move || {
            let result = node.admit_epoch(&given);
            node.note_epoch(&given, result.as_ref().err());
            let EpochToAdmit { volume, grant, key, .. } = *given;
            Errand::Epoch { volume, grant, epoch: key.epoch, result }
        });
    }

    fn admit(&mut self, grant: Box<GrantToAdmit>) {
        let node = Arc::clone(&self.node);
        self.errands.spawn_blocking(move || {
            let result = node.admit(&grant);
            node.note_grant(&grant, result.as_ref().err());
            Errand::Admission(Admission { volume: grant.volume, grant: grant.grant, result })
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
        while let Some(errand) = self.errands.join_next().await {
            if let Ok(Errand::Admission(admission)) = errand {
                // Nothing can be sent any more; drops and deadlines still have to happen.
                let _ = self.on_admission(admission).await;
            }
        }
        self.notes.close();
        self.notes.wait().await;
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

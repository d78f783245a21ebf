//! One node's dialler: keeps a lease session with it, and carries out what the book decides.
//!
//! Invariants:
//! - A session is driven by one task; what blocks (files, the vault) runs where blocking is allowed.
//! - Nothing is granted or renewed that the book has not recorded durably first: it hands out grants and renewals only
//!   after that. Each grant is signed under the book, one at a time, and what was latched since it was planned stays here.
//! - A connection that ends revokes nothing. The node keeps its keys until their deadline, and the next session finds
//!   out from signed evidence what it still holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use attestation::CredentialRandom;
use identity::{ExpectedPeer, Role, control_client};
use lease::frame::FrameBuffer;
use lease::keyholder::{
    Challenged, GrantError, KeyholderEvent, KeyholderSession, KeyholderSessionParams, SealRequest, Told,
};
use lease::limits::CHALLENGE_INTERVAL_MS_MIN;
use lease::message::{Attestation, CredentialOpened, Evidence, RevokeCause, Scope, WipeReceipt};
use lease::{EXPORTER_BYTES, EXPORTER_LABEL};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use units::{BootInstant, NodeId};
use zeroize::Zeroizing;

use crate::attest::{self, Challenge, Proven, Unproven};
use crate::book::{Judgement, NodeTarget, PlannedEpoch, PlannedGrant};
use crate::clock;
use crate::error::KeyholderError;
use crate::keyholder::Keyholder;
use crate::store::StoreError;
use crate::vault::{SecretOf, VaultError, VaultSigner, Wrapped};

/// A node that answers does so within this; longer, and the next attempt is as good.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that does not take what it is sent for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between attempts at first: a node that restarts is back within a second and should not wait for its keys.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Attempts at that pace before they slow down: three seconds' worth.
const RETRIES_QUICK: u32 = 30;

/// Between attempts at a node that has been away for long.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A session that lasted so long was a good one, and the next attempt is quick again.
const GOOD_SESSION: Duration = Duration::from_secs(1);

/// Between two answered challenges at least: a quarter of the shortest interval at which a sound node asks.
const RENEWAL_SPACING: Duration = Duration::from_millis(CHALLENGE_INTERVAL_MS_MIN / 4);

/// How often what the policy keeps back is looked at again: its windows have minutes.
const POLICY_RETRY_MS: u64 = 20_000;

/// Commands that may wait for a session.
pub(crate) const COMMANDS_MAX: usize = 64;

const READ_BYTES: usize = 16 * 1024;

/// What the rest of the program asks of a node's dialler.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Something may be pushable now.
    Push,
    /// Take keys back.
    Revoke { scope: Scope, cause: RevokeCause },
    /// What is known of the node has changed: begin a new session.
    Redial,
    /// Another keyholder changed the ledger: look again at all that it says of the node.
    Review,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Connect(String),
    #[error("{0}")]
    Keyholder(#[from] KeyholderError),
    #[error("{0}")]
    Session(#[from] lease::SessionError),
    #[error("{0}")]
    Refused(lease::SessionRefusal),
    #[error(
        "the node's key is not approved: compare its fingerprint with the node's own console, then approve it"
    )]
    AwaitsApproval,
    #[error("the node closed the connection; it is dialled again")]
    Closed,
    #[error("the node was wiped and is dialled again")]
    Wiped,
    #[error("a new session was asked for")]
    Redial,
}

impl Ended {
    /// Ends that are part of normal life and no error to show.
    const fn is_ordinary(&self) -> bool {
        matches!(self, Self::Wiped | Self::Redial)
    }
}

/// Dials the node until it is told to stop.
pub(crate) async fn run(
    keyholder: Arc<Keyholder>,
    node: NodeId,
    commands: mpsc::Receiver<Command>,
    stop: CancellationToken,
) {
    dial_again_and_again(&keyholder, node, commands, stop).await;
    keyholder.book(|book| book.on_disconnected(node, None));
}

async fn dial_again_and_again(
    keyholder: &Arc<Keyholder>,
    node: NodeId,
    mut commands: mpsc::Receiver<Command>,
    stop: CancellationToken,
) {
    let mut failures: u32 = 0;
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = session(keyholder, node, &mut commands) => ended,
        };
        let Some(ended) = ended else { return };
        let delay = match &ended {
            Ended::AwaitsApproval => RETRY_MAX,
            ended => {
                let good = ended.is_ordinary() || begun.elapsed() >= GOOD_SESSION;
                failures = if good { 0 } else { failures.saturating_add(1) };
                retry_delay(failures)
            }
        };
        report(keyholder, node, &ended, failures);
        if matches!(ended, Ended::Refused(lease::SessionRefusal::Superseded)) {
            // Another keyholder may have taken over: the store says who is to dial, and ends this where it is not this one.
            tokio::select! {
                () = stop.cancelled() => return,
                () = keyholder.looked_again() => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // Whatever is asked for begins with a session, which reads from the book what to do.
            command = commands.recv() => if command.is_none() { return },
            () = tokio::time::sleep(delay) => {}
        }
    }
}

fn report(keyholder: &Keyholder, node: NodeId, ended: &Ended, failures: u32) {
    let shown = (!ended.is_ordinary()).then(|| ended.to_string());
    // A node that is away for long is one line, not one for each attempt.
    match ended {
        Ended::Wiped | Ended::Redial => tracing::info!(%node, "{ended}"),
        _ if failures > 1 => {
            tracing::debug!(%node, error = %ended, failures, "the session with the node ended")
        }
        Ended::Connect(_) | Ended::Closed | Ended::AwaitsApproval => {
            tracing::info!(%node, error = %ended, "the session with the node ended");
        }
        Ended::Keyholder(_) | Ended::Session(_) | Ended::Refused(_) => {
            tracing::warn!(%node, error = %ended, "the session with the node ended");
        }
    }
    keyholder.book(|book| book.on_disconnected(node, shown));
}

/// Quick at first, then twice as long each time, with a quarter of randomness so that many nodes do not come at once.
fn retry_delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(RETRIES_QUICK).min(10);
    let delay = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_MAX);
    let mut jitter = [0; 1];
    // Without randomness the delay is still a delay.
    let _ = getrandom::fill(&mut jitter);
    delay.mul_f64(1.0 - f64::from(jitter[0]) / 1024.0)
}

/// One session from dialling to its end; `None` once the node is gone from the ledger.
async fn session(
    keyholder: &Arc<Keyholder>,
    node: NodeId,
    commands: &mut mpsc::Receiver<Command>,
) -> Option<Ended> {
    let target = keyholder.book(|book| book.target(node))?;
    // Asked for before this session, and about to be read from the book.
    while commands.try_recv().is_ok() {}
    let stream = match connect(keyholder, &target).await {
        Ok(stream) => stream,
        Err(ended) => return Some(ended),
    };
    let mut dialogue = match Dialogue::open(keyholder, node, target, stream) {
        Ok(dialogue) => dialogue,
        Err(ended) => return Some(ended),
    };
    let ended = dialogue.run(commands).await;
    let _ = tokio::time::timeout(WRITE_TIMEOUT, dialogue.stream.shutdown()).await;
    Some(ended)
}

async fn connect(keyholder: &Keyholder, target: &NodeTarget) -> Result<TlsStream<TcpStream>, Ended> {
    let peer = ExpectedPeer::named(Role::Node, target.name.clone());
    let tls = control_client(&keyholder.credentials, &keyholder.trust, peer)
        .map_err(|error| Ended::Connect(error.to_string()))?;
    let address = &target.key_address;
    keyholder.may_dial(address)?;
    let host = ServerName::try_from(address.host().to_owned())
        .map_err(|error| Ended::Connect(format!("{address}: {error}")))?;
    let dial = async {
        let stream = TcpStream::connect((address.host(), address.port())).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls).connect(host, stream).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let advice = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .and_then(identity::handshake_advice);
            let reason = advice.unwrap_or_else(|| error.to_string());
            Err(Ended::Connect(format!(
                "cannot reach the key port {address}: {reason}; check that the node runs, its address, and the \
                 network between"
            )))
        }
        Err(_) => Err(Ended::Connect(format!(
            "no answer from the key port {address} within {} s; check the network between",
            CONNECT_TIMEOUT.as_secs()
        ))),
    }
}

struct Waiting {
    evidence: Box<Evidence>,
    proven: Proven,
    challenge: Challenge,
}

fn credential_random() -> Result<CredentialRandom, Ended> {
    let mut random = CredentialRandom { scalar: Zeroizing::default(), secret: Zeroizing::default() };
    for part in [&mut random.scalar, &mut random.secret] {
        getrandom::fill(part.as_mut_slice()).map_err(|error| Ended::Connect(error.to_string()))?;
    }
    Ok(random)
}

struct Dialogue<'a> {
    keyholder: &'a Arc<Keyholder>,
    node: NodeId,
    /// What was known of it when it was dialled.
    target: NodeTarget,
    /// From before the hello that the node's evidence answers.
    opened: BootInstant,
    machine: KeyholderSession,
    stream: TlsStream<TcpStream>,
    incoming: FrameBuffer,
    /// Evidence whose TPM has still to show that it holds the key that it signed with.
    waiting: Option<Waiting>,
    /// The evidence of this session was judged. Nothing is granted or renewed before.
    judged: bool,
    /// Planned, recorded, and not sent yet: what else comes in goes before them.
    outgoing: VecDeque<PlannedGrant>,
    /// Something may be pushable once the next challenge is here.
    push_wanted: bool,
    /// When pushes that wait for lost lease records may go on.
    push_at: Option<BootInstant>,
    /// When a challenge was last answered.
    renewed: Option<Instant>,
    /// Heads of audit trails are exchanged for as long as this lives.
    heads: Option<DropGuard>,
}

impl<'a> Dialogue<'a> {
    fn open(
        keyholder: &'a Arc<Keyholder>,
        node: NodeId,
        target: NodeTarget,
        stream: TlsStream<TcpStream>,
    ) -> Result<Self, Ended> {
        let exporter = stream
            .get_ref()
            .1
            .export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, None)
            .map_err(|error| Ended::Connect(error.to_string()))?;
        let mut challenge = [0; 32];
        getrandom::fill(&mut challenge).map_err(|error| Ended::Connect(error.to_string()))?;
        let signer = keyholder
            .blocking(|| VaultSigner::new(Arc::clone(&keyholder.vault)))
            .map_err(KeyholderError::from)?;
        let params = KeyholderSessionParams {
            keyholder: keyholder.name.clone(),
            node,
            pinned: target.pinned,
            signer: Arc::new(signer),
            root_epoch: keyholder.root_epoch(),
            exporter,
            challenge,
        };
        let opened = clock::now();
        let machine = KeyholderSession::new(opened, params);
        let incoming = FrameBuffer::default();
        Ok(Self {
            keyholder,
            node,
            target,
            opened,
            machine,
            stream,
            incoming,
            waiting: None,
            judged: false,
            outgoing: VecDeque::new(),
            push_wanted: false,
            push_at: None,
            renewed: None,
            heads: None,
        })
    }

    async fn run(&mut self, commands: &mut mpsc::Receiver<Command>) -> Ended {
        match self.converse(commands).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn converse(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<std::convert::Infallible, Ended> {
        let keyholder = self.keyholder;
        let hello = keyholder.blocking(|| self.machine.start())?;
        self.send(&hello).await?;
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let timeout = self.machine.next_timeout().into_iter().chain(self.push_at).min();
            let wait = timeout
                .map_or(CONNECT_TIMEOUT, |at| Duration::from_nanos(at.0.saturating_sub(clock::now().0)));
            tokio::select! {
                // Taking keys back goes before anything else.
                biased;
                Some(command) = commands.recv() => self.on_command(command).await?,
                count = self.stream.read(&mut chunk) => match count {
                    Ok(0) | Err(_) => return Err(Ended::Closed),
                    Ok(count) => self.on_bytes(&chunk[..count]).await?,
                },
                () = std::future::ready(()), if !self.outgoing.is_empty() => self.send_next_grant().await?,
                () = tokio::time::sleep(wait) => self.on_time().await?,
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ended::Closed),
        }
    }

    async fn on_bytes(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.incoming.push(bytes);
        while let Some(frame) = self.incoming.next_frame()? {
            if let Some(event) = self.machine.on_frame(clock::now(), &frame)? {
                self.on_event(event).await?;
            }
        }
        Ok(())
    }

    async fn on_time(&mut self) -> Result<(), Ended> {
        let now = clock::now();
        self.machine.on_time(now)?;
        if self.push_at.is_some_and(|at| now >= at) {
            self.push_at = None;
            self.ask_to_push().await?;
        }
        Ok(())
    }

    async fn on_command(&mut self, command: Command) -> Result<(), Ended> {
        match command {
            Command::Redial => Err(Ended::Redial),
            Command::Push => self.ask_to_push().await,
            Command::Revoke { scope, cause } => self.revoke(scope, cause).await,
            Command::Review => self.review().await,
        }
    }

    async fn review(&mut self) -> Result<(), Ended> {
        let keyholder = self.keyholder;
        if keyholder.book(|book| book.target(self.node)).as_ref() != Some(&self.target) {
            return Err(Ended::Redial);
        }
        if !self.judged {
            return Ok(());
        }
        match keyholder.book(|book| book.latched_since(self.node)) {
            Judgement::AwaitApproval => Err(Ended::AwaitsApproval),
            Judgement::RevokeAll(cause) => self.revoke(Scope::All, cause).await,
            Judgement::Serve { revoke } => {
                for (volume, cause) in revoke {
                    self.revoke(Scope::Volume(volume), cause).await?;
                }
                self.ask_to_push().await
            }
        }
    }

    async fn revoke(&mut self, scope: Scope, cause: RevokeCause) -> Result<(), Ended> {
        // Before evidence there is nobody to tell; what is latched by then is revoked in answer to it.
        if !self.machine.is_established() {
            return Ok(());
        }
        let keyholder = self.keyholder;
        let bytes = keyholder.blocking(|| self.machine.revoke(scope, cause))?;
        self.send(&bytes).await
    }

    /// A grant counts from a challenge: a new one, so that the lease is not half over when it begins.
    async fn ask_to_push(&mut self) -> Result<(), Ended> {
        if !self.machine.is_established() {
            return Ok(());
        }
        self.push_wanted = true;
        let keyholder = self.keyholder;
        let bytes = keyholder.blocking(|| self.machine.request_challenge())?;
        self.send(&bytes).await
    }

    async fn on_event(&mut self, event: KeyholderEvent) -> Result<(), Ended> {
        match event {
            KeyholderEvent::Evidence(evidence, said) => self.on_evidence(evidence, said.as_deref()).await,
            KeyholderEvent::CredentialOpened(opened) => self.on_credential_opened(&opened).await,
            KeyholderEvent::Challenged(challenged, told) => self.on_challenged(challenged, &told).await,
            KeyholderEvent::EpochTaken(taken) => {
                tracing::info!(node = %self.node, volume = %taken.volume, epoch = %taken.epoch, result = ?taken.result, "new epoch");
                Ok(self.keyholder.book(|book| book.on_epoch_taken(self.node, &taken))?)
            }
            KeyholderEvent::Receipt(receipt) => {
                self.keyholder.book(|book| book.on_receipt(self.node, &receipt))?;
                tracing::info!(node = %self.node, volume = %receipt.volume, fence = %receipt.fence, "key in force");
                Ok(())
            }
            KeyholderEvent::GrantRefused(refused) => {
                tracing::warn!(node = %self.node, volume = %refused.volume, reason = %refused.reason, "grant refused");
                if self.keyholder.book(|book| book.on_refused(self.node, &refused))? {
                    // At the node's next challenge, not at once: what passes takes a moment.
                    self.push_wanted = true;
                }
                Ok(())
            }
            KeyholderEvent::Wiped(receipt) => self.on_wiped(&receipt).await,
            KeyholderEvent::NodeRefused(reason) => Err(Ended::Refused(reason)),
        }
    }

    async fn on_evidence(
        &mut self,
        evidence: Box<Evidence>,
        said: Option<&Attestation>,
    ) -> Result<(), Ended> {
        let expected = self.machine.quote_digest().ok_or(Ended::Closed)?;
        let proof = attest::read(said, &expected, evidence.boot);
        let proven = match proof {
            Ok(proven) if !self.keyholder.book(|book| book.knows_tpm(self.node, &proven)) => proven,
            known_or_none => return self.judge(&evidence, known_or_none).await,
        };
        // One for each session: a node that shows ever new TPMs has no more work done for it than one that dials in.
        match Challenge::new(&proven, credential_random()?) {
            Ok((challenge, credential)) => {
                let keyholder = self.keyholder;
                let bytes = keyholder.blocking(|| self.machine.credential(&credential))?;
                self.waiting = Some(Waiting { evidence, proven, challenge });
                self.send(&bytes).await
            }
            Err(unproven) => self.judge(&evidence, Err(unproven)).await,
        }
    }

    async fn on_credential_opened(&mut self, opened: &CredentialOpened) -> Result<(), Ended> {
        let Some(Waiting { evidence, proven, challenge }) = self.waiting.take() else { return Ok(()) };
        let proof = challenge.check(opened).map(|()| proven);
        self.judge(&evidence, proof).await
    }

    async fn judge(&mut self, evidence: &Evidence, proof: Result<Proven, Unproven>) -> Result<(), Ended> {
        if let Err(unproven) = &proof
            && *unproven != Unproven::NoTpm
        {
            tracing::warn!(node = %self.node, "what the node's TPM says proves nothing: {unproven}; would need {}", unproven.would_need());
        }
        let judgement = self.keyholder.book(|book| {
            if book.was_granted_since(self.node, self.opened) {
                return Err(Ended::Redial);
            }
            Ok(book.on_evidence(self.node, evidence, proof)?)
        })?;
        self.judged = true;
        let last_wipe = evidence.last_wipe.map(|wipe| wipe.cause.name());
        tracing::info!(node = %self.node, held = evidence.held.len(), last_wipe, ?judgement, "evidence verified");
        match judgement {
            Judgement::AwaitApproval => Err(Ended::AwaitsApproval),
            Judgement::RevokeAll(cause) => self.revoke(Scope::All, cause).await,
            Judgement::Serve { revoke } => {
                self.heads = Some(self.keyholder.exchange_heads(self.node));
                for (volume, cause) in revoke {
                    self.revoke(Scope::Volume(volume), cause).await?;
                }
                // The challenge in the evidence is a moment old.
                self.push().await
            }
        }
    }

    async fn on_challenged(&mut self, challenged: Challenged, told: &Told) -> Result<(), Ended> {
        if !self.judged {
            return Ok(());
        }
        // Each answer is a write to disk: a node that asks more often than any sound one is not answered each time. But grants that
        // wait to be sent count from this challenge, and are recorded with its answer.
        let too_soon = self.renewed.is_some_and(|at| at.elapsed() < RENEWAL_SPACING);
        if too_soon && !self.push_wanted && self.outgoing.is_empty() {
            return Ok(());
        }
        self.renewed = Some(Instant::now());
        let keyholder = self.keyholder;
        let Some((lease_ms, grants)) = keyholder.book(|book| book.renew(self.node, &told.states))? else {
            return Ok(());
        };
        let bytes = keyholder.blocking(|| self.machine.renewal(challenged, lease_ms, grants))?;
        self.send(&bytes).await?;
        self.note_epochs(told);
        if self.push_wanted { self.push().await } else { self.give_epochs().await }
    }

    /// Nothing that a lease waits for.
    fn note_epochs(&self, told: &Told) {
        let (keyholder, node) = (self.keyholder, self.node);
        let noted = keyholder.book(|book| {
            book.note_copies(node)?;
            book.note_due(node, &told.due)?;
            if told.epochs.is_empty() {
                return Ok(());
            }
            book.note_epochs(node, &told.epochs)?;
            book.retire_epochs_if_due()
        });
        match noted {
            Ok(()) => {}
            // Said again with the next challenge.
            Err(KeyholderError::Store(StoreError::Changed | StoreError::Away { .. })) => {
                tracing::debug!(%node, "what the node says of its epochs is not written down yet");
            }
            Err(error) => {
                tracing::warn!(%node, %error, "an epoch that nothing lies under any more stays for now");
            }
        }
    }

    async fn on_wiped(&mut self, receipt: &WipeReceipt) -> Result<(), Ended> {
        if self.target.pinned.is_none() {
            // Signed by a key that anybody may have made.
            return Err(Ended::AwaitsApproval);
        }
        self.keyholder.book(|book| book.on_wiped(self.node, receipt))?;
        let (cause, stages) = (receipt.record.cause, receipt.stages);
        let (ns, stage) = (stages.keys_ns, stages.reached());
        tracing::info!(node = %self.node, %cause, grants = receipt.grants.len(), ns, stage, "keys wiped");
        match receipt.scope {
            // How far it came is still to be told.
            Scope::All if receipt.more => Ok(()),
            // The session is void; the next one has a fresh envelope key.
            Scope::All => Err(Ended::Wiped),
            Scope::Volume(_) => self.ask_to_push().await,
        }
    }

    async fn push(&mut self) -> Result<(), Ended> {
        if !self.judged {
            return Ok(());
        }
        self.push_wanted = false;
        let keyholder = self.keyholder;
        self.push_at = keyholder.book(|book| book.grants_wait());
        let planned = keyholder.book(|book| book.plan_push(self.node))?;
        let free = keyholder.book(|book| book.held_elsewhere_until(self.node));
        // Budgets and windows come about with time.
        let kept_back = keyholder.book(|book| book.is_kept_back(self.node));
        let again = kept_back.then(|| clock::now().saturating_add_ms(POLICY_RETRY_MS));
        self.push_at = [self.push_at, free, again].into_iter().flatten().min();
        self.outgoing.extend(planned);
        self.give_epochs().await
    }

    /// Sends the keys of new epochs, each sealed under the book: no latch and no fresh ledger key comes between.
    async fn give_epochs(&mut self) -> Result<(), Ended> {
        if !self.judged {
            return Ok(());
        }
        let (keyholder, node) = (self.keyholder, self.node);
        let vault = &keyholder.vault;
        let sealed = keyholder.book(|book| {
            let planned = book.plan_epochs(node)?.into_iter();
            let sealed = planned.map(|PlannedEpoch { order, wrapped }| {
                let of = SecretOf { domain: order.domain, epoch: order.epoch };
                let seal = |request: &SealRequest<'_>| vault.seal_for_node(of, &wrapped, request);
                self.machine.epoch_key(order, seal).map_err(not_sealed)
            });
            sealed.collect::<Result<Vec<_>, Ended>>()
        })?;
        for bytes in sealed {
            self.send(&bytes).await?;
        }
        Ok(())
    }

    /// A slow node takes many grants slowly: each is looked at again, and signed, where no latch can come between.
    async fn send_next_grant(&mut self) -> Result<(), Ended> {
        let Some(planned) = self.outgoing.pop_front() else { return Ok(()) };
        let (keyholder, node) = (self.keyholder, self.node);
        let challenged = self.machine.latest_challenge().ok_or(Ended::Closed)?.at;
        let signed = keyholder.book(|book| {
            let may_go_out = book.may_go_out(node, &planned.order);
            if may_go_out
                && book.is_recorded(&planned.order, challenged)
                && let Some(secrets) = book.secrets_for(&planned.order)
            {
                return self.seal_and_sign(planned, &secrets).map(Some);
            }
            book.withdraw(&planned.order);
            // It would end after its record, or an epoch of it is gone: planned anew, it is recorded anew.
            self.push_wanted |= may_go_out;
            Ok(None)
        })?;
        match signed {
            Some(bytes) => self.send(&bytes).await,
            None if self.push_wanted && self.outgoing.is_empty() => self.ask_to_push().await,
            None => Ok(()),
        }
    }

    fn seal_and_sign(
        &mut self,
        grant: PlannedGrant,
        secrets: &[(SecretOf, Wrapped)],
    ) -> Result<Vec<u8>, Ended> {
        let PlannedGrant { order } = grant;
        let vault = &self.keyholder.vault;
        let seal = |request: &SealRequest<'_>| {
            let of_epoch = secrets.iter().find(|(of, _)| of.epoch == request.epoch);
            let (of, wrapped) = of_epoch.ok_or(VaultError::Unwrap { what: "domain secret" })?;
            vault.seal_for_node(*of, wrapped, request)
        };
        self.machine.grant(order, seal).map_err(not_sealed)
    }
}

fn not_sealed(error: GrantError<VaultError>) -> Ended {
    match error {
        GrantError::Session(error) => Ended::Session(error),
        GrantError::Seal(error) => Ended::Keyholder(error.into()),
        GrantError::NotPinned => Ended::AwaitsApproval,
        GrantError::Revoked => Ended::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_quick_at_first_and_never_further_apart_than_the_limit() {
        for failures in [0, 1, RETRIES_QUICK] {
            let delay = retry_delay(failures);
            assert!(delay <= RETRY_FIRST && delay >= RETRY_FIRST / 2, "{failures}: {delay:?}");
        }
        for failures in [RETRIES_QUICK + 3, 1_000, u32::MAX] {
            let delay = retry_delay(failures);
            assert!(delay <= RETRY_MAX && delay > RETRY_FIRST, "{failures}: {delay:?}");
        }
    }
}

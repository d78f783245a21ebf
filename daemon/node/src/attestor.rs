//! The thread that speaks with the machine's TPM: measures wipes, has registers quoted, opens credentials.
//!
//! Invariants:
//! - What is asked is done in the order in which it was asked: no quote that is asked for after a wipe is from before it.
//! - A wipe stands in the log before its measurement is in the register. What a program did not get to measure, the next one
//!   does, so that log and register agree whenever a quote is made; where they do not, nothing is attested.
//! - A TPM that does not answer delays no wipe and no session of another kind: whoever asks waits elsewhere.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use attestation::WIPES;
use config::TpmConfig;
use lease::limits::{EVENT_LOG_BYTES_MAX, FAILURE_BYTES_MAX, WIPES_MAX};
use lease::message::{Attestation, Credential, CredentialOpened, TpmStatement, WipeRecord};
use tokio::sync::oneshot;
use tpm::{LoadedKey, Tpm, TpmError};
use units::BootId;

use crate::wipe_log::{WipeLog, WipeLogError};

/// Why nothing is attested.
#[derive(Debug, thiserror::Error)]
enum AttestError {
    #[error("{0}")]
    Tpm(#[from] TpmError),
    #[error("{0}")]
    Log(#[from] WipeLogError),
}

enum Request {
    Measure(WipeRecord, oneshot::Sender<()>),
    Attest([u8; 32], oneshot::Sender<Attestation>),
    Open(Credential, oneshot::Sender<CredentialOpened>),
}

/// Asks the thread.
#[derive(Debug)]
pub(crate) struct Attestor {
    requests: Sender<Request>,
}

impl Attestor {
    /// Opens the TPM. Where that fails there is an attestor all the same, which says why it attests nothing.
    pub(crate) fn open(config: &TpmConfig, state_dir: &Path, boot: BootId) -> (Self, Worker) {
        let (requests, asked) = channel();
        let machine = Machine::open(config, state_dir, boot).map_err(|error| {
            tracing::error!(%error, "this node cannot attest what was started: keys come by people's approval at best");
            shortened(&error)
        });
        (Self { requests }, Worker { asked, machine })
    }

    /// Extends the register of wipes. Ready once that is done, or has failed.
    pub(crate) fn measure(&self, wipe: WipeRecord) -> impl Future<Output = ()> + use<> {
        let (done, measured) = oneshot::channel();
        // The thread lives as long as the node.
        let _ = self.requests.send(Request::Measure(wipe, done));
        async { measured.await.unwrap_or_default() }
    }

    /// What the TPM says to whoever wants it signed over `for_whom`.
    pub(crate) fn attest(&self, for_whom: [u8; 32]) -> impl Future<Output = Attestation> + Send + use<> {
        let (answer, said) = oneshot::channel();
        let _ = self.requests.send(Request::Attest(for_whom, answer));
        async { said.await.unwrap_or_else(|_| Attestation { statement: Err(gone()) }) }
    }

    /// What the TPM finds in a credential.
    pub(crate) fn open_credential(
        &self,
        credential: Credential,
    ) -> impl Future<Output = CredentialOpened> + Send + use<> {
        let (answer, opened) = oneshot::channel();
        let _ = self.requests.send(Request::Open(credential, answer));
        async { opened.await.unwrap_or_else(|_| CredentialOpened { secret: Err(gone()) }) }
    }
}

fn gone() -> String {
    "the thread of the TPM has ended; restart the node".to_owned()
}

/// As much of an error as the protocol carries.
fn shortened(error: &AttestError) -> String {
    let mut text = error.to_string();
    let end = (0..=FAILURE_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text
}

/// What the thread will run.
pub(crate) struct Worker {
    asked: Receiver<Request>,
    machine: Result<Machine, String>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// Starts the thread; it ends with the [`Attestor`]. Whoever calls is confined already.
    pub(crate) fn start(mut self) -> std::io::Result<()> {
        let run = move || {
            while let Ok(request) = self.asked.recv() {
                self.answer(request);
            }
        };
        std::thread::Builder::new().name("tpm".into()).spawn(run).map(drop)
    }

    fn answer(&mut self, request: Request) {
        match request {
            // Its session has ended meanwhile.
            Request::Attest(_, answer) if answer.is_closed() => {}
            Request::Open(_, answer) if answer.is_closed() => {}
            Request::Measure(wipe, done) => {
                if let Ok(machine) = &mut self.machine
                    && let Err(error) = machine.measure(wipe)
                {
                    tracing::error!(%error, "a wipe could not be measured; until the node is restarted nothing is attested");
                    self.machine = Err(shortened(&error));
                }
                let _ = done.send(());
            }
            Request::Attest(for_whom, answer) => {
                let statement = self.with_machine(|machine| machine.attest(for_whom));
                let _ = answer.send(Attestation { statement });
            }
            Request::Open(credential, answer) => {
                let secret = self.with_machine(|machine| machine.open_credential(credential));
                let _ = answer.send(CredentialOpened { secret });
            }
        }
    }

    fn with_machine<T>(
        &mut self,
        work: impl FnOnce(&mut Machine) -> Result<T, AttestError>,
    ) -> Result<T, String> {
        let machine = self.machine.as_mut().map_err(|why| why.clone())?;
        work(machine).map_err(|error| {
            tracing::warn!(%error, "the TPM did not do what a keyholder asked for");
            shortened(&error)
        })
    }
}

/// An open TPM with its two keys.
struct Machine {
    tpm: Tpm,
    endorsement: LoadedKey,
    certificate: Vec<u8>,
    attestation: LoadedKey,
    /// Written by firmware and loader, and by nobody since.
    event_log: Vec<u8>,
    wipes: WipeLog,
}

impl Machine {
    fn open(config: &TpmConfig, state_dir: &Path, boot: BootId) -> Result<Self, AttestError> {
        let mut tpm = Tpm::open(&config.device)?;
        tpm.forget_leftovers()?;
        let endorsement = tpm.endorsement_key()?;
        let certificate = tpm.endorsement_certificate()?.unwrap_or_default();
        let attestation = tpm.attestation_key()?;
        let wipes = WipeLog::open(state_dir, boot, tpm.read_pcr(WIPES)?)?;
        let mut machine = Self {
            tpm,
            endorsement,
            certificate,
            attestation,
            event_log: read_event_log(&config.event_log),
            wipes,
        };
        machine.catch_up()?;
        // What a security officer compares before approving the machine.
        let fingerprint = attestation::Name::of(&machine.endorsement.public);
        tracing::info!(%fingerprint, wipes = machine.wipes.records().len(), "this machine's TPM");
        Ok(machine)
    }

    /// What an earlier run noted and did not get to measure.
    fn catch_up(&mut self) -> Result<(), AttestError> {
        while let Some(measurement) = self.wipes.unmeasured() {
            self.tpm.extend(WIPES, &measurement)?;
            self.wipes.note_measured();
        }
        Ok(())
    }

    fn measure(&mut self, wipe: WipeRecord) -> Result<(), AttestError> {
        self.wipes.append(wipe)?;
        self.catch_up()
    }

    fn attest(&mut self, for_whom: [u8; 32]) -> Result<TpmStatement, AttestError> {
        if self.wipes.records().len() > WIPES_MAX {
            return Err(WipeLogError::Full.into());
        }
        let quote = self.tpm.quote(&self.attestation, &for_whom)?;
        Ok(TpmStatement {
            endorsement_key: self.endorsement.public.clone(),
            certificate: self.certificate.clone(),
            attestation_key: self.attestation.public.clone(),
            quote: quote.statement,
            signature: quote.signature,
            registers: quote.registers.0.to_vec(),
            wipes_began_at: self.wipes.began_at(),
            wipes: self.wipes.records().to_vec(),
            event_log: self.event_log.clone(),
        })
    }

    fn open_credential(&mut self, credential: Credential) -> Result<[u8; 32], AttestError> {
        let Credential { object, seed } = credential;
        let credential = attestation::Credential { object, seed };
        let found = self.tpm.activate(&self.attestation, &self.endorsement, &credential)?;
        found.try_into().map_err(|_| TpmError::from(attestation::Malformed { what: "credential" }).into())
    }
}

/// The firmware's log, where there is one that this program may read and that is not too long to send.
fn read_event_log(path: &Path) -> Vec<u8> {
    let log = std::fs::read(path).unwrap_or_default();
    if log.len() > EVENT_LOG_BYTES_MAX { Vec::new() } else { log }
}

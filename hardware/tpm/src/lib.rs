//! The machine's TPM 2.0: the ten commands that attestation takes, over the kernel's device (`/dev/tpmrm0`, whose resource
//! manager keeps users apart) or over a socket, as a software TPM offers it.
//!
//! Invariants:
//! - Every command ends within the time it is given. A TPM that did not answer in time is not asked again: its late answer
//!   could be taken for the next one's ([`TpmError::Lost`]).
//! - What a TPM answers is parsed like anybody's bytes: it may be broken, or somebody in between.
//! - No key is stored and no authorisation set: both keys come from seeds in the TPM, the same each time.
//!
//! What it is not: it does not verify what it gets signed; that is for the other side (`attestation`).

mod command;
mod link;

use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::{
    Credential, Digest, Malformed, QUOTED, Register, Registers, attestation_template, endorsement_template,
};

use crate::command::{
    NV_BYTES_AT_ONCE, Request, activate_credential, create_primary, extend, flush, nv_read, nv_size,
    policy_secret, quote, read, start_policy_session,
};
use crate::link::Link;

/// The kernel's device with its resource manager.
pub const DEVICE: &str = "/dev/tpmrm0";

/// Longest wait for an answer: making a key takes a slow TPM two seconds.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// Where the maker of a TPM puts the certificate of its endorsement key (EK Credential Profile 2.5, P-256).
const CERTIFICATE_INDEX: u32 = 0x01c0_000a;

/// Longest certificate that is read.
const CERTIFICATE_BYTES_MAX: u16 = 4096;

/// Attempts at a quote whose registers were extended while it was made.
const QUOTE_ATTEMPTS: usize = 3;

/// Why a TPM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// No device, or no right to it.
    #[error(
        "the TPM {} cannot be opened: {source}; check that firmware has it switched on and who may read and write it",
        path.display()
    )]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It cannot be written to or read from.
    #[error("the TPM cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    /// No answer in time.
    #[error("the TPM did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// It failed to answer before, and is not asked again.
    #[error("the TPM failed to answer an earlier command; restart the program")]
    Lost,
    /// It refused.
    #[error("the TPM refused {command} (code {code:#06x}){}", advice(*code))]
    Refused {
        /// The command.
        command: &'static str,
        /// Its response code (TPM 2.0 Library, part 2, section 6.6).
        code: u32,
    },
    /// Its answer is none.
    #[error("the TPM's answer cannot be understood: {0}")]
    Malformed(#[from] Malformed),
}

/// What to do about a response code.
const fn advice(code: u32) -> &'static str {
    match code & 0xfff {
        0x120 | 0x121 => ": it is in failure mode; power the machine off and on",
        0x921 => ": it is locked against guessing; wait, or reset the lock with the lockout authorisation",
        // In a session's place: bad authorisation, authorisation failed.
        code if code & 0x0bf == 0x0a2 || code & 0x0bf == 0x08e => {
            ": the endorsement hierarchy has a password; clear it"
        }
        0x902 | 0x903 => ": its memory is used up; use /dev/tpmrm0, whose resource manager looks after that",
        _ => "",
    }
}

/// Shorthand.
pub type Result<T, E = TpmError> = std::result::Result<T, E>;

/// An open TPM.
#[derive(Debug)]
pub struct Tpm {
    link: Link,
}

/// A key in the TPM, until it is flushed or the TPM is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedKey {
    handle: u32,
    /// Its public area (TPMT_PUBLIC).
    pub public: Vec<u8>,
}

/// A quote, and what it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedQuote {
    /// What was signed (TPMS_ATTEST).
    pub statement: Vec<u8>,
    /// The signature (TPMT_SIGNATURE).
    pub signature: Vec<u8>,
    /// What the registers of [`QUOTED`] held.
    pub registers: Registers,
}

impl Tpm {
    /// Opens a device or a socket.
    ///
    /// # Errors
    /// Where it is not there or must not be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let link =
            Link::open(path, PATIENCE).map_err(|source| TpmError::Open { path: path.to_owned(), source })?;
        Ok(Self { link })
    }

    /// Changes how long each command may take.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.link.patience = patience;
        self
    }

    /// Extends a register of the SHA-256 bank.
    ///
    /// # Errors
    /// As every command.
    pub fn extend(&mut self, register: Register, digest: &Digest) -> Result<()> {
        self.run(&extend(register, digest)).map(drop)
    }

    /// What a register of the SHA-256 bank holds.
    ///
    /// # Errors
    /// As every command; also where the TPM has no SHA-256 bank.
    pub fn read_pcr(&mut self, register: Register) -> Result<Digest> {
        let response = self.run(&read(register))?;
        Ok(command::digest_read(&response)?)
    }

    /// The endorsement key: made anew from the TPM's seed, it is the one that its maker certified.
    ///
    /// # Errors
    /// As every command.
    pub fn endorsement_key(&mut self) -> Result<LoadedKey> {
        self.primary(&endorsement_template())
    }

    /// This program's attestation key: the same each time, until the TPM's owner replaces its endorsement seed.
    ///
    /// # Errors
    /// As every command.
    pub fn attestation_key(&mut self) -> Result<LoadedKey> {
        self.primary(&attestation_template())
    }

    fn primary(&mut self, template: &[u8]) -> Result<LoadedKey> {
        let response = self.run(&create_primary(template))?;
        let handle = response.handle.ok_or(Malformed { what: "new key" })?;
        let public = command::public_made(&response)?;
        Ok(LoadedKey { handle, public })
    }

    /// Forgets what an earlier run loaded and did not live to forget. Behind a resource manager (`/dev/tpmrm0`) that sees to it,
    /// and nothing is found; a TPM without one has room for three.
    ///
    /// # Errors
    /// As every command.
    pub fn forget_leftovers(&mut self) -> Result<()> {
        let response = self.run(&command::loaded())?;
        command::handles_found(&response)?
            .into_iter()
            .try_for_each(|handle| self.run(&flush(handle)).map(drop))
    }

    /// Forgets a key.
    ///
    /// # Errors
    /// As every command.
    pub fn flush(&mut self, key: &LoadedKey) -> Result<()> {
        self.run(&flush(key.handle)).map(drop)
    }

    /// The certificate that the TPM's maker put beside the endorsement key (DER); `None` where there is none.
    ///
    /// # Errors
    /// As every command.
    pub fn endorsement_certificate(&mut self) -> Result<Option<Vec<u8>>> {
        let size = match self.run(&nv_size(CERTIFICATE_INDEX)) {
            Ok(response) => command::size_found(&response)?,
            // There is none, or this is not for everybody to read.
            Err(TpmError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = size.min(CERTIFICATE_BYTES_MAX);
        let mut certificate = Vec::new();
        while certificate.len() < usize::from(size) {
            let offset = u16::try_from(certificate.len()).unwrap_or(size);
            let count = NV_BYTES_AT_ONCE.min(size - offset);
            let part = match self.run(&nv_read(CERTIFICATE_INDEX, offset, count)) {
                Ok(response) => command::bytes_found(&response)?,
                Err(TpmError::Refused { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            if part.len() != usize::from(count) {
                return Err(Malformed { what: "certificate" }.into());
            }
            certificate.extend(part);
        }
        Ok(Some(certificate))
    }

    /// Has the registers of [`QUOTED`] signed, together with `for_whom`.
    ///
    /// # Errors
    /// As every command.
    pub fn quote(&mut self, key: &LoadedKey, for_whom: &Digest) -> Result<SignedQuote> {
        let mut attempt = 1;
        loop {
            let before = self.registers()?;
            let response = self.run(&quote(key.handle, for_whom))?;
            let (statement, signature) = command::quote_made(&response)?;
            // Whoever extends one meanwhile (a wipe does) makes the two disagree.
            if self.registers()? == before || attempt == QUOTE_ATTEMPTS {
                return Ok(SignedQuote { statement, signature, registers: before });
            }
            attempt += 1;
        }
    }

    fn registers(&mut self) -> Result<Registers> {
        let mut registers = Registers([[0; 32]; QUOTED.len()]);
        for (place, register) in registers.0.iter_mut().zip(QUOTED) {
            *place = self.read_pcr(register)?;
        }
        Ok(registers)
    }

    /// Opens a credential: only the TPM with `endorsement` finds its secret, and only while it holds `attestation`.
    ///
    /// # Errors
    /// As every command; it refuses a credential for another TPM or another key.
    pub fn activate(
        &mut self,
        attestation: &LoadedKey,
        endorsement: &LoadedKey,
        credential: &Credential,
    ) -> Result<Vec<u8>> {
        let session = self.run(&start_policy_session())?;
        let session = session.handle.ok_or(Malformed { what: "new session" })?;
        let found = self.run(&policy_secret(session)).and_then(|_| {
            self.run(&activate_credential(attestation.handle, endorsement.handle, session, credential))
        });
        match found {
            // The session ended with the command.
            Ok(response) => Ok(command::bytes_found(&response)?),
            Err(error) => {
                let _ = self.run(&flush(session));
                Err(error)
            }
        }
    }

    fn run(&mut self, request: &Request) -> Result<command::Response> {
        self.link.run(request)
    }
}

//! What a TPM 2.0 says about a machine, as bytes that came from somebody else: read, verified, and compared.
//! [ATTESTATION.md](../ATTESTATION.md) says what is signed over what, and what a verifier concludes from it.
//!
//! ```text
//!   endorsement key ──credential──▶ attestation key ──quote──▶ registers ◀──replay── event log, wipes
//!   (this TPM)                      (of that TPM)              (what was started)
//! ```
//!
//! Invariants:
//! - Every reader is total: any bytes become a valid value or [`Malformed`]; nothing is allocated from an unchecked length.
//! - One kind of key (ECC P-256, SHA-256 names) and one bank of registers (SHA-256), which every TPM of the PC Client profile
//!   has: nothing is negotiated, so nothing can be talked down.
//! - A quote counts only with the attestation key's own signature, for exactly the registers of [`QUOTED`], over the
//!   digest that the verifier expects.
//!
//! What it is not: it opens no device (`hardware/tpm` does), reads no clock, makes no random numbers, and knows no policy.

mod credential;
mod event_log;
mod key;
mod quote;
mod register;
pub mod wire;

pub use credential::{
    Credential, CredentialError, CredentialRandom, SECRET_BYTES, make_credential, secrets_match,
};
pub use event_log::{EVENT_LOG_BYTES_MAX, EventLog, FirmwareState};
pub use key::{
    KeyError, KeyRole, Name, PUBLIC_BYTES_MAX, PublicKey, attestation_template, endorsement_template,
    primary_parameters,
};
pub use quote::{Clock, Quote, QuoteError, Quoted, SIGNATURE_BYTES_MAX, STATEMENT_BYTES_MAX, selection};
pub use register::{Digest, QUOTED, Register, Registers, WIPES, digest, extended};
pub use wire::Malformed;

//! How a node comes by a key and how long it may keep it: the lease protocol as sans-IO state machines.
//!
//! Compute dials, storage listens. Bytes and boot time go in, bytes and effects come out; there is no socket, clock,
//! thread or random source in this crate (its clippy.toml forbids them), so the simulation drives the very code that
//! the daemons run. PROTOCOL.md is the specification.
//!
//! - [`node`]: what a node holds and until when, and its end of a connection.
//! - [`keyholder`]: the keyholder's end of a connection.
//! - [`message`], [`frame`], [`limits`]: the wire.
//! - [`trigger`]: what makes keys go and how they come back.
//! - [`envelope`]: the HPKE envelope in which a key travels.
//!
//! Not here: policy, records, persistence (the `keyholder` crate), keys (`keyring`), sockets (the programs).

pub mod envelope;
mod error;
pub mod frame;
pub mod keyholder;
pub mod limits;
pub mod message;
pub mod node;
mod transcript;
pub mod trigger;

pub use error::{GrantRefusal, KeyFingerprint, SessionError, SessionRefusal};
pub use transcript::{
    EXPORTER_BYTES, EXPORTER_LABEL, LocalSigner, Signer, SignerGone, grant_aad, public_key_of_seed,
    sign_with_seed,
};

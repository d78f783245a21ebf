//! The lease protocol from outside: the exchange, its refusals, a simulation of bad networks, and its bytes.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests: a failed unwrap is a failed test, and golden files and soak times are outside the machines"
)]

mod attestation;
mod epochs;
mod exchange;
mod exhaustive;
mod golden;
mod simulation;
mod support;

//! The bytes of a session, committed, and what is refused of a peer that is not what it should be.
#![expect(clippy::unwrap_used, reason = "tests: a failed unwrap is a failed test")]
#![expect(clippy::disallowed_methods, reason = "golden files are outside the machines")]

mod golden;
mod keeping;
mod pace;
mod refusals;
mod resuming;
mod support;

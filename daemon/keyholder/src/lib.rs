//! The keyholder: the program on the compute tier that holds the root secret and lends keys to nodes.

pub mod access;
pub mod api;
mod attest;
mod audit;
mod book;
mod clock;
mod cluster;
mod drill;
mod durable;
mod error;
mod gf256;
mod heads;
mod join;
mod keyholder;
mod ledger;
mod link;
pub mod oidc;
pub mod outgoing;
pub mod policy;
mod records;
mod requests;
mod routes;
pub mod shares;
mod store;
mod totp;
mod vault;
pub mod webhooks;

pub use error::KeyholderError;
pub use keyholder::{Keyholder, KeyholderParams, SharedStoreParams};
pub use totp::authenticator_code;

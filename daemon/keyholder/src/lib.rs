//! The keyholder: the program on the compute tier that holds the root secret and lends keys to nodes.

pub mod access;
pub mod api;
mod audit;
mod book;
mod clock;
mod drill;
mod durable;
mod error;
mod gf256;
mod keyholder;
mod ledger;
mod link;
mod records;
mod routes;
pub mod shares;
mod vault;

pub use error::KeyholderError;
pub use keyholder::{Keyholder, KeyholderParams};

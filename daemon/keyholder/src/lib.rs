//! The keyholder: the program on the compute tier that holds root secrets and lends keys to nodes.

pub mod access;
pub mod api;
mod gf256;
pub mod shares;
mod vault;

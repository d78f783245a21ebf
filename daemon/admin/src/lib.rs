//! The node's administrative interface: what machines ask in clear (health, metrics), and what people, tools and the
//! keyholder ask over mutual TLS.
//!
//! Invariants:
//! - No endpoint returns a key or a customer's data. An access key's secret is returned once, when it is made.
//! - Which role may call what stands in one table, [`access::TABLE`]; a route that is not in it cannot be added, and
//!   a test calls every endpoint with every role.
//! - Everything here works while the node is sealed, or says with 503 that it needs a key and how to get one.
//!
//! What it is not: it knows no pool, key or head. The program implements [`NodeControl`] and this crate asks it.

pub mod access;
pub mod api;
mod control;
mod health;
mod routes;
mod transfer;

pub use control::{Act, ControlError, ErrorKind, NodeControl, Readiness, Reason};
pub use health::health_router;
pub use routes::control_router;

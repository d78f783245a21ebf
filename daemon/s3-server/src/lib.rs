//! The S3 head: Amazon's protocol over HTTP/1.1 and HTTP/2, in front of one object store.
//!
//! ```text
//!   server ── connections, limits, watch, drain
//!     └── service ── sealed? policy? then the protocol code (the s3s crate: signatures, XML, routing)
//!           ├── request_body, upload     bodies in, in bounded pieces
//!           ├── backend                  the operations, said to `objects::Store`
//!           └── download, response_body  bodies out, the key asked for again before each piece leaves
//! ```
//!
//! Invariants:
//! - Success is answered only for what the store made durable.
//! - Sealed, every request is answered with 503 and Retry-After, on connections that stay open; what was in flight ends
//!   without a wrong byte.
//! - Nothing is done for a request without a signature that covers what it says (`policy`), or that the bucket's owner did not
//!   let in without one; what its signer may do is decided before the operation begins (`authority`).
//! - What a client asks for and this server does not do is refused, never ignored.
//! - The store is called on threads that may block, never on the executor.
//! - Bodies take a bounded amount of memory, over all connections together; see `limits`.
//!
//! Types of the protocol crate stay in here. Its log lines are of no use to an operator and, at debug level, contain
//! signatures: programs switch them off with [`LOG_DIRECTIVE`].

mod access;
mod access_log;
mod activity;
mod attributes;
mod authority;
mod backend;
mod caller;
mod conditions;
mod convert;
mod cors;
mod customer_key;
mod documents;
mod download;
mod encryption;
mod error;
mod known;
mod lifecycle;
pub mod limits;
mod metrics;
mod notifications;
mod policy;
mod rates;
mod request_body;
mod resources;
mod response_body;
mod server;
mod service;
mod signature_v2;
mod slot;
mod upload;

pub use authority::operations::operation_names;
pub use authority::{InvalidPolicy, check_user_policy};
pub use notifications::delivery::{
    InvalidWebhookSecret, Posted, Webhook, WebhookMessage, WebhookSecret, WebhookState, WebhookTransport,
};
pub use rates::{Rates, UnknownOperation};
pub use server::{Drained, InvalidOptions, S3Options, S3Server};

/// To be added to the filter of the program's log.
pub const LOG_DIRECTIVE: &str = "s3s=off";

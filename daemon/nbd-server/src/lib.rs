//! The NBD head: serves sealed volumes to block clients, and goes quiet when their keys go.
//!
//! What of the protocol is spoken, every limit, and what clients see at a seal stand in PROTOCOL.md.
//!
//! ```text
//!   client ── wire ── negotiation (sans-IO) ── connection ─┐
//!                     request, reply (sans-IO) ── transmission ── reader, lane ── operation ── sealing::Volume
//!                                       server (exports, listeners, drain) ┘
//! ```
//!
//! Invariants:
//! - A request whose key has gone is never answered with data or with an input/output error: it is not answered at
//!   all ([`OnSeal::Hold`]) or answered with `ESHUTDOWN` ([`OnSeal::Fail`]). The key is asked for again before every
//!   write to a socket.
//! - Nothing that a client names (length, count, time) is used before it was held against a limit of [`limits`].
//! - A flush covers every write that was replied to before it on any connection; that is the volume's promise, and
//!   the reason why several connections may share an export.
//!
//! The crate starts no runtime and opens no listening socket. Its threads are the runtime's blocking ones: one for each
//! connection, and those of the lanes.

mod access;
mod buffers;
pub mod client;
mod connection;
mod context;
mod exports;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod lane;
pub mod limits;
mod metrics;
mod negotiation;
mod operation;
mod outbox;
mod pace;
mod reader;
mod reply;
mod request;
mod server;
mod slow;
mod stream;
mod transmission;
mod wire;

pub use access::{Access, AddressRange, Client, ClientRule, Doorkeeper, InvalidAccess, Refused};
pub use exports::{Export, ExportStatus, InvalidLabel, OnSeal};
pub use limits::Limits;
pub use server::{Drained, NbdServer};
pub use wire::Errno;

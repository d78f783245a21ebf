//! What a client has to tell apart: never connected, refused, answered with an error, or cut off without an answer.

use std::io;

use super::Endpoint;
use crate::wire::{Command, Errno};

/// Why a negotiation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// No such export.
    Unknown,
    /// The export is sealed, or the server is going down: try again later.
    Shutdown,
    /// The server talks over TLS only.
    TlsRequired,
    /// The export is not for this client.
    Policy,
    /// Anything else.
    Other,
}

/// A failed connection or request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection came about. Nothing was asked.
    #[error("can't connect to {endpoint}: is the node running, and does it listen there?")]
    Connect {
        /// Where to.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server refused what the negotiation asked for. Nothing was read or written.
    #[error("the server refused: {message}")]
    Refused {
        /// Why, to match on.
        kind: RefusalKind,
        /// Why, in the server's words.
        message: String,
    },
    /// The connection ended before the answer: whether the request was carried out is **unknown**.
    #[error("the connection ended before the answer to a {} came", .during.as_deref().unwrap_or("negotiation"))]
    Closed {
        /// The command that was under way.
        during: Option<String>,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The server answered with an error. The connection is still good.
    #[error("{command} failed with {errno}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Failed {
        /// The command.
        command: String,
        /// The error number; one that the protocol does not know reads as [`Errno::Invalid`].
        errno: Errno,
        /// The server's words; empty where it gave none.
        message: String,
    },
    /// The server does not speak the protocol as it should. The connection can't be used any more.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// A length that the protocol has no room for.
    #[error("a {command} of {len} bytes is longer than one request can name; split it")]
    TooLong {
        /// The command.
        command: String,
        /// Bytes asked for.
        len: u64,
    },
}

impl ClientError {
    /// Whether the request may or may not have been carried out.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Closed { during: Some(_), .. } | Self::Protocol(_))
    }

    /// The error number where the server answered with one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    pub(super) fn failed(command: Command, code: u32, message: &[u8]) -> Self {
        Self::Failed {
            command: command.to_string(),
            errno: Errno::from_code(code).unwrap_or(Errno::Invalid),
            message: String::from_utf8_lossy(message).into_owned(),
        }
    }

    pub(super) fn closed(during: Option<Command>, source: io::Error) -> Self {
        Self::Closed { during: during.map(|command| command.to_string()), source }
    }
}

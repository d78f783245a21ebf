//! Keys that a customer sends along with each request (SSE-C): what is kept to recognise one.

use serde::{Deserialize, Serialize};

/// Makes the key of one body out of a customer's key: no two bodies are encrypted alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BodySalt(pub(crate) [u8; 16]);

/// Recognises the key that an object was encrypted with, without holding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyProof {
    pub(crate) salt: BodySalt,
    /// HMAC-SHA-256 of the salt under the customer's key.
    pub(crate) proof: [u8; 32],
}

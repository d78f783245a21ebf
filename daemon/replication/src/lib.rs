//! Epochs of volumes on their way to a peer, as two state machines: the sender on the primary, the receiver on the replica.
//!
//! An epoch is a snapshot that the primary took at a barrier. What travels of it is what `pool` makes and takes (STREAM.md): this
//! crate frames it, orders it, acknowledges it, sends again what was lost, and decides who may send. PROTOCOL.md draws the bytes.
//!
//! Invariants:
//! - An epoch, or a part of one, is acknowledged only after the shell has said that it is durable ([`Receiver`]).
//! - A replica makes an epoch visible only when all of it has been taken in; until then it shows the one before.
//! - What the sender counts as a peer's is what the peer acknowledged, and nothing the peer may still need is given up for
//!   deletion ([`Sender::needs`]).
//! - A receiver takes a frame once, in its order, of the session it was made for. It takes an epoch only of the writer with the
//!   highest fence it has ever seen for the volume, of one generation for each fence, and no number twice ([`Histories`]).
//! - What a sender holds in memory for a peer is bounded ([`SenderLimits`]); a peer that does not keep up is sent the difference to the
//!   newest epoch instead of each.
//!
//! What it is not: it has no socket, clock, file or random source; it does not say who the peer is (the shell's TLS does), and
//! does not look into ciphertext.

mod epoch;
mod error;
mod frame;
mod history;
mod message;
mod mutation;
mod receiver;
mod sender;

pub use epoch::{EpochKey, EpochName, Generation, NUMBER_MAX};
pub use error::{Halt, Reason, SessionError, Unreadable};
pub use frame::{FRAME_BYTES_MAX, FrameBuffer, PREFIX_BYTES, PROTOCOL_VERSION};
pub use history::{Histories, Verdict};
pub use message::{Kind, Manifest, VolumeKind};
pub use mutation::Mutation;
#[cfg(feature = "mutations")]
pub use mutation::break_rule;
pub use receiver::{Allowed, Local, Receiver, ReceiverEffect, ReceiverParams, Role};
pub use sender::{Epoch, Portion, Progress, Sender, SenderEffect, SenderLimits, State, kept_for_others};

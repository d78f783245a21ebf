//! How a node comes by a key and how long it may keep it: the lease protocol as sans-IO state machines.
//!
//! PROTOCOL.md in this crate is the specification; the code follows its names and its numbering.

pub mod envelope;

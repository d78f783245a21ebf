//! Looks for keys where they must not be: in the memory of a running process, from outside it.
//!
//! [`needles::Needles`] knows every form in which a secret has been seen to linger: as it is, byte-swapped, as
//! AES round keys of both directions, as powers of a hash key, xored with HMAC's pads; each cut into windows of eight bytes,
//! since a key that passed through registers turns up in halves. [`memory::scan`] reads another process's mappings, [`image::search`] a file
//! that holds memory, and each reports every window that it meets.
//!
//! Invariants:
//! - The scanner shares no code with what it checks: it expands keys with an AES and a POLYVAL of its own.
//! - It never runs on its own process, which of course holds the needles.
//! - What it could not read is secret memory and counted, or the scan fails.

pub mod at_exit;
pub mod core_file;
pub mod held;
pub mod hybrid;
pub mod image;
pub mod installation;
pub mod locked;
pub mod memory;
pub mod needles;
pub mod planted;
pub mod polyval;
pub mod recovery;
pub mod schedule;
pub mod tls;

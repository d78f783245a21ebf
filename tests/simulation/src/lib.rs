//! What a client was promised, as models that a recovered node is compared with.
//!
//! The same models and the same load judge two kinds of crash: power cuts on a simulated device inside this process, and
//! a killed node process behind its real heads.
//!
//! Invariants:
//! - A model knows the smallest promise: what was acknowledged and flushed must be there; what was acknowledged and
//!   not flushed, or never acknowledged, may be there or not, but nothing else may be.
//! - Every 512 bytes written say which write they came from and where they belong: lost, stale, torn, swapped and
//!   foreign blocks are told apart.

pub mod blocks;
pub mod life;
pub mod load;
pub mod node;
pub mod objects;
pub mod pattern;

//! locked-memory

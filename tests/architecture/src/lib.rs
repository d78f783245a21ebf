//! architecture-tests

//! security-tests

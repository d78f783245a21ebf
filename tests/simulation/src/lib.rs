//! simulation-tests

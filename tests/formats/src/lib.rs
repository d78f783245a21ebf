//! formats-tests

//! key-hierarchy

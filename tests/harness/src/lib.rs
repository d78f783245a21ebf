//! What the test suites share: a node and its keyholder as processes, real clients, randomness that replays, time slices.

pub mod random;
pub mod slice;

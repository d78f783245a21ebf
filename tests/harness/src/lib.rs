//! What the test suites share: a node and its keyholder as processes, real clients, randomness that replays, time slices.

pub mod client;
pub mod desk;
pub mod process;
pub mod random;
pub mod s3;
pub mod site;
pub mod slice;

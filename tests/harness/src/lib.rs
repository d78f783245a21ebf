//! What the test suites share: a node and its keyholder as processes, real clients and a real UPS daemon,
//! randomness that replays, time slices.

pub mod battery_clock;
pub mod bus;
pub mod client;
pub mod cluster;
pub mod desk;
pub mod hardware;
pub mod nut;
pub mod process;
pub mod random;
pub mod s3;
pub mod site;
pub mod sites;
pub mod slice;
pub mod tpm;

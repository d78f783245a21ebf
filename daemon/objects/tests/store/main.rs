//! The store as its heads use it, on a simulated volume.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod customer_keys;
mod full;
mod model;
mod opening;
mod operations;
mod power_cut;
mod sealed;
mod versions;
mod workload;

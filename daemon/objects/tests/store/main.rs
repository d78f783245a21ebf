//! The store as its heads use it, on a simulated volume.

#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking")]

mod customer_keys;
mod events;
mod full;
mod identities;
mod model;
mod named_keys;
mod opening;
mod operations;
mod power_cut;
mod sealed;
mod usage;
mod versions;
mod workload;

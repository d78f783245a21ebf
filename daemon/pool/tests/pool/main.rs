//! Pools against a reference model: what is written is what is read, through reopening, full devices, injected errors and
//! power cuts at every step of the crash order.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

mod bad_pages;
mod behaviour;
mod blocks;
mod changes;
mod epochs;
mod fairness;
mod fold;
mod golden;
mod heal;
mod history;
mod large;
mod memory;
mod model;
mod power_cuts;
mod refusals;
mod replica;
mod scrub;
mod snapshots;
mod soak;
mod threads;
mod timing;
mod transfer;
mod workload;

//! What makes several keyholders one: ledger and lease records in etcd, and who dials which node. CLUSTER.md has names, values and
//! rules.
//!
//! - [`kv`]: what is asked of the store: values that are read by prefix and written all or none, if nobody wrote them meanwhile.
//! - [`etcd`]: that store, by etcd's JSON gateway.
//! - [`wire`]: the values.
//! - [`shared`]: one keyholder's view of them: what it wrote, what others wrote, whether the store is still the one it was.
//! - [`links`]: which keyholder dials which node, and when another takes over; neither a socket nor a clock.
//! - [`run`]: the task that looks at the store again and again, and acts on what it finds.

pub(crate) mod etcd;
pub(crate) mod kv;
pub(crate) mod links;
pub(crate) mod run;
pub(crate) mod shared;
pub(crate) mod wire;

//! Whether clients are served, and what somebody should know: each by a code that stays the same.
//!
//! | code | what it means |
//! |---|---|
//! | `pool-failed` | nothing more is acknowledged |
//! | `sealed` | no key is held |
//! | `disk-read-only` | a pool's disk takes no writes any more |
//!
//! Notes have these codes, `worker-stalled`, `pool-moved`, and those of [`health::Code`].

use admin::{Readiness, Reason};

use crate::node::Node;

impl Node {
    /// Whether clients are served.
    pub(crate) fn readiness(&self) -> Readiness {
        let stalled = self.heartbeats.status().into_iter().filter(|worker| worker.stalled).map(|worker| {
            let advice = "look at the node's log and its disks, then restart the node";
            Reason::new(
                "worker-stalled",
                format!("{} has given no sign of life for long; {advice}", worker.name),
            )
        });
        let moved = self.pools.iter().filter_map(|open| {
            let (named, path, pool) = (open.misconfigured()?, open.path(), open.pool.info().id);
            let advice = format!("name {path} under `pools` in the node's configuration");
            Some(Reason::new(
                "pool-moved",
                format!("the pool {pool} is on {path}, not on {named} any more; {advice}"),
            ))
        });
        Readiness {
            refusal: self.refusal(),
            notes: self.health_watch.notes().into_iter().chain(stalled).chain(moved).collect(),
        }
    }

    fn refusal(&self) -> Option<Reason> {
        if let Some(open) = self.pools.iter().find(|open| open.pool.info().failed) {
            let text =
                format!("the pool {} has failed; check its device, then restart the node", open.path());
            return Some(Reason::new("pool-failed", text));
        }
        match self.seal_state().cause {
            Some(cause) => Some(Reason::new("sealed", format!("{cause}; push the key to serve again"))),
            None => self.health_watch.refusal(),
        }
    }
}

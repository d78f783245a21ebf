//! The keyholder and its nodes as each other's witnesses: the keyholder follows the chain of every node's trail and keeps its head in
//! the ledger; every node keeps the keyholder's head in its own trail. Whoever cuts or rewrites one of them has to do so on
//! every machine that it has talked to.

use std::sync::Arc;
use std::time::Duration;

use audit_log::{Digest, Head, SignedHead};
use identity::{ClientError, HttpsClient};
use tokio_util::sync::CancellationToken;
use units::NodeId;

use crate::book::Book;
use crate::error::KeyholderError;
use crate::keyholder::Keyholder;

/// How often heads are exchanged while a node is connected: what is cut off within this time of being written is not missed by
/// the other side.
const INTERVAL: Duration = Duration::from_secs(600);

/// Rounds in a row without a node's trail, while its sessions go on, after which that is said.
const MISSED_MAX: u32 = 3;

/// Why a node's trail is not the one that was followed so far.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeTrailError {
    #[error("its head is not signed by the node's key")]
    Unsigned,
    #[error("it ends with entry {end}, and entry {known} was seen before: its end was cut off")]
    Truncated { end: u64, known: u64 },
    #[error("it does not continue from entry {known} as that was seen: it was rewritten")]
    Forked { known: u64 },
}

/// Exchanges heads at once, and again and again until `stop`.
pub(crate) async fn exchange(keyholder: Arc<Keyholder>, node: NodeId, stop: CancellationToken) {
    let again_and_again = async {
        loop {
            let exchanged = once(&keyholder, node).await;
            if let Err(error) = &exchanged {
                // An older node has no such endpoint, and one that is gone is dialled again anyway.
                tracing::debug!(%node, %error, "heads of audit trails were not exchanged");
            }
            let noted = keyholder.book(|book| book.note_heads_exchanged(node, exchanged.as_ref().err()));
            if let Err(error) = noted {
                tracing::error!(%node, %error, "the audit trail lacks that this node keeps its own back");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    stop.run_until_cancelled(again_and_again).await;
}

async fn once(keyholder: &Arc<Keyholder>, node: NodeId) -> Result<(), KeyholderError> {
    let (client, name) = keyholder.node_client(node)?;
    let unreachable = |source: ClientError| KeyholderError::NodeUnreachable {
        name: name.clone(),
        source: Box::new(source),
    };
    let (pinned, known) = keyholder.book(|book| book.known_node_trail(node));
    if let Some(pinned) = pinned {
        let followed = follow(&client, pinned, known).await.map_err(unreachable)?;
        keyholder.book(|book| book.note_node_trail(node, followed))?;
    }
    let own = keyholder.book(|book| book.audit_head());
    let _: serde_json::Value = client.post("/v1/audit/witnessed", &own).await.map_err(unreachable)?;
    Ok(())
}

/// Follows the node's chain from what is known of it to its head.
async fn follow(
    client: &HttpsClient,
    pinned: [u8; 32],
    known: Option<Head>,
) -> Result<Result<Head, NodeTrailError>, ClientError> {
    let mut at = known;
    loop {
        let after = at.map_or(0, |head| head.seq);
        // The first time the node is believed: there is nothing to compare with.
        let count = if at.is_some() { audit_log::ENTRIES_MAX } else { 0 };
        let path = format!("/v1/audit/digests?after={after}&count={count}");
        let admin::api::AuditDigests { head: claimed, digests } = client.get(&path).await?;
        match step(at, pinned, &claimed, &digests) {
            Ok(head) if head == claimed.head => return Ok(Ok(head)),
            Ok(head) => at = Some(head),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Where the chain has come to; what is not the claimed head has more entries behind it.
fn step(
    at: Option<Head>,
    pinned: [u8; 32],
    claimed: &SignedHead,
    digests: &[Digest],
) -> Result<Head, NodeTrailError> {
    if claimed.key != hex::encode(pinned) || claimed.check_signature().is_err() {
        return Err(NodeTrailError::Unsigned);
    }
    let Some(at) = at else { return Ok(claimed.head) };
    let forked = Err(NodeTrailError::Forked { known: at.seq });
    if claimed.head.trail != at.trail {
        return forked;
    }
    if claimed.head.seq < at.seq {
        return Err(NodeTrailError::Truncated { end: claimed.head.seq, known: at.seq });
    }
    let reached = at.after(digests);
    match reached.seq.cmp(&claimed.head.seq) {
        std::cmp::Ordering::Equal if reached == claimed.head => Ok(reached),
        // Nothing came although there is more: what lay between is gone.
        std::cmp::Ordering::Less if !digests.is_empty() => Ok(reached),
        _ => forked,
    }
}

impl Book {
    /// The node's pinned key, and how far its trail had come when it was last followed.
    pub(crate) fn known_node_trail(&self, node: NodeId) -> (Option<[u8; 32]>, Option<Head>) {
        let Ok(registry) = self.registry() else { return (None, None) };
        let pinned = registry.node(node).and_then(|record| record.pinned);
        (pinned, self.node_trails.get(&node).copied())
    }

    /// Notes how far a node's trail has come, or that it is not the one it was, which is said once. The ledger remembers it from its
    /// next change on.
    pub(crate) fn note_node_trail(
        &mut self,
        node: NodeId,
        followed: Result<Head, NodeTrailError>,
    ) -> Result<(), KeyholderError> {
        if self.registry().ok().and_then(|registry| registry.node(node)).is_none() {
            // It was removed while its trail was followed.
            return Ok(());
        }
        match followed {
            Ok(head) if self.node_trails.get(&node) == Some(&head) => {
                self.node_trails_broken.remove(&node);
            }
            Ok(head) => {
                self.node_trails_broken.remove(&node);
                self.node_trails.insert(node, head);
                let fields = [
                    ("node", node.to_string().into()),
                    ("of_trail", head.trail.to_string().into()),
                    ("of_seq", head.seq.into()),
                    ("of_hash", head.hash.to_string().into()),
                ];
                self.audit.record("node-trail", fields)?;
            }
            Err(error) => {
                let kind = std::mem::discriminant(&error);
                if self.node_trails_broken.get(&node) == Some(&kind) {
                    return Ok(());
                }
                tracing::error!(
                    %node, %error,
                    "the node's audit trail does not hold; keep a copy, find out who changed it, and approve the node again if it \
                     was installed anew"
                );
                let fields = [("node", node.to_string().into()), ("why", error.to_string().into())];
                self.audit.record("node-trail-broken", fields)?;
                self.node_trails_broken.insert(node, kind);
            }
        }
        Ok(())
    }

    /// Notes whether heads could be exchanged in a session. A node whose trail was followed and that keeps it back for long is told of
    /// once: whoever cut a trail may leave it at that.
    pub(crate) fn note_heads_exchanged(
        &mut self,
        node: NodeId,
        error: Option<&KeyholderError>,
    ) -> Result<(), KeyholderError> {
        let Some(error) = error else {
            self.node_trails_missed.remove(&node);
            return Ok(());
        };
        if !self.node_trails.contains_key(&node) {
            return Ok(());
        }
        let missed = self.node_trails_missed.entry(node).or_default();
        *missed = missed.saturating_add(1);
        if *missed != MISSED_MAX {
            return Ok(());
        }
        tracing::error!(%node, %error, "the node's audit trail was followed before and cannot be had any more");
        let fields = [("node", node.to_string().into()), ("why", error.to_string().into())];
        self.audit.record("node-trail-unavailable", fields)?;
        Ok(())
    }

    /// How far the keyholder's own trail has come.
    pub(crate) fn audit_head(&self) -> Head {
        self.audit.head()
    }
}

#[cfg(test)]
mod tests {
    use audit_log::{Hash, TrailId, head_digest};

    use super::*;

    const SEED: [u8; 32] = [5; 32];
    const TRAIL: TrailId = TrailId([1; 16]);

    fn signed(head: Head) -> SignedHead {
        SignedHead {
            head,
            key: hex::encode(lease::public_key_of_seed(&SEED)),
            signature: hex::encode(lease::sign_with_seed(&SEED, &head_digest(head.hash))),
            since: 1,
            previous: Hash::BEGINNING,
            root_key: None,
            certificate: None,
        }
    }

    #[test]
    fn a_nodes_trail_that_was_cut_rewritten_or_exchanged_is_not_followed() {
        let key = lease::public_key_of_seed(&SEED);
        let begin = Head { trail: TRAIL, seq: 4, hash: Hash([4; 32]) };
        let digests = [Digest([1; 32]), Digest([2; 32])];
        let end = begin.after(&digests);
        assert_eq!(step(None, key, &signed(begin), &[]).unwrap(), begin, "believed the first time");
        assert_eq!(step(Some(begin), key, &signed(end), &digests).unwrap(), end);
        // In two portions.
        let middle = step(Some(begin), key, &signed(end), &digests[..1]).unwrap();
        assert_eq!(step(Some(middle), key, &signed(end), &digests[1..]).unwrap(), end);
        let truncated = step(Some(end), key, &signed(begin), &[]);
        assert!(matches!(truncated, Err(NodeTrailError::Truncated { end: 4, known: 6 })));
        let other = Head { hash: Hash([9; 32]), ..end };
        for (at, claimed, digests) in [
            (begin, other, digests.as_slice()),
            (end, other, &[]),
            (begin, end, &[]),
            (begin, Head { trail: TrailId([2; 16]), ..end }, &digests),
        ] {
            let forked = step(Some(at), key, &signed(claimed), digests);
            assert!(matches!(forked, Err(NodeTrailError::Forked { .. })), "{claimed:?}");
        }
        let unsigned = SignedHead { signature: "00".repeat(64), ..signed(end) };
        assert!(matches!(step(Some(begin), key, &unsigned, &digests), Err(NodeTrailError::Unsigned)));
        assert!(matches!(step(Some(begin), [0; 32], &signed(end), &digests), Err(NodeTrailError::Unsigned)));
    }
}

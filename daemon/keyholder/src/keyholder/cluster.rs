//! The keyholder beside others: the links to nodes that it has and takes, the root that it gives and asks for.

use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use ed25519_dalek::Signer;
use identity::{
    ChannelBinding, Endpoint, ExpectedPeer, HttpsClient, NodeKey, PeerIdentity, PeerName, Role,
    control_client,
};
use units::NodeId;

use super::Keyholder;
use crate::api::{ClusterStatus, Connection, KeyState, KeyholderStatus, MemberEntry};
use crate::cluster::links::{self, Links};
use crate::cluster::run::write_claim;
use crate::error::KeyholderError;
use crate::join::{JoinAnswer, JoinError, JoinRequest, Received, Verified};
use crate::store::StoreError;

/// A keyholder that is asked for the root answers within this, or another one is asked.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// This keyholder's identity key: it opens nothing, and says which machine asks for the root.
const IDENTITY_FILE: &str = "identity.key";

/// How often a link is claimed anew when another keyholder writes it at the same time.
const LINK_CLAIMS_MAX: usize = 4;

/// How long an act waits for a node whose link it took over from another keyholder.
const LINK_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the store between two requests for the root: some three seconds.
const LOOKS_PER_ASKING: u64 = 10;

impl Keyholder {
    /// Adds what there is to say beside others: who dials which node, and how the store stands.
    pub(super) fn with_cluster(&self, mut status: KeyholderStatus) -> KeyholderStatus {
        let (store, own) = self.book(|book| {
            let own = book.shared().map(|shared| shared.own().clone());
            (book.store_status(), own)
        });
        let (Some(links), Some(store), Some(own)) = (self.links_machine(), store, own) else { return status };
        for node in &mut status.nodes {
            node.keyholder = links.holder(node.node).map(str::to_owned);
            if !links.is_linked_here(node.node) {
                node.connection = Connection::Idle;
                // What runs by its record is in the hands of the keyholder that dials the node.
                let of_node = status.volumes.iter_mut().filter(|volume| volume.node == node.name);
                of_node
                    .filter(|volume| volume.key == KeyState::Unknown)
                    .for_each(|volume| volume.key = KeyState::Unlocked);
            }
        }
        let member = |entry: links::MemberEntry| MemberEntry {
            name: entry.name,
            address: entry.value.address,
            version: entry.value.version,
            alive: entry.lives,
            unsealed: entry.value.unsealed,
            nodes: entry.nodes,
        };
        let members = links.members(&own).into_iter().map(member).collect();
        let join = self.join_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let identity_key = hex::encode(self.identity.public());
        status.cluster = Some(ClusterStatus { store, members, identity_key, join });
        status
    }

    /// Gives the root to another keyholder that may have it.
    pub(crate) fn give_root(
        &self,
        request: &JoinRequest,
        peer: &PeerIdentity,
        binding: ChannelBinding,
    ) -> Result<JoinAnswer, KeyholderError> {
        let verified = Verified::read(request, peer.name.as_str(), &self.name, binding)?;
        self.book(|book| book.give_root(&verified))
    }

    /// Asks another keyholder for the root, where this one is without.
    pub(crate) async fn ask_for_root(
        self: &Arc<Self>,
        giver: &str,
        address: &Endpoint,
    ) -> Result<(), KeyholderError> {
        self.may_dial(address)?;
        let identity = self.identity.public();
        let Some(joiner) = self.book(|book| book.joiner(giver, identity))? else { return Ok(()) };
        let name: PeerName = giver.parse().map_err(|_| JoinError::Name("who is asked"))?;
        let tls = control_client(&self.credentials, &self.trust, ExpectedPeer::named(Role::Keyholder, name))
            .map_err(|source| KeyholderError::Identity {
                name: giver.to_owned(),
                source: Box::new(source),
            })?;
        let client = HttpsClient::new(address.clone(), tls).with_timeout(JOIN_TIMEOUT);
        let mut asked = None;
        let sign = |digest: &[u8; 32]| self.identity.signing_key().sign(digest).to_bytes();
        let answer = client.post_bound::<JoinAnswer, JoinRequest>("/v1/root", |binding| {
            let (state, request) = joiner.ask(binding, sign);
            asked = Some(state);
            request
        });
        let answer = answer.await;
        let received = || -> Result<Option<Received>, KeyholderError> {
            let answer = answer.map_err(|source| KeyholderError::NoRoot {
                name: giver.to_owned(),
                source: Box::new(source),
            })?;
            Ok(asked.map(|asked| asked.on_answer(&answer)).transpose()?)
        };
        let received = received().inspect_err(|_| self.blocking(|| self.vault.forget_join_key()))?;
        let Some(received) = received else { return Ok(()) };
        self.book(|book| book.take_root(&received, giver))?;
        tracing::warn!(from = giver, "this keyholder has the root from another one");
        self.after_unseal();
        Ok(())
    }

    /// Whether the last asking is long enough ago.
    pub(crate) fn is_time_to_ask(&self) -> bool {
        self.looks.borrow().is_multiple_of(LOOKS_PER_ASKING)
    }

    /// Notes why the root has not come from another keyholder.
    pub(crate) fn note_join_refusal(&self, refusal: Option<String>) {
        *self.join_refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// Who dials which node; `None` where this keyholder shares no store.
    pub(crate) fn links_machine(&self) -> Option<MutexGuard<'_, Links>> {
        let links = self.shared_links.as_ref()?;
        // Each change is one insertion; a panic leaves nothing half done.
        Some(links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The nodes that this keyholder dials.
    pub(crate) fn linked_nodes(&self) -> Vec<NodeId> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// The shared store was looked at.
    pub(crate) fn note_look(&self) {
        self.looks.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits until the store has been looked at again, from the beginning: what was written before this is then known. At once where
    /// no store is shared.
    pub(crate) async fn looked_again(&self) {
        if self.shared_links.is_none() {
            return;
        }
        let mut looks = self.looks.subscribe();
        // The first may have begun before.
        for _ in 0..2 {
            if looks.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes the link to a node here where another keyholder has it: what is to be done needs a session of this one's.
    pub(super) async fn bring_link(self: &Arc<Self>, node: NodeId) -> Result<(), KeyholderError> {
        for _ in 0..LINK_CLAIMS_MAX {
            let claim = match self.links_machine() {
                Some(links) if !links.is_linked_here(node) => links.claim(node),
                _ => return Ok(()),
            };
            match write_claim(self, claim) {
                Ok(()) => {
                    self.sync_links();
                    self.wait(LINK_TIMEOUT, |book| book.connection(node) == Connection::Connected).await;
                    return Ok(());
                }
                Err(KeyholderError::Store(StoreError::Changed)) => self.looked_again().await,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Changed.into())
    }
}

/// This keyholder's identity key, made with its first start.
pub(super) fn identity_key(state_dir: &Path) -> Result<NodeKey, KeyholderError> {
    let path = state_dir.join(IDENTITY_FILE);
    let key = if path.exists() { NodeKey::load(&path) } else { NodeKey::create(&path) };
    key.map_err(|source| KeyholderError::Identity {
        name: "this keyholder itself".to_owned(),
        source: Box::new(source),
    })
}

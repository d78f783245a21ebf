//! The task that looks at the shared store again and again: takes in what others wrote, says that this keyholder lives, and sees to it
//! that each node is dialled by somebody.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use units::NodeId;

use super::links::{self, Claim};
use crate::api::{Connection, SealState};
use crate::book::News;
use crate::clock;
use crate::error::KeyholderError;
use crate::keyholder::Keyholder;
use crate::link::Command;
use crate::store::StoreError;

/// Between two looks. With [`super::links::DEAD_BEATS`] it is how soon the nodes of a keyholder that died are dialled by another: in
/// some two seconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// Looks until `stop`, then hands over the nodes.
pub(crate) async fn run(keyholder: Arc<Keyholder>, stop: CancellationToken) {
    let again_and_again = async {
        let mut said = None;
        loop {
            let outcome = look(&keyholder).await;
            // Once for each kind of trouble, not for each look.
            let trouble = outcome.as_ref().err().map(|error| error.kind().0);
            if let Err(error) = &outcome
                && said != trouble
                && !matches!(error, KeyholderError::Store(StoreError::Changed | StoreError::Away { .. }))
            {
                tracing::warn!(%error, "the shared store was looked at in vain");
            }
            said = trouble;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(again_and_again).await;
    leave(&keyholder);
}

async fn look(keyholder: &Arc<Keyholder>) -> Result<(), KeyholderError> {
    let Some((kv, since)) = keyholder.book(|book| book.shared().map(|shared| shared.to_read())) else {
        return Ok(());
    };
    // Beside the book: a store that does not answer holds up nobody.
    let (taken, news) = match keyholder.blocking(|| kv.read(since)) {
        Ok(seen) => keyholder.book(|book| (book.take_in(since, seen), book.take_news())),
        Err(error) => {
            keyholder.book(|book| book.note_store_away(&error));
            return Ok(());
        }
    };
    with_links(keyholder, |links| links.observe(&news.items));
    if taken.is_err() {
        act_on(keyholder, &news);
        return taken;
    }
    let unsealed = keyholder.seal_state() == SealState::Unsealed;
    let beaten = keyholder.book(|book| book.beat());
    if beaten.is_ok() {
        with_links(keyholder, links::Links::on_beat);
    }
    if unsealed {
        claim_nodes(keyholder);
    }
    keyholder.sync_links();
    keyholder.note_look();
    act_on(keyholder, &news);
    if !unsealed {
        ask_around(keyholder).await;
    }
    beaten
}

/// Asks those who have the root for it, every now and then.
async fn ask_around(keyholder: &Arc<Keyholder>) {
    if !keyholder.is_time_to_ask() {
        return;
    }
    for (name, address) in with_links(keyholder, |links| links.givers()).unwrap_or_default() {
        let Ok(address) = address.parse() else { continue };
        match keyholder.ask_for_root(&name, &address).await {
            Ok(()) => return keyholder.note_join_refusal(None),
            Err(error) => {
                tracing::debug!(giver = name, %error, "no root from another keyholder");
                keyholder.note_join_refusal(Some(error.to_string()));
            }
        }
    }
}

fn with_links<T>(keyholder: &Keyholder, work: impl FnOnce(&mut links::Links) -> T) -> Option<T> {
    keyholder.links_machine().map(|mut links| work(&mut links))
}

fn claim_nodes(keyholder: &Keyholder) {
    let (nodes, reached) = keyholder.book(|book| {
        let nodes = book.node_ids();
        let connected = |node: &NodeId| book.connection(*node) == Connection::Connected;
        let reached: Vec<NodeId> = nodes.iter().copied().filter(connected).collect();
        (nodes, reached)
    });
    let now = clock::now();
    let claims = with_links(keyholder, |links| links.decide(&nodes, |node| reached.contains(&node), now));
    for claim in claims.unwrap_or_default() {
        // Somebody else was quicker, or the store is away: the next look shows it.
        let _ = write_claim(keyholder, claim);
    }
}

/// Writes a link, over what was last seen of it.
pub(crate) fn write_claim(keyholder: &Keyholder, claim: Claim) -> Result<(), KeyholderError> {
    keyholder.book(|book| book.put_link(claim.node, &claim.link))?;
    tracing::info!(node = %claim.node, holder = claim.link.holder, "the node is dialled by this keyholder from now on");
    with_links(keyholder, |links| links.on_claimed(claim));
    Ok(())
}

fn act_on(keyholder: &Arc<Keyholder>, news: &News) {
    let command = match (news.ledger, news.may_push) {
        (true, _) => Command::Review,
        (false, true) => Command::Push,
        (false, false) => return,
    };
    for node in keyholder.linked_nodes() {
        keyholder.nudge(node, command);
    }
}

/// This keyholder ends as planned: others need not wait until it falls silent.
fn leave(keyholder: &Arc<Keyholder>) {
    for node in keyholder.linked_nodes() {
        let claim = with_links(keyholder, |links| links.give_away(node)).flatten();
        if let Some(claim) = claim
            && write_claim(keyholder, claim).is_err()
        {
            break;
        }
    }
    if let Err(error) = keyholder.book(|book| book.say_farewell()) {
        tracing::debug!(%error, "the store has not heard of this keyholder's end");
    }
}

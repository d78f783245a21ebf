//! `nightlatch pool replace` and `pool status`: moving a pool to another device, and how far that is.

use std::time::Duration;

use admin::api::{PoolStatus, ReplaceAction, ReplaceState, Replacement};
use units::{ByteLen, PoolId};

use crate::commands::scrub::{self, ask_for};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms};

/// How often the node is asked while somebody looks on.
const ASKED_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn run(
    (pool, node): (PoolId, Option<&str>),
    action: &ReplaceAction,
    until_end: bool,
    connections: &Connections,
    output: Output,
) -> Done {
    let status = wait(async {
        let client = connections.node(node, Ask::Operate).await?;
        let mut status: PoolStatus = client.post(&format!("/v1/pools/{pool}/replace"), action).await?;
        if until_end {
            let bar = output.progress(status.used_bytes, "copying");
            // There is nothing to tell in the moment between its end and what is told of that.
            while status.replacement.as_ref().is_none_or(goes_on) {
                if let Some(replacement) = &status.replacement {
                    bar.set_length(replacement.total_bytes);
                    bar.set_position(replacement.copied_bytes);
                }
                tokio::time::sleep(ASKED_EVERY).await;
                status = ask_for(&client, pool).await?;
            }
            bar.finish_and_clear();
        }
        Done::Ok(status)
    })??;
    output.show(&status, || describe_pool(&status))?;
    match &status.replacement {
        Some(replacement) if until_end && replacement.state != ReplaceState::Done => Err(Failure::local(
            format!("the pool was not moved to {}", replacement.onto),
            "it is where it was, and serves; `nightlatch pool status` says what went wrong",
        )),
        _ => Ok(()),
    }
}

fn goes_on(replacement: &Replacement) -> bool {
    matches!(replacement.state, ReplaceState::Copying | ReplaceState::Finishing)
}

pub(crate) fn status(
    pool: Option<PoolId>,
    node: Option<&str>,
    connections: &Connections,
    output: Output,
) -> Done {
    let pools: Vec<PoolStatus> = wait(async {
        let client = connections.node(node, Ask::Read).await?;
        match pool {
            Some(pool) => Ok(vec![ask_for(&client, pool).await?]),
            None => Done::Ok(client.get("/v1/pools").await?),
        }
    })??;
    output.show(&pools, || pools.iter().map(describe_pool).collect::<Vec<_>>().join("\n"))
}

/// For people.
fn describe_pool(status: &PoolStatus) -> String {
    let state = if status.failed { "FAILED: check the device, then restart the node" } else { "good" };
    let mut text = format!(
        "Pool {} on {}: {}, {} of {} in use\n",
        status.pool,
        status.path,
        state,
        ByteLen(status.used_bytes),
        ByteLen(status.capacity_bytes)
    );
    if let Some(named) = &status.configured_path {
        text.push_str(&format!(
            "The configuration still names {named}: name {} under `pools` before the node is started again without it.\n",
            status.path
        ));
    }
    if let Some(replacement) = &status.replacement {
        text.push_str(&describe(replacement));
    }
    text.push_str(&scrub::describe(&status.scrub));
    text
}

fn describe(replacement: &Replacement) -> String {
    let Replacement { from, onto, copied_bytes, total_bytes, trouble, .. } = replacement;
    let so_far = format!("{} of {} copied", ByteLen(*copied_bytes), ByteLen(*total_bytes));
    let rate = match replacement.eta_s {
        Some(left) => {
            format!(", {} a second, {} left", ByteLen(replacement.bytes_per_second), duration_ms(left * 1000))
        }
        None => String::new(),
    };
    let mut text = match replacement.state {
        ReplaceState::Copying => format!("Moving to {onto}: {so_far}{rate}\n"),
        ReplaceState::Finishing => format!("Moving to {onto}: everything is copied\n"),
        ReplaceState::Done => format!("Moved from {from}, which is not needed any more\n"),
        ReplaceState::Cancelled => format!("The move to {onto} was given up\n"),
        ReplaceState::Failed => format!("The move to {onto} FAILED\n"),
    };
    match replacement.unreadable_sectors {
        0 => {}
        lost => text.push_str(&format!(
            "  {lost} sectors could not be read from {from}: scrub the pool to see whose they are\n"
        )),
    }
    if !trouble.is_empty() {
        text.push_str(&format!("  {trouble}\n"));
    }
    text
}

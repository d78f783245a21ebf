//! `nightlatch pool scrub`: orders it, shows how far it is, and what it found.

use std::time::Duration;

use admin::api::{DamagedSector, OrderScrub, PoolStatus, ScrubAction, ScrubPhase, ScrubStatus};
use identity::HttpsClient;
use units::{ByteLen, PoolId};

use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms, moment};

/// How often the node is asked while somebody looks on.
const ASKED_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn run(
    (pool, node): (PoolId, Option<&str>),
    action: Option<ScrubAction>,
    until_end: bool,
    connections: &Connections,
    output: Output,
) -> Done {
    let ask = if action.is_some() { Ask::Operate } else { Ask::Read };
    let status = wait(async {
        let client = connections.node(node, ask).await?;
        let before = ask_for(&client, pool).await?;
        let passes = before.scrub.passes;
        let mut status = match action {
            Some(action) => client.post(&format!("/v1/pools/{pool}/scrub"), &OrderScrub { action }).await?,
            None => before,
        };
        if until_end {
            let bar = output.progress(status.used_bytes, "scrubbing");
            // One that was ordered may not have begun yet.
            while status.scrub.pass.is_some() || (action.is_some() && status.scrub.passes == passes) {
                if status.scrub.stopped {
                    break;
                }
                tokio::time::sleep(ASKED_EVERY).await;
                status = ask_for(&client, pool).await?;
                if let Some(pass) = &status.scrub.pass {
                    let (done, total) = match pass.phase {
                        ScrubPhase::Checksums => (pass.bytes_done, pass.bytes_total),
                        ScrubPhase::Tags => (pass.bytes_verified, pass.bytes_total),
                    };
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            bar.finish_and_clear();
        }
        Done::Ok(status)
    })??;
    output.show(&status.scrub, || describe(&status.scrub))?;
    match &status.scrub.last {
        Some(last) if until_end && last.damaged_sectors > 0 => Err(Failure::local(
            format!("{} sectors are not what was written", last.damaged_sectors),
            "restore what the report names from a snapshot, a replica or a backup; writing a sector anew mends it",
        )),
        _ => Ok(()),
    }
}

pub(crate) async fn ask_for(client: &HttpsClient, pool: PoolId) -> Done<PoolStatus> {
    let pools: Vec<PoolStatus> = client.get("/v1/pools").await?;
    pools.into_iter().find(|status| status.pool == pool).ok_or_else(|| {
        Failure::usage(
            format!("there is no pool {pool} on this node"),
            "`nightlatch pool list` shows those there are",
        )
    })
}

/// For people.
pub(crate) fn describe(scrub: &ScrubStatus) -> String {
    let mut text = String::new();
    if let Some(pass) = &scrub.pass {
        let state = match (scrub.running, scrub.stopped) {
            (true, _) => "Scrubbing",
            (false, true) => "Stopped",
            (false, false) => "About to scrub",
        };
        let what = match pass.phase {
            ScrubPhase::Checksums => {
                format!("{} of at most {} compared", ByteLen(pass.bytes_done), ByteLen(pass.bytes_total))
            }
            ScrubPhase::Tags => format!("all compared, {} verified by key", ByteLen(pass.bytes_verified)),
        };
        let rate = match scrub.eta_s.filter(|_| scrub.running) {
            Some(left) => {
                format!(", {} a second, {} left", ByteLen(scrub.bytes_per_second), duration_ms(left * 1000))
            }
            None => String::new(),
        };
        let started = moment(pass.started_unix_s);
        text.push_str(&format!("{state} since {started}: {what}{rate}; {}\n", found(pass.damaged_sectors)));
        text.push_str(&damage(&pass.damaged));
    }
    match &scrub.last {
        Some(last) => {
            text.push_str(&format!(
                "The last pass ended {}: {} compared, {} of it verified by key; {}\n",
                moment(last.ended_unix_s),
                ByteLen(last.bytes_compared),
                ByteLen(last.bytes_verified),
                found(last.damaged_sectors)
            ));
            text.push_str(&damage(&last.damaged));
        }
        None => text.push_str("No pass has come to its end yet.\n"),
    }
    if let Some(next) = scrub.next_unix_s {
        text.push_str(&format!("The next begins {}.\n", moment(next)));
    }
    text
}

fn found(damaged: u64) -> String {
    match damaged {
        0 => "nothing is damaged".to_owned(),
        1 => "ONE SECTOR IS DAMAGED".to_owned(),
        many => format!("{many} SECTORS ARE DAMAGED"),
    }
}

fn damage(sectors: &[DamagedSector]) -> String {
    let line = |damaged: &DamagedSector| {
        let place =
            damaged.device_offset.map_or_else(String::new, |at| format!("at byte {at} of the device, "));
        let shown: Vec<String> = damaged
            .shown_by
            .iter()
            .map(|shown| format!("sector {} of {}", shown.sector, shown.volume))
            .collect();
        let shown = if shown.is_empty() { "shown by nobody any more".to_owned() } else { shown.join(", ") };
        format!("  {place}{shown}: {}\n", damaged.fault)
    };
    sectors.iter().map(line).collect()
}

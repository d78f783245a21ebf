//! `nightlatch volume rotate`: gives a volume's key a new epoch, and shows how far sealing it anew is.

use std::time::Duration;

use admin::api::{RekeyStatus, VolumeStatus};
use keyholder::api::VolumeEntry;
use serde::Serialize;
use units::ByteLen;

use crate::commands::volume::{entry_of, path};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, duration_ms};

/// How often is asked while somebody looks on.
const ASKED_EVERY: Duration = Duration::from_millis(500);

/// What both sides know of it.
#[derive(Debug, Serialize)]
struct Shown {
    volume: VolumeEntry,
    /// What its node says; `None` where it is not reached, or has one key of the volume only.
    rekey: Option<RekeyStatus>,
}

pub(crate) fn run(
    label: &str,
    (show_only, until_end): (bool, bool),
    connections: &Connections,
    output: Output,
) -> Done {
    let path = format!("{}/rotate", path(label)?);
    let entry: VolumeEntry = match show_only {
        true => entry_of(label, connections)?,
        false => wait(connections.keyholder(Ask::Operate)?.post(&path, &serde_json::json!({})))??,
    };
    let mut shown = look(entry, connections);
    if until_end {
        let bar = output.progress(0, "sealing anew");
        while shown.volume.rotation.is_some() {
            if let Some(rekey) = &shown.rekey {
                bar.set_length(rekey.bytes_left + rekey.bytes_moved);
                bar.set_position(rekey.bytes_moved);
                // What snapshots keep goes with them, and nobody knows when.
                if rekey.bytes_left == 0 && keepers(&shown).next().is_some() {
                    break;
                }
            }
            std::thread::sleep(ASKED_EVERY);
            shown = look(entry_of(label, connections)?, connections);
        }
        bar.finish_and_clear();
    }
    output.show(&shown, || describe(&shown))?;
    match shown.volume.rotation.as_ref().and_then(|rotation| rotation.refused.as_ref()) {
        Some(refused) if !show_only => Err(Failure::local(
            format!("the node goes on under the epoch before: {refused}"),
            "rotate again when that is mended: it is the same epoch that is offered then",
        )),
        _ => Ok(()),
    }
}

/// A node that cannot be asked is no reason not to say what the keyholder knows.
fn look(volume: VolumeEntry, connections: &Connections) -> Shown {
    let asked = wait(async {
        let node = connections.node(Some(&volume.node), Ask::Read).await?;
        let volumes: Vec<VolumeStatus> = node.get("/v1/volumes").await?;
        Done::Ok(volumes.into_iter().find(|there| there.volume == volume.volume))
    });
    let status = asked.ok().and_then(Result::ok).flatten();
    Shown { volume, rekey: status.and_then(|status| status.rekey) }
}

/// Snapshots, and volumes other than this, that keep an older epoch.
fn keepers(shown: &Shown) -> impl Iterator<Item = units::VolumeId> + '_ {
    let newest = shown.volume.epoch;
    let older = shown.rekey.iter().flat_map(|rekey| &rekey.epochs).filter(move |of| of.epoch < newest);
    older.flat_map(|of| of.shown_by.iter().copied()).filter(|by| *by != shown.volume.volume)
}

fn describe(shown: &Shown) -> String {
    let Shown { volume, rekey } = shown;
    let label = &volume.label;
    let Some(rotation) = &volume.rotation else {
        return format!(
            "{label} lies under epoch {} of its key, and nothing under an older one.",
            volume.epoch
        );
    };
    let mut lines = vec![match rotation.written {
        Some(written) if written == volume.epoch => {
            format!("{label} is written under epoch {written} of its key.")
        }
        Some(written) => format!(
            "{label} is still written under epoch {written}: its node takes epoch {} with its key.",
            volume.epoch
        ),
        None => format!("{label} has epoch {} of its key, and its node has not been heard.", volume.epoch),
    }];
    if let Some(rekey) = rekey {
        if rekey.bytes_left > 0 {
            let eta =
                rekey.eta_s.map(|eta| format!(", about {} more", duration_ms(eta.saturating_mul(1000))));
            lines.push(format!(
                "{} lie under older epochs and are sealed anew while it serves{}.",
                ByteLen(rekey.bytes_left),
                eta.unwrap_or_default()
            ));
        }
        if let Some(trouble) = &rekey.trouble {
            lines.push(format!("It does not go on: {trouble}."));
        }
        if rekey.damaged_sectors > 0 {
            lines.push(format!(
                "{} sectors are not what was written and keep their epoch: `nightlatch pool scrub` names them; write them anew.",
                rekey.damaged_sectors
            ));
        }
    }
    let keepers: std::collections::BTreeSet<String> = keepers(shown).map(|by| by.to_string()).collect();
    if !keepers.is_empty() {
        let keepers: Vec<String> = keepers.into_iter().collect();
        lines.push(format!(
            "These snapshots and volumes keep an older epoch, and its secret, until they are gone or sealed anew: {}.",
            keepers.join(", ")
        ));
    }
    let older: Vec<String> = rotation.older.iter().map(ToString::to_string).collect();
    lines.push(format!("The keyholder still has the secret of epoch {}.", older.join(", ")));
    lines.push(
        "The new secret is in the ledger: save the ledger with `nightlatch key backup FILE`.".to_owned(),
    );
    lines.join("\n")
}

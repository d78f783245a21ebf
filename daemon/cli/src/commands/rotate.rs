//! `nightlatch volume rotate`: gives a volume's key a new epoch, and shows how far sealing it anew is.

use std::time::Duration;

use admin::api::{RekeyStatus, VolumeStatus};
use keyholder::api::{Rotation, VolumeEntry};
use serde::Serialize;
use units::ByteLen;

use crate::commands::volume::{entry_of, path};
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, until};

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
        while !is_through(&shown) {
            if let Some(rekey) = &shown.rekey {
                bar.set_length(rekey.bytes_left.saturating_add(rekey.bytes_moved));
                bar.set_position(rekey.bytes_moved);
                bar.set_message(heading(rekey));
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
            "it is given again every minute, and at once with `nightlatch volume rotate`: it is the same epoch then",
        )),
        _ => Ok(()),
    }
}

/// Whether there is nothing left to wait for: all is under the newest epoch, the node does not take it, or what still keeps an older one
/// goes when somebody does something about it.
fn is_through(shown: &Shown) -> bool {
    let Some(rotation) = &shown.volume.rotation else { return true };
    if rotation.refused.is_some() && rotation.written != Some(shown.volume.epoch) {
        return true;
    }
    let Some(rekey) = &shown.rekey else { return false };
    let is_moved = rekey.bytes_left == 0 && !rekey.running && !rekey.epochs.is_empty();
    let only_damaged = !rekey.running && rekey.damaged_sectors > 0 && rekey.bytes_moved == 0;
    let is_kept = keepers(shown).next().is_some() || copies(rotation).next().is_some();
    rotation.written == Some(shown.volume.epoch) && ((is_moved && is_kept) || only_damaged)
}

/// What stands before the bar.
fn heading(rekey: &RekeyStatus) -> String {
    match (&rekey.trouble, rekey.eta_s) {
        (Some(_), _) => "waits, see --show".to_owned(),
        (None, Some(eta)) => format!("sealing anew, {} more", until(eta)),
        (None, None) => "sealing anew".to_owned(),
    }
}

/// Copies on other nodes that have not followed.
fn copies(rotation: &Rotation) -> impl Iterator<Item = &String> {
    rotation.waits_for.iter().filter(|waits| waits.contains(" on "))
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
            let eta = rekey.eta_s.map(|eta| format!(", about {} more", until(eta)));
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
    let copies: Vec<&str> = copies(rotation).map(String::as_str).collect();
    if !copies.is_empty() {
        lines.push(format!(
            "These copies on other nodes keep an older epoch until they have followed, or are deleted there: {}.",
            copies.join(", ")
        ));
    }
    let older: Vec<String> = rotation.older.iter().map(ToString::to_string).collect();
    lines.push(format!("The keyholder still has the secret of epoch {}.", older.join(", ")));
    lines.push(
        "What was exported to a bucket under it cannot be read once that is gone: export it anew before."
            .to_owned(),
    );
    lines.push(
        "The new secret is in the ledger: save the ledger with `nightlatch key backup FILE`.".to_owned(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use admin::api::EpochStatus;
    use units::{VolumeEpoch, VolumeId};

    use super::*;

    fn shown(rotation: serde_json::Value, rekey: Option<RekeyStatus>) -> Shown {
        let volume = serde_json::json!({
            "label": "db", "volume": "01".repeat(16), "domain": "02".repeat(16), "epoch": 2, "size_bytes": 8192,
            "kind": "block", "on_seal": "hold", "integrity": "tag", "node": "node-1", "fence": 1, "key": "unlocked",
            "rotation": rotation,
        });
        Shown { volume: serde_json::from_value(volume).unwrap(), rekey }
    }

    fn rekey(bytes_left: u64, kept_by: &[u8]) -> RekeyStatus {
        let shown_by = kept_by.iter().map(|id| VolumeId([*id; 16])).collect();
        RekeyStatus {
            running: bytes_left > 0,
            bytes_left,
            bytes_moved: 4096,
            bytes_per_second: 1,
            eta_s: Some(bytes_left),
            damaged_sectors: 0,
            trouble: None,
            epochs: vec![EpochStatus { epoch: VolumeEpoch(1), allocated_bytes: 1 << 20, shown_by }],
        }
    }

    fn rotation(waits_for: &[&str], written: u32, refused: Option<&str>) -> serde_json::Value {
        serde_json::json!({ "older": [1], "written": written, "waits_for": waits_for, "refused": refused })
    }

    #[test]
    fn it_waits_for_what_comes_by_itself_and_for_nothing_else() {
        let through = |rotation, rekey| is_through(&shown(rotation, rekey));
        assert!(through(serde_json::Value::Null, None), "nothing under an older epoch");
        assert!(!through(rotation(&["db"], 2, None), None), "its node is not reached");
        assert!(!through(rotation(&["db"], 2, None), Some(rekey(8192, &[9]))), "it is being moved");
        assert!(!through(rotation(&["db"], 2, None), Some(rekey(0, &[1]))), "the node's word is on its way");
        assert!(through(rotation(&["db"], 2, None), Some(rekey(0, &[9]))), "a snapshot keeps it");
        assert!(through(rotation(&["db on node-2"], 2, None), Some(rekey(0, &[]))), "a replica keeps it");
        assert!(through(rotation(&["db"], 1, Some("no room")), None), "the node does not take it");
    }

    #[test]
    fn what_keeps_an_older_epoch_is_named() {
        let text = describe(&shown(rotation(&["db on node-2"], 2, None), Some(rekey(0, &[9]))));
        assert!(text.contains(&"09".repeat(16)) && text.contains("db on node-2"), "{text}");
        assert!(!text.contains(&"01".repeat(16)), "{text}");
        let text = describe(&shown(rotation(&["db"], 1, None), Some(rekey(8192, &[]))));
        assert!(text.contains("still written under epoch 1") && text.contains("2 h more"), "{text}");
        assert_eq!(heading(&rekey(180, &[])), "sealing anew, 3 min more");
    }
}

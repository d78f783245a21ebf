//! `nightlatch snapshot schedule` and `lock`: what the node takes, keeps and deletes by itself, and what nobody deletes.

use admin::api::{Done as NodeDone, LockSnapshot, ScheduleStatus, SnapshotSchedule, SnapshotStatus};
use identity::HttpsClient;
use keyholder::api::VolumeEntry;
use units::VolumeId;

use crate::args::{SnapshotScheduleArgs, Span};
use crate::commands::volume::entry_of;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, moment, table, until};

/// Locks a snapshot.
pub(crate) fn lock(
    snapshot: VolumeId,
    Span(for_s): Span,
    node: Option<&str>,
    connections: &Connections,
    output: Output,
) -> Done {
    let locked: SnapshotStatus = wait(async {
        let node = connections.node(node, Ask::Operate).await?;
        Done::Ok(node.post(&format!("/v1/snapshots/{snapshot}/lock"), &LockSnapshot { for_s }).await?)
    })??;
    output.show(&locked, || format!("Nobody deletes {snapshot} within the next {}.", until(for_s)))
}

/// Shows, sets, removes or acknowledges.
pub(crate) fn run(arguments: &SnapshotScheduleArgs, connections: &Connections, output: Output) -> Done {
    let SnapshotScheduleArgs { volume, every, keep, lock, alert_rewritten, remove, acknowledge, node } =
        arguments;
    let node = node.node.as_deref();
    let schedule = every.zip(*keep).map(|(Span(every_s), keep)| SnapshotSchedule {
        every_s,
        keep,
        lock_s: lock.map_or(0, |Span(lock_s)| lock_s),
        alert_rewritten_percent: *alert_rewritten,
    });
    let changes = schedule.is_some() || *remove || *acknowledge;
    let Some(volume) = volume else {
        return if changes {
            Err(Failure::usage("no volume is named", "give its name or its id"))
        } else {
            show(&all(None, node, connections)?, output)
        };
    };
    // An id needs no keyholder, which may be out of reach.
    let (id, node) = match volume.parse::<VolumeId>() {
        Ok(id) => (id, node.map(str::to_owned)),
        Err(_) => {
            let VolumeEntry { volume, node: of_volume, .. } = entry_of(volume, connections)?;
            (volume, Some(node.map_or(of_volume, str::to_owned)))
        }
    };
    if !changes {
        return show(&all(Some(id), node.as_deref(), connections)?, output);
    }
    let client: HttpsClient = wait(connections.node(node.as_deref(), Ask::Operate))??;
    let path = format!("/v1/volumes/{id}/schedule");
    if *remove {
        let done: NodeDone = wait(client.delete(&path))??;
        return output
            .show(&done, || format!("No more snapshots of {volume} by schedule; those there are stay."));
    }
    let status: ScheduleStatus = match schedule {
        Some(schedule) => wait(client.post(&path, &schedule))??,
        None => wait(client.post(&format!("{path}/acknowledge"), &serde_json::json!({})))??,
    };
    show(&[status], output)
}

fn all(volume: Option<VolumeId>, node: Option<&str>, connections: &Connections) -> Done<Vec<ScheduleStatus>> {
    let mut schedules: Vec<ScheduleStatus> =
        wait(async { Done::Ok(connections.node(node, Ask::Read).await?.get("/v1/schedules").await?) })??;
    schedules.retain(|schedule| volume.is_none_or(|volume| schedule.volume == volume));
    Ok(schedules)
}

fn show(schedules: &[ScheduleStatus], output: Output) -> Done {
    output.show(&schedules, || {
        let rows: Vec<_> = schedules
            .iter()
            .map(|status| {
                let SnapshotSchedule { every_s, keep, lock_s, .. } = status.schedule;
                vec![
                    status.volume.to_string(),
                    until(every_s),
                    format!("{} of {keep}", status.snapshots.len()),
                    if lock_s == 0 { "not".to_owned() } else { until(lock_s) },
                    status.last_unix_s.map_or_else(|| "none yet".to_owned(), moment),
                    format!("in {}", until(status.next_in_s)),
                    status.rewritten_percent.map_or_else(String::new, |percent| format!("{percent} %")),
                ]
            })
            .collect();
        let mut text = table(
            &["VOLUME", "EVERY", "KEPT", "LOCKED FOR", "LAST", "NEXT", "REWRITTEN"],
            &rows,
            "no snapshot schedules yet: set one with `nightlatch snapshot schedule VOLUME --every 1h --keep 24`",
        );
        schedules.iter().for_each(|status| text.push_str(&troubles(status)));
        text
    })
}

/// What of a schedule somebody should look at; nothing where all is well.
pub(crate) fn troubles(status: &ScheduleStatus) -> String {
    let volume = status.volume;
    let mut text = String::new();
    if let Some(anomaly) = &status.anomaly {
        text.push_str(&format!(
            "  UNUSUAL: {} % of {volume} was rewritten between the snapshots {} and {}, noticed {}. The first is the last good \
             one; nothing is pruned until `nightlatch snapshot schedule {volume} --acknowledge`\n",
            anomaly.percent,
            anomaly.before,
            anomaly.snapshot,
            moment(anomaly.at_unix_s)
        ));
    }
    if let Some(trouble) = &status.trouble {
        text.push_str(&format!("  the snapshot schedule of {volume} FAILS: {trouble}\n"));
    }
    text
}

//! `nightlatch pool heal`: what one node has lost and another has, sector by sector.

use admin::api::{FindSector, Healed, WantedSector};
use bytes::Bytes;
use identity::{ClientError, HttpsClient};
use serde::Serialize;
use units::PoolId;

use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::output::Output;

/// What became of the damaged sectors.
#[derive(Debug, Default, Serialize)]
struct Report {
    healed: Vec<u64>,
    /// The other node has nothing that fits their records.
    not_found: Vec<u64>,
    /// They were written meanwhile, or the disk does not take them.
    not_taken: Vec<u64>,
}

pub(crate) fn run(
    pool: PoolId,
    (from, node): (&str, Option<&str>),
    connections: &Connections,
    output: Output,
) -> Done {
    let report = wait(async {
        let target = connections.node(node, Ask::Operate).await?;
        let source = connections.node(Some(from), Ask::Operate).await?;
        let wanted: Vec<WantedSector> = target.get(&format!("/v1/pools/{pool}/wanted")).await?;
        let bar = output.progress(wanted.len() as u64 * 4096, "healing");
        let mut report = Report::default();
        for sector in wanted {
            bar.inc(4096);
            let at = sector.device_offset;
            let Some(ciphertext) = find(&source, &sector).await? else {
                report.not_found.push(at);
                continue;
            };
            let healed: Healed =
                target.post_bytes(&format!("/v1/pools/{pool}/heal/{at}"), ciphertext).await?;
            if healed.healed { report.healed.push(at) } else { report.not_taken.push(at) }
        }
        bar.finish_and_clear();
        Done::Ok(report)
    })??;
    output.show(&report, || {
        let lines = [
            (&report.not_found, "is not what it should be there either, or is not there any more"),
            (&report.not_taken, "was written meanwhile, or the disk does not take it"),
        ];
        let told = lines.into_iter().flat_map(|(offsets, what)| {
            offsets.iter().map(move |at| format!("  at byte {at} of the device: {what}\n"))
        });
        format!("Healed {} sectors.\n{}", report.healed.len(), told.collect::<String>())
    })?;
    let left = report.not_found.len() + report.not_taken.len();
    match left {
        0 => Ok(()),
        left => Err(Failure::new(
            Exit::Refused,
            "not-healed",
            format!("{left} sectors are still damaged, or were written meanwhile"),
            "scrub again; what is still named, restore from a backup, or write anew",
        )),
    }
}

/// The sector's ciphertext, from whichever of the volumes that show it the other node has.
async fn find(source: &HttpsClient, wanted: &WantedSector) -> Done<Option<Bytes>> {
    for shown in &wanted.volumes {
        let request =
            FindSector { volume: shown.volume, sector: shown.sector, record: wanted.record.clone() };
        match source.post_for_bytes("/v1/sectors/find", &request).await {
            Ok(ciphertext) => return Ok(Some(ciphertext)),
            Err(ClientError::Refused { problem, .. }) if problem.kind == "not-found" => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

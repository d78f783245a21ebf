//! `nightlatch key drill`: proves that shares, a ledger backup and a copy of a disk give the data back.
//!
//! A keyholder and a node of this machine's loopback addresses are made of nothing but those three, as after the loss of
//! everything else; then every volume on the disk is opened and read by real clients, and file systems are checked. The disk may be
//! one that is made here of what a backup site sends (`pull.rs`).
//!
//! Invariants:
//! - Nothing of the real installation is reached: the drill's keyholder dials loopback addresses only, and its
//!   certificates are of an authority that is thrown away.
//! - Shares are decrypted here, by their officers' keys, and go to the drill's keyholder alone.
//! - The disk is written to (fences rise, a user is made), so it must be a copy; one that a node uses is refused by its lock.
//! - A volume that does not open is part of the report, not the end of the drill.

mod file_system;
mod metrics;
mod pull;
mod read;
mod rules;
mod site;

use keyholder::api::{DrillReport, KeyholderStatus};

use crate::args::KeyDrill;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Exit, Failure};
use crate::loopback::{self, processes};
use crate::output::Output;
use site::Site;

/// Runs the drill to its end. Its outcome is told to the keyholder that `connections` leads to, unless that is not wanted.
pub(crate) fn run(
    arguments: &KeyDrill,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    if !arguments.disks.is_empty() {
        output.confirm(
            arguments.yes,
            "The drill writes to the disks it is given. Are they copies that nothing else will use afterwards?",
        )?;
    }
    // Before the work: whoever wants the outcome noted wants to know now that it can't be.
    let needed = !arguments.no_report || arguments.from_node.is_some();
    let connections = needed.then(connections).transpose()?;
    let keyholder = match &connections {
        Some(connections) if !arguments.no_report => Some(connections.keyholder(Ask::Either)?),
        _ => None,
    };
    loopback::run(async |stopped| {
        processes::check_programs()?;
        let mut site = Site::new(arguments)?;
        let result = tokio::select! {
            result = drill(&mut site, arguments, connections.as_ref(), output) => result,
            () = stopped => Err(Failure::local("the drill was stopped", "start it again; nothing is kept")),
        };
        site.end().await;
        let report = result?;
        if let Some(keyholder) = keyholder {
            let _: KeyholderStatus = keyholder
                .post("/v1/drills", &report)
                .await
                .map_err(|error| Failure::from(error).during("noting the drill at the keyholder"))?;
        }
        if let Some(path) = &arguments.metrics {
            metrics::write(path, &report)?;
        }
        output.show(&report, || describe(&report))?;
        if report.passed() {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Refused,
            "drill",
            "not every volume could be read",
            "the reasons stand beside the volumes; keep the real shares, backups and disks until a drill passes",
        ))
    })
}

async fn drill(
    site: &mut Site,
    arguments: &KeyDrill,
    connections: Option<&Connections>,
    output: Output,
) -> Done<DrillReport> {
    let mut disks = arguments.disks.clone();
    if let (Some(from), Some(connections)) = (&arguments.from_node, connections) {
        output.note(&format!("Taking the newest snapshots of {from}, as ciphertext."));
        let node = connections.node(Some(from), Ask::Operate).await?;
        disks.push(pull::pull(&node, site.dir(), output).await?);
    }
    site.start_keyholder(arguments, output).await?;
    let officers = site.unseal(arguments, output).await?;
    site.lift_policy().await?;
    let node = site.find_node(arguments.node.as_deref()).await?;
    site.start_node(&node, &disks, output).await?;
    let serial = site.ledger_serial().await?;
    let opened = site.push(&node, output).await?;
    let mut volumes = Vec::new();
    for volume in opened {
        volumes.push(read::volume(site, volume, arguments.quick, output).await?);
    }
    Ok(DrillReport { ledger_serial: serial, officers, node: node.name, volumes })
}

fn describe(report: &DrillReport) -> String {
    let mut text = format!(
        "{}: node {}, ledger serial {}, shares of {}\n",
        if report.passed() { "The drill passed" } else { "THE DRILL FAILED" },
        report.node,
        report.ledger_serial,
        report.officers.join(", ")
    );
    for volume in &report.volumes {
        let objects = volume.objects_read.map(|count| format!(" in {count} objects")).unwrap_or_default();
        let file_system = volume.file_system.as_ref().map(|found| format!("; {found}")).unwrap_or_default();
        let outcome = match &volume.error {
            None => format!("{} read{objects}{file_system}", units::ByteLen(volume.bytes_read)),
            Some(error) => format!("FAILED: {error}"),
        };
        text.push_str(&format!("  {}: {outcome}\n", volume.label));
    }
    text
}

//! `nightlatch pool`: pools on this machine's disks and files, and the pools of a running node.

use std::path::Path;
use std::sync::Arc;

use admin::api::{PoolCheck, PoolProblem, PoolStatus, ReplaceAction, ScrubAction};
use device::{Device, FileDevice, OpenOptions};
use pool::{CreateOptions, Pool, PoolInfo, VolumeInfo};
use units::{ByteLen, PoolId, SectorCount};

use crate::args::PoolCommand;
use crate::commands::wait;
use crate::commands::{heal, replace, scrub};
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, table};

pub(crate) fn run(
    command: &PoolCommand,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        PoolCommand::Create { path, size, extent, force, destroy_locked_snapshots } => {
            create(path, *size, *extent, (*force, *destroy_locked_snapshots), output)
        }
        PoolCommand::Check { path: Some(path), .. } => check(&device_report(path)?, output),
        PoolCommand::Check { path: None, pool: Some(pool), node } => {
            let connections = connections()?;
            let report = wait(async {
                let node = connections.node(node.node.as_deref(), Ask::Operate).await?;
                Done::Ok(node.get(&format!("/v1/pools/{pool}/check")).await?)
            })??;
            check(&report, output)
        }
        PoolCommand::Check { path: None, pool: None, .. } => {
            Err(Failure::usage("no pool is named", "give its disk or file, or --pool ID of a running node"))
        }
        PoolCommand::Repair { path, replacement_lost } => repair(path, *replacement_lost, output),
        PoolCommand::Status { pool, node } => {
            replace::status(*pool, node.node.as_deref(), &connections()?, output)
        }
        PoolCommand::Replace { pool, device, rate, force, cancel: _, wait, node } => {
            let action = match device {
                Some(device) => ReplaceAction::Start {
                    device: device.display().to_string(),
                    bytes_per_second: rate.map(|rate| rate.0),
                    force: *force,
                },
                None => ReplaceAction::Cancel,
            };
            replace::run((*pool, node.node.as_deref()), &action, *wait, &connections()?, output)
        }
        PoolCommand::Scrub { pool, start, stop, restart, wait, node } => {
            let actions =
                [(*start, ScrubAction::Start), (*stop, ScrubAction::Stop), (*restart, ScrubAction::Restart)];
            let action = actions.into_iter().find_map(|(given, action)| given.then_some(action));
            scrub::run((*pool, node.node.as_deref()), action, *wait, &connections()?, output)
        }
        PoolCommand::Heal { pool, from, node } => {
            heal::run(*pool, (from, node.node.as_deref()), &connections()?, output)
        }
        PoolCommand::List(node) => list(node.node.as_deref(), &connections()?, output),
        PoolCommand::Grow { device: Some(device), .. } => grow_device(device, output),
        PoolCommand::Grow { pool: Some(pool), node, .. } => {
            grow_online(*pool, node.node.as_deref(), &connections()?, output)
        }
        PoolCommand::Grow { pool: None, device: None, .. } => {
            Err(Failure::usage("no pool is named", "give its id, or --device PATH with the node stopped"))
        }
    }
}

fn open(path: &Path) -> Done<Arc<dyn Device>> {
    Ok(Arc::new(FileDevice::open(path, OpenOptions::default())?))
}

fn create(
    path: &Path,
    size: Option<ByteLen>,
    extent: ByteLen,
    (force, destroy_locked): (bool, bool),
    output: Output,
) -> Done {
    let open = OpenOptions { create_len: size, behind_loop: force, ..OpenOptions::default() };
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(path, open)?);
    let options = CreateOptions { extent_len: extent, force, destroy_locked, ..CreateOptions::default() };
    let pool = Pool::create(device, options)?;
    show(&pool.info(), &[], output, "Made a pool")
}

fn device_report(path: &Path) -> Done<PoolCheck> {
    let report = Pool::check_device(&*open(path)?)?;
    let problem = |problem: &pool::Problem| PoolProblem {
        what: problem.damage.to_string(),
        device_offset: problem.at.0,
    };
    Ok(PoolCheck {
        pool: report.pool,
        sound: report.is_sound(),
        volumes: report.volumes,
        snapshots: report.snapshots,
        mapped_extents: report.mapped_extents,
        present_sectors: report.present_sectors,
        unfinished_unmaps: report.unfinished_unmaps,
        damaged_superblock: report.damaged_superblock.map(|copy| copy.sector),
        problems: report.problems.iter().map(problem).collect(),
        problems_unlisted: report.problems_unlisted,
    })
}

/// Shows what a check has found, and fails where something is wrong that opening does not mend.
fn check(report: &PoolCheck, output: Output) -> Done {
    output.show(report, || {
        let mut text = format!(
            "{} {}: {} volumes, {} snapshots, {} in {} extents\n",
            if report.sound { "Sound: the pool" } else { "DAMAGED: the pool" },
            report.pool,
            report.volumes,
            report.snapshots,
            SectorCount(report.present_sectors).byte_len().unwrap_or_default(),
            report.mapped_extents
        );
        if let Some(sector) = report.damaged_superblock {
            text.push_str(&format!(
                "  the copy of the superblock at sector {sector} is damaged: opening the pool writes it again from the other; \
                 check the device's health\n"
            ));
        }
        if report.unfinished_unmaps > 0 {
            text.push_str(&format!(
                "  {} extents are left over from a shrinking that was cut: opening the pool frees them\n",
                report.unfinished_unmaps
            ));
        }
        for problem in &report.problems {
            text.push_str(&format!("  at byte {} of the device: {}\n", problem.device_offset, problem.what));
        }
        if report.problems_unlisted > 0 {
            text.push_str(&format!("  and {} more\n", report.problems_unlisted));
        }
        text
    })?;
    if report.sound {
        return Ok(());
    }
    Err(Failure::local(
        "the pool's metadata is damaged",
        "keep an image of the device, check its health (kernel log, smartctl), and recover the volumes from the replica",
    ))
}

/// Opening mends what can be mended; where the check finds more, nothing is opened.
fn repair(path: &Path, replacement_lost: bool, output: Output) -> Done {
    let kept = replacement_lost && Pool::keep_on(&*open(path)?)?;
    let report = device_report(path)?;
    if !report.sound {
        return check(&report, output);
    }
    let pool = Pool::open(open(path)?)?;
    pool.flush()?;
    let mended = match (report.damaged_superblock, report.unfinished_unmaps) {
        _ if kept => "The pool stays here",
        (None, 0) => "There was nothing to mend",
        _ => "Mended",
    };
    show(&pool.info(), &pool.volumes(), output, mended)
}

fn grow_device(path: &Path, output: Output) -> Done {
    let pool = Pool::open(open(path)?)?;
    pool.grow()?;
    show(&pool.info(), &[], output, "The pool uses the whole device")
}

fn show(info: &PoolInfo, volumes: &[VolumeInfo], output: Output, headline: &str) -> Done {
    let volume = |volume: &VolumeInfo| {
        serde_json::json!({
            "volume": volume.id,
            "size_bytes": volume.sectors.byte_len(),
            "allocated_bytes": volume.allocated,
            "kind": match volume.kind {
                pool::VolumeKind::Block => "block",
                pool::VolumeKind::Objects => "objects",
            },
            "fence": volume.fence,
        })
    };
    let document = serde_json::json!({
        "pool": info.id,
        "path": info.device.path,
        "format_version": info.format_version,
        "device_bytes": info.device.len,
        "capacity_bytes": info.capacity,
        "allocated_bytes": info.allocated,
        "extent_bytes": info.extent_len,
        "direct": info.device.direct,
        "keeps_records": info.keeps_records,
        "volumes": volumes.iter().map(volume).collect::<Vec<_>>(),
        "repaired_sector": info.repaired.as_ref().map(|repaired| repaired.sector),
    });
    output.show(&document, || {
        let mut text = format!(
            "{headline}: {} on {}, format {}, {} for volumes, {} in use by {}\n",
            info.id,
            info.device.path,
            info.format_version,
            info.capacity,
            info.allocated,
            match info.volumes {
                1 => "1 volume".to_owned(),
                count => format!("{count} volumes"),
            }
        );
        for volume in volumes {
            let size = volume.sectors.byte_len().unwrap_or_default();
            text.push_str(&format!("  volume {}: {size}, {} in use\n", volume.id, volume.allocated));
        }
        text
    })
}

fn list(node: Option<&str>, connections: &Connections, output: Output) -> Done {
    let pools: Vec<PoolStatus> =
        wait(async { Done::Ok(connections.node(node, Ask::Read).await?.get("/v1/pools").await?) })??;
    output.show(&pools, || {
        let rows: Vec<_> = pools
            .iter()
            .map(|pool| {
                vec![
                    pool.pool.to_string(),
                    pool.path.clone(),
                    ByteLen(pool.used_bytes).to_string(),
                    ByteLen(pool.capacity_bytes).to_string(),
                    if pool.keeps_records { "kept" } else { "none" }.to_owned(),
                    match (pool.failed, pool.damaged_sectors) {
                        (true, _) => "FAILED".to_owned(),
                        (false, 0) => "good".to_owned(),
                        (false, damaged) => format!("DAMAGED ({damaged})"),
                    },
                ]
            })
            .collect();
        table(&["POOL", "DEVICE", "USED", "CAPACITY", "RECORDS", "STATE"], &rows, "the node has no pools")
    })
}

fn grow_online(pool: PoolId, node: Option<&str>, connections: &Connections, output: Output) -> Done {
    let client = wait(connections.node(node, Ask::Operate))??;
    let status: PoolStatus = wait(client.post(&format!("/v1/pools/{pool}/grow"), &serde_json::json!({})))??;
    output.show(&status, || format!("The pool holds {} now.", ByteLen(status.capacity_bytes)))
}

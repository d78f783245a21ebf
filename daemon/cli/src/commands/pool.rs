//! `nightlatch pool`: pools on this machine's disks and files, and the pools of a running node.

use std::path::Path;
use std::sync::Arc;

use admin::api::{PoolStatus, ScrubAction};
use device::{Device, FileDevice, OpenOptions};
use pool::{CreateOptions, Pool, PoolInfo, VolumeInfo};
use units::{ByteLen, PoolId};

use crate::args::PoolCommand;
use crate::commands::scrub;
use crate::commands::wait;
use crate::connect::{Ask, Connections};
use crate::failure::{Done, Failure};
use crate::output::{Output, table};

pub(crate) fn run(
    command: &PoolCommand,
    connections: impl FnOnce() -> Done<Connections>,
    output: Output,
) -> Done {
    match command {
        PoolCommand::Create { path, size, extent, force } => create(path, *size, *extent, *force, output),
        PoolCommand::Check { path } => check(path, output),
        PoolCommand::Scrub { pool, start, stop, restart, wait, node } => {
            let actions =
                [(*start, ScrubAction::Start), (*stop, ScrubAction::Stop), (*restart, ScrubAction::Restart)];
            let action = actions.into_iter().find_map(|(given, action)| given.then_some(action));
            scrub::run((*pool, node.node.as_deref()), action, *wait, &connections()?, output)
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

fn create(path: &Path, size: Option<ByteLen>, extent: ByteLen, force: bool, output: Output) -> Done {
    let device: Arc<dyn Device> =
        Arc::new(FileDevice::open(path, OpenOptions { create_len: size, ..OpenOptions::default() })?);
    let options = CreateOptions { extent_len: extent, force, ..CreateOptions::default() };
    let pool = Pool::create(device, options)?;
    show(&pool.info(), &[], output, "Made a pool")
}

fn check(path: &Path, output: Output) -> Done {
    let pool = Pool::open(open(path)?)?;
    let info = pool.info();
    if let Some(repaired) = &info.repaired {
        output.note(&format!(
            "the superblock copy at sector {} was damaged ({}) and has been written again; check the device's health",
            repaired.sector, repaired.fault
        ));
    }
    show(&info, &pool.volumes(), output, "The pool is sound")
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

//! `nightlatch key create` and `key list`: named keys, which are volumes that hold nothing but their key.

use keyholder::api::{CreateVolume, OnSeal, VolumeEntry, VolumeIntegrity, VolumeKind, VolumeLimits};
use lease::limits::NAMED_KEY_BYTES;
use units::PoolId;

use crate::args::NodeArg;
use crate::commands::{volume, wait};
use crate::connect::{Ask, Connections};
use crate::failure::Done;
use crate::output::{Output, duration_ms, table};

pub(crate) fn create(
    name: &str,
    (node, pool): (&NodeArg, Option<PoolId>),
    connections: &Connections,
    output: Output,
) -> Done {
    let node = match &node.node {
        Some(node) => node.clone(),
        None => wait(connections.find_node(None))??.name,
    };
    let request = CreateVolume {
        label: name.to_owned(),
        node,
        pool,
        kind: VolumeKind::Objects,
        size_bytes: NAMED_KEY_BYTES,
        on_seal: OnSeal::Hold,
        integrity: VolumeIntegrity::Tag,
        limits: VolumeLimits::default(),
    };
    volume::create(&request, connections, output)
}

fn is_named_key(volume: &VolumeEntry) -> bool {
    volume.kind == VolumeKind::Objects && volume.size_bytes == NAMED_KEY_BYTES
}

pub(crate) fn list(connections: &Connections, output: Output) -> Done {
    let volumes: Vec<VolumeEntry> = wait(connections.keyholder(Ask::Read)?.get("/v1/volumes"))??;
    let keys: Vec<_> = volumes.into_iter().filter(is_named_key).collect();
    output.show(&keys, || {
        let rows: Vec<_> = keys
            .iter()
            .map(|key| {
                vec![
                    key.label.clone(),
                    key.node.clone(),
                    volume::key_state(key.key).to_owned(),
                    key.lease_remaining_ms.map_or_else(|| "-".to_owned(), duration_ms),
                    match &key.latch {
                        Some(latch) => {
                            format!("latched ({}): `nightlatch unlatch --key {}`", latch.cause, key.label)
                        }
                        None => key.reason.clone().unwrap_or_default(),
                    },
                ]
            })
            .collect();
        table(
            &["KEY", "NODE", "STATE", "LEASE", "REMARK"],
            &rows,
            "no named keys yet: make one with `nightlatch key create`",
        )
    })
}

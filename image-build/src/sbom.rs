//! The bill of materials (CycloneDX 1.6): the packages of which something is in the image, and the crates of our programs.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand, PackageId};
use serde_json::{Value, json};

use crate::build::{BuildRequest, packages_in};
use crate::error::{ImageError, Result};
use crate::profile::Profile;

/// The packages whose programs are in the image.
const PROGRAMS: [&str; 2] = ["node", "appliance-init"];

pub(crate) fn bill(request: &BuildRequest<'_>, profile: &Profile) -> Result<Vec<u8>> {
    let mut components: Vec<Value> = packages_in(request.store, profile)
        .into_iter()
        .map(|package| {
            let purl =
                format!("pkg:deb/debian/{}@{}?arch=amd64", encoded(&package.name), encoded(&package.version));
            json!({
                "type": "library",
                "bom-ref": purl,
                "name": package.name,
                "version": package.version,
                "purl": purl,
                "hashes": [{ "alg": "SHA-256", "content": package.sha256 }],
                "externalReferences": [{ "type": "distribution", "url": package.url }],
            })
        })
        .collect();
    components.extend(crates(request)?);
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "operating-system",
                "name": format!("nightlatch-{}", profile.name),
                "version": request.release,
            },
        },
        "components": components,
    });
    serde_json::to_vec_pretty(&bill)
        .map_err(|error| ImageError::malformed(request.workspace, "a bill of materials", error))
}

/// As a package URL has it.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b".-_~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

/// Every crate that is linked into a program of the image, as the lock file has it.
fn crates(request: &BuildRequest<'_>) -> Result<Vec<Value>> {
    let failed = |said: String| ImageError::Tool { program: "cargo metadata".to_owned(), said };
    let metadata = MetadataCommand::new()
        .current_dir(request.workspace)
        .features(CargoOpt::SomeFeatures(Vec::new()))
        .other_options(vec![
            "--locked".to_owned(),
            "--filter-platform".to_owned(),
            "x86_64-unknown-linux-gnu".to_owned(),
        ])
        .exec()
        .map_err(|error| failed(error.to_string()))?;
    let graph = metadata.resolve.as_ref().ok_or_else(|| failed("it names no dependencies".to_owned()))?;
    let nodes: BTreeMap<&PackageId, _> = graph.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut reached: BTreeSet<&PackageId> = BTreeSet::new();
    let is_program = |id: &&PackageId| PROGRAMS.contains(&metadata[*id].name.as_str());
    let mut ahead: Vec<&PackageId> = metadata.workspace_members.iter().filter(is_program).collect();
    while let Some(id) = ahead.pop() {
        if !reached.insert(id) {
            continue;
        }
        let linked =
            nodes.get(id).into_iter().flat_map(|node| &node.deps).filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
        ahead.extend(linked.map(|dependency| &dependency.pkg));
    }
    let mut entries: Vec<Value> = reached
        .into_iter()
        .map(|id| {
            let package = &metadata[id];
            let purl = format!("pkg:cargo/{}@{}", package.name, package.version);
            json!({
                "type": "library",
                "bom-ref": purl,
                "name": package.name.to_string(),
                "version": package.version.to_string(),
                "purl": purl,
                "licenses": package.license.iter().map(|license| json!({ "expression": license })).collect::<Vec<_>>(),
            })
        })
        .collect();
    // The graph's order depends on where the workspace lies.
    entries.sort_by_key(|entry| entry["purl"].to_string());
    Ok(entries)
}

//! Errors of memory modules, as the kernel's EDAC drivers count them (`/sys/devices/system/edac/mc`,
//! Documentation/admin-guide/RAS). Counts begin at the boot.

use serde::{Deserialize, Serialize};

use crate::tree::Tree;

const CONTROLLERS: &str = "devices/system/edac/mc";

/// A memory controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// The kernel's name of it, as in `mc0`.
    pub name: String,
    /// The driver's name of its kind.
    pub kind: Option<String>,
    /// Errors that were corrected.
    pub corrected: u64,
    /// Errors that were not: data was lost.
    pub uncorrected: u64,
    /// The modules behind it.
    pub dimms: Vec<Dimm>,
}

/// A memory module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimm {
    /// The kernel's name of it, as in `dimm3`.
    pub name: String,
    /// What the board calls its slot.
    pub label: Option<String>,
    /// Where the controller sees it.
    pub location: Option<String>,
    /// Its kind, as in `Registered-DDR5`.
    pub kind: Option<String>,
    /// Its size in MiB.
    pub size_mib: u64,
    /// Errors that were corrected.
    pub corrected: u64,
    /// Errors that were not.
    pub uncorrected: u64,
}

/// Every memory controller that has a driver; none on machines without error correction.
pub fn controllers(sys: &Tree) -> Vec<Controller> {
    let names = sys.names(CONTROLLERS).into_iter();
    let names = names.filter(|name| is_numbered(name, "mc"));
    names
        .map(|name| {
            let dir = format!("{CONTROLLERS}/{name}");
            let count = |what: &str| sys.number(&format!("{dir}/{what}")).unwrap_or(0);
            let parts = sys.names(&dir);
            // Older drivers show ranks where newer show modules.
            let dimms = parts.iter().filter(|part| is_numbered(part, "dimm") || is_numbered(part, "rank"));
            Controller {
                kind: sys.text(&format!("{dir}/mc_name")),
                corrected: count("ce_count"),
                uncorrected: count("ue_count"),
                dimms: dimms.map(|part| dimm(sys, &dir, part)).collect(),
                name,
            }
        })
        .collect()
}

fn dimm(sys: &Tree, controller: &str, name: &str) -> Dimm {
    let of = |what: &str| format!("{controller}/{name}/{what}");
    let count = |what: &str| sys.number(&of(what)).unwrap_or(0);
    Dimm {
        name: name.to_owned(),
        label: sys.text(&of("dimm_label")),
        location: sys.text(&of("dimm_location")),
        kind: sys.text(&of("dimm_mem_type")),
        size_mib: count("size"),
        corrected: count("dimm_ce_count"),
        uncorrected: count("dimm_ue_count"),
    }
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

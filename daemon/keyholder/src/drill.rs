//! The last drill, kept so that status can tell how old the last proof is. No secret; the audit trail has every drill.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::api::Drill;
use crate::durable::{self, OldContent, StorageError};

/// Its file in the state directory.
pub(crate) const FILE: &str = "drill.json";

const VERSION: u32 = 1;

/// A report of thousands of volumes is below this.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    drill: Drill,
}

/// Reads the last drill. A file that does not read counts as none: the worst that follows is another drill.
pub(crate) fn load(path: &Path) -> Result<Option<Drill>, StorageError> {
    let Some(bytes) = durable::read(path, BYTES_MAX)? else { return Ok(None) };
    match serde_json::from_slice::<Kept>(&bytes) {
        Ok(kept) if kept.version == VERSION => Ok(Some(kept.drill)),
        _ => {
            tracing::warn!(path = %path.display(), "the note of the last drill does not read; status shows none");
            Ok(None)
        }
    }
}

/// Replaces it.
pub(crate) fn save(path: &Path, drill: &Drill) -> Result<(), StorageError> {
    // Strings and numbers: nothing that could fail.
    let bytes =
        serde_json::to_vec_pretty(&Kept { version: VERSION, drill: drill.clone() }).unwrap_or_default();
    durable::replace(path, &bytes, OldContent::Leave)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DrillReport, DrilledVolume};

    #[test]
    fn a_drill_reads_back_and_a_damaged_note_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(load(&path).unwrap(), None);
        let volume = DrilledVolume {
            label: "db".to_owned(),
            bytes_read: 1 << 30,
            objects_read: None,
            error: Some("wrong key".to_owned()),
        };
        let report = DrillReport {
            ledger_serial: 7,
            officers: vec!["anna".to_owned()],
            node: "node-1".to_owned(),
            volumes: vec![volume],
        };
        assert!(!report.passed());
        let drill = Drill { at_unix_s: 1, by: "op".to_owned(), passed: false, report };
        save(&path, &drill).unwrap();
        assert_eq!(load(&path).unwrap(), Some(drill));
        std::fs::write(&path, b"{").unwrap();
        assert_eq!(load(&path).unwrap(), None);
    }
}

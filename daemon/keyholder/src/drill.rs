//! The last drill, kept so that status can tell how old the last proof is. No secret; the audit trail has every drill.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::api::{Drill, DrillReport};
use crate::durable::{self, OldContent, StorageError};
use crate::error::KeyholderError;
use crate::shares::OFFICERS_MAX;

/// Its file in the state directory.
pub(crate) const FILE: &str = "drill.json";

const VERSION: u32 = 1;

/// Longest note: a report at its limit, written for people to read, is well below it.
const BYTES_MAX: u64 = 4 << 20;

/// Longest report as it is sent: it goes into one entry of the trail, which has a limit of its own.
const REPORT_BYTES_MAX: usize = 768 << 10;

/// Volumes in one report; a whole node's are fewer.
const VOLUMES_MAX: usize = 4_096;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    drill: Drill,
}

/// Refuses a report that is longer than any real one.
pub(crate) fn check(report: &DrillReport) -> Result<(), KeyholderError> {
    // Strings and numbers: nothing that could fail.
    let bytes = serde_json::to_vec(report).unwrap_or_default().len();
    if report.officers.len() <= OFFICERS_MAX
        && report.volumes.len() <= VOLUMES_MAX
        && bytes <= REPORT_BYTES_MAX
    {
        return Ok(());
    }
    Err(KeyholderError::Invalid {
        what: format!(
            "a drill's report has at most {OFFICERS_MAX} officers, {VOLUMES_MAX} volumes and {REPORT_BYTES_MAX} bytes"
        ),
        next_step: "drill with fewer volumes at once",
    })
}

/// Reads the last drill. A file that does not read counts as none: the worst that follows is another drill.
pub(crate) fn load(path: &Path) -> Result<Option<Drill>, StorageError> {
    let bytes = match durable::read(path, BYTES_MAX) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) if error.source.kind() == io::ErrorKind::FileTooLarge => Vec::new(),
        Err(error) => return Err(error),
    };
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
            file_system: Some("ext4, without a fault".to_owned()),
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
        for damaged in [b"{".to_vec(), vec![b' '; 1 + usize::try_from(BYTES_MAX).unwrap()]] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path).unwrap(), None);
        }
    }

    #[test]
    fn the_longest_report_is_kept_and_read_back_and_one_past_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let volume = |number: usize| DrilledVolume {
            label: format!("{number:064}"),
            bytes_read: u64::MAX,
            objects_read: Some(u64::MAX),
            file_system: None,
            error: None,
        };
        let report = |officers: usize, volumes: usize| DrillReport {
            ledger_serial: 7,
            officers: vec!["x".repeat(64); officers],
            node: "node-1".to_owned(),
            volumes: (0..volumes).map(volume).collect(),
        };
        let longest = report(OFFICERS_MAX, VOLUMES_MAX);
        check(&longest).unwrap();
        save(&path, &Drill { at_unix_s: 1, by: "op".to_owned(), passed: true, report: longest }).unwrap();
        assert!(load(&path).unwrap().is_some());
        let mut verbose = report(1, 1);
        verbose.node = "x".repeat(REPORT_BYTES_MAX);
        for refused in [report(OFFICERS_MAX + 1, 1), report(1, VOLUMES_MAX + 1), verbose] {
            assert_eq!(check(&refused).unwrap_err().kind(), ("invalid", 400));
        }
    }
}

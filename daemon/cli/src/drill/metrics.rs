//! The outcome of a drill for Prometheus: a file for the node exporter's textfile collector.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use keyholder::api::DrillReport;

use crate::failure::{Done, Failure};

/// Replaces the file, as the collector may read it at any time.
pub(super) fn write(path: &Path, report: &DrillReport) -> Done {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let new = path.with_extension("prom.new");
    let written = std::fs::write(&new, text(report, now)).and_then(|()| std::fs::rename(&new, path));
    written.map_err(|error| Failure::file("write", path, &error))
}

fn text(report: &DrillReport, now_unix_s: u64) -> String {
    let failed = report.volumes.iter().filter(|volume| volume.error.is_some()).count();
    let gauge = |name: &str, help: &str, value: u64| {
        format!(
            "# HELP nightlatch_drill_{name} {help}\n# TYPE nightlatch_drill_{name} gauge\nnightlatch_drill_{name} {value}\n"
        )
    };
    [
        gauge("last_timestamp_seconds", "When the last restore drill ended", now_unix_s),
        gauge("passed", "Whether the last restore drill gave everything back", u64::from(report.passed())),
        gauge("volumes_failed", "Volumes that the last restore drill did not give back", failed as u64),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use keyholder::api::DrilledVolume;

    use super::*;

    #[test]
    fn a_drill_is_told_as_the_collector_reads_it() {
        let volume = |error: Option<&str>| DrilledVolume {
            label: "db".to_owned(),
            bytes_read: 1,
            objects_read: None,
            file_system: None,
            error: error.map(str::to_owned),
        };
        let volumes = vec![volume(None), volume(Some("wrong key"))];
        let report =
            DrillReport { ledger_serial: 1, officers: Vec::new(), node: "node-1".to_owned(), volumes };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drill.prom");
        write(&path, &report).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains("\nnightlatch_drill_passed 0\n"), "{written}");
        assert!(written.contains("\nnightlatch_drill_volumes_failed 1\n"), "{written}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

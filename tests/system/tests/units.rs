//! The units for machines with systemd: nothing is left open without a reason in HARDENING.md, and nothing in them is misspelt.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use harness::client::{client, run};
use harness::process::program;

/// The score that each unit keeps to; systemd's scale goes from 0 to 10.
const EXPOSURE_MAX: f64 = 2.0;

const UNITS: [&str; 3] = ["nightlatchd", "nightlatch-keyholder", "nightlatch-smart"];

fn folder() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().nth(2).expect("this crate lies two folders below the workspace root").join("systemd")
}

fn unit(name: &str) -> PathBuf {
    folder().join(format!("{name}.service"))
}

/// What systemd counts against a unit, and how much.
fn counted(name: &str) -> BTreeMap<String, f64> {
    let mut analyze = client("systemd-analyze");
    analyze.args(["security", "--offline=yes", "--no-pager", "--json=short"]).arg(unit(name));
    let report: Vec<serde_json::Value> =
        serde_json::from_str(&run(&mut analyze).expect_success()).expect("a report in JSON");
    let exposed = report.iter().filter_map(|line| {
        let exposure: f64 = line["exposure"].as_str()?.parse().ok()?;
        Some((line["name"].as_str()?.to_owned(), exposure))
    });
    exposed.filter(|(_, exposure)| *exposure > 0.0).collect()
}

/// The lines of the table, with each unit's reason.
fn table() -> BTreeMap<String, [String; 3]> {
    let text = fs::read_to_string(folder().join("HARDENING.md")).expect("the table");
    // A bar inside a cell is escaped.
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| line.replace("\\|", "\u{1}"));
    rows.map(|row| {
        let cells: Vec<String> = row
            .strip_prefix('|')
            .and_then(|row| row.trim_end().strip_suffix('|'))
            .expect("a row")
            .split('|')
            .map(|cell| cell.trim().replace('\u{1}', "|"))
            .collect();
        let [line, node, keyholder, smart] = <[String; 4]>::try_from(cells).expect("four cells");
        (line.trim_matches('`').to_owned(), [node, keyholder, smart])
    })
    .collect()
}

#[test]
fn every_line_that_systemd_counts_against_a_unit_has_its_reason_in_the_table() {
    let table = table();
    for (number, name) in UNITS.iter().enumerate() {
        let counted = counted(name);
        let reasons: Vec<&String> =
            table.iter().filter(|(_, reasons)| !reasons[number].is_empty()).map(|(line, _)| line).collect();
        assert_eq!(counted.keys().collect::<Vec<_>>(), reasons, "{name}: counted, and in the table");
    }
}

#[test]
fn every_unit_stays_within_the_exposure_that_they_are_to_have() {
    for name in UNITS {
        let score = exposure(name);
        assert!(score <= EXPOSURE_MAX, "{name}: {score}");
    }
}

/// What systemd makes of a unit as a whole.
fn exposure(name: &str) -> f64 {
    let mut analyze = client("systemd-analyze");
    analyze.args(["security", "--offline=yes", "--no-pager"]).arg(unit(name));
    let report = run(&mut analyze).expect_success();
    let line = report.lines().find(|line| line.contains("Overall exposure level")).expect("a score");
    println!("{name}: {line}");
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// The names under which the node takes sockets, as its status has them.
const LISTENERS: [&str; 6] = ["nbd", "nbd-unix", "s3", "key", "admin", "metrics"];

#[test]
fn every_socket_unit_is_clean_for_systemd_and_names_a_listener_of_the_node() {
    let copies = tempfile::tempdir().expect("a temporary directory");
    let node = fs::read_to_string(unit("nightlatchd")).expect("a unit");
    let node = node.replace("/usr/bin/nightlatchd", &program("nightlatchd").display().to_string());
    fs::write(copies.path().join("nightlatchd.service"), node).expect("a copy");
    let sockets: Vec<String> = fs::read_dir(folder())
        .expect("the units")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".socket"))
        .collect();
    assert!(sockets.len() >= 2, "{sockets:?}");
    for name in &sockets {
        let text = fs::read_to_string(folder().join(name)).expect("a unit");
        let setting = |key: &str| {
            let prefix = format!("{key}=");
            text.lines()
                .find_map(|line| line.strip_prefix(&prefix))
                .unwrap_or_else(|| panic!("{name}: {key}"))
        };
        assert!(LISTENERS.contains(&setting("FileDescriptorName")), "{name}");
        assert_eq!(setting("Service"), "nightlatchd.service", "{name}");
        let copy = copies.path().join(name);
        fs::write(&copy, text.replace("Documentation=man:nightlatch(1)\n", "")).expect("a copy");
        let output = client("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output();
        let said = String::from_utf8_lossy(&output.expect("systemd-analyze runs").stderr).into_owned();
        let lines: Vec<&str> = said.lines().filter(|line| line.contains(name.as_str())).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}

#[test]
fn all_units_are_clean_for_systemd() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for name in UNITS {
        let text = fs::read_to_string(unit(name)).expect("a unit");
        // The programs as they are here; the manual page comes with the packages.
        let text = text.replace(&format!("/usr/bin/{name}"), &program(name).display().to_string());
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with("Documentation="))
            .map(|line| format!("{line}\n"))
            .collect();
        let copy = folder.path().join(format!("{name}.service"));
        fs::write(&copy, text).expect("a copy");
        let output = client("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&copy)
            .output()
            .expect("systemd-analyze runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Versions before 256 do not know the newest system call, and go on without it.
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| {
                line.contains(name) && !line.contains("Failed to parse system call, ignoring: mseal")
            })
            .collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}

#[test]
fn the_timer_of_the_program_that_asks_disks_is_clean_for_systemd() {
    let copies = tempfile::tempdir().expect("a temporary directory");
    for name in ["nightlatch-smart.service", "nightlatch-smart.timer"] {
        let text = fs::read_to_string(folder().join(name)).expect("a unit");
        let text =
            text.replace("/usr/bin/nightlatch-smart", &program("nightlatch-smart").display().to_string());
        fs::write(copies.path().join(name), text.replace("Documentation=man:nightlatch-smart(8)\n", ""))
            .expect("a copy");
    }
    let mut analyze = client("systemd-analyze");
    analyze.args(["verify", "--man=no"]).arg(copies.path().join("nightlatch-smart.timer"));
    let said = String::from_utf8_lossy(&analyze.output().expect("systemd-analyze runs").stderr).into_owned();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("nightlatch-smart")).collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn the_drill_and_its_timer_are_clean_for_systemd_and_the_drill_takes_what_it_is_given() {
    let copies = tempfile::tempdir().expect("a temporary directory");
    let nightlatch = program("nightlatch").display().to_string();
    for name in ["nightlatch-drill.service", "nightlatch-drill.timer"] {
        let text = fs::read_to_string(folder().join(name)).expect("a unit");
        let text = text.replace("/usr/bin/nightlatch", &nightlatch);
        let text = text
            .replace("Documentation=man:nightlatch(1)\n", "")
            .replace("EnvironmentFile=", "EnvironmentFile=-");
        fs::write(copies.path().join(name), text).expect("a copy");
    }
    let mut analyze = client("systemd-analyze");
    analyze.args(["verify", "--man=no"]).arg(copies.path().join("nightlatch-drill.timer"));
    let said = String::from_utf8_lossy(&analyze.output().expect("systemd-analyze runs").stderr).into_owned();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("nightlatch-drill")).collect();
    assert!(lines.is_empty(), "{lines:#?}");
    let unit = fs::read_to_string(copies.path().join("nightlatch-drill.service")).expect("a copy");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a command");
    let mut words: Vec<&str> = line.split(' ').filter(|word| *word != "$NIGHTLATCH_DRILL").collect();
    words.extend("--from-node backup-1 --backup b --share s --officer-key k".split(' '));
    // A profile that is not there is the first thing that it misses: its command line is whole.
    let mut drill = std::process::Command::new(words[0]);
    let said = run(drill.args(&words[1..]).env("NIGHTLATCH_PROFILE", "/nonexistent")).expect_failure();
    assert!(said.contains("/nonexistent"), "{said}");
}

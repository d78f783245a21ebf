//! The program as it is run: what it takes, what it says, how it ends.

use std::fs;
use std::process::{Command, Output};

fn smart(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nightlatch-smart"))
        .args(arguments)
        .output()
        .expect("it is built with its tests")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_option_and_a_wrong_one_points_to_it() {
    let help = smart(&["--help"]);
    assert!(help.status.success());
    for option in ["--sys", "--dev", "--output"] {
        assert!(said(&help.stdout).contains(option), "{option}");
    }
    let wrong = smart(&["--verbose"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong.stderr).contains("`--verbose` is not known; see nightlatch-smart --help"));
}

/// A disk that does not answer is said, and is no failure: the next ones are asked all the same.
#[test]
fn a_disk_that_does_not_answer_is_said_and_an_output_that_is_not_there_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |path: &str| dir.path().join(path).display().to_string();
    for path in ["sys/block/nvme0n1/device", "dev", "output"] {
        fs::create_dir_all(at(path)).expect("a directory");
    }
    fs::write(at("dev/nvme0n1"), "").expect("a file");
    let places = ["--sys", &at("sys"), "--dev", &at("dev"), "--output"];
    let asked = smart(&[&places[..], &[&at("output")]].concat());
    assert!(asked.status.success(), "{}", said(&asked.stderr));
    assert!(said(&asked.stderr).contains("nvme0n1: "), "{}", said(&asked.stderr));
    let nowhere = smart(&[&places[..], &[&at("nowhere")]].concat());
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(said(&nowhere.stderr).contains("make the directory"), "{}", said(&nowhere.stderr));
}

//! The first process of an image does nothing where it is not the first.

use std::process::Command;

#[test]
fn started_by_hand_it_says_what_it_is_and_touches_nothing() {
    let answer = Command::new(env!("CARGO_BIN_EXE_nightlatch-init")).output().expect("the program");
    assert_eq!(answer.status.code(), Some(2));
    assert!(answer.stdout.is_empty());
    let said = String::from_utf8_lossy(&answer.stderr);
    assert!(said.contains("first process of an image"), "{said}");
}

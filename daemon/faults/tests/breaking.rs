//! A program that breaks does its last act before it says anything, and ends.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

/// The example program, which cargo builds with the tests: beside their directory.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("../examples/breaking");
    assert!(path.is_file(), "{} is built with the tests of this crate", path.display());
    path
}

fn breaking(how: &str) -> Output {
    // Where somebody asks for backtraces: there are none, since a confined thread could not make one.
    Command::new(program()).arg(how).env("RUST_BACKTRACE", "1").output().unwrap()
}

#[track_caller]
fn ended(output: &Output, status: i32, message: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{:?} {said}", output.status);
    assert_eq!(output.stdout, b"", "nothing went on");
    let act = said.find("last act").unwrap_or_else(|| panic!("no last act in {said}"));
    let told = said.find(message).unwrap_or_else(|| panic!("no {message} in {said}"));
    assert!(act < told && !said.contains("backtrace"), "{said}");
}

#[test]
fn a_panic_ends_the_process_after_the_last_act_on_any_thread_and_even_where_it_would_be_caught() {
    for how in ["panic", "panic-in-a-thread", "caught-panic"] {
        ended(&breaking(how), 134, "on purpose");
    }
}

#[test]
fn a_contained_panic_is_an_error_and_no_end() {
    let output = breaking("contained");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"went on\n");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("last act"));
}

#[test]
fn an_overflown_stack_is_no_obstacle() {
    for how in ["overflow", "overflow-in-a-thread"] {
        ended(&breaking(how), 139, "SIGSEGV");
    }
}

#[test]
fn an_abort_ends_the_same_way() {
    ended(&breaking("abort"), 134, "SIGABRT");
}

#[test]
fn a_forbidden_system_call_is_named() {
    ended(&breaking("forbidden"), 159, &format!("SIGSYS, system call {} is not allowed", libc::SYS_mmap));
}

#[test]
fn every_fault_signal_runs_the_last_act() {
    let signals =
        [("SEGV", 139), ("BUS", 135), ("ILL", 132), ("FPE", 136), ("TRAP", 133), ("ABRT", 134), ("SYS", 159)];
    for (name, status) in signals {
        let (child, _stdout) = waiting("wait");
        kill(&child, name);
        ended(&child.wait_with_output().unwrap(), status, &format!("fault: SIG{name}"));
    }
}

/// The last act of the first is not cut short by what the second would do by default.
#[test]
fn a_second_thread_that_breaks_while_the_first_is_in_its_last_act_does_its_own() {
    for name in ["SEGV", "ABRT"] {
        let (child, _stdout) = waiting("slowly");
        kill(&child, name);
        kill(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some() && said.contains("last act"), "{:?} {said}", output.status);
    }
}

/// The program as it waits for a signal.
fn waiting(how: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(program());
    let mut child = command.arg(how).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    (child, stdout)
}

fn kill(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
}

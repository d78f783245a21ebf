//! What a confined program may still do, and how each thing it may not do ends.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Exit status after SIGSYS, by the fault handler.
const FORBIDDEN: i32 = 159;

/// The signal itself: it ends the process without the handler where the C library had blocked every signal.
const SIGSYS: i32 = 31;

struct Attempts {
    dir: tempfile::TempDir,
    listener: TcpListener,
}

impl Attempts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::fs::copy("/bin/true", inside.join("program")).unwrap();
        std::fs::set_permissions(inside.join("program"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("outside"), b"untouched").unwrap();
        Self { dir, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn try_to(&self, attempt: &str) -> Output {
        let program: PathBuf = std::env::current_exe().unwrap().with_file_name("../examples/confined");
        Command::new(program)
            .arg(attempt)
            .arg(self.dir.path().join("inside"))
            .arg(self.dir.path().join("outside"))
            .arg(self.listener.local_addr().unwrap().port().to_string())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn answers(&self, attempt: &str, answer: &str) {
        let output = self.try_to(attempt);
        assert!(output.status.success(), "{attempt}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), answer, "{attempt}: {output:?}");
    }

    #[track_caller]
    fn ends(&self, attempt: &str) {
        let output = self.try_to(attempt);
        let status = output.status;
        let by_sigsys = status.code() == Some(FORBIDDEN) || status.signal() == Some(SIGSYS);
        assert!(by_sigsys, "{attempt}: {output:?}");
        assert_eq!(output.stdout, b"", "{attempt} went on");
    }
}

#[test]
fn what_a_daemon_needs_is_allowed() {
    let attempts = Attempts::new();
    attempts.answers("write-inside", "allowed");
    attempts.answers("thread", "allowed");
}

#[test]
fn files_programs_and_ports_beyond_the_rules_are_refused_even_to_root() {
    let attempts = Attempts::new();
    for attempt in ["read-outside", "write-outside", "execute-inside", "bind", "dial"] {
        attempts.answers(attempt, "refused");
    }
    assert_eq!(std::fs::read(attempts.dir.path().join("outside")).unwrap(), b"untouched");
}

#[test]
fn a_call_beyond_the_role_ends_the_process() {
    let attempts = Attempts::new();
    attempts.answers("write-inside", "allowed");
    for attempt in ["execute", "internet-socket", "listen", "unshare", "open-in-wiper"] {
        attempts.ends(attempt);
    }
}

//! The demonstration from outside: the contract that scripts build on, the story, and the end of both programs.
//!
//! Needs `nightlatchd` and `nightlatch-keyholder` beside `nightlatch`, as `make build` leaves them.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nbd_server::client::{Client, Endpoint};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Every step on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(90);

/// The names that scripts build on: none is missing, and none is there that was not agreed.
const CONTRACT: [&str; 11] = [
    "access_key",
    "admin_url",
    "dir",
    "keyholder_pid",
    "metrics_url",
    "nbd_unix_uri",
    "nbd_uri",
    "node_pid",
    "region",
    "s3_endpoint",
    "secret_key",
];

fn program() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_nightlatch"));
    for other in ["nightlatchd", "nightlatch-keyholder"] {
        let path = program.with_file_name(other);
        assert!(path.is_file(), "{} is missing: run `make build` first", path.display());
    }
    program
}

/// A running demonstration; killed with the value, and with it both programs.
struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Demo {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["demo", "--dir"])
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    fn ready(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process runs; a zombie that nobody in a container reaps does not.
fn runs(pid: &Value) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn nightlatch(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).arg("--profile").arg(dir).arg("--json").args(arguments).output().unwrap()
}

#[track_caller]
fn answer(dir: &Path, arguments: &[&str]) -> Value {
    let output = nightlatch(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// GET in clear; the status line.
fn get(url: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

fn volume(dir: &Path) -> Client {
    let endpoint = Endpoint::unix(dir.join("nbd.sock")).with_timeout(Duration::from_secs(20));
    Client::connect(&endpoint, "demo").unwrap()
}

#[test]
fn the_contract_holds_through_power_loss_push_and_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("demo");
    let mut demo = Demo::start(&dir, &["--json", "--volume-size", "64M"]);
    let ready = demo.ready();
    let names: Vec<_> = ready.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, CONTRACT);
    assert_eq!(ready["dir"], dir.to_str().unwrap());
    assert!(ready["nbd_uri"].as_str().unwrap().starts_with("nbds://127.0.0.1:"), "{ready}");
    assert!(ready["s3_endpoint"].as_str().unwrap().starts_with("https://127.0.0.1:"), "{ready}");
    assert!(runs(&ready["node_pid"]) && runs(&ready["keyholder_pid"]));
    let metrics = ready["metrics_url"].as_str().unwrap();
    assert!(get(metrics, "/metrics").contains("200"));
    assert!(get(metrics, "/readyz").contains("200"));

    let written = b"acknowledged before the power failed";
    let mut client = volume(&dir);
    assert_eq!(client.info().len_bytes, 64 << 20);
    client.write(4096, written, false).unwrap();
    client.flush().unwrap();

    kill(Pid::from_raw(i32::try_from(ready["node_pid"].as_i64().unwrap()).unwrap()), Signal::SIGPWR).unwrap();
    // The keys are gone before the cause is known to the status.
    wait_until("the node is sealed for want of power", || {
        let seal = &answer(&dir, &["node", "status"])["seal"];
        seal["sealed"] == true && seal["cause"] == "power-loss"
    });
    wait_until("the keyholder waits for a person's approval", || {
        answer(&dir, &["node", "list"])[0]["awaits_push"].as_bool().unwrap()
    });
    assert!(get(metrics, "/livez").contains("200"));
    assert!(get(metrics, "/readyz").contains("503"));
    assert_eq!(nightlatch(&dir, &["bucket", "list"]).status.code(), Some(6), "sealed");

    answer(&dir, &["push", "--all"]);
    wait_until("it serves again", || get(metrics, "/readyz").contains("200"));
    // Every grant raises the fence: had one come that nobody approved, this would be more.
    let volumes = answer(&dir, &["volume", "list"]);
    assert!(volumes.as_array().unwrap().iter().all(|volume| volume["fence"] == 2), "{volumes}");
    let mut read = vec![0; written.len()];
    volume(&dir).read(4096, &mut read).unwrap();
    assert_eq!(read, written);
    assert_eq!(answer(&dir, &["bucket", "list"])[0]["name"], "demo");

    assert!(demo.end(Signal::SIGTERM).success());
    assert!(!runs(&ready["node_pid"]) && !runs(&ready["keyholder_pid"]));

    let mut again = Demo::start(&dir, &["--json"]);
    let ready_again = again.ready();
    for same in CONTRACT.iter().filter(|name| !name.ends_with("_pid")) {
        assert_eq!(ready_again[same], ready[same], "{same}");
    }
    let mut client = volume(&dir);
    assert_eq!(client.info().len_bytes, 64 << 20, "no size was asked for, so it stays");
    client.read(4096, &mut read).unwrap();
    assert_eq!(read, written);
    drop(client);
    assert!(again.end(Signal::SIGINT).success());

    let mut smaller = Demo::start(&dir, &["--json", "--volume-size", "32M"]);
    assert_eq!(smaller.child.wait().unwrap().code(), Some(2), "nothing is cut off");
    let mut larger = Demo::start(&dir, &["--json", "--volume-size", "128M"]);
    larger.ready();
    assert_eq!(volume(&dir).info().len_bytes, 128 << 20);
    assert!(larger.end(Signal::SIGTERM).success());
}

#[test]
fn both_programs_end_with_a_demonstration_that_is_killed() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(&temporary.path().join("demo"), &["--json", "--nbd-plain", "--s3-plain"]);
    let ready = demo.ready();
    assert!(ready["nbd_uri"].as_str().unwrap().starts_with("nbd://127.0.0.1:"), "{ready}");
    assert!(ready["s3_endpoint"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{ready}");
    demo.child.kill().unwrap();
    demo.child.wait().unwrap();
    wait_until("both programs end", || !runs(&ready["node_pid"]) && !runs(&ready["keyholder_pid"]));
}

#[test]
fn a_program_that_dies_ends_the_demonstration_with_its_log() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(&temporary.path().join("demo"), &["--json"]);
    let ready = demo.ready();
    kill(Pid::from_raw(i32::try_from(ready["node_pid"].as_i64().unwrap()).unwrap()), Signal::SIGKILL)
        .unwrap();
    assert_eq!(demo.child.wait().unwrap().code(), Some(1));
    assert!(!runs(&ready["keyholder_pid"]));
}

#[test]
fn the_story_is_told_to_its_end_and_then_it_serves() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("demo");
    for telling in 1..=2 {
        let mut demo = Demo::start(&dir, &[]);
        let mut told = String::new();
        while !told.contains("Ctrl-C stops both programs") {
            let mut line = String::new();
            assert_ne!(
                demo.stdout.read_line(&mut line).unwrap(),
                0,
                "telling {telling} ended early:\n{told}"
            );
            told.push_str(&line);
        }
        for part in [
            "1. The disk",
            "2. The node is sealed",
            "3. The keyholder pushes",
            "4. Clients write",
            "5. The power fails",
            "6. The disk again",
            "7. The power is back",
            "found 0 times",
            "entropy 7.99",
            "503 Service Unavailable, Retry-After: ",
            "sealed (power-loss)",
            "nbd+unix:///demo?socket=",
        ] {
            assert!(told.contains(part), "telling {telling}: {part:?} in\n{told}");
        }
        assert_eq!(told.matches("the same as before").count(), 2, "{told}");
        assert_eq!(told.matches("found 0 times").count(), 2, "{told}");
        assert!(demo.end(Signal::SIGINT).success());
    }
}

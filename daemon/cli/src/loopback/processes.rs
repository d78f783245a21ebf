//! The two programs: started beside this one, watched, and stopped.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::failure::{Done, Failure};

/// The programs, which lie beside this one.
pub(crate) const KEYHOLDER_PROGRAM: &str = "nightlatch-keyholder";
pub(crate) const NODE_PROGRAM: &str = "nightlatchd";

/// How long a program gets after SIGTERM: the node drains for two seconds, then flushes and wipes.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long one may take to come up: longer than recovery of a large pool on a busy machine.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(25);

/// How much of a log is shown when its program ends by itself.
const LOG_TAIL_BYTES: i64 = 2000;

/// A running program.
#[derive(Debug)]
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    pid: i32,
    log: PathBuf,
}

/// Both programs.
#[derive(Debug)]
pub(crate) struct Processes {
    logs: PathBuf,
    pub(crate) keyholder: Option<Running>,
    pub(crate) node: Option<Running>,
}

fn own_path() -> Done<PathBuf> {
    std::env::current_exe()
        .map_err(|error| Failure::local(format!("this program's own path is unknown: {error}"), ""))
}

/// Checks that both programs are there, before anything is made.
pub(crate) fn check_programs() -> Done {
    let own = own_path()?;
    for name in [KEYHOLDER_PROGRAM, NODE_PROGRAM] {
        if !own.with_file_name(name).is_file() {
            return Err(Failure::local(
                format!("there is no {name} beside {}", own.display()),
                "build or install all three programs into one directory, for example with `make build`",
            ));
        }
    }
    Ok(())
}

impl Processes {
    pub(crate) fn new(logs: &Path) -> Done<Self> {
        fs::create_dir_all(logs).map_err(|error| Failure::file("make", logs, &error))?;
        Ok(Self { logs: logs.to_owned(), keyholder: None, node: None })
    }

    /// Starts a program with `--config`. Call it from the main thread only, see [`crate::loopback::run`].
    pub(crate) fn start(&self, name: &'static str, config: &Path) -> Done<Running> {
        let own = own_path()?;
        let program = own.with_file_name(name);
        let log = self.logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| Failure::file("write", &log, &error))?;
        let output = file.try_clone().map_err(|error| Failure::file("write", &log, &error))?;
        let child = Command::new(&own)
            .args(["run-attached", "--parent", &std::process::id().to_string()])
            .arg("--")
            .arg(&program)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file)
            // Ctrl-C is for this program, which then stops the others in order.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::file("start", &program, &error))?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .ok_or_else(|| Failure::local(format!("{name} ended at once"), "look at its log"))?;
        Ok(Running { name, child, pid, log })
    }

    /// Waits until one of the programs ends, which neither should.
    pub(crate) async fn ended(&mut self) -> Failure {
        let (Some(keyholder), Some(node)) = (&mut self.keyholder, &mut self.node) else {
            return Failure::local("the programs are not running", "");
        };
        tokio::select! {
            failure = keyholder.ended() => failure,
            failure = node.ended() => failure,
        }
    }

    /// Stops both: the node first, so that its last receipts find the keyholder.
    pub(crate) async fn stop(&mut self) {
        for running in [self.node.take(), self.keyholder.take()].into_iter().flatten() {
            running.stop().await;
        }
    }
}

impl Running {
    /// The process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Done {
        kill(Pid::from_raw(self.pid), signal)
            .map_err(|error| Failure::local(format!("cannot send {signal} to {}: {error}", self.name), ""))
    }

    /// Fails, with the end of its log, when the program has ended.
    pub(crate) fn check(&mut self) -> Done {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failure(&status.to_string())),
            Err(error) => Err(self.failure(&error.to_string())),
        }
    }

    async fn ended(&mut self) -> Failure {
        match self.child.wait().await {
            Ok(status) => self.failure(&status.to_string()),
            Err(error) => self.failure(&error.to_string()),
        }
    }

    fn failure(&self, how: &str) -> Failure {
        Failure::local(
            format!("{} ended by itself ({how}). The end of its log:\n{}", self.name, self.log_tail()),
            format!("the whole log is {}", self.log.display()),
        )
    }

    fn log_tail(&self) -> String {
        let tail = File::open(&self.log).and_then(|mut log| {
            // A log shorter than that is read from its beginning.
            let _ = log.seek(SeekFrom::End(-LOG_TAIL_BYTES));
            let mut text = Vec::new();
            log.read_to_end(&mut text).map(|_| text)
        });
        tail.map(|text| String::from_utf8_lossy(&text).trim_end().to_owned()).unwrap_or_default()
    }

    async fn stop(mut self) {
        // It may have ended already.
        let _ = self.signal(Signal::SIGTERM);
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

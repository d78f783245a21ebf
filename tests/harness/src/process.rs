//! A program under test as a child process: its log is kept, its end is awaited, and it never outlives the test.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the kernel does at once on an idle machine; a thread that waits for a busy disk stops and ends once that has answered.
const KERNEL_PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(5);

/// Lines of a log that a failing test prints.
const TAIL_LINES: usize = 60;

/// Waits until `condition` gives a value.
///
/// # Panics
/// Where it has not after `within`: with `what` and, where there is one, the condition's last answer.
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(state) => {
                assert!(start.elapsed() < within, "{what}: not within {within:?}; last seen: {state}");
                std::thread::sleep(POLL);
            }
        }
    }
}

/// Whether somebody listens on the unix socket of this path: its file is there a moment before.
pub fn listens(socket: &Path) -> bool {
    /// `__SO_ACCEPTCON` of linux/net.h, among the flags in the fourth column; the eighth is the path.
    const LISTENS: &str = "00010000";
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    String::from_utf8_lossy(&table).lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.get(3) == Some(&LISTENS) && columns.get(7).is_some_and(|path| Path::new(path) == socket)
    })
}

/// The path of one of the workspace's programs, built beside the test.
///
/// # Panics
/// Where it has not been built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let beside = test.parent().expect("a program lies in a folder");
    // Tests are built into target/PROFILE/deps, a bench into target/PROFILE.
    let folder = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace --bins` (make test does)",
        path.display()
    );
    path
}

/// A running (or ended) program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; both of its outputs become the log.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as _),
            child.stderr.take().map(|out| Box::new(out) as _),
        ];
        let readers = outputs.into_iter().flatten().map(|output| keep_lines(output, &log)).collect();
        Self { name: name.to_owned(), child, log, readers, ended: None }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. After SIGSTOP every thread has stopped: the kernel lets each run on until it notices.
    ///
    /// # Panics
    /// Where the process has ended, or a thread does not stop.
    pub fn signal(&self, signal: Signal) {
        assert!(self.ended.is_none(), "{} has ended already\n{}", self.name, self.tail());
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id is a positive i32"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
        if signal == Signal::SIGSTOP {
            wait_for("a stopped process", KERNEL_PATIENCE, || self.every_thread_has_stopped());
        }
    }

    fn every_thread_has_stopped(&self) -> Result<(), String> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.pid())).map_err(|error| error.to_string())?;
        for task in tasks.flatten() {
            // A thread that has ended meanwhile has no file, and does not run.
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state follows the name, which stands in parentheses and may hold some of its own.
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('X');
            if !matches!(state, 'T' | 't' | 'X' | 'Z') {
                return Err(format!("thread {} is in state {state}", task.file_name().display()));
            }
        }
        Ok(())
    }

    /// The status with which it has ended, if it has.
    ///
    /// # Panics
    /// Where the system does not say.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it does not end within `within`.
    pub fn wait_end(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let status =
            wait_for(&what, within, || self.try_wait().ok_or_else(|| format!("it runs\n{}", self.tail())));
        for reader in self.readers.drain(..) {
            reader.join().expect("a log reader ends with its process");
        }
        status
    }

    /// Kills it as a crash would: no handler runs.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            self.signal(Signal::SIGKILL);
        }
        let status = self.wait_end(KERNEL_PATIENCE);
        assert!(status.signal().is_some() || status.code().is_some(), "an ended process has a status");
    }

    /// Asks it to end and waits.
    ///
    /// # Panics
    /// Where it takes longer than `within`.
    pub fn stop(&mut self, within: Duration) -> ExitStatus {
        if self.try_wait().is_none() {
            self.signal(Signal::SIGTERM);
        }
        self.wait_end(within)
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(TAIL_LINES);
        format!("--- log of {} ---\n{}\n---", self.name, log[from..].join("\n"))
    }

    /// Warnings and errors in its log that contain none of `expected`.
    pub fn unexpected_lines(&self, expected: &[&str]) -> Vec<String> {
        let is_loud =
            |line: &str| [" WARN ", " ERROR ", "panicked at"].iter().any(|mark| line.contains(mark));
        self.log()
            .into_iter()
            .filter(|line| is_loud(line) && !expected.iter().any(|known| line.contains(known)))
            .collect()
    }

    /// Peak resident memory of the running process, bytes.
    ///
    /// # Panics
    /// Where the process has ended.
    pub fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Memory of its own that the running process has now, bytes: none that lies in a file, too.
    ///
    /// # Panics
    /// Where the process has ended.
    pub fn own_resident_bytes(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    /// A line of `/proc/PID/status` that counts kB.
    fn status_bytes(&self, line: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process runs");
        let count = status.lines().find_map(|told| told.strip_prefix(line)).expect("the kernel counts it");
        let kib: u64 = count.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

fn keep_lines(output: Box<dyn Read + Send>, log: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).into_owned();
            log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}

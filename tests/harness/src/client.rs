//! Real clients as child processes. A missing one fails the test and names what installs it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A command line that calls a client found on the PATH.
///
/// # Panics
/// Where the client is missing.
pub fn client(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    let found = found.unwrap_or_else(|| panic!("{name} is missing: run `make clients`"));
    Command::new(found)
}

/// A program of the system that is in no user's PATH.
///
/// # Panics
/// Where it is not there.
pub fn system_program(paths: &[&str]) -> Command {
    let found = paths.iter().find(|path| Path::new(path).is_file());
    Command::new(found.unwrap_or_else(|| panic!("none of {paths:?} is there: run `make clients`")))
}

/// A program of the Python environment that `make clients` makes: `python` or `aws`.
///
/// # Panics
/// Where the environment is missing.
pub fn python_client(name: &str) -> Command {
    let found = tools().join("python/bin").join(name);
    assert!(found.is_file(), "{} is missing: run `make clients`", found.display());
    Command::new(found)
}

/// Where `make clients` puts what it unpacks.
///
/// # Panics
/// Never: the workspace has a root.
pub fn tools() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.ancestors().nth(2).expect("this crate lies two folders below the workspace root");
    root.join("target/tools")
}

/// What a client said and how long it took.
#[derive(Clone, Debug)]
pub struct Answer {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
    line: String,
}

impl Answer {
    /// The command line and both outputs.
    pub fn describe(&self) -> String {
        let mut text = format!("$ {}\n", self.line);
        let _ =
            writeln!(text, "{}{}(success: {}, {:?})", self.stdout, self.stderr, self.success, self.elapsed);
        text
    }

    /// Standard output of a client that has to succeed.
    ///
    /// # Panics
    /// Where it did not.
    pub fn expect_success(self) -> String {
        assert!(self.success, "a client failed\n{}", self.describe());
        self.stdout
    }

    /// Both outputs of a client that has to fail.
    ///
    /// # Panics
    /// Where it succeeded.
    pub fn expect_failure(self) -> String {
        assert!(!self.success, "a client succeeded and must not\n{}", self.describe());
        self.stdout + &self.stderr
    }
}

/// Runs a client to its end.
///
/// # Panics
/// Where it cannot be started.
pub fn run(command: &mut Command) -> Answer {
    let line = format!("{command:?}");
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = output.unwrap_or_else(|error| panic!("starting {line}: {error}"));
    Answer {
        success: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        elapsed: start.elapsed(),
        line,
    }
}

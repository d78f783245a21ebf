//! The control of dumps as a child process: see `bin/locked.rs`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A process that holds a key where a node holds its keys, until it is told to wipe.
#[derive(Debug)]
pub struct Locked {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Locked {
    /// Starts `program`, which holds `key` in memory of this kind: `ordinary` or `secret`.
    ///
    /// # Panics
    /// Where it does not start, or has no such memory.
    pub fn start(program: &Path, kind: &str, key: &[u8; 32]) -> Self {
        let mut child = Command::new(program)
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the control program starts");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut locked = Self { child, answers };
        locked.ask(&hex::encode(key), "held");
        locked
    }

    fn ask(&mut self, line: &str, expected: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{line}").expect("the control program reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        assert!(answer.starts_with(expected), "`{answer}` instead of {expected}");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Zeroes the memory.
    ///
    /// # Panics
    /// Where it does not say that it did.
    pub fn wipe(&mut self) {
        self.ask("wipe", "wiped");
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Commands into the guest and their answers, over a serial line.
//!
//! A request is a line: a number and the command in base64. An answer is one too: the number, the status, both outputs in
//! base64. The guest's half is in [`crate::machine`]'s script.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// How a command in the guest ended.
#[derive(Clone, Debug)]
pub struct Output {
    pub command: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that has to succeed.
    ///
    /// # Panics
    /// Where it did not.
    pub fn expect_success(self) -> String {
        assert!(self.code == 0, "in the guest: {self:?}");
        self.stdout
    }
}

/// The guest says this when its root is ready.
pub(crate) const READY: &str = "guest-ready";

#[derive(Debug)]
pub(crate) struct Control {
    line: BufReader<UnixStream>,
    number: u64,
}

impl Control {
    pub(crate) fn connect(socket: &Path) -> std::io::Result<Self> {
        Ok(Self { line: BufReader::new(UnixStream::connect(socket)?), number: 0 })
    }

    /// Waits for the guest's first word.
    pub(crate) fn wait_ready(&mut self, within: Duration) {
        self.line.get_ref().set_read_timeout(Some(within)).expect("a timeout");
        while self.read("its start").trim() != READY {}
    }

    fn read(&mut self, what: &str) -> String {
        let mut line = String::new();
        let read = self.line.read_line(&mut line);
        let read = read.unwrap_or_else(|error| panic!("the guest does not answer to {what}: {error}"));
        assert!(read > 0, "the guest ended before it answered to {what}");
        line
    }

    pub(crate) fn run(&mut self, command: &str, within: Duration) -> Output {
        self.number += 1;
        let number = self.number.to_string();
        self.line.get_ref().set_read_timeout(Some(within)).expect("a timeout");
        writeln!(self.line.get_mut(), "{number} {}", BASE64.encode(command)).expect("the guest listens");
        loop {
            let answer = self.read(command);
            let words: Vec<&str> = answer.trim_end_matches(['\r', '\n']).split(' ').collect();
            // An answer to an earlier command that was not waited for is passed over.
            if let [answered, code, stdout, stderr] = words[..]
                && answered == number
            {
                let text = |word: &str| {
                    let bytes = BASE64.decode(word).expect("an answer in base64");
                    String::from_utf8_lossy(&bytes).into_owned()
                };
                return Output {
                    command: command.to_owned(),
                    code: code.parse().expect("a status"),
                    stdout: text(stdout),
                    stderr: text(stderr),
                };
            }
        }
    }
}

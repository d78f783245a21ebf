//! The machine's control socket: QEMU's own protocol of JSON lines.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A snapshot under emulation is written in seconds.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Qmp {
    answers: BufReader<UnixStream>,
}

impl Qmp {
    pub(crate) fn connect(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { answers: BufReader::new(stream) };
        qmp.read();
        qmp.execute("qmp_capabilities", &json!({}));
        Ok(qmp)
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the machine's control answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("`{line}` is no answer: {error}"))
    }

    /// Carries out a command; what the machine tells meanwhile by itself is passed over.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.answers.get_mut(), "{text}").expect("the machine's control listens");
        loop {
            let mut answer = self.read();
            if let Some(error) = answer.get("error") {
                panic!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    /// A command of the monitor for people, for what has no other.
    pub(crate) fn monitor(&mut self, line: &str) -> String {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": line }));
        answer.as_str().unwrap_or_default().to_owned()
    }
}

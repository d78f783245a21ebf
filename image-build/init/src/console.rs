//! The console: what the machine waits for, in lines that begin with its name.

use std::fs::OpenOptions;
use std::io::Write;

const CONSOLE: &str = "/dev/console";

/// The kernel's log takes no more than this in one record.
const LINE_BYTES_MAX: usize = 900;

/// Makes the console this process's outputs, and the node's after it.
pub(crate) fn open() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open(CONSOLE) else { return };
    let _ = nix::unistd::dup2_stdin(&console);
    let _ = nix::unistd::dup2_stdout(&console);
    let _ = nix::unistd::dup2_stderr(&console);
}

/// Says a line.
pub(crate) fn say(line: &str) {
    let end = (0..=line.len().min(LINE_BYTES_MAX)).rev().find(|end| line.is_char_boundary(*end));
    let line = &line[..end.unwrap_or(0)];
    // A console that is gone has no reader.
    let _ = writeln!(std::io::stdout(), "nightlatch: {line}\r");
}

/// The image's own name.
pub(crate) fn release() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or("?").trim_matches('"').to_owned()
    };
    format!("{}, image {}", value("PRETTY_NAME"), value("IMAGE_VERSION"))
}

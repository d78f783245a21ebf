//! The one error of this crate: where, what, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::locate;

/// What sort of error it is, to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigErrorKind {
    /// The file cannot be read.
    Unreadable,
    /// The file is not TOML, or a key is unknown, missing, or of the wrong type.
    Unparsable,
    /// A value, or two values together, make no sense.
    Invalid,
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    kind: ConfigErrorKind,
    path: PathBuf,
    line: Option<usize>,
    key: Option<String>,
    message: String,
    next_step: String,
}

/// A failed check of a value, before its place in the file is known.
#[derive(Debug)]
pub(crate) struct Invalid {
    /// Dotted path with indexes, as in `pools[0].path`.
    pub(crate) key: String,
    pub(crate) message: String,
    pub(crate) next_step: String,
}

impl Invalid {
    pub(crate) fn new(
        key: impl Into<String>,
        message: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        Self { key: key.into(), message: message.into(), next_step: next_step.into() }
    }
}

impl ConfigError {
    /// What sort of error it is.
    pub fn kind(&self) -> ConfigErrorKind {
        self.kind
    }

    /// The line in the file, from 1, where it is known.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// The key it is about, as in `listen.nbd`, where it is known.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    pub(crate) fn unreadable(path: &Path, source: &std::io::Error) -> Self {
        Self {
            kind: ConfigErrorKind::Unreadable,
            path: path.to_owned(),
            line: None,
            key: None,
            message: format!("cannot read the file: {source}"),
            next_step: "check the path, and that the program's user may read it".to_owned(),
        }
    }

    pub(crate) fn bad_key_file(path: &Path, source: &hex::FromHexError) -> Self {
        Self {
            kind: ConfigErrorKind::Invalid,
            path: path.to_owned(),
            line: None,
            key: None,
            message: format!("the file does not hold one public key of 64 hexadecimal digits ({source})"),
            next_step: "write it again from what `nightlatch key status` shows".to_owned(),
        }
    }

    pub(crate) fn unparsable(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map(|span| span.start);
        // The rest of a message is a drawing of the place, which file, line and key say already.
        let message = error.message().lines().next().unwrap_or("not valid TOML").to_owned();
        let next_step = if message.starts_with("unknown field") {
            "correct the spelling or remove the key"
        } else if message.starts_with("missing field") {
            "add the key; the example files show every one"
        } else {
            "correct the value; the example files show every key with its form"
        };
        Self {
            kind: ConfigErrorKind::Unparsable,
            path: path.to_owned(),
            line: start.map(|start| locate::line_of(text, start)),
            key: start.and_then(|start| locate::key_at(text, start)),
            message,
            next_step: next_step.to_owned(),
        }
    }

    pub(crate) fn invalid(path: &Path, text: &str, invalid: Invalid) -> Self {
        let line = locate::position_of(text, &invalid.key).map(|start| locate::line_of(text, start));
        Self {
            kind: ConfigErrorKind::Invalid,
            path: path.to_owned(),
            line,
            key: Some(invalid.key),
            message: invalid.message,
            next_step: invalid.next_step,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}; {}", self.message, self.next_step)
    }
}

impl std::error::Error for ConfigError {}

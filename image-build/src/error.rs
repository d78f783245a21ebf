//! What can go wrong, with the place and the next step.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image was not made, or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not what its place says it is.
    #[error("{} is not {expected}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        reason: Box<Reason>,
    },
    /// Something that was asked for is not there.
    #[error("there is no {what} `{name}`; {next}")]
    Missing {
        /// What sort of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        next: &'static str,
    },
    /// A package could not be fetched.
    #[error(
        "{url} cannot be fetched: {source}; check the network, or take newer packages with image-build/lock.sh"
    )]
    Fetch {
        /// Where it was to come from.
        url: String,
        /// Why not.
        source: Box<ureq::Error>,
    },
    /// A program of the build failed.
    #[error("{program} failed: {said}")]
    Tool {
        /// Which.
        program: String,
        /// What it said.
        said: String,
    },
    /// Something is not what it was when it was written down.
    #[error("{what} is not what {record} says: expected {expected}, found {found}; {next}")]
    Mismatch {
        /// What was looked at.
        what: String,
        /// Where the expectation stands.
        record: &'static str,
        /// The expectation.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        next: &'static str,
    },
    /// A signature is missing or wrong.
    #[error("{} {reason}; do not boot these artefacts: get them again, or from somebody you trust", .path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// It does not fit.
    #[error("{what} takes {bytes} bytes, more than the {limit} that it may")]
    TooLarge {
        /// What.
        what: String,
        /// How much.
        bytes: u64,
        /// How much there is.
        limit: u64,
    },
}

/// The detail of [`ImageError::Malformed`].
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// TOML that does not parse, or names what is unknown.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// JSON that does not parse, or names what is unknown.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// An executable that cannot be read.
    #[error("{0}")]
    Object(#[from] object::Error),
    /// Hexadecimal digits that are none.
    #[error("{0}")]
    Hex(#[from] hex::FromHexError),
    /// Anything else, in words.
    #[error("{0}")]
    Words(&'static str),
}

impl ImageError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn malformed(path: &Path, expected: &'static str, reason: impl Into<Reason>) -> Self {
        Self::Malformed { path: path.to_owned(), expected, reason: Box::new(reason.into()) }
    }
}

/// What functions here return.
pub(crate) type Result<T = ()> = std::result::Result<T, ImageError>;

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(ImageError::file("read", path))
}

pub(crate) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(ImageError::file("read", path))
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result {
    std::fs::write(path, bytes).map_err(ImageError::file("write", path))
}

pub(crate) fn make_dir(path: &Path) -> Result {
    std::fs::create_dir_all(path).map_err(ImageError::file("make", path))
}

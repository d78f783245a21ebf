//! How a command fails: an exit status for scripts, a message with the next step for people.

use std::fmt;
use std::io;
use std::path::Path;

use config::ConfigError;
use device::DeviceError;
use identity::{ClientError, IdentityError, Problem};
use image_build::ImageError;
use keyholder::shares::ShareError;
use lease::envelope::EnvelopeError;
use pool::PoolError;

/// The exit statuses. 2 is given by the argument parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something on this machine failed: a file, a device, a pool.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A node or keyholder could not be reached, or did not answer in time.
    Unreachable = 3,
    /// A node or keyholder was reached and said no.
    Refused = 4,
    /// One side does not accept the other's certificate.
    Untrusted = 5,
    /// It needs a key that is not held: the node or the keyholder is sealed.
    Sealed = 6,
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// What is said.
    pub problem: Problem,
}

/// What commands return.
pub type Done<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure from its parts.
    pub fn new(exit: Exit, kind: &str, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { exit, problem: Problem::new(kind, message, next_step) }
    }

    /// A local failure.
    pub fn local(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "failed", message, next_step)
    }

    /// A wrong command line that the parser could not see.
    pub fn usage(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message, next_step)
    }

    /// A file that could not be read or written.
    pub fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        let next = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check who owns it, or run as its owner",
            io::ErrorKind::AlreadyExists => "it is not replaced: move it away, or choose another path",
            io::ErrorKind::StorageFull => "free some space there",
            _ => "check the path and the file system",
        };
        Self::local(format!("cannot {action} {}: {error}", path.display()), next)
    }

    /// The same failure, after a note of what was being done.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.problem.message = format!("{what}: {}", self.problem.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { problem, .. } => {
                let exit = if problem.kind == "sealed" { Exit::Sealed } else { Exit::Refused };
                Self { exit, problem }
            }
            // These messages carry their next step.
            other => {
                let (exit, kind) = match &other {
                    ClientError::Unreachable { .. } => (Exit::Unreachable, "unreachable"),
                    ClientError::Timeout { .. } => (Exit::Unreachable, "timeout"),
                    ClientError::Untrusted { .. } => (Exit::Untrusted, "untrusted"),
                    _ => (Exit::Failed, "malformed"),
                };
                Self::new(exit, kind, other.to_string(), "")
            }
        }
    }
}

/// Errors of this machine whose messages say the next step themselves.
macro_rules! local {
    ($($error:ty => $kind:literal),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(Exit::Failed, $kind, error.to_string(), "")
            }
        })+
    };
}

local! {
    IdentityError => "identity",
    ImageError => "image",
    ConfigError => "config",
    PoolError => "pool",
    DeviceError => "device",
    ShareError => "share",
    EnvelopeError => "envelope",
}

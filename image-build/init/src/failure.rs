//! What ends a boot, in words for whoever reads the console.

use std::io;

/// Why the machine cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Something that the image needs of the kernel or of itself.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// The root did not come, or is not the image's.
    #[error("{0}")]
    Root(String),
    /// The node's configuration.
    #[error("{0}")]
    Configuration(String),
}

impl Failure {
    pub(crate) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System { action, source: source.into() }
    }
}

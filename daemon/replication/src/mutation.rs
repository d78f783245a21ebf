//! Rules that a test may break, one at a time, to see that the simulator finds it. Without the feature none is.

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The receiver acknowledges what it has handed to the shell, durable or not.
    AcknowledgeBeforeDurable,
    /// The sender counts an epoch as the peer's when it has sent it.
    ClearOnSend,
    /// The receiver makes an epoch visible after its first portion.
    ApplyHalfAnEpoch,
    /// The receiver takes epochs of a writer that was superseded.
    AcceptLowerFence,
    /// The receiver takes epochs of two writers that have one fence.
    IgnoreGeneration,
    /// The receiver takes a frame a second time, and one before its turn.
    ReuseSequence,
    /// The receiver takes a number a second time.
    ReuseNumber,
}

#[cfg(feature = "mutations")]
mod broken {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static BROKEN: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Breaks one rule on this thread, or none.
    pub fn break_rule(mutation: Option<Mutation>) {
        BROKEN.set(mutation);
    }

    pub(crate) fn is_broken(mutation: Mutation) -> bool {
        BROKEN.get() == Some(mutation)
    }
}

#[cfg(not(feature = "mutations"))]
mod broken {
    use super::Mutation;

    pub(crate) const fn is_broken(_: Mutation) -> bool {
        false
    }
}

#[cfg(feature = "mutations")]
pub use broken::break_rule;
pub(crate) use broken::is_broken;

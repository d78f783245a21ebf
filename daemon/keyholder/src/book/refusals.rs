//! Refusals of people in the trail, as many as have an entry of their own.

use super::Book;
use crate::clock;
use crate::error::KeyholderError;

impl Book {
    /// Notes that somebody was refused something.
    pub(crate) fn note_refusal(
        &mut self,
        by: &str,
        act: &str,
        status: u16,
        kind: &str,
    ) -> Result<(), KeyholderError> {
        let due = self.refusals.count(by, clock::now());
        if due.unlisted > 0 {
            self.audit.append("refused-more", [("by", by.into()), ("count", due.unlisted.into())])?;
        }
        if due.entry {
            let fields =
                [("by", by.into()), ("act", act.into()), ("status", status.into()), ("why", kind.into())];
            self.audit.record("refused", fields)?;
        }
        Ok(())
    }
}

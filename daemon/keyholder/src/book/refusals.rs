//! Refusals of people in the trail, as many as have an entry of their own.

use super::Book;
use crate::clock;
use crate::error::KeyholderError;
use crate::requests::GUEST_PREFIX;

impl Book {
    /// Notes that somebody was refused something.
    pub(crate) fn note_refusal(
        &mut self,
        by: &str,
        act: &str,
        status: u16,
        kind: &str,
    ) -> Result<(), KeyholderError> {
        // All guests together are one way in: they are as many as they like to be.
        let counted = if by.starts_with(GUEST_PREFIX) { GUEST_PREFIX } else { by };
        let due = self.refusals.count(counted, clock::now());
        if due.unlisted > 0 {
            let fields = [("by", counted.trim_end_matches('/').into()), ("count", due.unlisted.into())];
            self.audit.append("refused-more", fields)?;
        }
        if due.entry {
            let fields =
                [("by", by.into()), ("act", act.into()), ("status", status.into()), ("why", kind.into())];
            self.audit.record("refused", fields)?;
        }
        Ok(())
    }
}

//! Choosing entries.

use crate::entry::Entry;

/// What entries are wanted. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this event, or of those that begin with it where it ends in `*`.
    pub event: Option<String>,
    /// By this actor, or with this in the actor's name.
    pub by: Option<String>,
    /// With this text in any field.
    pub about: Option<String>,
    /// Not before, milliseconds since 1970.
    pub since_unix_ms: Option<u64>,
    /// Before, milliseconds since 1970.
    pub until_unix_ms: Option<u64>,
}

impl Filter {
    /// Whether the entry is one of those.
    pub fn takes(&self, entry: &Entry) -> bool {
        let event = self.event.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(start) => entry.event.starts_with(start),
            None => entry.event == wanted,
        });
        let by = self.by.as_deref().is_none_or(|wanted| entry.actor().unwrap_or_default().contains(wanted));
        let about = self.about.as_deref().is_none_or(|wanted| {
            entry.fields.values().any(|value| match value.as_str() {
                Some(text) => text.contains(wanted),
                None => value.to_string().contains(wanted),
            })
        });
        let since = self.since_unix_ms.is_none_or(|since| entry.at.unix_ms >= since);
        let until = self.until_unix_ms.is_none_or(|until| entry.at.unix_ms < until);
        event && by && about && since && until
    }
}

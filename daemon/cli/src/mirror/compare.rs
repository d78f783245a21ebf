//! Both buckets side by side: which objects of the source the target has not, or has older.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Side;
use crate::failure::Done;
use crate::s3::{Listed, persist};

/// The objects of one side in the order of their keys, page by page.
struct Listing<'a> {
    side: &'a Side,
    page: VecDeque<Listed>,
    next: Next,
}

enum Next {
    First,
    From(String),
    End,
}

impl<'a> Listing<'a> {
    fn new(side: &'a Side) -> Self {
        Self { side, page: VecDeque::new(), next: Next::First }
    }

    async fn next(&mut self) -> Done<Option<Listed>> {
        loop {
            if let Some(listed) = self.page.pop_front() {
                return Ok(Some(listed));
            }
            let token = match &self.next {
                Next::First => None,
                Next::From(token) => Some(token.clone()),
                Next::End => return Ok(None),
            };
            let Side { s3, prefix } = self.side;
            let (page, more) = persist(async || s3.list_under(prefix, token.clone()).await).await?;
            self.page = page.into();
            self.next = more.map_or(Next::End, Next::From);
        }
    }
}

pub(super) struct Comparison<'a> {
    source: Listing<'a>,
    target: Listing<'a>,
    /// The first of the target's that has not been passed.
    ahead: Option<Listed>,
    begun: bool,
    exact: bool,
    seen: &'a Seen,
}

/// What has been looked at so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    objects: AtomicU64,
    unchanged: AtomicU64,
}

impl Seen {
    /// Objects at the source, and those of them that the target has already.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.objects.load(Ordering::Relaxed), self.unchanged.load(Ordering::Relaxed))
    }
}

impl<'a> Comparison<'a> {
    pub(super) fn new((source, target): (&'a Side, &'a Side), exact: bool, seen: &'a Seen) -> Self {
        let (source, target) = (Listing::new(source), Listing::new(target));
        Self { source, target, ahead: None, begun: false, exact, seen }
    }

    /// The next object that is to be copied; counts all, and those that are not.
    pub(super) async fn next_wanted(&mut self) -> Done<Option<Listed>> {
        while let Some(listed) = self.source.next().await? {
            self.seen.objects.fetch_add(1, Ordering::Relaxed);
            let exact = self.exact;
            let there = self.counterpart(&listed).await?;
            if !there.is_some_and(|there| is_same(&listed, there, exact)) {
                return Ok(Some(listed));
            }
            self.seen.unchanged.fetch_add(1, Ordering::Relaxed);
        }
        Ok(None)
    }

    /// What the target has by the same name.
    async fn counterpart(&mut self, listed: &Listed) -> Done<Option<&Listed>> {
        if !self.begun {
            self.begun = true;
            self.ahead = self.target.next().await?;
        }
        let (from, to) = (&self.source.side.prefix, &self.target.side.prefix);
        let name = listed.key.strip_prefix(from.as_str()).unwrap_or(&listed.key).to_owned();
        let name_of = |there: &Listed| there.key.strip_prefix(to.as_str()).unwrap_or(&there.key).to_owned();
        while self.ahead.as_ref().is_some_and(|there| name_of(there) < name) {
            self.ahead = self.target.next().await?;
        }
        Ok(self.ahead.as_ref().filter(|there| name_of(there) == name))
    }
}

/// Whether the target has the object as it is: of the same length, and with the same entity tag or written since. An entity tag also
/// says in which parts an object was uploaded, so another one means little by itself.
fn is_same(source: &Listed, target: &Listed, exact: bool) -> bool {
    let time = |listed: &Listed| OffsetDateTime::parse(&listed.modified, &Rfc3339).ok();
    let is_newer = || matches!((time(source), time(target)), (Some(of), Some(there)) if there >= of);
    source.bytes == target.bytes && (source.etag == target.etag || (!exact && is_newer()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_same_length_and_is_the_same_or_newer_is_not_copied() {
        let listed = |bytes, etag: &str, day: &str| Listed {
            key: "k".to_owned(),
            bytes,
            etag: etag.to_owned(),
            modified: format!("2026-01-{day}T00:00:00.000Z"),
        };
        let source = listed(5, "a", "05");
        assert!(is_same(&source, &listed(5, "a", "01"), false), "the same bytes, however old");
        assert!(is_same(&source, &listed(5, "b-2", "06"), false), "in other parts");
        assert!(!is_same(&source, &listed(5, "b-2", "06"), true));
        assert!(!is_same(&source, &listed(5, "b", "04"), false), "older");
        assert!(!is_same(&source, &listed(6, "a", "06"), false));
        let undated = Listed { modified: "soon".to_owned(), ..listed(5, "b", "06") };
        assert!(!is_same(&source, &undated, false));
    }
}

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

/// An object of the source that the target may not have as it is.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) listed: Listed,
    /// Where the target has one of that name and length with another entity tag: whether that was written later.
    pub(super) other_there: Option<bool>,
}

pub(super) struct Comparison<'a> {
    source: Listing<'a>,
    target: Listing<'a>,
    /// The first of the target's that has not been passed.
    ahead: Option<Listed>,
    begun: bool,
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

    pub(super) fn count_unchanged(&self) {
        self.unchanged.fetch_add(1, Ordering::Relaxed);
    }
}

impl<'a> Comparison<'a> {
    pub(super) fn new((source, target): (&'a Side, &'a Side), seen: &'a Seen) -> Self {
        let (source, target) = (Listing::new(source), Listing::new(target));
        Self { source, target, ahead: None, begun: false, seen }
    }

    /// The next object that may be to be copied; counts all, and those that are not.
    pub(super) async fn next_candidate(&mut self) -> Done<Option<Candidate>> {
        while let Some(listed) = self.source.next().await? {
            self.seen.objects.fetch_add(1, Ordering::Relaxed);
            let there = self.counterpart(&listed).await?;
            let other_there = match there.map(|there| compare(&listed, there)) {
                Some(Found::Same) => {
                    self.seen.count_unchanged();
                    continue;
                }
                Some(Found::Other { is_newer }) => Some(is_newer),
                Some(Found::Different) | None => None,
            };
            return Ok(Some(Candidate { listed, other_there }));
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

/// How an object looks beside its counterpart.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Same,
    /// Of the same length, and with another entity tag, which also says in which parts an object was uploaded and how it is encrypted:
    /// by itself that means little.
    Other {
        is_newer: bool,
    },
    Different,
}

fn compare(source: &Listed, target: &Listed) -> Found {
    let time = |listed: &Listed| OffsetDateTime::parse(&listed.modified, &Rfc3339).ok();
    if source.bytes != target.bytes {
        return Found::Different;
    }
    if source.etag == target.etag && !source.etag.is_empty() {
        return Found::Same;
    }
    // Many servers tell whole seconds: the same one may be before.
    let is_newer = matches!((time(source), time(target)), (Some(of), Some(there)) if there > of);
    Found::Other { is_newer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_the_same_by_its_tag_and_later_by_its_time() {
        let listed = |bytes, etag: &str, day: &str| Listed {
            key: "k".to_owned(),
            bytes,
            etag: etag.to_owned(),
            modified: format!("2026-01-{day}T00:00:00.000Z"),
        };
        let source = listed(5, "a", "05");
        let other = |is_newer| Found::Other { is_newer };
        assert_eq!(compare(&source, &listed(5, "a", "01")), Found::Same, "the same bytes, however old");
        assert_eq!(compare(&source, &listed(5, "b-2", "06")), other(true));
        assert_eq!(compare(&source, &listed(5, "b-2", "05")), other(false), "within the same second");
        assert_eq!(compare(&source, &listed(5, "b", "04")), other(false));
        assert_eq!(compare(&source, &listed(6, "a", "06")), Found::Different);
        let undated = Listed { modified: "soon".to_owned(), ..listed(5, "b", "06") };
        assert_eq!(compare(&source, &undated), other(false));
        assert_eq!(compare(&listed(5, "", "05"), &listed(5, "", "04")), other(false), "none is no tag");
    }
}

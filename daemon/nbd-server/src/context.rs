//! Metadata contexts: what a block status can tell of an export, and which of it a client has selected.
//!
//! | context | tells of each run of bytes |
//! |---|---|
//! | `base:allocation` | whether it is a hole, which reads as zeroes |
//! | `nightlatch:dirty:SNAPSHOT` | whether it differs from what that snapshot shows |
//!
//! Invariants:
//! - A selection holds at most [`CONTEXTS_MAX`] contexts, each once. Ids count from 1 in the order of the selection.
//! - A query is compared, never parsed: names are made from what there is.
//!
//! It does no input or output.

use std::collections::BTreeSet;
use std::sync::Arc;

use units::VolumeId;

use crate::limits::CONTEXTS_MAX;
use crate::wire::BASE_ALLOCATION;

/// Queries that list all contexts of a namespace, or of one kind.
const BASE: &str = "base:";
const OWN: &str = "nightlatch:";
const DIRTY: &str = "nightlatch:dirty:";

/// What a block status can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// Holes and data.
    Allocation,
    /// What has changed since a snapshot.
    Dirty(VolumeId),
}

impl Context {
    /// Those of an export that can be compared with `snapshots`.
    pub(crate) fn all(snapshots: Vec<VolumeId>) -> impl Iterator<Item = Self> {
        std::iter::once(Self::Allocation).chain(snapshots.into_iter().map(Self::Dirty))
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Allocation => BASE_ALLOCATION.to_owned(),
            Self::Dirty(since) => format!("{DIRTY}{since}"),
        }
    }

    /// Whether a listing for `queries` has it. No query asks for everything.
    pub(crate) fn is_listed(self, queries: &BTreeSet<&str>) -> bool {
        let wildcards: &[&str] = match self {
            Self::Allocation => &[BASE],
            Self::Dirty(_) => &[OWN, DIRTY],
        };
        queries.is_empty()
            || wildcards.iter().any(|wildcard| queries.contains(wildcard))
            || queries.contains(self.name().as_str())
    }
}

/// The contexts that a client has selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection(Arc<[Context]>);

/// More contexts than one connection may select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Selection {
    /// Those of `available` that `queries` name.
    pub(crate) fn of(
        available: impl Iterator<Item = Context>,
        queries: &BTreeSet<&str>,
    ) -> Result<Self, TooMany> {
        let named = available.filter(|context| queries.contains(context.name().as_str()));
        let selected: Vec<Context> = named.take(CONTEXTS_MAX + 1).collect();
        if selected.len() > CONTEXTS_MAX { Err(TooMany) } else { Ok(Self(selected.into())) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each with its id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Context)> + '_ {
        (1..).zip(self.0.iter().copied())
    }

    /// Those that `ids` name; `None` where one is none of the selection, or named twice.
    pub(crate) fn narrowed(&self, ids: &[u32]) -> Option<Vec<(u32, Context)>> {
        let asked: BTreeSet<u32> = ids.iter().copied().collect();
        let found: Vec<_> = self.iter().filter(|(id, _)| asked.contains(id)).collect();
        (found.len() == ids.len()).then_some(found)
    }
}

#[cfg(test)]
pub(crate) fn allocation() -> Selection {
    Selection([Context::Allocation].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshots(count: usize) -> Vec<VolumeId> {
        (0..count).map(|nth| VolumeId([u8::try_from(nth).unwrap(); 16])).collect()
    }

    fn listed(queries: &[&str]) -> Vec<String> {
        let queries = queries.iter().copied().collect();
        Context::all(snapshots(2)).filter(|context| context.is_listed(&queries)).map(Context::name).collect()
    }

    #[test]
    fn wildcards_and_names_list_what_they_say() {
        let first = format!("nightlatch:dirty:{}", "00".repeat(16));
        let second = format!("nightlatch:dirty:{}", "01".repeat(16));
        let all = ["base:allocation".to_owned(), first.clone(), second.clone()];
        assert_eq!(listed(&[]), all);
        assert_eq!(listed(&["base:"]), all[..1]);
        for wildcard in ["nightlatch:", "nightlatch:dirty:"] {
            assert_eq!(listed(&[wildcard]), all[1..], "{wildcard}");
        }
        assert_eq!(listed(&[&second, "base:allocation"]), [all[0].clone(), second.clone()]);
        for nothing in ["", ":", "base", "nightlatch", "nightlatch:dirty", "nightlatch:dirty:0", "x:"] {
            assert!(listed(&[nothing]).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn a_selection_takes_names_only_and_no_more_than_the_limit() {
        let names: Vec<String> = Context::all(snapshots(CONTEXTS_MAX)).map(Context::name).collect();
        let select = |names: &[&str]| {
            let queries = names.iter().copied().collect();
            Selection::of(Context::all(snapshots(CONTEXTS_MAX)), &queries)
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(select(&names), Err(TooMany));
        assert_eq!(select(&names[1..]).unwrap().iter().count(), CONTEXTS_MAX);
        assert!(select(&["base:", "nightlatch:dirty:", "nightlatch:"]).unwrap().is_empty());
        let one = select(&names[2..3]).unwrap();
        assert_eq!(one.iter().collect::<Vec<_>>(), [(1, Context::Dirty(VolumeId([1; 16])))]);
    }

    #[test]
    fn a_selection_is_narrowed_to_ids_that_are_in_it_once() {
        let names: Vec<String> = Context::all(snapshots(2)).map(Context::name).collect();
        let queries = names.iter().map(String::as_str).collect();
        let three = Selection::of(Context::all(snapshots(2)), &queries).unwrap();
        assert_eq!(three.narrowed(&[3, 1]).unwrap().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3]);
        for ids in [&[0][..], &[4], &[1, 1], &[1, 2, 3, 4], &[u32::MAX]] {
            assert_eq!(three.narrowed(ids), None, "{ids:?}");
        }
    }
}

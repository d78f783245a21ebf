//! Volumes that a grant is about to serve, and volumes that are about to be deleted or rolled back: never the same one.
//!
//! Whoever would do either asks first and goes on only with a claim, which is over when it is dropped. Nobody waits here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use units::VolumeId;

#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<BTreeMap<VolumeId, Claimed>>);

#[derive(Clone, Copy, Debug)]
enum Claimed {
    /// So many are on their way; the pool and the lease machine have them in order.
    ByGrants(usize),
    ByChange,
}

/// A volume that is one's own until this is dropped.
#[derive(Debug)]
#[must_use = "it is over when it is dropped"]
pub(crate) struct Claim<'a> {
    of: &'a Claims,
    volume: VolumeId,
}

impl Claims {
    fn claimed(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Claimed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a key that is being taken in; `None` while the volume is being changed.
    pub(crate) fn for_grant(&self, volume: VolumeId) -> Option<Claim<'_>> {
        match self.claimed().entry(volume).or_insert(Claimed::ByGrants(0)) {
            Claimed::ByGrants(count) => *count += 1,
            Claimed::ByChange => return None,
        }
        Some(Claim { of: self, volume })
    }

    /// For what nobody may be served meanwhile; `None` while a key is being taken in, or another change is on its way.
    pub(crate) fn for_change(&self, volume: VolumeId) -> Option<Claim<'_>> {
        let mut claimed = self.claimed();
        if claimed.contains_key(&volume) {
            return None;
        }
        claimed.insert(volume, Claimed::ByChange);
        Some(Claim { of: self, volume })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.of.claimed();
        match claimed.get_mut(&self.volume) {
            Some(Claimed::ByGrants(count)) if *count > 1 => *count -= 1,
            _ => drop(claimed.remove(&self.volume)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_go_beside_each_other_and_a_change_goes_alone() {
        let claims = Claims::default();
        let (one, other) = (VolumeId([1; 16]), VolumeId([2; 16]));
        let (first, second) = (claims.for_grant(one).unwrap(), claims.for_grant(one).unwrap());
        assert!(claims.for_change(one).is_none());
        let change = claims.for_change(other).unwrap();
        assert!(claims.for_grant(other).is_none() && claims.for_change(other).is_none());
        drop(first);
        assert!(claims.for_change(one).is_none());
        drop(second);
        drop(claims.for_change(one).unwrap());
        drop(change);
        drop(claims.for_grant(other).unwrap());
        assert!(claims.claimed().is_empty());
    }
}

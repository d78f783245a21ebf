//! Which extents of the device are free, whose the others are, and who may have more. In memory only: it follows from
//! the tables.
//!
//! Every extent in use is counted for an account: that of a volume with its snapshots, or the pool's own. An account
//! may have a quota, and a reserve that nobody else is given.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hands out free extents, the lowest first, so that the tables stay short.
#[derive(Debug)]
pub(crate) struct Allocator {
    state: Mutex<State>,
}

/// Who an extent is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account(u32);

impl Account {
    /// The pool's own, without limits.
    pub(crate) const POOL: Self = Self(0);
}

/// Why there is no extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// None is free, or those that are free are reserved for others.
    Space,
    /// The account has all it may have.
    Quota,
}

#[derive(Debug)]
struct State {
    /// One bit an extent, set where it is in use; bits past the end are set.
    used: Vec<u64>,
    extents: u32,
    allocated: u32,
    /// Every word before this one is full.
    first_not_full: usize,
    /// Free extents that are reserved for accounts which have fewer than their reserve.
    promised: u64,
    accounts: Vec<AccountState>,
}

/// What an account may have, in extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// No more than this.
    pub(crate) quota: Option<u32>,
    /// This much, whatever others take.
    pub(crate) reserve: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct AccountState {
    open: bool,
    owned: u32,
    share: Share,
}

impl AccountState {
    fn promised(&self) -> u64 {
        u64::from(self.share.reserve.saturating_sub(self.owned))
    }
}

impl Allocator {
    pub(crate) fn new(extents: u32) -> Arc<Self> {
        let pool = AccountState { open: true, ..AccountState::default() };
        let mut state = State {
            used: Vec::new(),
            extents: 0,
            allocated: 0,
            first_not_full: 0,
            promised: 0,
            accounts: vec![pool],
        };
        state.extend_to(extents);
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new account without limits.
    pub(crate) fn open_account(&self) -> Account {
        let mut state = self.state();
        let fresh = AccountState { open: true, ..AccountState::default() };
        let unused = state.accounts.iter().position(|account| !account.open && account.owned == 0);
        let index = unused.unwrap_or(state.accounts.len());
        match unused {
            Some(index) => state.accounts[index] = fresh,
            None => state.accounts.push(fresh),
        }
        Account(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Gives the account's reserve up. Extents that it has stay counted for it until they are free.
    pub(crate) fn close_account(&self, account: Account) {
        let mut state = self.state();
        state.change(account, |account| {
            account.open = false;
            account.share = Share::default();
        });
    }

    /// Sets an account's limits: what they were. `None`, and nothing has changed, where there is no room for the reserve.
    pub(crate) fn set_limits(&self, account: Account, share: Share) -> Option<Share> {
        let mut state = self.state();
        let of = state.accounts[account.0 as usize];
        let others = state.promised - of.promised();
        let mine = AccountState { share, ..of }.promised();
        // A smaller reserve is always taken: a pool that has lost space must be able to let go.
        if others + mine > state.free() && share.reserve > of.share.reserve {
            return None;
        }
        state.change(account, |account| account.share = share);
        Some(of.share)
    }

    /// Whether the account's next extent is one of those that are kept for it.
    pub(crate) fn is_promised(&self, account: Account) -> bool {
        self.state().accounts[account.0 as usize].promised() > 0
    }

    /// Whether the account could be given as many extents again as it has.
    pub(crate) fn may_double(&self, account: Account) -> bool {
        let state = self.state();
        let of = state.accounts[account.0 as usize];
        let free = state.free().saturating_sub(state.promised - of.promised());
        let by_quota = of.share.quota.map_or(u64::MAX, |quota| quota.saturating_sub(of.owned).into());
        free.min(by_quota) >= of.owned.into()
    }

    /// The lowest free extent, now in use.
    pub(crate) fn allocate(&self, account: Account) -> Result<u32, Shortage> {
        let mut state = self.state();
        let of = state.accounts[account.0 as usize];
        if of.share.quota.is_some_and(|quota| of.owned >= quota) {
            return Err(Shortage::Quota);
        }
        if of.promised() == 0 && state.free() <= state.promised {
            return Err(Shortage::Space);
        }
        let index = state.lowest_free().ok_or(Shortage::Space)?;
        state.take(index, account);
        Ok(index)
    }

    /// Marks an extent in use; `false` where it already is, or there is no such extent.
    pub(crate) fn mark(&self, extent: u32, account: Account) -> bool {
        let mut state = self.state();
        if extent >= state.extents || state.is_used(extent) {
            return false;
        }
        state.take(extent, account);
        true
    }

    fn release(&self, extent: u32, account: Account) {
        let mut state = self.state();
        debug_assert!(state.is_used(extent), "extent {extent} is freed twice");
        let word = extent as usize / 64;
        state.used[word] &= !(1 << (extent % 64));
        state.allocated -= 1;
        state.first_not_full = state.first_not_full.min(word);
        state.change(account, |account| account.owned -= 1);
    }

    pub(crate) fn is_used(&self, extent: u32) -> bool {
        self.state().is_used(extent)
    }

    /// Adds the extents that a longer device has.
    pub(crate) fn extend_to(&self, extents: u32) {
        self.state().extend_to(extents);
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
            extents: state.extents,
            allocated: state.allocated,
            pool: state.accounts[Account::POOL.0 as usize].owned,
            promised: state.promised,
        }
    }

    /// Extents that the account has.
    pub(crate) fn owned(&self, account: Account) -> u32 {
        self.state().accounts[account.0 as usize].owned
    }
}

/// How many extents there are, and what of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) extents: u32,
    /// In use, the pool's own among them.
    pub(crate) allocated: u32,
    /// The pool's own.
    pub(crate) pool: u32,
    /// Free, and reserved for somebody.
    pub(crate) promised: u64,
}

impl State {
    fn free(&self) -> u64 {
        u64::from(self.extents - self.allocated)
    }

    fn lowest_free(&mut self) -> Option<u32> {
        let from = self.first_not_full;
        let word = from + self.used[from..].iter().position(|word| *word != u64::MAX)?;
        self.first_not_full = word;
        u32::try_from(word * 64).ok()?.checked_add(self.used[word].trailing_ones())
    }

    fn take(&mut self, extent: u32, account: Account) {
        self.used[extent as usize / 64] |= 1 << (extent % 64);
        self.allocated += 1;
        self.change(account, |account| account.owned += 1);
    }

    /// Changes an account and what is promised to it.
    fn change(&mut self, account: Account, change: impl FnOnce(&mut AccountState)) {
        let of = &mut self.accounts[account.0 as usize];
        let before = of.promised();
        change(of);
        self.promised = self.promised - before + of.promised();
    }

    fn is_used(&self, extent: u32) -> bool {
        self.used.get(extent as usize / 64).is_none_or(|word| word >> (extent % 64) & 1 == 1)
    }

    fn extend_to(&mut self, extents: u32) {
        debug_assert!(extents >= self.extents);
        if let Some(last) = self.used.last_mut() {
            *last &= !tail_mask(self.extents);
        }
        self.first_not_full = self.first_not_full.min(self.used.len().saturating_sub(1));
        // A zeroed vector costs memory only where it is touched.
        let mut used = vec![0; (extents as usize).div_ceil(64)];
        used[..self.used.len()].copy_from_slice(&self.used);
        self.used = used;
        self.extents = extents;
        if let Some(last) = self.used.last_mut() {
            *last |= tail_mask(extents);
        }
    }
}

/// The bits of the last word that are past the end.
fn tail_mask(extents: u32) -> u64 {
    match extents % 64 {
        0 => 0,
        used => u64::MAX << used,
    }
}

/// An extent in use. Dropping it frees the extent, so whoever may still touch it holds it.
#[derive(Debug)]
pub(crate) struct Allocated {
    index: u32,
    account: Account,
    allocator: Arc<Allocator>,
}

impl Allocated {
    /// The extent `index`, already in use for `account`.
    pub(crate) fn new(index: u32, account: Account, allocator: &Arc<Allocator>) -> Self {
        Self { index, account, allocator: Arc::clone(allocator) }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        self.allocator.release(self.index, self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Account = Account::POOL;

    fn take(allocator: &Arc<Allocator>, account: Account) -> Result<Allocated, Shortage> {
        allocator.allocate(account).map(|index| Allocated::new(index, account, allocator))
    }

    #[test]
    fn every_extent_is_handed_out_once_lowest_first_and_again_when_freed() {
        for extents in [1, 63, 64, 65, 1000] {
            let allocator = Allocator::new(extents);
            let all: Vec<_> = (0..extents).map(|_| take(&allocator, POOL).unwrap()).collect();
            assert!(all.iter().map(Allocated::index).eq(0..extents));
            assert_eq!(allocator.allocate(POOL), Err(Shortage::Space));
            assert_eq!((allocator.counts().allocated, allocator.owned(POOL)), (extents, extents));
            drop(all);
            assert_eq!(allocator.counts().allocated, 0);
            assert_eq!(allocator.allocate(POOL), Ok(0));
        }
    }

    #[test]
    fn growth_adds_free_extents_behind_full_ones() {
        let allocator = Allocator::new(70);
        for _ in 0..70 {
            allocator.allocate(POOL).unwrap();
        }
        allocator.extend_to(72);
        let next = [allocator.allocate(POOL), allocator.allocate(POOL), allocator.allocate(POOL)];
        assert_eq!(next, [Ok(70), Ok(71), Err(Shortage::Space)]);
        allocator.extend_to(200);
        assert_eq!(allocator.allocate(POOL), Ok(72));
    }

    #[test]
    fn marking_twice_or_past_the_end_is_noticed() {
        let allocator = Allocator::new(10);
        assert!(allocator.mark(3, POOL));
        assert!(!allocator.mark(3, POOL));
        assert!(!allocator.mark(10, POOL));
        assert!(!allocator.mark(u32::MAX, POOL));
        assert!(allocator.is_used(3) && !allocator.is_used(4));
    }

    #[test]
    fn a_reserve_is_there_for_its_account_alone_and_a_quota_ends_it() {
        let allocator = Allocator::new(10);
        let (first, second) = (allocator.open_account(), allocator.open_account());
        assert_eq!(allocator.set_limits(first, Share { quota: Some(5), reserve: 4 }), Some(Share::default()));
        let too_many = Share { quota: None, reserve: 7 };
        assert_eq!(allocator.set_limits(second, too_many), None, "six are left to promise");
        let others: Vec<_> = (0..6).map(|_| take(&allocator, second).unwrap()).collect();
        assert_eq!(take(&allocator, second).unwrap_err(), Shortage::Space);
        assert_eq!(allocator.counts().promised, 4);
        let mut own: Vec<_> = (0..4).map(|_| take(&allocator, first).unwrap()).collect();
        assert_eq!(take(&allocator, first).unwrap_err(), Shortage::Space);
        drop(others);
        own.push(take(&allocator, first).unwrap());
        assert_eq!(take(&allocator, first).unwrap_err(), Shortage::Quota);
        // What falls below the reserve is promised again.
        own.truncate(1);
        assert_eq!((allocator.owned(first), allocator.counts().promised), (1, 3));
        allocator.close_account(first);
        assert_eq!(allocator.counts().promised, 0);
        assert_ne!(allocator.open_account(), first, "it still has an extent");
        drop(own);
        assert_eq!(allocator.open_account(), first);
    }
}

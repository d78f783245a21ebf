//! How much memory this process may lock, asked before any is taken: one clear error instead of the second of three failing.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use crate::error::LockedMemoryError;

/// `CAP_IPC_LOCK`: its holder may lock any amount. linux/capability.h
const CAP_IPC_LOCK: u32 = 14;

/// Whether `needed` bytes, rounded up to whole pages by their users, can be locked on top of what is. Where the system does not
/// say, the mappings themselves will.
///
/// # Errors
/// [`LockedMemoryError::Budget`].
pub fn check_budget(needed: usize) -> Result<(), LockedMemoryError> {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return Ok(()) };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let budget = Budget { limit, locked: locked_bytes(&status), unlimited: may_lock_all(&status) };
    budget.check(needed as u64)
}

struct Budget {
    limit: u64,
    locked: u64,
    unlimited: bool,
}

impl Budget {
    fn check(&self, needed: u64) -> Result<(), LockedMemoryError> {
        let Self { limit, locked, unlimited } = *self;
        if unlimited || locked.saturating_add(needed) <= limit {
            return Ok(());
        }
        Err(LockedMemoryError::Budget { needed, locked, limit })
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn locked_bytes(status: &str) -> u64 {
    let kibibytes = field(status, "VmLck:").and_then(|value| value.strip_suffix("kB"));
    kibibytes.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

fn may_lock_all(status: &str) -> bool {
    let effective = field(status, "CapEff:").and_then(|value| u64::from_str_radix(value, 16).ok());
    effective.is_some_and(|effective| effective >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_enough_to_the_byte_and_the_error_names_the_number_to_set() {
        let status = "VmLck:\t     100 kB\nCapEff:\t0000000000003000\n";
        let budget =
            Budget { limit: 110 * 1024, locked: locked_bytes(status), unlimited: may_lock_all(status) };
        assert!(budget.check(10 * 1024).is_ok());
        let error = budget.check(10 * 1024 + 1).unwrap_err().to_string();
        assert!(error.contains(&(110 * 1024 + 1).to_string()), "{error}");
        let capable = "CapEff:\t0000000000004000\n";
        assert!(may_lock_all(capable) && !may_lock_all("") && locked_bytes("") == 0);
        assert!(Budget { unlimited: true, ..budget }.check(u64::MAX).is_ok());
    }
}

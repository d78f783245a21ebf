//! Object lock: what must not be deleted, and until when.
//!
//! Amazon S3 User Guide, "How S3 Object Lock works". Time is the node's wall clock: whoever can set it forward can end a
//! retention, which is why the node's operator must not be the one whom compliance binds.

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::limits::RETENTION_DAYS_MAX;

const DAY_MS: u64 = 24 * 3600 * 1000;
const DAYS_A_YEAR: u32 = 365;

/// How strictly a version is retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockMode {
    /// Who has the right to bypass it may delete the version or shorten the time.
    Governance,
    /// Nobody may.
    Compliance,
}

/// Until when a version is retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// How strictly.
    pub mode: LockMode,
    /// Milliseconds since 1970.
    pub until_ms: u64,
}

/// What keeps one version of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectLock {
    /// For a time.
    pub retention: Option<Retention>,
    /// Until it is lifted; `None` where it was never set.
    pub legal_hold: Option<bool>,
}

/// A length of time as a bucket's configuration gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Period {
    /// Of 24 hours.
    Days(u32),
    /// Of 365 days.
    Years(u32),
}

/// What new versions of a bucket get that name no retention themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultRetention {
    /// How strictly.
    pub mode: LockMode,
    /// For how long.
    pub period: Period,
}

/// A bucket's object lock. Once enabled it is never switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketLock {
    /// Whether versions can be locked at all.
    pub enabled: bool,
    /// Default of new versions.
    pub default: Option<DefaultRetention>,
}

impl DefaultRetention {
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let (count, days) = match self.period {
            Period::Days(days) => (days, Some(days)),
            Period::Years(years) => (years, years.checked_mul(DAYS_A_YEAR)),
        };
        if count == 0 || days.is_none_or(|days| days > RETENTION_DAYS_MAX) {
            return Err(StoreError::InvalidRetention);
        }
        Ok(())
    }

    fn from(&self, now_ms: u64) -> Retention {
        let days = match self.period {
            Period::Days(days) => u64::from(days),
            Period::Years(years) => u64::from(years) * u64::from(DAYS_A_YEAR),
        };
        Retention { mode: self.mode, until_ms: now_ms.saturating_add(days.saturating_mul(DAY_MS)) }
    }
}

impl BucketLock {
    /// The lock of a new version for which `asked` is asked.
    pub(crate) fn of_new(&self, asked: ObjectLock, now_ms: u64) -> Result<ObjectLock, StoreError> {
        if !self.enabled {
            return match asked {
                ObjectLock { retention: None, legal_hold: None } => Ok(asked),
                _ => Err(StoreError::LockNotEnabled),
            };
        }
        if asked.retention.is_some_and(|retention| retention.until_ms <= now_ms) {
            return Err(StoreError::RetentionPassed);
        }
        Ok(self.of_begun(asked, now_ms))
    }

    /// The lock of a version for which `asked` was asked and taken earlier. Its time may have come since.
    pub(crate) fn of_begun(&self, asked: ObjectLock, now_ms: u64) -> ObjectLock {
        let default = self.default.filter(|_| self.enabled).map(|default| default.from(now_ms));
        ObjectLock { retention: asked.retention.or(default), ..asked }
    }
}

impl ObjectLock {
    /// Whether the version may be deleted now.
    pub(crate) fn check_delete(&self, now_ms: u64, bypass: bool) -> Result<(), StoreError> {
        let retained = self.retention.filter(|retention| retention.until_ms > now_ms);
        let bypassed = |retention: Retention| bypass && retention.mode == LockMode::Governance;
        if self.legal_hold == Some(true) || retained.is_some_and(|retention| !bypassed(retention)) {
            return Err(StoreError::Locked);
        }
        Ok(())
    }

    /// Whether the retention may become `next` now.
    pub(crate) fn check_retention(
        &self,
        next: Option<Retention>,
        now_ms: u64,
        bypass: bool,
    ) -> Result<(), StoreError> {
        if next.is_some_and(|next| next.until_ms <= now_ms) {
            return Err(StoreError::RetentionPassed);
        }
        let Some(current) = self.retention.filter(|retention| retention.until_ms > now_ms) else {
            return Ok(());
        };
        let keeps = next.is_some_and(|next| next.until_ms >= current.until_ms && next.mode == current.mode);
        match current.mode {
            _ if keeps => Ok(()),
            LockMode::Governance if bypass => Ok(()),
            _ => Err(StoreError::Locked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn lock(mode: LockMode, until_ms: u64) -> ObjectLock {
        ObjectLock { retention: Some(Retention { mode, until_ms }), legal_hold: None }
    }

    #[test]
    fn what_is_retained_goes_only_when_its_time_has_come_or_governance_is_bypassed() {
        for (mode, bypass, allowed) in [
            (LockMode::Governance, false, false),
            (LockMode::Governance, true, true),
            (LockMode::Compliance, false, false),
            (LockMode::Compliance, true, false),
        ] {
            assert_eq!(lock(mode, NOW + 1).check_delete(NOW, bypass).is_ok(), allowed, "{mode:?} {bypass}");
            assert!(lock(mode, NOW).check_delete(NOW, false).is_ok(), "its time has come");
        }
        let held = ObjectLock { legal_hold: Some(true), ..ObjectLock::default() };
        assert!(held.check_delete(NOW, true).is_err(), "a legal hold knows no bypass");
    }

    #[test]
    fn a_retention_can_be_made_longer_by_anybody_and_weaker_only_under_governance() {
        let retention = |mode, until_ms| Some(Retention { mode, until_ms });
        let (governance, compliance) =
            (lock(LockMode::Governance, NOW + 10), lock(LockMode::Compliance, NOW + 10));
        let longer = retention(LockMode::Compliance, NOW + 11);
        assert!(governance.check_retention(retention(LockMode::Governance, NOW + 11), NOW, false).is_ok());
        assert!(governance.check_retention(longer, NOW, false).is_err(), "another mode needs the bypass");
        assert!(governance.check_retention(longer, NOW, true).is_ok());
        assert!(compliance.check_retention(longer, NOW, false).is_ok());
        let shorter = retention(LockMode::Governance, NOW + 9);
        assert!(governance.check_retention(shorter, NOW, false).is_err());
        assert!(governance.check_retention(shorter, NOW, true).is_ok());
        assert!(governance.check_retention(None, NOW, true).is_ok());
        for next in [None, shorter, retention(LockMode::Governance, NOW + 20)] {
            assert!(compliance.check_retention(next, NOW, true).is_err());
        }
        assert!(matches!(
            ObjectLock::default().check_retention(retention(LockMode::Governance, NOW), NOW, true),
            Err(StoreError::RetentionPassed)
        ));
    }

    #[test]
    fn a_default_applies_where_nothing_is_asked_and_has_its_limits() {
        let default = DefaultRetention { mode: LockMode::Governance, period: Period::Days(1) };
        let bucket = BucketLock { enabled: true, default: Some(default) };
        let found = bucket.of_new(ObjectLock::default(), NOW).unwrap().retention.unwrap();
        assert_eq!(found.until_ms, NOW + DAY_MS);
        let asked = lock(LockMode::Compliance, NOW + 5);
        assert_eq!(bucket.of_new(asked, NOW).unwrap(), asked);
        assert!(BucketLock::default().of_new(asked, NOW).is_err());
        for (period, good) in [
            (Period::Days(RETENTION_DAYS_MAX), true),
            (Period::Days(RETENTION_DAYS_MAX + 1), false),
            (Period::Days(0), false),
            (Period::Years(100), true),
            (Period::Years(u32::MAX), false),
        ] {
            assert_eq!(DefaultRetention { period, ..default }.check().is_ok(), good, "{period:?}");
        }
    }
}

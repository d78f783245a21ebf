//! Root without its powers.

use caps::{CapSet, Capability, CapsHashSet};

/// A capability that would not go.
#[derive(Debug, thiserror::Error)]
#[error("capabilities could not be dropped: {0}")]
pub struct CapabilityError(#[from] caps::errors::CapsError);

/// Empties every set of the calling thread. What was opened before stays open; a user other than root has none to lose.
pub fn drop_capabilities() -> Result<(), CapabilityError> {
    // The bounding set first: shrinking it takes a capability. Once nothing can be executed it matters to nobody, but
    // it is what `/proc/PID/status` shows.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &CapsHashSet::new())?;
    }
    Ok(())
}

/// As [`drop_capabilities`], but for the right to give other threads priority, where this thread has it. In a unit with
/// `LimitRTPRIO` nobody needs it.
///
/// # Errors
/// As [`drop_capabilities`].
pub fn drop_capabilities_but_priority() -> Result<(), CapabilityError> {
    if !caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_NICE)? {
        return drop_capabilities();
    }
    let kept: CapsHashSet = [Capability::CAP_SYS_NICE].into();
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::set(None, set, &CapsHashSet::new())?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept)?;
    }
    Ok(())
}

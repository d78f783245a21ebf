//! Which implementation runs: found out once, or named by whoever composes the program.

use std::time::Duration;

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
use crate::batch::{Direction, Job, Sectors};
use crate::portable;
use crate::schedule::{SCHEDULE_WORDS, XtsSchedule};
use crate::scratch::{SCRATCH_WORDS, Scratch};
#[cfg(target_arch = "x86_64")]
use crate::x86;

/// A kernel that this processor can run: whoever holds one may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Vaes512(x86::Tweaks),
    #[cfg(target_arch = "x86_64")]
    Vaes256,
    #[cfg(target_arch = "x86_64")]
    Vaes256Avx2,
    #[cfg(target_arch = "x86_64")]
    AesNi,
    #[cfg(target_arch = "aarch64")]
    Aarch64,
    Portable,
}

/// Fastest first, but for the two ways to make tweaks: [`Kernel::all`].
const KINDS: &[Kind] = &[
    #[cfg(target_arch = "x86_64")]
    Kind::Vaes512(x86::Tweaks::ByBytes),
    #[cfg(target_arch = "x86_64")]
    Kind::Vaes512(x86::Tweaks::ByBits),
    #[cfg(target_arch = "x86_64")]
    Kind::Vaes256,
    #[cfg(target_arch = "x86_64")]
    Kind::Vaes256Avx2,
    #[cfg(target_arch = "x86_64")]
    Kind::AesNi,
    #[cfg(target_arch = "aarch64")]
    Kind::Aarch64,
    Kind::Portable,
];

/// Why no kernel goes by a name here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// No kernel has this name.
    #[error("no cipher kernel is called {name:?}: use one of {known}, or none to have the fastest")]
    Unknown {
        /// The name asked for.
        name: Box<str>,
        /// Those there are on this architecture.
        known: Box<str>,
    },
    /// This processor lacks the instructions.
    #[error(
        "this processor cannot run the cipher kernel {name}: use one of {supported}, or none to have the fastest"
    )]
    Unsupported {
        /// The name asked for.
        name: &'static str,
        /// Those that would run.
        supported: Box<str>,
    },
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512(x86::Tweaks::ByBytes) => "vaes512-bytes",
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512(x86::Tweaks::ByBits) => "vaes512-bits",
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256 => "vaes256",
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256Avx2 => "vaes256-avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => "aes-ni",
            #[cfg(target_arch = "aarch64")]
            Self::Aarch64 => "aarch64-aes",
            Self::Portable => "portable",
        }
    }

    /// Asks the processor, and through it the operating system, which must save the registers.
    fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("vaes")
                && is_x86_feature_detected!("vpclmulqdq")
        };
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512(_) | Self::Vaes256 => is_x86_feature_detected!("aes") && avx512(),
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256Avx2 => {
                is_x86_feature_detected!("aes")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("vaes")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => is_x86_feature_detected!("aes"),
            #[cfg(target_arch = "aarch64")]
            Self::Aarch64 => std::arch::is_aarch64_feature_detected!("aes"),
            Self::Portable => true,
        }
    }
}

impl Kernel {
    /// The fastest that this processor runs.
    pub fn fastest() -> Self {
        Self::all().next().unwrap_or(Self(Kind::Portable))
    }

    /// Every kernel that this processor runs, fastest first.
    pub fn all() -> impl Iterator<Item = Self> {
        let kinds = KINDS.iter().copied().filter(|kind| kind.is_supported());
        #[cfg(target_arch = "x86_64")]
        let kinds = {
            let mut kinds: Vec<Kind> = kinds.collect();
            kinds.sort_by_key(|kind| *kind != Kind::Vaes512(x86::Tweaks::fastest()));
            kinds.into_iter()
        };
        kinds.map(Self)
    }

    /// The kernel called `name`, as `NIGHTLATCH_CIPHER` gives it.
    ///
    /// # Errors
    /// A name that no kernel has, and one whose kernel this processor can't run.
    pub fn by_name(name: &str) -> Result<Self, KernelError> {
        let Some(kind) = KINDS.iter().find(|kind| kind.name() == name) else {
            return Err(KernelError::Unknown { name: name.into(), known: names(KINDS.iter().copied()) });
        };
        if !kind.is_supported() {
            let supported = names(Self::all().map(|kernel| kernel.0));
            return Err(KernelError::Unsupported { name: kind.name(), supported });
        }
        Ok(Self(*kind))
    }

    /// Its name, for status and for [`Kernel::by_name`].
    pub const fn name(self) -> &'static str {
        self.0.name()
    }

    /// Bytes a second that one core encrypts in 4 KiB sectors, the best of some short runs: a few milliseconds, for
    /// status. `clock` counts up. No key takes part: the schedule is zeros.
    pub fn measure(self, mut clock: impl FnMut() -> Duration) -> u64 {
        const BYTES: usize = 64 * 1024;
        const RUNS: usize = 64;
        let words = [const { std::sync::atomic::AtomicU64::new(0) }; SCHEDULE_WORDS];
        let scratch = [const { std::sync::atomic::AtomicU64::new(0) }; SCRATCH_WORDS];
        let (schedule, scratch) = (XtsSchedule::over(&words), Scratch::over(&scratch));
        let mut data = vec![0; BYTES];
        let mut shortest = Duration::MAX;
        for _ in 0..RUNS {
            let begun = clock();
            let done = self.apply(
                Direction::Encrypt,
                schedule,
                scratch,
                Sectors { first: 0, bytes: 4096 },
                &mut data,
            );
            debug_assert!(done.is_ok(), "sixteen whole sectors");
            shortest = shortest.min(clock().saturating_sub(begun)).max(Duration::from_nanos(1));
        }
        u64::try_from(BYTES as u128 * 1_000_000_000 / shortest.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether cipher, tag and checksum of such sectors run in one loop.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_fused_tag(self, sector_bytes: usize) -> bool {
        self.fused_tweaks(sector_bytes).is_some()
    }

    /// As on x86-64, where there is such a loop.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn has_fused_tag(self, _sector_bytes: usize) -> bool {
        false
    }

    /// How the loop that makes the tags of such sectors makes tweaks, where there is one.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn fused_tweaks(self, sector_bytes: usize) -> Option<x86::Tweaks> {
        match self.0 {
            Kind::Vaes512(tweaks) if sector_bytes.is_multiple_of(x86::TAGGED_TURN_BYTES) => Some(tweaks),
            _ => None,
        }
    }

    /// Vectors on which this kernel multiplies without carries, if it does.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn hash_width(self) -> Option<x86::HashWidth> {
        match self.0 {
            _ if !is_x86_feature_detected!("pclmulqdq") => None,
            Kind::Vaes512(_) => Some(x86::HashWidth::Bits512),
            Kind::Vaes256 | Kind::Vaes256Avx2 => Some(x86::HashWidth::Bits256),
            Kind::AesNi => Some(x86::HashWidth::Bits128),
            Kind::Portable => None,
        }
    }

    pub(crate) fn run(self, job: &Job<'_>) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Kernel` exists only where `is_supported` said yes.
            Kind::Vaes512(tweaks) => unsafe { x86::vaes512(job, tweaks) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Vaes256 => unsafe { x86::vaes256(job) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Vaes256Avx2 => unsafe { x86::vaes256_avx2(job) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::AesNi => unsafe { x86::aesni(job) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Aarch64 => unsafe { aarch64::run(job) },
            Kind::Portable => portable::run(job),
        }
    }
}

fn names(kinds: impl Iterator<Item = Kind>) -> Box<str> {
    kinds.map(Kind::name).collect::<Vec<_>>().join(", ").into()
}

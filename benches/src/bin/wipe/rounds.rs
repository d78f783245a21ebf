//! The rounds: a key is pushed, threads use it, an event comes, the key is gone.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aes_xts::{Direction, Sectors};
use anyhow::{Context, Result, ensure};
use keyring::simulated::Keyholder;
use keyring::{Clock, Kernel, KeyHandle, Keyring, WipeCause};
use locked_memory::Policy;
use nix::sys::signal::{Signal, kill};
use node::rehearsal::Rehearsal;
use units::{BootInstant, DomainId, SECTOR_BYTES, VolumeEpoch};

use crate::control::{Control, real_time};

/// The wiper's priority, and the control thread's.
pub(crate) const PRIORITY: u8 = 10;

/// Below the wiper's: who causes an event is not to be stopped between looking at the clock and causing it, and plays the next
/// round when one is over, not when the load lets it.
const CAUSE_PRIORITY: u8 = 5;

/// How often it looks whether something has happened that it waits for.
const LOOK: Duration = Duration::from_micros(50);

pub(crate) const P999_US_MAX: f64 = 100.0;
pub(crate) const US_MAX: f64 = 1_000.0;

/// Threads that use the key all the time.
const USERS: usize = 2;

/// How far ahead a lease is set to end.
const LEASE_NS: u64 = 400_000;

/// A device that exists everywhere, whose event root may ask the kernel for.
const EVENT_FILE: &str = "/sys/class/mem/null/uevent";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Signal,
    Lease,
    Gpio,
    KernelEvent,
    Admin,
}

impl Source {
    pub(crate) const ALL: [Self; 5] = [Self::Signal, Self::Lease, Self::Gpio, Self::KernelEvent, Self::Admin];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Signal => "SIGPWR",
            Self::Lease => "lease expiry",
            Self::Gpio => "GPIO record",
            Self::KernelEvent => "kernel event",
            Self::Admin => "admin wipe",
        }
    }

    const fn cause(self) -> WipeCause {
        match self {
            Self::Signal => WipeCause::PowerLoss,
            Self::Lease => WipeCause::LeaseExpired,
            Self::Gpio => WipeCause::PowerLine,
            Self::KernelEvent => WipeCause::KernelEvent,
            Self::Admin => WipeCause::Admin,
        }
    }
}

/// One round, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Round {
    keys: f64,
    threads: f64,
    /// The machine stood still between the event and keys gone.
    gap_in_keys: bool,
    /// It did before the second stage was through.
    gap_in_threads: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Round>);

impl Times {
    /// Rounds that took so many microseconds, and whether the machine stood still in them.
    #[cfg(test)]
    pub(crate) fn of(rounds: &[(f64, bool)]) -> Self {
        let round = |(keys, gap): &(f64, bool)| Round {
            keys: *keys,
            threads: *keys,
            gap_in_keys: *gap,
            gap_in_threads: *gap,
        };
        Self(rounds.iter().map(round).collect())
    }

    fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values
    }

    pub(crate) fn all(&self) -> Vec<f64> {
        Self::sorted(self.0.iter().map(|round| round.keys))
    }

    pub(crate) fn filtered(&self) -> Vec<f64> {
        Self::sorted(self.0.iter().filter(|round| !round.gap_in_keys).map(|round| round.keys))
    }

    pub(crate) fn all_threads(&self) -> Vec<f64> {
        Self::sorted(self.0.iter().map(|round| round.threads))
    }

    pub(crate) fn filtered_threads(&self) -> Vec<f64> {
        Self::sorted(self.0.iter().filter(|round| !round.gap_in_threads).map(|round| round.threads))
    }

    #[expect(clippy::cast_precision_loss, reason = "ten thousand rounds")]
    pub(crate) fn dropped_share(&self) -> f64 {
        self.0.iter().filter(|round| round.gap_in_keys).count() as f64 / self.0.len().max(1) as f64
    }
}

/// The smallest value that at least `share` of `sorted` do not pass; infinite where there is none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index"
)]
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::INFINITY)
}

/// What the rounds came to.
pub(crate) struct Measured {
    pub(crate) sources: Vec<(Source, Times)>,
    /// How late the control thread was each time, sorted, in microseconds.
    pub(crate) wakes: Vec<f64>,
}

/// Runs `rounds` of every source, in turns.
pub(crate) fn run(rounds: usize) -> Result<Measured> {
    let keyring = Keyring::new(Policy::AllowMlock, Clock::Boot, Kernel::fastest())?;
    let dir = tempfile::tempdir()?;
    let line = dir.path().join("line");
    let listener = UnixListener::bind(&line)?;
    let config = toml::from_str(&format!(
        "[[gpio]]\nname = 'line'\nchip = '{}'\nline = 0\nactive = 'high'\nrecorded = true\n\
         [[kernel_event]]\nname = 'event'\nsynthetic = true\nmatch = {{ DEVPATH = '/devices/virtual/mem/null' }}\n",
        line.display()
    ))?;
    let rehearsal = Rehearsal::start(&keyring, &config)?;
    let (line, _) = listener.accept()?;
    let mut stage = Stage {
        keyholder: Keyholder::new(DomainId([7; 16]), VolumeEpoch(1)),
        event: std::fs::OpenOptions::new().write(true).open(EVENT_FILE).context("kernel events need root")?,
        control: Control::start()?,
        keyring: Arc::clone(&keyring),
        rehearsal,
        line,
        sequence: 0,
    };
    let key = Mutex::new(None);
    let (stop, uses) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..USERS {
            let (keyring, key, stop, uses) = (&keyring, &key, &stop, &uses);
            scope.spawn(move || use_key(number as u128, keyring, key, stop, uses));
        }
        let mut all: Vec<_> = Source::ALL.map(|source| (source, Times::default())).into();
        let mut play = || -> Result<()> {
            for round in 0..rounds {
                for (source, times) in &mut all {
                    times.0.push(stage.round(*source, &key, &uses)?);
                }
                if (round + 1) % 1000 == 0 {
                    println!("{} rounds of each source", round + 1);
                }
            }
            Ok(())
        };
        real_time(CAUSE_PRIORITY);
        let played = play();
        real_time(0);
        stop.store(true, Ordering::SeqCst);
        played.map(|()| Measured { sources: all, wakes: stage.control.wakes() })
    })
}

struct Stage {
    keyring: Arc<Keyring>,
    keyholder: Keyholder,
    rehearsal: Rehearsal,
    control: Control,
    line: std::os::unix::net::UnixStream,
    sequence: u32,
    event: std::fs::File,
}

impl Stage {
    fn round(&mut self, source: Source, key: &Mutex<Option<KeyHandle>>, uses: &AtomicU64) -> Result<Round> {
        if source != Source::Lease {
            self.keyring.set_deadline(BootInstant(u64::MAX));
        }
        let lent = self.keyholder.push(&self.keyring)?.handle;
        if source == Source::Lease {
            // Used before its lease is set to end.
            self.keyring.set_deadline(BootInstant(u64::MAX));
        }
        *key.lock().unwrap_or_else(PoisonError::into_inner) = Some(lent);
        let before = uses.load(Ordering::SeqCst);
        while uses.load(Ordering::SeqCst) == before {
            std::thread::sleep(LOOK);
        }
        let caused = self.cause(source)?;
        let wipe = self.rehearsal.next_wipe()?;
        let gone = wipe.keys_gone_at().0;
        ensure!(wipe.cause() == source.cause(), "{source:?}: wiped for {}", wipe.cause());
        ensure!(self.keyring.check(lent).is_err(), "{source:?}: the key is still there");
        let stages = self.rehearsal.second_stage(wipe);
        self.calm(source)?;
        let threads_ns = stages.threads_ns.context("the second stage was not timed")?;
        let gap_in_keys = self.control.had_gap(caused, gone);
        Ok(Round {
            keys: us(gone.saturating_sub(caused)),
            threads: us(threads_ns),
            gap_in_keys,
            gap_in_threads: gap_in_keys || self.control.had_gap(gone, gone + threads_ns),
        })
    }

    /// Causes the event, and says when.
    fn cause(&mut self, source: Source) -> Result<u64> {
        let now = || Clock::Boot.now().0;
        let at = now();
        match source {
            Source::Signal => kill(nix::unistd::getpid(), Signal::SIGPWR)?,
            Source::Lease => {
                self.rehearsal.set_deadline(BootInstant(at + LEASE_NS))?;
                return Ok(at + LEASE_NS);
            }
            Source::Gpio => {
                self.sequence += 1;
                self.line.write_all(&sources::event_record(true, self.sequence, at))?;
            }
            Source::KernelEvent => self.event.write_all(b"change")?,
            Source::Admin => self.rehearsal.wipe(),
        }
        Ok(at)
    }

    /// Ends the condition, for the next round.
    fn calm(&mut self, source: Source) -> Result<()> {
        if source == Source::Gpio {
            self.sequence += 1;
            self.line.write_all(&sources::event_record(false, self.sequence, Clock::Boot.now().0))?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a bench")]
fn us(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Encrypts 64 sectors at a time with whatever key there is.
fn use_key(
    number: u128,
    keyring: &Keyring,
    key: &Mutex<Option<KeyHandle>>,
    stop: &AtomicBool,
    uses: &AtomicU64,
) {
    // As a node's threads: without that the second stage, which has none, may not hurry this one.
    if let Err(error) = sandbox::drop_capabilities() {
        panic!("{error}");
    }
    let mut sectors = vec![0; 64 * SECTOR_BYTES];
    let run = Sectors { first: number << 32, bytes: SECTOR_BYTES };
    while !stop.load(Ordering::Relaxed) {
        let lent = *key.lock().unwrap_or_else(PoisonError::into_inner);
        let used = lent.is_some_and(|lent| {
            keyring.with_key(lent, |key| key.cipher.apply(Direction::Encrypt, run, &mut sectors)).is_ok()
        });
        if used {
            uses.fetch_add(1, Ordering::SeqCst);
        } else {
            std::thread::yield_now();
        }
    }
}

//! Our kernels as subjects.

use std::sync::atomic::AtomicU64;

use aes_xts::{
    Binding, Cipher, Direction, Kernel, Record, SCHEDULE_WORDS, SCRATCH_WORDS, Scratch, Sectors, TAG_WORDS,
    TagSchedule, XtsSchedule,
};
use anyhow::{Result, anyhow};

use crate::{Subject, Task, filled};

/// Name of the kernel that this machine's node would use.
pub(crate) const FASTEST: &str = "nightlatch";

/// Any key with two different halves.
pub(crate) const KEY: [u8; 64] = {
    let mut key = [7_u8; 64];
    key[40] = 9;
    key
};

/// Words on cache lines, as in the arena.
#[repr(C, align(64))]
struct Aligned<const N: usize>([AtomicU64; N]);

impl<const N: usize> Aligned<N> {
    fn boxed() -> Box<Self> {
        Box::new(Self(std::array::from_fn(|_| AtomicU64::new(0))))
    }
}

/// Expanded keys and scratch, in ordinary memory.
pub(crate) struct Keys {
    schedule: Box<Aligned<SCHEDULE_WORDS>>,
    tags: Box<Aligned<TAG_WORDS>>,
    scratch: Box<Aligned<SCRATCH_WORDS>>,
}

impl Keys {
    pub(crate) fn new() -> Result<Self> {
        let new = Self { schedule: Aligned::boxed(), tags: Aligned::boxed(), scratch: Aligned::boxed() };
        XtsSchedule::over(&new.schedule.0)
            .expand(&KEY)
            .map_err(|error| anyhow!("a key that is fine: {error}"))?;
        TagSchedule::over(&new.tags.0).expand(&[3; 16], &[4; 32]);
        Ok(new)
    }

    pub(crate) fn cipher(&self, kernel: Kernel) -> Cipher<'_> {
        Cipher::new(kernel, XtsSchedule::over(&self.schedule.0), Scratch::over(&self.scratch.0))
    }

    fn plain(&self, name: &str, kernel: Kernel) -> [Subject<'_>; 2] {
        [(Task::Encrypt, Direction::Encrypt), (Task::Decrypt, Direction::Decrypt)].map(|(task, direction)| {
            Subject::new(name, task, move |data, bytes| {
                let done = self.cipher(kernel).apply(direction, Sectors { first: 1, bytes }, data);
                assert!(done.is_ok(), "whole sectors: {done:?}");
            })
        })
    }

    fn tagged(&self, name: &str, kernel: Kernel) -> [Subject<'_>; 2] {
        [Task::Seal, Task::Open].map(|task| {
            let (mut sequences, mut records) = (Vec::new(), Vec::new());
            let mut clear = filled(0);
            Subject::new(name, task, move |data, bytes| {
                let count = data.len() / bytes;
                sequences.resize(count, 5);
                records.resize(count, Record::default());
                let binding = Binding { domain: [1; 16], epoch: 1, sequences: &sequences };
                let (sectors, key) = (Sectors { first: 1, bytes }, TagSchedule::over(&self.tags.0));
                let cipher = self.cipher(kernel);
                let done = if task == Task::Seal {
                    cipher.seal(key, sectors, binding, data, &mut records)
                } else {
                    if clear.as_bytes().len() != data.len() {
                        clear = filled(data.len());
                    }
                    cipher.open(key, sectors, binding, (data, clear.as_mut_bytes()), &mut records)
                };
                assert!(done.is_ok(), "whole sectors: {done:?}");
            })
        })
    }

    /// Every kernel of this machine; the fastest under its own name, with and without tags.
    pub(crate) fn subjects(&self) -> Vec<Subject<'_>> {
        let mut subjects = self.fastest();
        for kernel in Kernel::all().skip(1) {
            subjects.extend(self.plain(kernel.name(), kernel));
            subjects.extend(self.tagged(kernel.name(), kernel));
        }
        subjects
    }

    /// The fastest kernel alone.
    pub(crate) fn fastest(&self) -> Vec<Subject<'_>> {
        let kernel = Kernel::fastest();
        self.plain(FASTEST, kernel).into_iter().chain(self.tagged(FASTEST, kernel)).collect()
    }
}

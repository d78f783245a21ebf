//! The kernels of x86-64, and what they share.
//!
//! A kernel encrypts the numbers of up to 64 sectors at once, and then runs over those sectors' data without a look at
//! where one ends, but for the list of first tweaks. Everything it writes outside of the destination is scratch.

#[macro_use]
mod evex;
mod aesni;
pub(crate) mod expand;
mod vaes256;
mod vaes256_avx2;
mod vaes512;

use std::marker::PhantomData;

use crate::batch::Job;
use crate::scratch::GROUP_SECTORS;

pub(crate) use aesni::run as aesni;
pub(crate) use vaes256::run as vaes256;
pub(crate) use vaes256_avx2::run as vaes256_avx2;
pub(crate) use vaes512::run as vaes512;

/// What the rounds of a kernel run over: chunks of whole sectors.
struct Stream<'a> {
    /// Round keys of the data, in the order of use.
    keys: *const u8,
    source: *const u8,
    target: *mut u8,
    /// One encrypted sector number a sector.
    firsts: *const u8,
    /// Room for the tweaks of two turns.
    ring: *mut u8,
    chunks: u64,
    chunks_a_sector: u64,
    job: PhantomData<&'a ()>,
}

/// The two halves of a kernel that works on chunks.
#[derive(Clone, Copy)]
struct Chunked {
    /// Bytes in a chunk.
    chunk_bytes: usize,
    /// Sector numbers that one group of `firsts` holds.
    firsts_group: usize,
    /// Encrypts `groups` groups of sector numbers.
    firsts: unsafe fn(keys: *const u8, list: *mut u8, groups: u64),
    rounds: unsafe fn(&Stream<'_>),
}

/// Runs `kernel` over `job`, whose sectors are whole chunks, and leaves the scratch zeroed.
///
/// # Safety
/// The processor must have what both halves of `kernel` are compiled for.
unsafe fn run_chunked(job: &Job<'_>, kernel: Chunked, keys: *const u8) {
    let chunks_a_sector = job.sector_bytes / kernel.chunk_bytes;
    let mut done = 0;
    while done < job.sectors {
        let group = (job.sectors - done).min(GROUP_SECTORS);
        job.scratch.number(job.first_sector.wrapping_add(done as u128), group);
        let at = done * job.sector_bytes;
        let stream = Stream {
            keys,
            source: job.source.wrapping_add(at),
            target: job.target.wrapping_add(at),
            firsts: job.scratch.firsts(),
            ring: job.scratch.ring(),
            chunks: (group * chunks_a_sector) as u64,
            chunks_a_sector: chunks_a_sector as u64,
            job: PhantomData,
        };
        let groups = group.div_ceil(kernel.firsts_group) as u64;
        // SAFETY: the caller vouches for the processor; the list has room for whole groups (`scratch.rs`).
        unsafe {
            (kernel.firsts)(job.schedule.tweak_encrypt().as_ptr(), job.scratch.firsts().cast_mut(), groups)
        };
        // SAFETY: as above; source and target hold `sectors` sectors, of which this group is a part.
        unsafe { (kernel.rounds)(&stream) };
        done += group;
    }
    job.scratch.zero(job.sectors.min(GROUP_SECTORS));
}

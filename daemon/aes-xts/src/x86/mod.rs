//! The kernels of x86-64, and what they share.
//!
//! A kernel encrypts the numbers of up to 64 sectors at once, and then runs over those sectors' data without a look at
//! where one ends, but for the list of first tweaks. Everything it writes outside of the destination is scratch.

#[macro_use]
mod evex;
mod aesni;
pub(crate) mod expand;
mod polyval;
mod polyval_wide;
mod tagged512;
mod vaes256;
mod vaes256_avx2;
mod vaes512;

use std::arch::x86_64::__cpuid;
use std::marker::PhantomData;

use crate::batch::{BLOCK_BYTES, Job};
use crate::scratch::GROUP_SECTORS;
use crate::tag::{HEADER_BYTES, Record, TagSchedule};
use tagged512::Tagged;

pub(crate) use aesni::run as aesni;
pub(crate) use vaes256::run as vaes256;
pub(crate) use vaes256_avx2::run as vaes256_avx2;
pub(crate) use vaes512::run as vaes512;

/// Sectors whose tag is made in the cipher's loop are multiples of this.
pub(crate) const TAGGED_TURN_BYTES: usize = 1024;

/// A header for each sector of a group, and one more.
type Headers = [[u8; HEADER_BYTES]; GROUP_SECTORS + 1];

/// How a kernel on 512-bit vectors makes its tweaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tweaks {
    /// Each by a shift of its own from its chunk's base.
    ByBits,
    /// The first two of a chunk so, the others by whole bytes from those.
    ByBytes,
}

impl Tweaks {
    /// What this processor does beside AES. Intel's has one port for AES on such vectors and bit shifts take turns with it;
    /// byte shifts run on the port of shuffles. AMD's has ports of their own for bit shifts, and shuffles take turns with AES.
    pub(crate) fn fastest() -> Self {
        let vendor = __cpuid(0);
        match [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() {
            b"GenuineIntel" => Self::ByBytes,
            _ => Self::ByBits,
        }
    }
}

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

/// Encrypts or decrypts a group of sectors and makes their tags in the same loop.
///
/// # Safety
/// The processor must have what the kernels on 512-bit vectors ask for; sectors are whole turns, at most a group of them.
pub(crate) unsafe fn tagged512(
    group: &Job<'_>,
    key: &TagSchedule,
    headers: &Headers,
    (tweaks, records): (Tweaks, &mut [Record]),
) {
    let turns_a_sector = (group.sector_bytes / TAGGED_TURN_BYTES) as u64;
    group.scratch.number(group.first_sector, group.sectors);
    let list = group.scratch.firsts().cast_mut();
    // SAFETY: as the caller says; the list has room for whole groups.
    unsafe {
        vaes512::firsts(group.schedule.tweak_encrypt().as_ptr(), list, group.sectors.div_ceil(32) as u64)
    };
    // As the hashes, but not secret.
    let mut checksums = [0_u32; GROUP_SECTORS + 1];
    let mut call = Tagged {
        chunks_a_sector: 2 * turns_a_sector,
        turns_a_sector,
        hashes: list,
        headers: headers.as_ptr().cast(),
        keys: group.data_keys(),
        source: group.source,
        target: group.target,
        firsts: list,
        ring: group.scratch.ring(),
        powers: group.scratch.powers(),
        turns: turns_a_sector * group.sectors as u64,
        hash_left: if group.encrypt { 1 } else { turns_a_sector },
        checksums: checksums.as_mut_ptr(),
        narrow_powers: key.powers(),
        call: PhantomData,
    };
    // Hashes take the places of tweaks that have been used. When sealing, the first goes to what comes before the first.
    let rounds = match (tweaks, group.encrypt) {
        (Tweaks::ByBits, true) => tagged512::seal_bits,
        (Tweaks::ByBits, false) => tagged512::open_bits,
        (Tweaks::ByBytes, true) => tagged512::seal_bytes,
        (Tweaks::ByBytes, false) => tagged512::open_bytes,
    };
    // SAFETY: as above.
    unsafe { rounds(&mut call) };
    let (hashes, checksums) = if group.encrypt {
        (list.wrapping_add(BLOCK_BYTES), &checksums[1..])
    } else {
        (list, &checksums[..])
    };
    for (record, checksum) in records.iter_mut().zip(checksums) {
        record.checksum = *checksum;
    }
    // SAFETY: the list has room for whole groups of 32 after its first entry.
    unsafe { finish_tags(key, hashes, (HashWidth::Bits512, records)) };
    // Tags were made in groups of 32, the first of which may begin at the second entry.
    group.scratch.zero(group.sectors.next_multiple_of(32) + 1);
    group.scratch.zero_powers();
}

/// Hashes a header and whole vectors of 64 bytes: powers, where the hash goes, header, data, number of vectors.
type Hash = unsafe fn(*const u8, *mut u8, *const u8, *const u8, usize);

/// How wide the vectors are on which tags are made apart from the cipher.
#[derive(Clone, Copy)]
pub(crate) enum HashWidth {
    /// PCLMULQDQ.
    Bits128,
    /// VPCLMULQDQ and AVX2.
    Bits256,
    /// VPCLMULQDQ and AVX-512.
    Bits512,
}

/// Makes the tags of the ciphertext at `at`, a group of sectors, apart from the cipher.
///
/// # Safety
/// The processor must have AES-NI, PCLMULQDQ and what `width` names; `at` is readable for the group's length.
pub(crate) unsafe fn tags(
    at: *const u8,
    group: &Job<'_>,
    key: &TagSchedule,
    headers: &Headers,
    (width, records): (HashWidth, &mut [Record]),
) {
    let hash: Hash = match width {
        HashWidth::Bits128 => polyval::hash128,
        HashWidth::Bits256 => polyval_wide::hash256,
        HashWidth::Bits512 => polyval_wide::hash512,
    };
    let list = group.scratch.firsts().cast_mut();
    aesni::clean_upper_halves();
    let vectors = group.sector_bytes / HEADER_BYTES;
    let hashed = vectors * HEADER_BYTES;
    let blocks = (group.sector_bytes - hashed) / BLOCK_BYTES;
    for (index, header) in headers[..group.sectors].iter().enumerate() {
        let sum = list.wrapping_add(index * BLOCK_BYTES);
        let sector = at.wrapping_add(index * group.sector_bytes);
        // SAFETY: a sector has 512 bytes or more, and these are the whole vectors of it.
        unsafe { hash(key.powers(), sum, header.as_ptr(), sector, vectors) };
        if blocks > 0 {
            // SAFETY: what is left of the sector.
            unsafe { polyval::update(key.powers(), sum, sector.wrapping_add(hashed), blocks) };
        }
    }
    // SAFETY: the list has room for whole groups, and the processor has what `width` names.
    unsafe { finish_tags(key, list, (width, records)) };
    group.scratch.zero(group.sectors);
}

/// AES over each hash of the list, into the records.
///
/// # Safety
/// The processor must have AES-NI, or VAES where `width` is 512 bits; from `list` on there is room for the records in whole
/// groups of the kernel.
unsafe fn finish_tags(key: &TagSchedule, list: *mut u8, (width, records): (HashWidth, &mut [Record])) {
    let keys = key.prf().as_ptr();
    if matches!(width, HashWidth::Bits512) {
        // SAFETY: as the caller says.
        unsafe { vaes512::firsts(keys, list, records.len().div_ceil(32) as u64) };
    } else {
        // SAFETY: as the caller says.
        unsafe { aesni::firsts(keys, list, records.len().div_ceil(8) as u64) };
    }
    for (index, record) in records.iter_mut().enumerate() {
        let tag = list.wrapping_add(index * BLOCK_BYTES).cast::<[u8; BLOCK_BYTES]>();
        // SAFETY: an entry of the list, which nobody but this call writes; a wipe's zeros make a tag that is discarded.
        record.tag.0 = unsafe { tag.read_volatile() };
    }
}

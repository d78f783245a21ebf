//! Cipher and record in one call: sealing makes a record for every sector, opening makes the records to compare with.
//!
//! Opening decrypts before it is known whether a tag matches: the caller compares every tag with what is stored before any
//! of the plaintext leaves its hands, and zeroes it otherwise.

use crate::batch::{BLOCK_BYTES, BatchError, Cipher, Direction, Job, Sectors, ends};
use crate::kernel::Kernel;
use crate::polyval::dot;
use crate::portable;
use crate::scratch::GROUP_SECTORS;
use crate::scrub;
use crate::tag::{Binding, HEADER_BYTES, Record, TagSchedule};
#[cfg(target_arch = "x86_64")]
use crate::x86;

impl Cipher<'_> {
    /// Encrypts `data` in place and writes each sector's record. Returns the blocks that went through the data cipher.
    ///
    /// # Errors
    /// Lengths that [`Sectors`] excludes; a number of sequences or records that is not the number of sectors.
    pub fn seal(
        self,
        tag_key: &TagSchedule,
        sectors: Sectors,
        binding: Binding<'_>,
        data: &mut [u8],
        records: &mut [Record],
    ) -> Result<u64, BatchError> {
        let target = data.as_mut_ptr();
        let job = self.job(Direction::Encrypt, sectors, (target, target, data.len()))?;
        self.tagged(&job, tag_key, binding, records)
    }

    /// As [`Cipher::seal`], of `source` into `target`.
    ///
    /// # Errors
    /// As [`Cipher::seal`], and different lengths.
    pub fn seal_into(
        self,
        tag_key: &TagSchedule,
        sectors: Sectors,
        binding: Binding<'_>,
        (source, target): (&[u8], &mut [u8]),
        records: &mut [Record],
    ) -> Result<u64, BatchError> {
        let job = self.job(Direction::Encrypt, sectors, ends(source, target)?)?;
        self.tagged(&job, tag_key, binding, records)
    }

    /// Decrypts `source` into `target` and computes the records that the sectors should have: compare each with the stored
    /// one before anything of `target` is used. Returns the blocks that went through the data cipher.
    ///
    /// # Errors
    /// As [`Cipher::seal`], and different lengths.
    pub fn open(
        self,
        tag_key: &TagSchedule,
        sectors: Sectors,
        binding: Binding<'_>,
        (source, target): (&[u8], &mut [u8]),
        records: &mut [Record],
    ) -> Result<u64, BatchError> {
        let job = self.job(Direction::Decrypt, sectors, ends(source, target)?)?;
        self.tagged(&job, tag_key, binding, records)
    }

    fn tagged(
        self,
        job: &Job<'_>,
        tag_key: &TagSchedule,
        binding: Binding<'_>,
        records: &mut [Record],
    ) -> Result<u64, BatchError> {
        for given in [binding.sequences.len(), records.len()] {
            if given != job.sectors {
                return Err(BatchError::Records { given, sectors: job.sectors });
            }
        }
        for begin in (0..job.sectors).step_by(GROUP_SECTORS) {
            let count = (job.sectors - begin).min(GROUP_SECTORS);
            // SAFETY: `begin + count` is within the job's sectors.
            let group = unsafe { job.part(begin, count) };
            let binding = Binding { sequences: &binding.sequences[begin..][..count], ..binding };
            self.tagged_group(&group, tag_key, binding, &mut records[begin..][..count]);
        }
        Ok((job.sectors * job.sector_bytes / BLOCK_BYTES) as u64)
    }

    /// Ciphertext is checksummed while it is near: before it is overwritten, or as soon as it is there.
    fn tagged_group(
        self,
        group: &Job<'_>,
        tag_key: &TagSchedule,
        binding: Binding<'_>,
        records: &mut [Record],
    ) {
        // One more than there are sectors: the fused loop looks one ahead.
        let mut headers = [[0; HEADER_BYTES]; GROUP_SECTORS + 1];
        for (index, header) in headers[..group.sectors].iter_mut().enumerate() {
            *header = binding.header(group.first_sector, index, group.sector_bytes);
        }
        let fused = self.kernel.has_fused_tag(group.sector_bytes);
        if !group.encrypt && !fused {
            checksum(group.source, group.sector_bytes, records);
        }
        self.kernel.tag(group, tag_key, &headers, records);
        if group.encrypt && !fused {
            checksum(group.target, group.sector_bytes, records);
        }
    }
}

/// CRC-32C of each sector at `ciphertext`.
fn checksum(ciphertext: *const u8, bytes: usize, records: &mut [Record]) {
    for (index, record) in records.iter_mut().enumerate() {
        // SAFETY: a group's source and target hold a sector for each record, and nobody writes them now.
        let sector = unsafe { std::slice::from_raw_parts(ciphertext.wrapping_add(index * bytes), bytes) };
        record.checksum = checksum_of(sector);
    }
}

/// CRC-32C (Castagnoli, as in iSCSI).
fn checksum_of(sector: &[u8]) -> u32 {
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, sector);
    // The algorithm's result has 32 bits.
    u32::try_from(checksum).unwrap_or(u32::MAX)
}

impl Kernel {
    /// Encrypts or decrypts a group of sectors and computes their tags.
    fn tag(
        self,
        group: &Job<'_>,
        key: &TagSchedule,
        headers: &[[u8; HEADER_BYTES]; GROUP_SECTORS + 1],
        records: &mut [Record],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(tweaks) = self.fused_tweaks(group.sector_bytes) {
            // SAFETY: the kernel exists, so the processor has what it needs; headers and list are as long as the group.
            return unsafe { x86::tagged512(group, key, headers, (tweaks, records)) };
        }
        if !group.encrypt {
            self.tag_apart(group.source, group, key, headers, records);
        }
        self.run(group);
        if group.encrypt {
            self.tag_apart(group.target, group, key, headers, records);
        }
    }

    /// The tags of the ciphertext at `at`, apart from the cipher.
    fn tag_apart(
        self,
        at: *const u8,
        group: &Job<'_>,
        key: &TagSchedule,
        headers: &[[u8; HEADER_BYTES]; GROUP_SECTORS + 1],
        records: &mut [Record],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(width) = self.hash_width() {
            // SAFETY: the processor was asked; a group's ciphertext is as long as its sectors.
            return unsafe { x86::tags(at, group, key, headers, (width, records)) };
        }
        // SAFETY: readable for the group's length, and nobody writes it now.
        let data = unsafe { std::slice::from_raw_parts(at, group.sectors * group.sector_bytes) };
        portable_tags(data.chunks_exact(group.sector_bytes), key, headers, records);
        scrub::after_keys();
    }
}

/// Hash, then AES over the hash, sector by sector. A frame of its own, so that it can be scrubbed.
#[inline(never)]
fn portable_tags<'a>(
    sectors: impl Iterator<Item = &'a [u8]>,
    key: &TagSchedule,
    headers: &[[u8; HEADER_BYTES]; GROUP_SECTORS + 1],
    records: &mut [Record],
) {
    let hash_key = key.hash_key();
    for ((sector, header), record) in sectors.zip(headers).zip(records) {
        let (header, _) = header.as_chunks::<BLOCK_BYTES>();
        let (blocks, _) = sector.as_chunks::<BLOCK_BYTES>();
        let hash = header
            .iter()
            .chain(blocks)
            .fold(0, |sum, block| dot(sum ^ u128::from_le_bytes(*block), hash_key));
        record.tag.0 = portable::encrypt_block(key.prf(), hash);
    }
}

//! XTS over whole blocks, eight at a time, on the `aes` crate's rounds.
//!
//! The portable path: constant time on every processor, with AES instructions where the `aes` crate finds them. Rounds
//! are called with a zero key and the round key is then loaded from the schedule and added, so that no copy of a
//! schedule is ever made. The only kernel in Rust throughout: the others have to agree with it.

use aes::hazmat::{self, Block, Block8};
use zeroize::Zeroize;

use crate::batch::{BLOCK_BYTES, Job};
use crate::schedule::{ROUNDS, RoundKeys, XtsSchedule};
use crate::scrub;

/// Blocks that go through the rounds together.
const BATCH: usize = 8;

/// Runs `job`.
pub(crate) fn run(job: &Job<'_>) {
    let len = job.sectors * job.sector_bytes;
    if !std::ptr::eq(job.source, job.target) {
        // SAFETY: a job's source is readable and its target writable for its length, and they are apart.
        unsafe { std::ptr::copy_nonoverlapping(job.source, job.target, len) };
    }
    // SAFETY: writable for as long, and nobody else's while the job runs.
    let data = unsafe { std::slice::from_raw_parts_mut(job.target, len) };
    if job.encrypt {
        sectors::<true>(job.schedule, job.first_sector, job.sector_bytes, data);
    } else {
        sectors::<false>(job.schedule, job.first_sector, job.sector_bytes, data);
    }
    scrub::after_keys();
}

/// A frame of its own, never inlined, so that everything below it can be scrubbed once it has returned.
#[inline(never)]
fn sectors<const ENCRYPT: bool>(
    schedule: &XtsSchedule,
    first_sector: u128,
    sector_bytes: usize,
    data: &mut [u8],
) {
    let mut state = Block8::default();
    let mut tweaks = Block8::default();
    let mut number = first_sector;
    for group in data.chunks_mut(BATCH * sector_bytes) {
        for tweak in &mut tweaks {
            tweak.0 = number.to_le_bytes();
            number = number.wrapping_add(1);
        }
        encrypt_batch(schedule.tweak_encrypt(), &mut tweaks);
        for (sector, tweak) in group.chunks_exact_mut(sector_bytes).zip(&tweaks) {
            one_sector::<ENCRYPT>(schedule, u128::from_le_bytes(tweak.0), sector, &mut state);
        }
    }
    for block in state.iter_mut().chain(&mut tweaks) {
        block.0.zeroize();
    }
}

#[inline(always)]
fn one_sector<const ENCRYPT: bool>(
    schedule: &XtsSchedule,
    mut tweak: u128,
    sector: &mut [u8],
    state: &mut Block8,
) {
    let mut batch_tweaks = [0u128; BATCH];
    for batch in sector.chunks_mut(BATCH * BLOCK_BYTES) {
        for slot in &mut batch_tweaks {
            *slot = tweak;
            tweak = times_x(tweak);
        }
        // A short last batch leaves old state behind it, which goes through the rounds and nowhere else.
        for ((block, bytes), tweak) in state.iter_mut().zip(batch.chunks_exact(BLOCK_BYTES)).zip(batch_tweaks)
        {
            block.0.copy_from_slice(bytes);
            add(block, tweak);
        }
        if ENCRYPT {
            encrypt_batch(schedule.cipher_encrypt(), state);
        } else {
            decrypt_batch(schedule.cipher_decrypt(), state);
        }
        for ((block, bytes), tweak) in
            state.iter_mut().zip(batch.chunks_exact_mut(BLOCK_BYTES)).zip(batch_tweaks)
        {
            add(block, tweak);
            bytes.copy_from_slice(&block.0);
        }
    }
    batch_tweaks.zeroize();
}

/// Multiplication by x in GF(2^128) as XTS orders its bits: a shift of the little-endian number, x^128 = x^7+x^2+x+1.
#[inline(always)]
fn times_x(tweak: u128) -> u128 {
    const REDUCTION: u128 = 0x87;
    let carry = tweak >> 127;
    (tweak << 1) ^ (carry * REDUCTION)
}

#[inline(always)]
fn encrypt_batch(keys: RoundKeys<'_>, state: &mut Block8) {
    let zero = Block8::default();
    add_round_key(keys, 0, state);
    for round in 1..ROUNDS {
        hazmat::cipher_round_par(state, &zero);
        add_round_key(keys, round, state);
    }
    // The last round has no MixColumns: take it back.
    hazmat::cipher_round_par(state, &zero);
    for block in state.iter_mut() {
        hazmat::inv_mix_columns(block);
    }
    add_round_key(keys, ROUNDS, state);
}

#[inline(always)]
fn decrypt_batch(keys: RoundKeys<'_>, state: &mut Block8) {
    let zero = Block8::default();
    add_round_key(keys, 0, state);
    for round in 1..ROUNDS {
        hazmat::equiv_inv_cipher_round_par(state, &zero);
        add_round_key(keys, round, state);
    }
    // The last round has no InvMixColumns: take it back.
    hazmat::equiv_inv_cipher_round_par(state, &zero);
    for block in state.iter_mut() {
        hazmat::mix_columns(block);
    }
    add_round_key(keys, ROUNDS, state);
}

#[inline(always)]
fn add_round_key(keys: RoundKeys<'_>, round: usize, state: &mut Block8) {
    let key = keys.load(round);
    for block in state.iter_mut() {
        add(block, key);
    }
}

#[inline(always)]
fn add(block: &mut Block, value: u128) {
    block.0 = (u128::from_le_bytes(block.0) ^ value).to_le_bytes();
}

/// One block, for the tag.
pub(crate) fn encrypt_block(keys: RoundKeys<'_>, block: u128) -> [u8; BLOCK_BYTES] {
    let mut state = Block8::default();
    state[0].0 = block.to_le_bytes();
    encrypt_batch(keys, &mut state);
    let encrypted = state[0].0;
    for block in &mut state {
        block.0.zeroize();
    }
    encrypted
}

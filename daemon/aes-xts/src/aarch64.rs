//! The AES instructions of aarch64: eight blocks in flight.
//!
//! `aese` adds the key first and `aesmc` follows it, so the key of the last round is an addition of its own, which takes the
//! second tweak addition along. Tweaks are doubled one by one, as the standard writes it, into the ring in the caller's
//! scratch. As on x86-64, everything is in `asm!` blocks, so that the compiler sees no key, no tweak and no data.

use crate::batch::{BLOCK_BYTES, Job};
use crate::scratch::GROUP_SECTORS;

/// Sector numbers encrypted together.
const FIRSTS_GROUP: usize = 8;

/// Runs `job`.
///
/// # Safety
/// The processor must have the AES instructions.
pub(crate) unsafe fn run(job: &Job<'_>) {
    let rounds = if job.encrypt { encrypt_sector } else { decrypt_sector };
    let blocks = (job.sector_bytes / BLOCK_BYTES) as u64;
    let keys = job.data_keys();
    for begin in (0..job.sectors).step_by(GROUP_SECTORS) {
        let group = (job.sectors - begin).min(GROUP_SECTORS);
        job.scratch.number(job.first_sector.wrapping_add(begin as u128), group);
        let list = job.scratch.firsts();
        let groups = group.div_ceil(FIRSTS_GROUP) as u64;
        // SAFETY: the caller vouches for the processor; the list has room for whole groups (`scratch.rs`).
        unsafe { firsts(job.schedule.tweak_encrypt().as_ptr(), list.cast_mut(), groups) };
        for sector in begin..begin + group {
            let at = sector * job.sector_bytes;
            let (source, target) = (job.source.wrapping_add(at), job.target.wrapping_add(at));
            let first = list.wrapping_add((sector - begin) * BLOCK_BYTES);
            // SAFETY: as above; source and target hold `sectors` sectors of `blocks` blocks.
            unsafe { rounds(keys, source, target, first, job.scratch.ring(), blocks) };
        }
    }
    job.scratch.zero(job.sectors.min(GROUP_SECTORS));
}

/// Round `$round` of the given blocks: add the key, substitute and shift (`$op`), mix (`$mix`).
macro_rules! round {
    ($op:literal $mix:literal $round:literal: $($i:literal)*) => {
        concat!(
            "ldr q16, [{keys}, #16*", $round, "]\n",
            $(
                $op, " v", $i, ".16b, v16.16b\n",
                $mix, " v", $i, ".16b, v", $i, ".16b\n",
            )*
        )
    };
}

/// All rounds but for the last key, which is left in v17.
macro_rules! rounds {
    ($op:literal $mix:literal: $($i:literal)*) => {
        concat!(
            round!($op $mix "0": $($i)*), round!($op $mix "1": $($i)*), round!($op $mix "2": $($i)*),
            round!($op $mix "3": $($i)*), round!($op $mix "4": $($i)*), round!($op $mix "5": $($i)*),
            round!($op $mix "6": $($i)*), round!($op $mix "7": $($i)*), round!($op $mix "8": $($i)*),
            round!($op $mix "9": $($i)*), round!($op $mix "10": $($i)*), round!($op $mix "11": $($i)*),
            round!($op $mix "12": $($i)*),
            "ldr q16, [{keys}, #16*13]\n",
            "ldr q17, [{keys}, #16*14]\n",
            $($op, " v", $i, ".16b, v16.16b\n",)*
        )
    };
}

/// Keeps the running tweak in slot `$i` of the ring, adds it to the block read there, and doubles it. v19 has the carries.
macro_rules! whiten {
    ($($i:literal)*) => {
        concat!($(
            "ldr q", $i, ", [{source}, #16*", $i, "]\n",
            "str q18, [{ring}, #16*", $i, "]\n",
            "eor v", $i, ".16b, v", $i, ".16b, v18.16b\n",
            "sshr v20.2d, v18.2d, #63\n",
            "ext v20.16b, v20.16b, v20.16b, #8\n",
            "and v20.16b, v20.16b, v19.16b\n",
            "shl v18.2d, v18.2d, #1\n",
            "eor v18.16b, v18.16b, v20.16b\n",
        )*)
    };
}

/// Adds the last key and the tweak, and stores.
macro_rules! finish {
    ($($i:literal)*) => {
        concat!($(
            "ldr q20, [{ring}, #16*", $i, "]\n",
            "eor v20.16b, v20.16b, v17.16b\n",
            "eor v", $i, ".16b, v", $i, ".16b, v20.16b\n",
            "str q", $i, ", [{target}, #16*", $i, "]\n",
        )*)
    };
}

macro_rules! clear_registers {
    ($($i:literal)*) => { concat!($("movi v", $i, ".2d, #0\n",)*) };
}

macro_rules! sector {
    ($name:ident: $op:literal $mix:literal) => {
        #[target_feature(enable = "neon,aes")]
        #[inline(never)]
        unsafe fn $name(
            keys: *const u8,
            source: *const u8,
            target: *mut u8,
            first: *const u8,
            ring: *mut u8,
            blocks: u64,
        ) {
            // SAFETY: see UNSAFE.md, "kernels". Reads 15 round keys, a tweak and `blocks` blocks of source, writes as many of
            // the target and eight of the ring.
            unsafe {
                core::arch::asm!(
                    "ldr q18, [{first}]",
                    "mov {by}, #0x87",
                    "fmov d19, {by}",
                    "mov {by}, #1",
                    "mov v19.d[1], {by}",
                    "cbz {eights}, 3f",
                    "2:",
                    whiten!("0" "1" "2" "3" "4" "5" "6" "7"),
                    rounds!($op $mix: "0" "1" "2" "3" "4" "5" "6" "7"),
                    finish!("0" "1" "2" "3" "4" "5" "6" "7"),
                    "add {source}, {source}, #128",
                    "add {target}, {target}, #128",
                    "subs {eights}, {eights}, #1",
                    "b.ne 2b",
                    "3:",
                    "cbz {ones}, 5f",
                    "4:",
                    whiten!("0"),
                    rounds!($op $mix: "0"),
                    finish!("0"),
                    "add {source}, {source}, #16",
                    "add {target}, {target}, #16",
                    "subs {ones}, {ones}, #1",
                    "b.ne 4b",
                    "5:",
                    clear_registers!("0" "1" "2" "3" "4" "5" "6" "7" "16" "17" "18" "19" "20"),
                    keys = in(reg) keys,
                    source = inout(reg) source => _,
                    target = inout(reg) target => _,
                    first = in(reg) first,
                    ring = in(reg) ring,
                    by = out(reg) _,
                    eights = inout(reg) blocks / 8 => _,
                    ones = inout(reg) blocks % 8 => _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    out("v7") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                    options(nostack),
                );
            }
        }
    };
}

sector!(encrypt_sector: "aese" "aesmc");
sector!(decrypt_sector: "aesd" "aesimc");

/// Encrypts the list of sector numbers in place, eight at a time: `groups` of them, at least one.
#[target_feature(enable = "neon,aes")]
#[inline(never)]
unsafe fn firsts(keys: *const u8, list: *mut u8, groups: u64) {
    macro_rules! each {
        ($before:literal $between:literal: $($i:literal)*) => {
            concat!($($before, $i, $between, $i, "]\n",)*)
        };
    }
    macro_rules! last_key {
        ($($i:literal)*) => { concat!($("eor v", $i, ".16b, v", $i, ".16b, v17.16b\n",)*) };
    }
    // SAFETY: see UNSAFE.md, "kernels". Reads 15 round keys, rewrites `groups` times eight blocks of the list.
    unsafe {
        core::arch::asm!(
            "2:",
            each!("ldr q" ", [{list}, #16*": "0" "1" "2" "3" "4" "5" "6" "7"),
            rounds!("aese" "aesmc": "0" "1" "2" "3" "4" "5" "6" "7"),
            last_key!("0" "1" "2" "3" "4" "5" "6" "7"),
            each!("str q" ", [{list}, #16*": "0" "1" "2" "3" "4" "5" "6" "7"),
            "add {list}, {list}, #128",
            "subs {groups}, {groups}, #1",
            "b.ne 2b",
            clear_registers!("0" "1" "2" "3" "4" "5" "6" "7" "16" "17"),
            keys = in(reg) keys,
            list = inout(reg) list => _,
            groups = inout(reg) groups => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
            out("v7") _, out("v16") _, out("v17") _,
            options(nostack),
        );
    }
}

//! Key expansion with AES-NI: no table, no branch on a key, and nothing of it anywhere but in the schedule.
//!
//! FIPS 197, 5.2, four columns a step. SubWord and RotWord come from AESKEYGENASSIST, the running sums of columns from
//! three shifted sums; the equivalent inverse cipher's keys (5.3.5) from AESIMC.

/// The four columns of `$key` from what they were, the last step's `xmm3` and the constant's column `$column`.
macro_rules! columns {
    ($key:literal $column:literal $at:literal) => {
        concat!(
            "pshufd xmm2,xmm2,",
            $column,
            "\n",
            "movdqa xmm3,",
            $key,
            "\n",
            "pslldq xmm3,4\n",
            "pxor ",
            $key,
            ",xmm3\n",
            "pslldq xmm3,4\n",
            "pxor ",
            $key,
            ",xmm3\n",
            "pslldq xmm3,4\n",
            "pxor ",
            $key,
            ",xmm3\n",
            "pxor ",
            $key,
            ",xmm2\n",
            "movdqu [{out}+16*",
            $at,
            "],",
            $key,
            "\n",
        )
    };
}

macro_rules! even {
    ($constant:literal $at:literal) => {
        concat!("aeskeygenassist xmm2,xmm1,", $constant, "\n", columns!("xmm0" "0xff" $at))
    };
}

macro_rules! odd {
    ($at:literal) => {
        concat!("aeskeygenassist xmm2,xmm0,0\n", columns!("xmm1" "0xaa" $at))
    };
}

/// Expands `key` (32 bytes) into the 15 round keys of encryption at `out`.
///
/// # Safety
/// `key` readable for 32 bytes, `out` writable for 240, and the processor has AES-NI.
#[target_feature(enable = "aes")]
#[inline(never)]
pub(crate) unsafe fn encryption(key: *const u8, out: *mut u8) {
    // SAFETY: as the caller says; see UNSAFE.md, "kernels".
    unsafe {
        core::arch::asm!(
            "movdqu xmm0,[{key}]",
            "movdqu xmm1,[{key}+16]",
            "movdqu [{out}],xmm0",
            "movdqu [{out}+16],xmm1",
            even!("1" "2"), odd!("3"), even!("2" "4"), odd!("5"), even!("4" "6"), odd!("7"),
            even!("8" "8"), odd!("9"), even!("16" "10"), odd!("11"), even!("32" "12"), odd!("13"),
            even!("64" "14"),
            "pxor xmm0,xmm0",
            "pxor xmm1,xmm1",
            "pxor xmm2,xmm2",
            "pxor xmm3,xmm3",
            key = in(reg) key,
            out = in(reg) out,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            options(nostack),
        );
    }
}

/// Round keys of decryption, in the order of use, from those of encryption.
///
/// # Safety
/// `encryption` readable and `decryption` writable for 240 bytes, and the processor has AES-NI.
#[target_feature(enable = "aes")]
#[inline(never)]
pub(crate) unsafe fn decryption(encryption: *const u8, decryption: *mut u8) {
    // SAFETY: as the caller says; see UNSAFE.md, "kernels".
    unsafe {
        core::arch::asm!(
            "movdqu xmm0,[{from}+16*14]",
            "movdqu [{into}],xmm0",
            "lea {at},[{from}+16*13]",
            "2:",
            "add {into},16",
            "movdqu xmm0,[{at}]",
            "aesimc xmm0,xmm0",
            "movdqu [{into}],xmm0",
            "sub {at},16",
            "cmp {at},{from}",
            "jne 2b",
            "movdqu xmm0,[{from}]",
            "movdqu [{into}+16],xmm0",
            "pxor xmm0,xmm0",
            from = in(reg) encryption,
            into = inout(reg) decryption => _,
            at = out(reg) _,
            out("xmm0") _,
            options(nostack),
        );
    }
}

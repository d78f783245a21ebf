//! POLYVAL on 128-bit vectors, four blocks a reduction: for kernels and sector sizes without a fused loop.

/// x^127+x^126+x^121 (and 1), the reduction of POLYVAL (RFC 8452, 3).
#[repr(C, align(16))]
struct Reduction([u64; 2]);

static REDUCTION: Reduction = Reduction([0xC200_0000_0000_0000, 0]);

/// Adds the block in xmm0 times the power at `$at` to low, middle and high sums in xmm2, xmm3, xmm4.
macro_rules! multiply {
    ($at:literal) => {
        concat!(
            "movdqu xmm1,[{powers}+",
            $at,
            "]\n",
            "movdqa xmm5,xmm0\n",
            "pclmulqdq xmm5,xmm1,0x00\n",
            "pxor xmm2,xmm5\n",
            "movdqa xmm5,xmm0\n",
            "pclmulqdq xmm5,xmm1,0x11\n",
            "pxor xmm4,xmm5\n",
            "movdqa xmm5,xmm0\n",
            "pclmulqdq xmm5,xmm1,0x01\n",
            "pxor xmm3,xmm5\n",
            "pclmulqdq xmm0,xmm1,0x10\n",
            "pxor xmm3,xmm0\n",
        )
    };
}

/// Reduces the sums into xmm6 and clears them.
macro_rules! reduce {
    () => {
        concat!(
            "movdqa xmm5,xmm3\n",
            "pslldq xmm5,8\n",
            "psrldq xmm3,8\n",
            "pxor xmm2,xmm5\n",
            "pxor xmm4,xmm3\n",
            "movdqa xmm5,xmm2\n",
            "pclmulqdq xmm5,xmm7,0x00\n",
            "pshufd xmm2,xmm2,0x4e\n",
            "pxor xmm2,xmm5\n",
            "movdqa xmm5,xmm2\n",
            "pclmulqdq xmm5,xmm7,0x00\n",
            "pshufd xmm2,xmm2,0x4e\n",
            "pxor xmm2,xmm5\n",
            "movdqa xmm6,xmm4\n",
            "pxor xmm6,xmm2\n",
            "pxor xmm2,xmm2\n",
            "pxor xmm3,xmm3\n",
            "pxor xmm4,xmm4\n",
        )
    };
}

/// Continues the sum at `sum` over `blocks` blocks. `powers` are H^4, H^3, H^2 and H.
///
/// # Safety
/// `powers` readable for 64 bytes, `data` for `blocks` blocks, `sum` writable for one, and the processor has PCLMULQDQ.
#[target_feature(enable = "pclmulqdq,sse2")]
#[inline(never)]
pub(crate) unsafe fn update(powers: *const u8, sum: *mut u8, data: *const u8, blocks: usize) {
    // SAFETY: as the caller says; see UNSAFE.md, "kernels".
    unsafe {
        core::arch::asm!(
            "movdqu xmm6,[{sum}]",
            "movdqu xmm7,[{reduction}]",
            "pxor xmm2,xmm2",
            "pxor xmm3,xmm3",
            "pxor xmm4,xmm4",
            "sub {blocks},4",
            "jb 3f",
            "2:",
            "movdqu xmm0,[{data}]",
            "pxor xmm0,xmm6",
            multiply!("0"),
            "movdqu xmm0,[{data}+16]",
            multiply!("16"),
            "movdqu xmm0,[{data}+32]",
            multiply!("32"),
            "movdqu xmm0,[{data}+48]",
            multiply!("48"),
            reduce!(),
            "add {data},64",
            "sub {blocks},4",
            "jae 2b",
            "3:",
            "add {blocks},4",
            "jz 5f",
            "4:",
            "movdqu xmm0,[{data}]",
            "pxor xmm0,xmm6",
            multiply!("48"),
            reduce!(),
            "add {data},16",
            "dec {blocks}",
            "jnz 4b",
            "5:",
            "movdqu [{sum}],xmm6",
            "pxor xmm0,xmm0",
            "pxor xmm1,xmm1",
            "pxor xmm2,xmm2",
            "pxor xmm3,xmm3",
            "pxor xmm4,xmm4",
            "pxor xmm5,xmm5",
            "pxor xmm6,xmm6",
            "pxor xmm7,xmm7",
            powers = in(reg) powers,
            sum = in(reg) sum,
            data = inout(reg) data => _,
            blocks = inout(reg) blocks => _,
            reduction = in(reg) &raw const REDUCTION,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            options(nostack),
        );
    }
}

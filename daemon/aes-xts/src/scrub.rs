//! What the compiler left behind: registers and the stack below the caller.
//!
//! Round keys pass through registers, and a called function may save such a register on the stack. Neither is under the
//! control of the code above, so both are overwritten when a batch is done.

/// Stack that the cipher's frames may have used, with room: `sectors` and the deepest function of the `aes` crate take
/// under 2 KiB in an optimised build.
const STACK_BYTES: usize = 4096;

/// Clears the registers that a function may leave anything in, and the stack below the caller's frame. Call it right
/// after the function whose frames are to go, from the function that called it.
#[inline(always)]
pub(crate) fn after_keys() {
    stack();
    registers();
}

/// Takes the place of the frames that have just returned, and zeroes it.
#[inline(never)]
fn stack() {
    let mut frames = [0u64; STACK_BYTES / 8];
    std::hint::black_box(&mut frames);
}

/// An interpreter has no registers, and knows no assembler.
#[cfg(miri)]
fn registers() {}

/// The registers that the System V ABI leaves to the callee. Those it must preserve have been restored already.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn registers() {
    // SAFETY: clears registers that are declared as clobbered, touches no memory.
    unsafe {
        std::arch::asm!(
            "xor eax, eax", "xor ecx, ecx", "xor edx, edx", "xor esi, esi", "xor edi, edi",
            "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
            "pxor xmm0, xmm0", "pxor xmm1, xmm1", "pxor xmm2, xmm2", "pxor xmm3, xmm3",
            "pxor xmm4, xmm4", "pxor xmm5, xmm5", "pxor xmm6, xmm6", "pxor xmm7, xmm7",
            "pxor xmm8, xmm8", "pxor xmm9, xmm9", "pxor xmm10, xmm10", "pxor xmm11, xmm11",
            "pxor xmm12, xmm12", "pxor xmm13, xmm13", "pxor xmm14, xmm14", "pxor xmm15, xmm15",
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack),
        );
    }
}

/// As above under the AAPCS64.
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline(always)]
fn registers() {
    // SAFETY: clears registers that are declared as clobbered, touches no memory.
    unsafe {
        std::arch::asm!(
            "mov x0, xzr", "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "mov x4, xzr", "mov x5, xzr",
            "mov x6, xzr", "mov x7, xzr", "mov x8, xzr", "mov x9, xzr", "mov x10, xzr", "mov x11, xzr",
            "mov x12, xzr", "mov x13, xzr", "mov x14, xzr", "mov x15, xzr",
            "movi v0.2d, #0", "movi v1.2d, #0", "movi v2.2d, #0", "movi v3.2d, #0",
            "movi v4.2d, #0", "movi v5.2d, #0", "movi v6.2d, #0", "movi v7.2d, #0",
            "movi v16.2d, #0", "movi v17.2d, #0", "movi v18.2d, #0", "movi v19.2d, #0",
            "movi v20.2d, #0", "movi v21.2d, #0", "movi v22.2d, #0", "movi v23.2d, #0",
            "movi v24.2d, #0", "movi v25.2d, #0", "movi v26.2d, #0", "movi v27.2d, #0",
            "movi v28.2d, #0", "movi v29.2d, #0", "movi v30.2d, #0", "movi v31.2d, #0",
            out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _,
            out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
            out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            options(nomem, nostack),
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", miri)))]
compile_error!("the registers to clear are not known for this architecture");

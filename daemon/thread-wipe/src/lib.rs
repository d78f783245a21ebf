//! Wipes what a thread left behind on its stack and in its registers.
//!
//! Ordinary code leaves what it worked with where its frames were, and in the vector registers, until something else happens
//! to use them. An allocator that zeroes what is freed does not reach either. A thread that waits for its next work may
//! keep a client's secret there for hours; this is called when that is to end.
//!
//! Invariants:
//! - Every register that a call may change is zero afterwards; those that it must keep belong to callers that still run.
//! - The stack is zero for [`STACK_BYTES`] below the caller's frame. What callers still use is theirs.
//! - Nothing is allocated, no system call is made.
//!
//! It is not for keys: what derives and expands those runs on a stack of its own (`locked-memory`). UNSAFE.md lists the unsafe
//! blocks' reasons.
#![expect(unsafe_code, reason = "clears registers, and calls the C library's allocator")]

mod futures;
mod heap;

use std::hint::black_box;

pub use futures::{LeavingNothing, OnCleanStack, begin_clean, leaving_nothing, on_clean_stack};
pub use heap::give_back_freed;

/// Stack below the caller that is zeroed. The deepest calls known, a TLS handshake and a page tree's commit, use less than
/// half in an unoptimised build; a thread's stack has eight times as much.
pub const STACK_BYTES: usize = 256 * 1024;

/// Wipes the calling thread's dead frames and registers. The thread needs room for [`STACK_BYTES`] on its stack.
#[inline(never)]
pub fn this_thread() {
    wipe_stack();
    wipe_registers();
}

/// Wipes the calling thread's registers alone. A thread starts with those of the thread that started it.
pub fn registers() {
    wipe_registers();
}

/// A frame of its own over those that are dead.
#[inline(never)]
fn wipe_stack() {
    let mut dead = [0_u8; STACK_BYTES];
    // Without a reader the compiler would leave the zeros out.
    black_box(&mut dead);
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn wipe_registers() {
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: changes registers only, all of them declared as changed; the processor has the instructions, and with them
        // AVX's.
        unsafe {
            std::arch::asm!(
                "vzeroall",
                "vpxord zmm16, zmm16, zmm16",
                "vpxord zmm17, zmm17, zmm17",
                "vpxord zmm18, zmm18, zmm18",
                "vpxord zmm19, zmm19, zmm19",
                "vpxord zmm20, zmm20, zmm20",
                "vpxord zmm21, zmm21, zmm21",
                "vpxord zmm22, zmm22, zmm22",
                "vpxord zmm23, zmm23, zmm23",
                "vpxord zmm24, zmm24, zmm24",
                "vpxord zmm25, zmm25, zmm25",
                "vpxord zmm26, zmm26, zmm26",
                "vpxord zmm27, zmm27, zmm27",
                "vpxord zmm28, zmm28, zmm28",
                "vpxord zmm29, zmm29, zmm29",
                "vpxord zmm30, zmm30, zmm30",
                "vpxord zmm31, zmm31, zmm31",
                "xor eax, eax",
                "xor ecx, ecx",
                "xor edx, edx",
                "xor esi, esi",
                "xor edi, edi",
                "xor r8d, r8d",
                "xor r9d, r9d",
                "xor r10d, r10d",
                "xor r11d, r11d",
                clobber_abi("C"),
                options(nostack, nomem),
            );
        }
    } else if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: as above, on a processor with AVX alone.
        unsafe {
            std::arch::asm!(
                "vzeroall",
                "xor eax, eax",
                "xor ecx, ecx",
                "xor edx, edx",
                "xor esi, esi",
                "xor edi, edi",
                "xor r8d, r8d",
                "xor r9d, r9d",
                "xor r10d, r10d",
                "xor r11d, r11d",
                clobber_abi("C"),
                options(nostack, nomem),
            );
        }
    } else {
        // SAFETY: as above; these instructions are part of every x86-64.
        unsafe {
            std::arch::asm!(
                "pxor xmm0, xmm0",
                "pxor xmm1, xmm1",
                "pxor xmm2, xmm2",
                "pxor xmm3, xmm3",
                "pxor xmm4, xmm4",
                "pxor xmm5, xmm5",
                "pxor xmm6, xmm6",
                "pxor xmm7, xmm7",
                "pxor xmm8, xmm8",
                "pxor xmm9, xmm9",
                "pxor xmm10, xmm10",
                "pxor xmm11, xmm11",
                "pxor xmm12, xmm12",
                "pxor xmm13, xmm13",
                "pxor xmm14, xmm14",
                "pxor xmm15, xmm15",
                "xor eax, eax",
                "xor ecx, ecx",
                "xor edx, edx",
                "xor esi, esi",
                "xor edi, edi",
                "xor r8d, r8d",
                "xor r9d, r9d",
                "xor r10d, r10d",
                "xor r11d, r11d",
                clobber_abi("C"),
                options(nostack, nomem),
            );
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[inline(never)]
fn wipe_registers() {
    // SAFETY: changes registers only, all of them declared as changed; the lower halves of v8 to v15 belong to callers.
    unsafe {
        std::arch::asm!(
            "movi v0.2d, #0",
            "movi v1.2d, #0",
            "movi v2.2d, #0",
            "movi v3.2d, #0",
            "movi v4.2d, #0",
            "movi v5.2d, #0",
            "movi v6.2d, #0",
            "movi v7.2d, #0",
            "movi v16.2d, #0",
            "movi v17.2d, #0",
            "movi v18.2d, #0",
            "movi v19.2d, #0",
            "movi v20.2d, #0",
            "movi v21.2d, #0",
            "movi v22.2d, #0",
            "movi v23.2d, #0",
            "movi v24.2d, #0",
            "movi v25.2d, #0",
            "movi v26.2d, #0",
            "movi v27.2d, #0",
            "movi v28.2d, #0",
            "movi v29.2d, #0",
            "movi v30.2d, #0",
            "movi v31.2d, #0",
            "mov x0, #0",
            "mov x1, #0",
            "mov x2, #0",
            "mov x3, #0",
            "mov x4, #0",
            "mov x5, #0",
            "mov x6, #0",
            "mov x7, #0",
            "mov x8, #0",
            "mov x9, #0",
            "mov x10, #0",
            "mov x11, #0",
            "mov x12, #0",
            "mov x13, #0",
            "mov x14, #0",
            "mov x15, #0",
            "mov x16, #0",
            "mov x17, #0",
            clobber_abi("C"),
            options(nostack, nomem),
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("this architecture's registers are not known: nothing could promise that they are wiped");

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Looks for this many bytes, found nowhere else.
    const PATTERN_BYTES: usize = 64;

    fn pattern() -> [u8; PATTERN_BYTES] {
        // Computed, so that the program holds no copy of it.
        std::array::from_fn(|at| u8::try_from((at * 37 + 11) % 256).unwrap() ^ black_box(0x5D))
    }

    #[inline(never)]
    fn leave_on_the_stack(depth_bytes: usize) -> u8 {
        let mut frame = [0_u8; 4096];
        frame[1000..1000 + PATTERN_BYTES].copy_from_slice(&pattern());
        if depth_bytes > frame.len() {
            return black_box(&frame)[1000] ^ leave_on_the_stack(depth_bytes - frame.len());
        }
        black_box(&mut frame)[1001]
    }

    /// How often the pattern's middle stands in this thread's stack, below `top`.
    fn found_below(top: usize) -> usize {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut bytes = vec![0; STACK_BYTES];
        memory.read_exact_at(&mut bytes, (top - STACK_BYTES) as u64).unwrap();
        let needle: Vec<u8> = pattern()[16..48].to_vec();
        bytes.windows(needle.len()).filter(|window| *window == needle.as_slice()).count()
    }

    #[test]
    fn what_was_left_on_the_stack_is_found_and_after_the_wipe_is_not() {
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(|| {
            let here = 0_u8;
            // Below the frames of the search itself.
            let top = (&raw const here).addr() - 4096;
            black_box(leave_on_the_stack(STACK_BYTES / 2));
            let before = found_below(top);
            this_thread();
            (before, found_below(top))
        });
        let (before, after) = thread.unwrap().join().unwrap();
        assert!(before > STACK_BYTES / 2 / 4096 / 2, "the search is blind: {before} found");
        assert_eq!(after, 0);
    }

    /// Room for patterns that it never writes to.
    type Unused = Option<[u8; STACK_BYTES / 8]>;

    /// A value that is moved to the heap whole, though hardly any of it means anything.
    #[inline(never)]
    fn keep() -> Box<Unused> {
        #[inline(never)]
        fn none() -> Unused {
            black_box(false).then_some([0; STACK_BYTES / 8])
        }
        Box::new(black_box(none()))
    }

    /// How often the pattern's middle stands in the value's unused bytes.
    fn found_in(value: &Unused) -> usize {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut bytes = vec![0; size_of::<Unused>()];
        memory.read_exact_at(&mut bytes, (&raw const *value).addr() as u64).unwrap();
        let needle: Vec<u8> = pattern()[16..48].to_vec();
        bytes.windows(needle.len()).filter(|window| *window == needle.as_slice()).count()
    }

    fn poll_once<R>(future: impl Future<Output = R>) -> R {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => value,
            std::task::Poll::Pending => panic!("it waits for nothing"),
        }
    }

    #[test]
    fn a_value_that_is_kept_takes_what_was_on_the_stack_along_unless_it_begins_on_a_clean_one() {
        let thread = std::thread::Builder::new().stack_size(4 << 20).spawn(|| {
            black_box(leave_on_the_stack(STACK_BYTES / 2));
            let kept = poll_once(async { keep() });
            black_box(leave_on_the_stack(STACK_BYTES / 2));
            let kept_clean = poll_once(on_clean_stack(async { keep() }));
            poll_once(leaving_nothing(async { black_box(leave_on_the_stack(STACK_BYTES / 2)) }));
            let kept_after = poll_once(async { keep() });
            [&kept, &kept_clean, &kept_after].map(|kept| found_in(kept))
        });
        let [kept, kept_clean, kept_after] = thread.unwrap().join().unwrap();
        assert!(kept > 0, "the value took nothing along: the test shows nothing");
        assert_eq!((kept_clean, kept_after), (0, 0));
    }

    #[test]
    fn freed_memory_goes_back_to_the_kernel() {
        const PIECE: usize = 4096;
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        // Small pieces, of which every hundredth stays: the arena cannot shrink from its end.
        let pieces: Vec<Vec<u8>> = (0..16_384).map(|_| vec![1; PIECE]).collect();
        let (mut left, full) = (Vec::new(), resident());
        for (number, piece) in pieces.into_iter().enumerate() {
            if number % 100 == 0 {
                left.push(piece);
            }
        }
        give_back_freed();
        let after = resident();
        assert!(after + (32 << 20) < full, "{full} bytes were resident, and {after} are");
        black_box(left);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn what_was_left_in_a_register_is_found_and_after_the_wipe_is_not() {
        #[inline(never)]
        fn value_after(wipe: bool, secret: u64) -> (u64, u64) {
            let (low, high): (u64, u64);
            // SAFETY: a register that is declared as changed.
            unsafe { std::arch::asm!("movq xmm9, {0}", in(reg) secret, out("xmm9") _) };
            if std::arch::is_x86_feature_detected!("avx512f") {
                // SAFETY: as above, on a processor that has it.
                unsafe { std::arch::asm!("vpbroadcastq zmm21, {0}", in(reg) secret, out("zmm21") _) };
            }
            if wipe {
                wipe_registers();
            }
            // SAFETY: reads a register.
            unsafe { std::arch::asm!("movq {0}, xmm9", out(reg) low) };
            if std::arch::is_x86_feature_detected!("avx512f") {
                // SAFETY: reads a register of a processor that has it.
                unsafe { std::arch::asm!("vmovq {0}, xmm21", out(reg) high) };
            } else {
                high = low;
            }
            (low, high)
        }
        let secret = 0x1234_5678_9ABC_DEF0;
        assert_eq!(value_after(false, secret), (secret, secret), "the test sees the registers");
        assert_eq!(value_after(true, secret), (0, 0));
    }
}

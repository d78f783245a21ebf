//! Freed memory goes back to the kernel.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    /// malloc_trim(3)
    fn malloc_trim(pad: usize) -> std::ffi::c_int;
}

/// Gives every whole page of freed memory back to the kernel.
///
/// The C library keeps what is freed for the next allocation, in an arena for each few threads. A cache that is dropped, and filled
/// again by other threads, so takes its room once in each of them: memory grows with every turn until all arenas have had
/// theirs.
///
/// It takes the arenas' locks, one after the other, and milliseconds. Where the C library has no such call it does nothing.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call may be made at any time from any thread; it touches free memory only.
    unsafe {
        malloc_trim(0)
    };
}

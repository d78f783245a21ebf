//! Payload buffers of one export, used again and again: memory that was just given to the kernel and back costs a page
//! fault for every 4 KiB.
//!
//! Invariants:
//! - What is kept is bounded, and gone once the export is sealed: [`Buffers::close`] drops it, and what is in use is not
//!   taken back afterwards.
//! - A buffer may hold what an earlier request left there; who takes one fills all of it, or sends none of it.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::{BUFFERS_KEPT_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Buffers are kept by powers of two from a sector to the longest payload.
const SMALLEST: usize = 4096;
const SIZES: usize = (PAYLOAD_BYTES_MAX as usize / SMALLEST).ilog2() as usize + 1;

/// Buffers that wait to be used again.
#[derive(Default)]
pub(crate) struct Buffers {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_size: [Vec<Vec<u8>>; SIZES],
    bytes: usize,
    closed: bool,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("kept_bytes", &self.kept().bytes).finish_non_exhaustive()
    }
}

impl Buffers {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing that can panic runs under the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` bytes, of no particular content.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let class = class_of(len);
        let mut kept = self.kept();
        let found = kept.by_size[class].pop();
        if let Some(bytes) = &found {
            kept.bytes -= bytes.len();
        }
        drop(kept);
        let bytes = found.unwrap_or_else(|| vec![0; bytes_of(class)]);
        Buffer { bytes, len, home: Arc::clone(self) }
    }

    /// The export is sealed: nothing is kept any more.
    pub(crate) fn close(&self) {
        self.kept().closed = true;
        self.release();
    }

    /// Nobody is connected: nothing is kept for now.
    pub(crate) fn release(&self) {
        let mut kept = self.kept();
        let dropped = mem::take(&mut kept.by_size);
        kept.bytes = 0;
        drop(kept);
        drop(dropped);
    }
}

/// Memory that a payload of `len` bytes takes: none without a payload.
pub(crate) fn buffer_bytes(len: usize) -> usize {
    if len == 0 { 0 } else { bytes_of(class_of(len)) }
}

const fn bytes_of(class: usize) -> usize {
    SMALLEST << class
}

fn class_of(len: usize) -> usize {
    let class = len.div_ceil(SMALLEST).next_power_of_two().ilog2() as usize;
    assert!(class < SIZES, "a payload of {len} bytes was let through");
    class
}

/// Bytes of one payload.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl Buffer {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl fmt::Debug for Buffer {
    /// Says how much, never what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        let mut kept = self.home.kept();
        if !kept.closed && kept.bytes + bytes.len() <= BUFFERS_KEPT_BYTES_MAX {
            kept.bytes += bytes.len();
            kept.by_size[class_of(bytes.len())].push(bytes);
        } else {
            drop(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_up_to_the_longest_payload_has_a_buffer() {
        let buffers = Arc::new(Buffers::default());
        for len in [0, 1, 4096, 4097, 65_536, PAYLOAD_BYTES_MAX as usize - 1, PAYLOAD_BYTES_MAX as usize] {
            assert_eq!(buffers.take(len).as_bytes().len(), len);
        }
    }

    #[test]
    fn what_is_kept_is_used_again_and_bounded() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(5000);
        first.as_mut_bytes().fill(7);
        let memory = first.as_bytes().as_ptr();
        drop(first);
        assert_eq!(buffers.take(8192).as_bytes().as_ptr(), memory);
        let many: Vec<Buffer> = (0..200).map(|_| buffers.take(1 << 20)).collect();
        drop(many);
        assert!(buffers.kept().bytes <= BUFFERS_KEPT_BYTES_MAX);
        assert!(buffers.kept().bytes > BUFFERS_KEPT_BYTES_MAX / 2);
    }

    #[test]
    fn nothing_is_kept_once_the_export_is_sealed() {
        let buffers = Arc::new(Buffers::default());
        let in_use = buffers.take(4096);
        drop(buffers.take(1 << 20));
        buffers.close();
        drop(in_use);
        assert_eq!(buffers.kept().bytes, 0);
        assert!(buffers.kept().by_size.iter().all(Vec::is_empty));
    }
}

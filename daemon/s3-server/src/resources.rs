//! What requests share and must not use up: memory for bodies, threads that move chunks, copies.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{
    BODY_BYTES_FOR_SMALL_CHUNKS, BODY_BYTES_MAX, CHUNK_BYTES, CHUNK_WORKERS_MAX, COPIES_MAX,
    SMALL_CHUNK_BYTES,
};

/// Memory is counted in KiB, so that the semaphore's numbers hold it.
const UNIT: usize = 1024;

/// How long the chunks of one body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkLength(pub(crate) usize);

/// Shared by all requests. Each takes memory once, then at most one worker at a time: two requests never wait for each
/// other's.
#[derive(Clone, Debug)]
pub(crate) struct Resources {
    memory: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    copies: Arc<Semaphore>,
}

impl Resources {
    pub(crate) fn new() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(BODY_BYTES_MAX / UNIT)),
            workers: Arc::new(Semaphore::new(CHUNK_WORKERS_MAX)),
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
        }
    }

    /// Waits for room for `bytes` of a body.
    pub(crate) async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.div_ceil(UNIT).min(BODY_BYTES_MAX / UNIT)).expect("below the limit");
        Arc::clone(&self.memory).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    /// Memory for a body of any length: one chunk that moves and one that is filled. Small chunks when memory is short.
    pub(crate) async fn reserve_two_chunks(&self) -> (OwnedSemaphorePermit, ChunkLength) {
        let left = (self.memory.available_permits() * UNIT).saturating_sub(2 * CHUNK_BYTES);
        if left >= BODY_BYTES_FOR_SMALL_CHUNKS {
            let units = u32::try_from(2 * CHUNK_BYTES / UNIT).expect("a small number");
            if let Ok(permit) = Arc::clone(&self.memory).try_acquire_many_owned(units) {
                return (permit, ChunkLength(CHUNK_BYTES));
            }
        }
        (self.reserve(2 * SMALL_CHUNK_BYTES).await, ChunkLength(SMALL_CHUNK_BYTES))
    }

    /// Waits for a turn to move a chunk.
    pub(crate) async fn worker(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.workers).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits for a turn to copy.
    pub(crate) async fn copy(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.copies).acquire_owned().await.expect("the semaphore is never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_memory_is_short_bodies_move_in_small_chunks_and_still_move() {
        let resources = Resources::new();
        let mut taken = Vec::new();
        for _ in 0..(BODY_BYTES_MAX - BODY_BYTES_FOR_SMALL_CHUNKS) / (2 * CHUNK_BYTES) {
            let (memory, length) = resources.reserve_two_chunks().await;
            assert_eq!(length, ChunkLength(CHUNK_BYTES));
            taken.push(memory);
        }
        for _ in 0..BODY_BYTES_FOR_SMALL_CHUNKS / (2 * SMALL_CHUNK_BYTES) {
            let (memory, length) = resources.reserve_two_chunks().await;
            assert_eq!(length, ChunkLength(SMALL_CHUNK_BYTES));
            taken.push(memory);
        }
        assert_eq!(resources.memory.available_permits(), 0);
        taken.truncate(1);
        assert_eq!(resources.reserve_two_chunks().await.1, ChunkLength(CHUNK_BYTES));
    }
}

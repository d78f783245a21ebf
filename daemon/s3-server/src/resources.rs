//! What requests share and must not use up: memory for bodies, threads that move chunks, copies.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{
    BODY_BYTES_FOR_SMALL_CHUNKS, BODY_BYTES_MAX, CHUNK_BYTES, CHUNK_WORKERS_MAX, COPIES_MAX,
    DOCUMENTS_BYTES_MAX, FORMS_MAX, LISTED_BYTES, SMALL_CHUNK_BYTES,
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
    /// For what is held whole, apart from bodies that move: these may be as slow as they like.
    documents: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    forms: Arc<Semaphore>,
    spare: Arc<Spare>,
}

/// Memory that a request holds until its answer has been sent.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Mutex<OwnedSemaphorePermit>>);

impl Room {
    /// Gives back what `bytes` don't take.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        let mut permit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
        drop(permit.split(excess));
    }
}

/// Buffers of [`CHUNK_BYTES`] that wait for their next use. Large blocks that come and go on many threads would otherwise
/// stay with the allocator's arenas, several times over. Each is zeroed before it waits.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    /// `used`: how far the buffer was ever filled.
    fn keep(&self, mut bytes: Vec<u8>, used: usize) {
        if bytes.capacity() != CHUNK_BYTES {
            return;
        }
        bytes.clear();
        bytes.resize(used, 0);
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < BODY_BYTES_MAX / CHUNK_BYTES {
            spare.push(bytes);
        }
    }
}

/// A buffer for one chunk of a body; goes back where it came from.
#[derive(Debug)]
pub(crate) struct ChunkBuffer {
    pub(crate) bytes: Vec<u8>,
    /// How far it was filled before it was last emptied.
    used: usize,
    spare: Arc<Spare>,
}

impl ChunkBuffer {
    /// Empties it for the next chunk.
    pub(crate) fn clear(&mut self) {
        self.used = self.used.max(self.bytes.len());
        self.bytes.clear();
    }
}

impl AsRef<[u8]> for ChunkBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ChunkBuffer {
    fn drop(&mut self) {
        self.clear();
        self.spare.keep(std::mem::take(&mut self.bytes), self.used);
    }
}

impl Resources {
    pub(crate) fn new() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(BODY_BYTES_MAX / UNIT)),
            documents: Arc::new(Semaphore::new(DOCUMENTS_BYTES_MAX / UNIT)),
            workers: Arc::new(Semaphore::new(CHUNK_WORKERS_MAX)),
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
            forms: Arc::new(Semaphore::new(FORMS_MAX)),
            spare: Arc::default(),
        }
    }

    /// Waits for room for `bytes` of a body.
    pub(crate) async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.div_ceil(UNIT).min(BODY_BYTES_MAX / UNIT)).expect("below the limit");
        Arc::clone(&self.memory).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    /// Waits for room for a page of a listing with so many entries, from its rows to the XML.
    pub(crate) async fn page(&self, entries: usize) -> Room {
        Room(Arc::new(Mutex::new(self.document(entries * LISTED_BYTES).await)))
    }

    /// Waits for room for a document that is gathered.
    pub(crate) async fn document(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units =
            u32::try_from(bytes.div_ceil(UNIT).min(DOCUMENTS_BYTES_MAX / UNIT)).expect("below the limit");
        Arc::clone(&self.documents).acquire_many_owned(units).await.expect("the semaphore is never closed")
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

    /// An empty buffer for a chunk of `length`, of which memory was reserved.
    pub(crate) fn buffer(&self, length: ChunkLength) -> ChunkBuffer {
        let spare = (length.0 == CHUNK_BYTES)
            .then(|| self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).pop())
            .flatten();
        let mut bytes = spare.unwrap_or_else(|| Vec::with_capacity(length.0));
        bytes.clear();
        ChunkBuffer { bytes, used: 0, spare: Arc::clone(&self.spare) }
    }

    /// Lets go of every buffer that is not in use.
    pub(crate) fn release_buffers(&self) {
        let spare = std::mem::take(&mut *self.spare.0.lock().unwrap_or_else(PoisonError::into_inner));
        drop(spare);
    }

    /// Waits for a turn to move a chunk.
    pub(crate) async fn worker(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.workers).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// A turn to receive a browser's form.
    pub(crate) async fn form(&self) -> OwnedSemaphorePermit {
        let forms = Arc::clone(&self.forms);
        forms.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits for a turn to copy.
    pub(crate) async fn copy(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.copies).acquire_owned().await.expect("the semaphore is never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_hold_nothing_of_the_last_body() {
        let resources = Resources::new();
        let mut buffer = resources.buffer(ChunkLength(CHUNK_BYTES));
        buffer.bytes.extend_from_slice(b"somebody's secret");
        let place = buffer.bytes.as_ptr();
        drop(buffer);
        let spare = resources.spare.0.lock().unwrap()[0].clone();
        assert!(spare.iter().all(|byte| *byte == 0) && spare.len() == 17, "zeroed as far as it was used");
        let mut again = resources.buffer(ChunkLength(CHUNK_BYTES));
        assert_eq!(again.bytes.as_ptr(), place);
        assert!(again.bytes.is_empty());
        again.bytes.resize(100, 1);
        again.clear();
        again.bytes.push(1);
        drop(again);
        assert_eq!(resources.spare.0.lock().unwrap()[0].len(), 100, "zeroed beyond the last chunk");
        resources.release_buffers();
        assert!(resources.spare.0.lock().unwrap().is_empty());
        drop(resources.buffer(ChunkLength(SMALL_CHUNK_BYTES)));
        assert!(resources.spare.0.lock().unwrap().is_empty(), "small ones are left to the allocator");
    }

    #[tokio::test]
    async fn a_page_keeps_what_its_answer_takes() {
        let resources = Resources::new();
        let all = resources.documents.available_permits();
        let room = resources.page(1_000).await;
        assert_eq!(resources.documents.available_permits(), all - 1_000 * LISTED_BYTES / UNIT);
        let held = room.clone();
        room.shrink_to(10_000);
        assert_eq!(resources.documents.available_permits(), all - 10, "10,000 bytes are ten KiB");
        room.shrink_to(1 << 30);
        assert_eq!(resources.documents.available_permits(), all - 10, "it does not grow");
        drop(room);
        assert_eq!(resources.documents.available_permits(), all - 10);
        drop(held);
        assert_eq!(resources.documents.available_permits(), all);
    }

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

//! The threads that clients' data passes through, the runtime's and those that scrub: the third stage of a wipe ends with a wipe
//! of each.
//!
//! What they worked with stays on their stacks and in their registers, while they wait for the next connection: parts of an
//! object, a signing key, a TLS session's round keys. The allocator's zeros do not reach it.
//!
//! Invariants:
//! - Every such thread notes the generation that it was wiped at. One that begins has nothing of the thread that
//!   started it; one that ends wipes itself first.
//! - What outlives a wipe is polled on clean stacks ([`spawn_lasting`], [`spawn_clean`]): a value that moves to the heap takes along
//!   what was where it stood, in the bytes that it does not use, and a later wipe of the stack does not reach those.
//! - A runtime gives work to whichever thread it likes. So each that has come waits for the others, shortly, and the next
//!   piece of work finds one that has not.
//! - A thread of its own comes by itself: it looks whether it is [`is_late`] while it holds the lock under which it is woken.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, JoinSet};

/// How long a wiped thread waits for those that are not. They come at once unless they are busy.
const COMPANY_WAIT: Duration = Duration::from_millis(5);

/// Time between two calls to those that have not come; at first.
const CALL_EVERY: Duration = Duration::from_millis(1);

/// The same while a device holds one up: calling takes the others' time.
const CALL_EVERY_AT_LAST: Duration = Duration::from_millis(200);

/// The generation that each thread was last wiped at.
static THREADS: Mutex<Vec<Arc<AtomicU64>>> = Mutex::new(Vec::new());

/// A thread has been wiped.
static WIPED: Condvar = Condvar::new();

thread_local! {
    static MINE: OnceCell<Arc<AtomicU64>> = const { OnceCell::new() };
}

fn threads() -> MutexGuard<'static, Vec<Arc<AtomicU64>>> {
    // Nothing that can panic runs under the lock.
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runtime on which a node serves.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .thread_name("nightlatchd")
        .on_thread_start(begin)
        .on_thread_stop(end)
        .build()
}

fn begin() {
    // They are a copy of those of whoever needed one more thread.
    thread_wipe::registers();
    let noted = Arc::new(AtomicU64::new(0));
    threads().push(Arc::clone(&noted));
    MINE.with(|mine| drop(mine.set(noted)));
}

fn end() {
    // What a thread library keeps of an ended thread's stack is given to the next.
    thread_wipe::this_thread();
    MINE.with(|mine| {
        if let Some(mine) = mine.get() {
            threads().retain(|noted| !Arc::ptr_eq(noted, mine));
        }
    });
    WIPED.notify_all();
}

/// A thread of its own that clients' data passes through, from here on until this is dropped at its end.
#[derive(Debug)]
pub(crate) struct OfItsOwn(());

impl OfItsOwn {
    pub(crate) fn begin() -> Self {
        begin();
        Self(())
    }
}

impl Drop for OfItsOwn {
    fn drop(&mut self) {
        end();
    }
}

/// Whether this thread has not been wiped since `generation`.
pub(crate) fn is_late(generation: u64) -> bool {
    MINE.with(|mine| mine.get().is_some_and(|mine| mine.load(Ordering::SeqCst) < generation))
}

/// Starts a task that outlives wipes. It begins each time on a clean stack, and so keeps nothing of what clients' tasks left there.
pub(crate) fn spawn_lasting(tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(thread_wipe::on_clean_stack(task));
}

/// Runs work that may wait on a thread for that, on a clean stack: for what the node keeps of it beyond a wipe.
pub(crate) fn spawn_clean<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    tokio::task::spawn_blocking(move || thread_wipe::begin_clean(work))
}

/// Threads that have not been wiped since `generation`.
fn late(threads: &[Arc<AtomicU64>], generation: u64) -> usize {
    threads.iter().filter(|noted| noted.load(Ordering::SeqCst) < generation).count()
}

/// Wipes this thread, then keeps it busy for a moment, so that the runtime turns to another.
pub(crate) fn visit(generation: u64) {
    thread_wipe::this_thread();
    let threads = threads();
    MINE.with(|mine| {
        if let Some(mine) = mine.get() {
            mine.fetch_max(generation, Ordering::SeqCst);
        }
    });
    WIPED.notify_all();
    drop(WIPED.wait_timeout_while(threads, COMPANY_WAIT, |threads| late(threads, generation) > 0));
}

/// Wipes every thread of this runtime, its blocking ones too, and waits for those of their own. Returns once all are wiped: one
/// that is held up by a device is waited for.
pub(crate) async fn wipe_all(generation: u64) {
    let mut rest = CALL_EVERY;
    loop {
        let late = late(&threads(), generation);
        if late == 0 {
            return;
        }
        // Some of them may be threads of their own, which come by themselves.
        for _ in 0..late {
            drop(tokio::spawn(async move { visit(generation) }));
            drop(tokio::task::spawn_blocking(move || visit(generation)));
        }
        tokio::time::sleep(rest).await;
        // Some seconds have passed once it is longest.
        rest = (rest + rest / 16 + Duration::from_micros(50)).min(CALL_EVERY_AT_LAST);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn idle_and_busy_threads_are_all_wiped_and_the_busy_are_waited_for() {
        let runtime = runtime().unwrap();
        let (end, ends) = channel::<()>();
        let (began, has_begun) = channel();
        // Some blocking threads that are idle afterwards, and one that is not.
        runtime.block_on(async {
            for idle in [(); 8].map(|()| tokio::task::spawn_blocking(|| std::thread::sleep(CALL_EVERY))) {
                idle.await.unwrap();
            }
        });
        runtime.spawn_blocking(move || {
            began.send(()).unwrap();
            let _ = ends.recv();
        });
        has_begun.recv().unwrap();
        let wiping = runtime.spawn(wipe_all(1));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while late(&threads(), 1) > 1 {
            assert!(std::time::Instant::now() < deadline, "{} late", late(&threads(), 1));
            std::thread::yield_now();
        }
        assert!(!wiping.is_finished(), "one thread is still at work");
        drop(end);
        runtime.block_on(wiping).unwrap();
        assert_eq!(late(&threads(), 1), 0);
        drop(runtime);
        assert_eq!(threads().len(), 0, "threads that have ended are forgotten");
        a_thread_of_its_own_is_waited_for_until_it_has_come();
    }

    /// Part of the test above: all tests of this process share the list.
    fn a_thread_of_its_own_is_waited_for_until_it_has_come() {
        let (go_on, may_go_on) = channel::<()>();
        let (began, has_begun) = channel();
        let thread = std::thread::spawn(move || {
            let _own = OfItsOwn::begin();
            began.send(()).unwrap();
            may_go_on.recv().unwrap();
            assert!(is_late(2));
            visit(2);
            assert!(!is_late(2) && is_late(3));
        });
        has_begun.recv().unwrap();
        let runtime = runtime().unwrap();
        let wiping = runtime.spawn(wipe_all(2));
        std::thread::sleep(COMPANY_WAIT * 4);
        assert!(!wiping.is_finished(), "it has not come");
        go_on.send(()).unwrap();
        runtime.block_on(wiping).unwrap();
        thread.join().unwrap();
        drop(runtime);
        assert_eq!(threads().len(), 0);
    }
}

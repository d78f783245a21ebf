//! Jobs of one export on threads that may wait for a device: as many threads as there is waiting to do, not one per
//! job.
//!
//! Waking a thread costs more than a read that finds its sectors in memory. So a job wakes a thread only if none is
//! on its way, and a thread that takes a job and leaves others behind wakes the next. Where jobs are short, few
//! threads run and each takes many; where they wait for a disk, the chain grows until every job has a thread.
//!
//! Invariants:
//! - While a job is queued, a thread is running or on its way: none is forgotten.
//! - An export always gets one thread. More come out of a budget that all exports share, so one that hangs on a dead
//!   disk can't stop the others.
//! - A job that panics takes neither its thread nor the jobs behind it along.
//! - Connections take turns: whoever has one job waiting waits for one of each other, however many those have.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A queue of jobs and the threads that work on it.
#[derive(Debug)]
pub(crate) struct Lane<J> {
    state: Mutex<State<J>>,
    /// Threads beyond the first, shared by all lanes of the server.
    extra_threads: Arc<Semaphore>,
}

#[derive(Debug)]
struct State<J> {
    jobs: Turns<J>,
    /// Threads that run or are on their way.
    threads: usize,
    /// A thread is on its way and has not looked at the queue yet.
    waking: bool,
}

/// Something to do on a thread that may wait.
pub(crate) trait Job: Send + 'static {
    /// Tells those of one connection from those of others.
    fn connection(&self) -> usize;

    fn run(self);
}

/// The jobs that wait, by connection: those of one in their order, connections in turn.
#[derive(Debug)]
struct Turns<J> {
    /// Whose turn is next stands first. No queue is empty. As many as there are connections at most.
    queues: VecDeque<(usize, VecDeque<J>)>,
    /// An empty queue that has room.
    spare: VecDeque<J>,
}

impl<J: Job> Turns<J> {
    fn new() -> Self {
        Self { queues: VecDeque::new(), spare: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    fn push(&mut self, job: J) {
        let of = job.connection();
        match self.queues.iter_mut().find(|(other, _)| *other == of) {
            Some((_, queue)) => queue.push_back(job),
            None => {
                let mut queue = mem::take(&mut self.spare);
                queue.push_back(job);
                self.queues.push_back((of, queue));
            }
        }
    }

    fn pop(&mut self) -> Option<J> {
        let (of, mut queue) = self.queues.pop_front()?;
        let job = queue.pop_front();
        match queue.is_empty() {
            true => self.spare = queue,
            false => self.queues.push_back((of, queue)),
        }
        job
    }
}

impl<J: Job> Lane<J> {
    pub(crate) fn new(extra_threads: Arc<Semaphore>) -> Self {
        let state = State { jobs: Turns::new(), threads: 0, waking: false };
        Self { state: Mutex::new(state), extra_threads }
    }

    /// Queues a job. Called inside a runtime, whose blocking threads it uses.
    pub(crate) fn submit(self: &Arc<Self>, job: J) {
        let mut state = self.state();
        state.jobs.push(job);
        self.wake_one(state);
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a thread where one is needed and allowed.
    fn wake_one(self: &Arc<Self>, mut state: MutexGuard<'_, State<J>>) {
        if state.waking || state.jobs.is_empty() {
            return;
        }
        let permit = if state.threads == 0 {
            None
        } else {
            match Arc::clone(&self.extra_threads).try_acquire_owned() {
                Ok(permit) => Some(permit),
                // The threads that run come back for the rest.
                Err(_) => return,
            }
        };
        state.waking = true;
        state.threads += 1;
        drop(state);
        let lane = Arc::clone(self);
        drop(tokio::task::spawn_blocking(move || lane.work(permit)));
    }

    fn work(self: &Arc<Self>, _permit: Option<OwnedSemaphorePermit>) {
        self.state().waking = false;
        loop {
            let mut state = self.state();
            let Some(job) = state.jobs.pop() else {
                state.threads -= 1;
                return;
            };
            self.wake_one(state);
            // A job answers for its own panic; the lane goes on.
            drop(catch_unwind(AssertUnwindSafe(|| job.run())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, mpsc};

    use super::*;

    struct Call(usize, Box<dyn FnOnce() + Send>);

    impl Job for Call {
        fn connection(&self) -> usize {
            self.0
        }

        fn run(self) {
            (self.1)();
        }
    }

    fn lane(extra_threads: usize) -> Arc<Lane<Call>> {
        Arc::new(Lane::new(Arc::new(Semaphore::new(extra_threads))))
    }

    #[tokio::test]
    async fn jobs_that_wait_for_each_other_all_get_a_thread() {
        const JOBS: usize = 16;
        let lane = lane(JOBS - 1);
        let barrier = Arc::new(Barrier::new(JOBS));
        let (done, finished) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..JOBS {
            let (barrier, done) = (Arc::clone(&barrier), done.clone());
            lane.submit(Call(
                0,
                Box::new(move || {
                    barrier.wait();
                    done.send(()).unwrap();
                }),
            ));
        }
        drop(done);
        let mut finished = finished;
        for _ in 0..JOBS {
            finished.recv().await.expect("every job runs beside every other");
        }
    }

    #[tokio::test]
    async fn a_hanging_export_leaves_others_a_thread_and_all_jobs_run() {
        let extra = Arc::new(Semaphore::new(1));
        let hanging = Arc::new(Lane::new(Arc::clone(&extra)));
        let healthy = Arc::new(Lane::new(extra));
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            let (released, ran) = (Arc::clone(&released), Arc::clone(&ran));
            hanging.submit(Call(
                0,
                Box::new(move || {
                    released.lock().unwrap().recv().unwrap();
                    ran.fetch_add(1, Ordering::SeqCst);
                }),
            ));
        }
        let (done, finished) = tokio::sync::oneshot::channel();
        healthy.submit(Call(0, Box::new(move || done.send(()).unwrap())));
        finished.await.unwrap();

        for _ in 0..10 {
            release.send(()).unwrap();
        }
        let (done, finished) = tokio::sync::oneshot::channel();
        hanging.submit(Call(0, Box::new(move || done.send(()).unwrap())));
        finished.await.unwrap();
        assert!(ran.load(Ordering::SeqCst) >= 9, "the last may still run beside the eleventh");
    }

    #[tokio::test]
    async fn a_connection_with_one_job_waits_for_one_of_each_other_however_many_those_have() {
        const CROWD: usize = 20;
        const EACH: usize = 256;
        let lane = lane(0);
        let (release, released) = mpsc::channel::<()>();
        let (began, beginning) = tokio::sync::oneshot::channel();
        lane.submit(Call(
            0,
            Box::new(move || {
                began.send(()).unwrap();
                released.recv().unwrap();
            }),
        ));
        beginning.await.unwrap();
        let (ran, mut order) = tokio::sync::mpsc::unbounded_channel();
        let submit = |connection: usize, nth: usize| {
            let ran = ran.clone();
            lane.submit(Call(connection, Box::new(move || ran.send((connection, nth)).unwrap())));
        };
        for nth in 0..EACH {
            (1..=CROWD).for_each(|connection| submit(connection, nth));
        }
        submit(CROWD + 1, 0);
        release.send(()).unwrap();
        let mut all = Vec::new();
        while all.len() < CROWD * EACH + 1 {
            all.push(order.recv().await.unwrap());
        }
        let place = all.iter().position(|(connection, _)| *connection == CROWD + 1).unwrap();
        assert!(place <= CROWD, "{place} jobs of others went before");
        for connection in 1..=CROWD {
            let own = all.iter().filter(|(other, _)| *other == connection).map(|(_, nth)| *nth);
            assert!(own.eq(0..EACH), "those of one connection keep their order");
        }
    }

    #[tokio::test]
    async fn a_panic_ends_its_job_only() {
        let lane = lane(0);
        lane.submit(Call(0, Box::new(|| panic!("a job that fails"))));
        let (done, finished) = tokio::sync::oneshot::channel();
        lane.submit(Call(0, Box::new(move || done.send(()).unwrap())));
        finished.await.unwrap();
    }
}

//! The twin of a battery-backed clock, for the source that compares the kernel's clock with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The twin of a battery-backed clock: counts seconds in a file until it is dropped.
#[derive(Debug)]
pub struct BatteryClock {
    ahead_s: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    ticking: Option<JoinHandle<()>>,
}

impl BatteryClock {
    /// Starts to count in `file`, in seconds since 1970, as the kernel shows a clock's.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn start(file: PathBuf) -> Self {
        let (ahead_s, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ahead, stopped, begun) = (Arc::clone(&ahead_s), Arc::clone(&stop), Instant::now());
        let tick = move || {
            let seconds = 1_700_000_000 + begun.elapsed().as_secs() + ahead.load(Ordering::SeqCst);
            // Whole at every moment, as the kernel's is.
            let next = file.with_extension("next");
            std::fs::write(&next, format!("{seconds}\n")).expect("a recorded file");
            std::fs::rename(next, &file).expect("a recorded file");
        };
        tick();
        let ticking = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                tick();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { ahead_s, stop, ticking: Some(ticking) }
    }

    /// As after so many seconds in which the machine stood still and this clock did not.
    pub fn go_ahead(&self, seconds: u64) {
        self.ahead_s.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Drop for BatteryClock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(ticking) = self.ticking.take() {
            let _ = ticking.join();
        }
    }
}
